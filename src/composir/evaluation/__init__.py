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
from composir.evaluation.report import Cell, Row, audit_lines, contact_sheet, grid, metric_label, table
from composir.evaluation.result import KINDS, Audit, Gain, Result, measure
from composir.evaluation.saved import Saved, load_rankings, save_rankings
from composir.evaluation.signature import signature_fields, signature_text
from composir.evaluation.similarity import similarity
from composir.evaluation.submission import (
    check_predictions,
    predictions_hash,
    read_predictions,
    require_test_server,
    write_submission,
)

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
    "Saved",
    "audit_lines",
    "average_precision",
    "averages",
    "check_predictions",
    "check_scorable",
    "contact_sheet",
    "evaluate",
    "grid",
    "intervals",
    "load_rankings",
    "measure",
    "metric_label",
    "per_query",
    "predictions_hash",
    "protocol_of",
    "rank",
    "rank_blocks",
    "rank_embeddings",
    "rank_splits",
    "read_predictions",
    "require_test_server",
    "save_rankings",
    "signature_fields",
    "signature_text",
    "similarity",
    "table",
    "write_submission",
]
