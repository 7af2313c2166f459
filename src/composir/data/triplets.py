"""The two types that every reader makes and everything downstream reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from composir.data.images import ImageSource
from composir.errors import Note

ALL_QUERIES = "all"


@dataclass(frozen=True, slots=True)
class Query:
    """A reference picture, the sentence that says what should differ, and what is right."""

    id: str
    """The data set's own id (CIRR's ``pairid``), unique within the split, as text."""
    reference: str
    """Name of the reference image, a key of ``Split.images``."""
    text: str
    """The sentence as it is evaluated, before the model's own normalisation."""
    texts: tuple[str, ...]
    """The sentences training chooses from with equal chance; ``(text,)`` unless the data set varies it."""
    targets: tuple[str, ...] = ()
    """Names of the right answers, the annotated one first; empty where the test server hides them. OACIRR: the further
    ones show the right instance, no more."""
    subset: tuple[str, ...] = ()
    """CIRR: the other members of the image set, reference left out; empty for other data sets."""
    gallery: tuple[str, ...] = ()
    """GeneCIS: the candidates of this query alone, names in ``Split.gallery``; empty where all of that are."""
    aspects: tuple[str, ...] = ()
    """CIRCO, EDIR: what kinds of change the sentence asks for, such as ``cardinality``; empty for other data sets."""
    group: str = ""
    """What the query belongs to: an instance (i-CIR), the reference images that several sentences ask about (PinPoint),
    a session, whose rounds are its queries in their order (MT-FashionIQ, CIRCLED). Groups are resampled whole. Empty
    where it stands alone.
    """
    negatives: tuple[str, ...] = ()
    """PinPoint, EDIR: candidates that are known to be wrong; empty for other data sets."""
    num_listed_targets: int = 0
    """PinPoint: how long the published list of right answers is, repeats counted, by which its evaluator divides; 0
    where that is the number of ``targets``."""
    num_listed_negatives: int = 0
    """PinPoint: the same of ``negatives``, nulls counted too."""
    further_references: tuple[str, ...] = ()
    """PinPoint: the other reference images of a query that has several; empty for other data sets."""

    @property
    def references(self) -> tuple[str, ...]:
        """Names of all reference images: ``reference`` and ``further_references``."""
        return (self.reference, *self.further_references)


@dataclass(frozen=True, slots=True)
class Tree:
    """Where the image files of a published data set may lie."""

    home: Path
    """The folder that ``places`` start from."""
    places: tuple[str, ...]
    """The published folders, as patterns such as ``train/*``."""
    roots: tuple[Path, ...] = ()
    """The folders below which a file is looked for by its name, ``home`` where there is none given."""


@dataclass(frozen=True, slots=True)
class Split:
    """The queries of one split (of one category) and the gallery they are ranked against."""

    dataset: str
    """Name in ``DATASETS``, such as ``CIRR``."""
    name: str
    """``train``, ``val``, ``test1``, ..."""
    category: str
    """FashionIQ's ``dress``, ``shirt`` or ``toptee``; empty for data sets without categories."""
    queries: tuple[Query, ...]
    gallery: tuple[str, ...]
    """Names of the candidate images in the order of the data set's own file, each once."""
    images: Mapping[str, ImageSource]
    """The file (or part of one) of every gallery image and every reference, by name."""
    gallery_rule: str
    """How the gallery was chosen: ``original`` (the data set's own), ``val-union`` (FashionIQ), ..."""
    exclude_reference: bool
    """Whether the query's references are taken out of its ranking (CIRR yes, FashionIQ no)."""
    text_rule: str
    """How ``Query.text`` was made from the annotation, in a word or two."""
    query_rule: str = ALL_QUERIES
    """Which of the data set's queries are in the split: ``all``, or those of a list (``composir.data.only``)."""
    file: Path | None = None
    """The annotation file that the queries were read from, so that a problem of a query can name it."""
    files: tuple[Path, ...] = ()
    """All annotation files of a published data set that the split was read from."""
    notes: tuple[Note, ...] = ()
    """What is odd in them, and no problem; the notes on files that several splits share may stand at one of them."""
    tree: Tree | None = None
    """Where the image files may lie; None where ``images`` says it once and for all."""
    missing_list: Path | None = None
    """The list of the gallery's images, where it is not there: ``gallery`` then holds what the queries name alone."""

    @property
    def gallery_sources(self) -> list[ImageSource]:
        """The file (or part of one) of every gallery image, in the gallery's order."""
        return [self.images[name] for name in self.gallery]


def split_key(name: str, category: str) -> str:
    """Return what a split is called in counts: ``val``, or ``dress.val`` where there are categories."""
    return f"{category}.{name}" if category else name
