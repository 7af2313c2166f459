"""Similarity, ranking, metrics and what a person sees of them: one definition of each."""

from composir.evaluation.evaluator import Embedder, Progress, evaluate, rank_embeddings, rank_splits
from composir.evaluation.metrics import (
    METRIC_VERSION,
    PROTOCOLS,
    MetricProtocol,
    average_precision,
    averages,
    check_scorable,
    intervals,
    per_query,
    protocol_of,
)
from composir.evaluation.ranking import DEPTH, PADDING, Ranking, rank, rank_blocks
from composir.evaluation.report import Cell, Row, contact_sheet, grid, metric_label, table
from composir.evaluation.result import KINDS, Audit, Gain, Result, measure
from composir.evaluation.signature import signature_fields, signature_text
from composir.evaluation.similarity import similarity

__all__ = [
    "DEPTH",
    "KINDS",
    "METRIC_VERSION",
    "PADDING",
    "PROTOCOLS",
    "Audit",
    "Cell",
    "Embedder",
    "Gain",
    "MetricProtocol",
    "Progress",
    "Ranking",
    "Result",
    "Row",
    "average_precision",
    "averages",
    "check_scorable",
    "contact_sheet",
    "evaluate",
    "grid",
    "intervals",
    "measure",
    "metric_label",
    "per_query",
    "protocol_of",
    "rank",
    "rank_blocks",
    "rank_embeddings",
    "rank_splits",
    "signature_fields",
    "signature_text",
    "similarity",
    "table",
]
