"""``photos``: pictures and sentences as vectors, and how the two are composed.

ConSE (Norouzi et al., arXiv 1312.5650) carries a picture into the space of a sentence encoder: the mean of the vectors
of ImageNet's class names, each weighted by its probability. Beside that meaning stand the probabilities themselves,
compared by the Bhattacharyya coefficient, the colours of the thing, and how white its ground is. Nothing is trained.
Figures, and what was tried and left out: docs/photos.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize, softmax

from composir.models.backbones.mini import lite0_file, minilm_file
from composir.models.embedder import VectorComposer
from composir.models.identity import files_hash
from composir.models.photos.classifier import Classifier, view
from composir.models.photos.colours import COLOURS
from composir.models.photos.ground import cut_out, look_at, look_vectors
from composir.models.photos.minilm import WIDTH, embed, minilm_scripts
from composir.models.photos.sentences import Reading, main_part, read_sentence
from composir.models.photos.vocabulary import (
    CLASS_VECTORS,
    CLASSES,
    FOLDER,
    NOUNS,
    NUM_CLASSES,
    find_senses,
    head_of,
    read_class_vectors,
    read_classes,
)
from composir.models.vision import TOWER_BATCH

PHOTOS = "photos"
"""The name under which a model is asked for."""
ABOUT = (
    "knows things in photographs by English names, and eleven colours; "
    "not people, counts, actions, relations, text in pictures or other languages"
)
SIDE = 640
"""Pixels of the longer side of what is looked at of a picture."""
VERSION = 1
"""Of the constants and rules: vectors of another one are not comparable."""

MEANING_TEMPERATURE, NUM_MEANT = 2.0, 30
"""Of the probabilities that weight the class names, and how many of the largest are kept."""
SENTENCE_TEMPERATURE = 0.035
"""Of the probabilities of classes that a phrase has, by its cosine with each."""
SENSES_WEIGHT = 0.8
"""Of a noun's definitions beside the phrase itself."""
LEAVE = 0.3
"""What is to be left out is taken off with this weight."""
CLASSES_ASKED = 0.4
"""Of the classes that a phrase stands for, beside its meaning."""
COLOUR_ASKED, COLOUR_OF_NAMED, COLOUR_LEFT = 1.7, 0.6, 0.3
"""Of a colour asked for, of one beside a thing that is named as well, and of one to be left out."""
GROUND_ASKED = 1.0
SURE = 0.8
"""Probability of a class above which its name alone is told."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """How much of each of the reference's parts goes into a query."""

    meaning: float
    classes: float
    colours: float
    ground: float


ALONE = _Kept(meaning=1.0, classes=0.8, colours=0.15, ground=0.0)
"""Without a sentence."""
DESCRIBED = _Kept(meaning=0.7, classes=0.8, colours=0.15, ground=0.05)
"""Where the sentence speaks of the reference's own thing."""
REPLACED = _Kept(meaning=0.1, classes=0.2, colours=0.15, ground=0.35)
"""Where it names another thing."""

