"""``photos``: composed search in real photographs without training, hub or GPU. ``embedder`` is the model."""
