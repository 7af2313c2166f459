"""What takes how long and how much memory: this package and the published way, compared within one run."""

from composir.benchmark.device import benchmark_device
from composir.benchmark.evaluate import benchmark_evaluate
from composir.benchmark.features import benchmark_features
from composir.benchmark.feed import benchmark_feed
from composir.benchmark.gate import benchmark_gate
from composir.benchmark.methods import benchmark_methods
from composir.benchmark.search import benchmark_search
from composir.benchmark.train import benchmark_train

__all__ = [
    "benchmark_device",
    "benchmark_evaluate",
    "benchmark_features",
    "benchmark_feed",
    "benchmark_gate",
    "benchmark_methods",
    "benchmark_search",
    "benchmark_train",
]
