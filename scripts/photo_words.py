"""Write the words that the model `photos` knows, from WordNet 3.0: photo_words.py DICT_DIR.

DICT_DIR holds data.noun, index.noun and noun.exc (Debian: package wordnet-base, /usr/share/wordnet). ImageNet's classes
are WordNet synsets by their offsets, which the first column of classes.tsv keeps; all else is read from WordNet. The
files are the same every time; the vectors of the classes are those of MiniLM (extra `mini`).
"""

from __future__ import annotations

import argparse
import lzma
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from composir.models.photos.vocabulary import CLASS_VECTORS, CLASSES, FOLDER, MAX_SENSES, NOUNS, Noun, read_classes
from composir.models.photos.vocabulary import class_vectors as vectors_of

THINGS = {5: "animal", 6: "artifact", 8: "body", 13: "food", 15: "location", 17: "object", 18: "person"} | {
    19: "phenomenon", 20: "plant", 27: "substance",
}  # fmt: skip
"""WordNet's files of nouns for what a photograph can show, by number."""
TAXA = ("genus ", "family ", "order ", "class ", "phylum ", "suborder ", "subfamily ", "division ", "superfamily ")


@dataclass(frozen=True)
class Synset:
    """A meaning of a noun."""

    words: tuple[str, ...]
    parents: tuple[str, ...]
    """Offsets, the first is WordNet's first."""
    definition: str
    file: int
    is_instance: bool
    """A single one, as a city."""


def read_synsets(file: Path) -> dict[str, Synset]:
    """Return the synsets of data.noun by their offset."""
    synsets = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue  # the licence
        fields, gloss = line.split("|", 1)
        parts = fields.split()
        num_words = int(parts[3], 16)
        words = tuple(parts[4 + 2 * i].replace("_", " ") for i in range(num_words))
        start = 5 + 2 * num_words
        pointers = [parts[start + 4 * i : start + 4 * i + 4] for i in range(int(parts[start - 1]))]
        parents = tuple(offset for symbol, offset, *_ in pointers if symbol in ("@", "@i"))
        is_instance = any(symbol == "@i" for symbol, *_ in pointers)
        definition = gloss.strip().split('; "')[0]
        synsets[parts[0]] = Synset(words, parents, definition, int(parts[1]), is_instance)
    return synsets


def parents_of(synsets: dict[str, Synset], offset: str) -> Iterator[str]:
    """Yield the first word of the parent, of its parent, and so on."""
    while parents := synsets[offset].parents:
        offset = parents[0]
        yield synsets[offset].words[0]


def nouns(synsets: dict[str, Synset], index: Path, exceptions: Path) -> Iterator[Noun]:
    """Yield every thing, its words with the number of the sense, and at the end irregular plurals."""
    senses: dict[str, list[tuple[int, str]]] = {}
    ranks: dict[str, int] = {}
    for line in index.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        parts = line.split()
        found = [offset for offset in parts[-int(parts[2]) :] if is_thing(synsets[offset])]
        word = parts[0].replace("_", " ")
        for rank, offset in enumerate(found[:MAX_SENSES], start=1):
            senses.setdefault(offset, []).append((rank, word))
            ranks[word] = rank
    for offset, synset in sorted(synsets.items()):
        by_word = {word: rank for rank, word in senses.get(offset, ())}
        words = tuple((word, by_word[word.lower()]) for word in synset.words if word.lower() in by_word)
        if words:
            yield Noun(words, synset.definition)
    for line in exceptions.read_text(encoding="utf-8").splitlines():
        plural, singular, *_ = line.replace("_", " ").split()
        if singular in ranks and plural not in ranks:
            yield Noun(((plural, 1),), f"={singular}")


def is_thing(synset: Synset) -> bool:
    """Return whether a photograph can show it: no name of a single one, no name of a taxon."""
    return synset.file in THINGS and not synset.is_instance and not synset.words[-1].startswith(TAXA)


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dict_dir", type=Path)
    folder = parser.parse_args().dict_dir
    synsets = read_synsets(folder / "data.noun")
    lines = []
    for line in (FOLDER / CLASSES).read_text(encoding="utf-8").splitlines():
        wnid = line.split("\t")[0]
        synset = synsets[wnid[1:]]
        parents = list(parents_of(synsets, wnid[1:]))[:3]
        lines.append("\t".join([wnid, ", ".join(synset.words), ", ".join(parents), synset.definition]))
    (FOLDER / CLASSES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    things = [one.to_line() for one in nouns(synsets, folder / "index.noun", folder / "noun.exc")]
    content = lzma.compress(("\n".join(things) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    (FOLDER / NOUNS).write_bytes(content)
    save_file({"classes": vectors_of(read_classes()).half()}, FOLDER / CLASS_VECTORS)
    sys.stdout.write(f"{len(lines)} classes, {len(things):,} nouns in {len(content):,} bytes\n")


if __name__ == "__main__":
    main()
