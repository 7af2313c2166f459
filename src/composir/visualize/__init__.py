"""What a model does with a picture and a sentence, drawn: heat maps on patches, a head's gate, what is retrieved."""

from composir.visualize.answers import Answer, Hit, answer, gallery_of_folder, gallery_of_splits
from composir.visualize.drawing import draw, draw_head
from composir.visualize.heads import HeadAnswer, answer_head
from composir.visualize.maps import MAPS, Map
from composir.visualize.page import write_head_page, write_page

__all__ = [
    "MAPS",
    "Answer",
    "HeadAnswer",
    "Hit",
    "Map",
    "answer",
    "answer_head",
    "draw",
    "draw_head",
    "gallery_of_folder",
    "gallery_of_splits",
    "write_head_page",
    "write_page",
]
