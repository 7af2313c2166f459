"""Reading data sets and images: annotations to ``Split`` and ``Query``, image files to model input."""

from composir.data.check import Left, check_dataset, check_images, require_images, stats, without_missing_images
from composir.data.datasets import DATASETS, find_dataset, load_splits
from composir.data.images import read_image
from composir.data.images.colours import to_rgb
from composir.data.transforms import TRANSFORMS, normalise, squarepad, targetpad, to_array
from composir.data.triplets import Query, Split

__all__ = [
    "DATASETS",
    "TRANSFORMS",
    "Left",
    "Query",
    "Split",
    "check_dataset",
    "check_images",
    "find_dataset",
    "load_splits",
    "normalise",
    "read_image",
    "require_images",
    "squarepad",
    "stats",
    "targetpad",
    "to_array",
    "to_rgb",
    "without_missing_images",
]
