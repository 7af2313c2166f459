"""``photos``: composed search in real photographs without training, hub or GPU."""

from composir.models.photos.embedder import ABOUT, PHOTOS, PhotosEmbedder

__all__ = ["ABOUT", "PHOTOS", "PhotosEmbedder"]
