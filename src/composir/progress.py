"""Who listens to work that takes long."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and of how much."""
Counted = Callable[[int, int], None]
"""The same of work that is one thing: how much is done, and of how much."""
