"""The model and its parts: towers, gated fusion, Q-Former, checkpoints."""
