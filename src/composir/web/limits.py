"""What one request may ask for, and how many may wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a server: whatever is beyond them is refused before it costs anything."""

    max_upload_bytes: int = 20 * 2**20
    """Of an uploaded picture; refused by the request's length, before it is read."""
    max_pixels: int = 50_000_000
    """Of an uploaded picture, width times height; refused before a pixel is decoded."""
    max_waiting: int = 64
    """Searches that are read, embedded and answered at one time; the next is told to come back (503)."""
    max_batch: int = 16
    """Queries that go through the model together."""
    max_seconds: float = 30.0
    """How long a search may wait for its answer, before it is told to come back (503)."""
    cached_bytes: int = 64 * 2**20
    """Of re-encoded pictures kept in memory."""
    reload_seconds: float = 2.0
    """How often the index on disk is looked at."""


MAX_TEXT = 1_000
"""Characters of a sentence; models read some 32 words."""
MAX_SENTENCE = 200
"""Characters of each sentence of a list of them."""
MAX_SENTENCES = 8
"""Of a list, and as many further references."""
MAX_MARKS = 50
"""Pictures to be more like, and as many to be less like."""
MAX_SHOWN = 100
"""Pictures of one search that a choice names."""
MAX_PATTERN = 200
"""Characters of a path pattern."""
MAX_TOP_K = 200
MAX_PAGE = 200
"""Pictures that are listed at once."""
MIN_KEY = 16
"""Characters of a key: long enough that nobody guesses it."""
RETRY_SECONDS = 2
"""After which a refused search is worth a new try."""
