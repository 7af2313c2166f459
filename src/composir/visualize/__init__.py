"""What a model does with a picture and a sentence, drawn: heat maps on the patches, and what it retrieves."""

from composir.visualize.answers import Answer, Hit, answer, gallery_of_folder, gallery_of_splits
from composir.visualize.drawing import draw
from composir.visualize.maps import MAPS, Map
from composir.visualize.page import write_page

__all__ = [
    "MAPS",
    "Answer",
    "Hit",
    "Map",
    "answer",
    "draw",
    "gallery_of_folder",
    "gallery_of_splits",
    "write_page",
]
