"""Ranges of numbers that several settings share; what lies beyond them is a slip of the pen."""

MAX_SEED = 2**63 - 1
"""What torch and TOML hold."""
MAX_COUNT = 1_000_000_000
MAX_WORKERS = 1024
"""Threads."""
MAX_RATE = 1000
"""Of learning rates and of weights of losses."""
