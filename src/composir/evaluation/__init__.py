"""Similarity, ranking, metrics and what a person sees of them: one definition of each."""

from composir.evaluation.compare import Comparison, Difference, Run, Standing, compare, standings
from composir.evaluation.evaluator import Embedder, evaluate, rank_embeddings, rank_splits
from composir.evaluation.metrics import (
    PROTOCOLS,
    MetricProtocol,
    average_precision,
    averages,
    check_scorable,
    intervals,
    metric_label,
    per_query,
    protocol_of,
    recalls,
)
from composir.evaluation.page import write_page
from composir.evaluation.ranking import DEPTH, PADDING, Ranking, rank, rank_blocks
from composir.evaluation.rerank import Matcher, rerank
from composir.evaluation.result import COMPOSED, KINDS, Audit, Gain, Result, measure
from composir.evaluation.saved import Saved, find_rankings, load_groups, load_rankings, save_rankings
from composir.evaluation.sheet import Cell, Row, contact_sheet, grid
from composir.evaluation.signature import signature_fields, signature_text
from composir.evaluation.significance import OverSeeds, over_seeds
from composir.evaluation.similarity import similarity
from composir.evaluation.submission import (
    check_predictions,
    predictions_hash,
    read_predictions,
    require_test_server,
    write_submission,
)
from composir.evaluation.tables import audit_lines, comparison_tables, rerank_lines, table
from composir.progress import Progress

__all__ = [
    "COMPOSED",
    "DEPTH",
    "KINDS",
    "PADDING",
    "PROTOCOLS",
    "Audit",
    "Cell",
    "Comparison",
    "Difference",
    "Embedder",
    "Gain",
    "Matcher",
    "MetricProtocol",
    "OverSeeds",
    "Progress",
    "Ranking",
    "Result",
    "Row",
    "Run",
    "Saved",
    "Standing",
    "audit_lines",
    "average_precision",
    "averages",
    "check_predictions",
    "check_scorable",
    "compare",
    "comparison_tables",
    "contact_sheet",
    "evaluate",
    "find_rankings",
    "grid",
    "intervals",
    "load_groups",
    "load_rankings",
    "measure",
    "metric_label",
    "over_seeds",
    "per_query",
    "predictions_hash",
    "protocol_of",
    "rank",
    "rank_blocks",
    "rank_embeddings",
    "rank_splits",
    "read_predictions",
    "recalls",
    "require_test_server",
    "rerank",
    "rerank_lines",
    "save_rankings",
    "signature_fields",
    "signature_text",
    "similarity",
    "standings",
    "table",
    "write_page",
    "write_submission",
]
