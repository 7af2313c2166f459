"""What takes how long and how much memory: this package and the published way, compared within one run."""

from composir.benchmark.evaluate import benchmark_evaluate
from composir.benchmark.search import benchmark_search

__all__ = ["benchmark_evaluate", "benchmark_search"]
