"""Fifty photographs with free licences (``CREDITS.md``), for a first search without pictures of one's own."""

from pathlib import Path

SAMPLES = Path(__file__).parent
"""The folder that they lie in."""
