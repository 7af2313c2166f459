"""How well a served index tells what it has from what it has not: scale_figures.py.

The sample photographs are asked for by their files' names ("red panda"), alone and beside another of them ("but a red
panda"), then by names of ImageNet's classes that the scale was not measured with, few of which are there. What is
counted is how often the best picture is said to fit well, perhaps, or hardly, and of the first kind how often it is
the file of that name.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from composir import Retriever
from composir.models.photos.vocabulary import read_classes
from composir.samples import SAMPLES
from composir.search import SearchQuery, index_folder
from composir.web.scale import NUM_THINGS, measure

OTHERS = 7
"""Place of the first class that is asked for; those of the scale begin with 0, and as far apart."""


def main() -> None:
    """Print a line for each kind of query."""
    files = sorted(SAMPLES.glob("*.jpg"))
    classes = read_classes()
    others = [one.name for one in classes[OTHERS :: len(classes) // NUM_THINGS]]
    there = [(file.stem.replace("-", " "), file.name) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        index_folder(SAMPLES, Path(folder) / "index")
        with Retriever(Path(folder) / "index") as retriever:
            scales = measure(retriever)
            for kind, asked in (("there", there), ("others", [(name, "") for name in others])):
                for is_composed, scale in ((False, scales.sentence), (True, scales.composed)):
                    assert scale is not None
                    told: Counter[str] = Counter()
                    for place, (thing, name) in enumerate(asked):
                        reference = (files[(place + 1) % len(files)],) if is_composed else ()
                        text = f"but a {thing}" if is_composed else thing
                        best = retriever.search_many([SearchQuery(images=reference, text=text, top_k=1)])[0][0]
                        fit = (best.score >= scale.may_fit) + (best.score >= scale.fits_well)
                        told[("hardly", "may", "well")[fit]] += 1
                        told["right, hardly" if not fit else "right, may or well"] += best.path.name == name
                    sys.stdout.write(f"{kind} {'composed' if is_composed else 'alone'} of {len(asked)}: {dict(told)}\n")


if __name__ == "__main__":
    main()
