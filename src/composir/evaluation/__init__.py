"""Similarity, ranking, metrics and what a person sees of them: one definition of each."""

from composir.evaluation.evaluator import Embedder, Progress, Result, evaluate
from composir.evaluation.metrics import (
    METRIC_VERSION,
    PROTOCOLS,
    MetricProtocol,
    MetricValues,
    averages,
    check_scorable,
    evaluate_rankings,
    intervals,
    per_query,
    protocol_of,
)
from composir.evaluation.ranking import DEPTH, PADDING, Ranking, rank, rank_blocks, target_ranks
from composir.evaluation.report import Cell, Row, contact_sheet, grid, metric_label, table
from composir.evaluation.signature import signature_fields, signature_text
from composir.evaluation.similarity import similarity

__all__ = [
    "DEPTH",
    "METRIC_VERSION",
    "PADDING",
    "PROTOCOLS",
    "Cell",
    "Embedder",
    "MetricProtocol",
    "MetricValues",
    "Progress",
    "Ranking",
    "Result",
    "Row",
    "averages",
    "check_scorable",
    "contact_sheet",
    "evaluate",
    "evaluate_rankings",
    "grid",
    "intervals",
    "metric_label",
    "per_query",
    "protocol_of",
    "rank",
    "rank_blocks",
    "signature_fields",
    "signature_text",
    "similarity",
    "table",
    "target_ranks",
]
