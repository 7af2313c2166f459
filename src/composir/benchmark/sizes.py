"""The published sizes that synthetic data are made in."""

NUM_VECTORS, DIM = 32, 256
"""Target embeddings of the published model (SPRC)."""