PARTS = (WIDTH, NUM_CLASSES, len(COLOURS), 2)
"""Sizes of the parts of a vector: meaning, classes, colours, ground."""
DIM = sum(PARTS)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture as the model takes it in."""

    views: tuple[UInt8[np.ndarray, "3 224 224"], ...]
    """The whole of it and, on a plain ground, its thing."""
    colours: Float[np.ndarray, " colours"]
    white: float


class PhotosEmbedder(VectorComposer):
    """The model on pictures, image files and sentences; a picture is one vector."""

    kind = backbone = PHOTOS
    about = ABOUT
    batch_size = TOWER_BATCH
    side = SIDE
    has_words = True

    @cached_property
    def dim(self) -> int:
        """Length of its vectors."""
        return DIM

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._classifier = Classifier().to(device)
        self._names = [one.name for one in read_classes()]
        self._class_vectors = read_class_vectors()
        self._centre = self._class_vectors.mean(dim=0)
        self._say = lru_cache(maxsize=1024)(self._compute_say)

    def prepare(self, picture: Image.Image) -> Prepared:
        """Return an RGB picture as ``embed_prepared`` takes it in."""
        small = shrink(picture)
        ground = look_at(small)
        thing = cut_out(small, ground)
        views = (view(small),) if thing is None else (view(small), view(thing))
        return Prepared(views, ground.colours, ground.white)

    @torch.no_grad()
    def embed_prepared(self, prepared: Sequence[Prepared]) -> Float[Tensor, "batch dim"]:
        """Return the L2-normalised vector of every picture, whatever stands beside it."""
        logits = self._classifier.logits([one.views for one in prepared]).cpu()
        likely, places = softmax(logits / MEANING_TEMPERATURE, dim=-1).topk(NUM_MEANT, dim=-1)
        centred = self._class_vectors[places] - self._centre  # (batch, meant, width)
        meaning = normalize((likely[..., None] * centred).sum(dim=1), dim=-1)
        classes = softmax(logits, dim=-1).sqrt()
        colours, ground = look_vectors([one.colours for one in prepared], [one.white for one in prepared])
        return torch.cat([meaning, classes, colours, ground], dim=-1) / len(PARTS) ** 0.5

    def compose(self, reference: Float[Tensor, " dim"] | None, text: str) -> Float[Tensor, " dim"]:
        """Return the L2-normalised query of a reference's vector and a sentence; zeros where neither says anything."""
        reading = read_sentence(text)
        kept = ALONE if not reading.is_usable else DESCRIBED if reading.keeps else REPLACED
        meaning, classes, colours, ground = (torch.zeros(size) for size in PARTS)
        for phrase, weight in ((reading.find, 1.0), (reading.leave, -LEAVE)):
            if phrase:
                means, stands_for = self._say(phrase)
                meaning += weight * means
                classes += weight * CLASSES_ASKED * stands_for
        if reference is not None:
            own = (reference * len(PARTS) ** 0.5).split(PARTS)
            meaning += kept.meaning * own[0]
            classes += kept.classes * own[1]
            colours += kept.colours * own[2]
            ground += kept.ground * own[3]
        meaning = normalize(meaning, dim=0)
        if reading.colours:  # then not the reference's own
            weight = COLOUR_OF_NAMED if reading.find else COLOUR_ASKED
            colours = weight * normalize(_marked(reading.colours), dim=0) - colours
        colours -= COLOUR_LEFT * _marked(reading.no_colours)
        if reading.white_ground:
            ground = torch.tensor([0.0, GROUND_ASKED])
        return normalize(torch.cat([meaning, classes, colours, ground]), dim=0)

    def pairs_of_vectors(self, vectors: Float[Tensor, "batch dim"], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query of every picture's vector with its sentence."""
        return torch.stack([self.compose(*pair) for pair in zip(vectors, texts, strict=True)])

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query of every sentence."""
        return torch.stack([self.compose(None, text) for text in texts])

    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "batch 384"]:
        """Return MiniLM's vector of every sentence, whether or not the rules understand it: what a head reads."""
        return torch.stack([embed(text) for text in texts])

    def read(self, text: str) -> Reading:
        """Return how the rules read a sentence."""
        return read_sentence(text)

    def seen(self, vector: Float[np.ndarray, " dim"]) -> str:
        """Return the three likeliest classes of a picture's vector, and its colours of more than a fifth."""
        _, classes, colours, _ = np.split(np.asarray(vector, np.float32), np.cumsum(PARTS)[:-1])
        names = [self._names[place] for place in np.argsort(-classes)[:3]]
        shares = colours**2 / max(float((colours**2).sum()), 1e-12)
        order = np.argsort(-shares)
        return f"{', '.join(names)}; {', '.join(COLOURS[place] for place in order if shares[place] > 0.2)}"

    def named(self, vector: Float[np.ndarray, " dim"]) -> tuple[str, str] | None:
        """Return the thing in a picture of this vector and its colour; None where no class is as likely as ``SURE``."""
        _, classes, colours, _ = np.split(np.asarray(vector, np.float32), np.cumsum(PARTS)[:-1])
        place = int(classes.argmax())
        is_sure = classes[place] ** 2 * len(PARTS) > SURE
        return (self._names[place], COLOURS[int(colours.argmax())]) if is_sure else None

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the picture, small: the model looks at the whole, at its thing and at its border."""
        return shrink(picture)

    @cached_property
    def scripts(self) -> frozenset[str]:
        """Those of MiniLM, by which a head reads sentences."""
        return minilm_scripts()

    def weights_hash(self) -> str:
        """Return what identifies the weights, the words and the rules."""
        files = lite0_file(), minilm_file(), FOLDER / CLASSES, FOLDER / CLASS_VECTORS, FOLDER / NOUNS
        return f"{PHOTOS}-{files_hash(VERSION, files)}"

    def _compute_say(self, phrase: str) -> tuple[Float[Tensor, " width"], Float[Tensor, " classes"]]:
        """Return the meaning of a phrase, and the square roots of the probabilities of classes that it stands for."""
        vector = normalize(embed(phrase) + embed(f"a photo of a {phrase}"), dim=0)
        senses = find_senses(phrase) or find_senses(head_of(main_part(phrase)))
        if senses:
            known = sum(embed(sense) / place for place, sense in enumerate(senses, start=1))
            vector = normalize(vector + SENSES_WEIGHT * normalize(torch.as_tensor(known), dim=0), dim=0)
        likely = softmax(self._class_vectors @ vector / SENTENCE_TEMPERATURE, dim=0)
        return normalize(vector - self._centre, dim=0), likely.sqrt()


def shrink(picture: Image.Image) -> Image.Image:
    """Return a picture of at most ``SIDE`` pixels a side: itself where it is no larger."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    return small


def _marked(colours: Sequence[str]) -> Float[Tensor, " colours"]:
    return torch.tensor([float(colour in colours) for colour in COLOURS])
