"""Draw the diagrams of the docs as SVG, light and dark: `python scripts/diagrams.py` writes them to docs/images.

A diagram is 480 units wide and its letters are at least 15, so that they can be read on a phone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from html import escape
from pathlib import Path

from composir.files import write_text
from composir.style import colours

WIDTH, MARGIN = 480, 12
LINE, PADDING = 19, 11
"""Units from one line of letters to the next, and above the first line in a box."""
ARROW = 24
LETTERS, SMALL = 16, 15
FULL = (MARGIN, WIDTH - MARGIN)
"""Left and right of what is as wide as the diagram."""
LEFT, MIDDLE, RIGHT = (12, 158), (167, 313), (322, 468)
QUERY = (LEFT[0], MIDDLE[1])
STYLE = """
text {{ font: {letters}px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--text); }}
.small {{ font-size: {small}px; fill: var(--faint); }}
.strong {{ font-weight: 650; }}
.page {{ fill: var(--page); }}
.box {{ fill: var(--raised); stroke: var(--line); stroke-width: 1.5; }}
.frozen {{ fill: var(--page); stroke: var(--rest); stroke-width: 1.5; stroke-dasharray: 5 4; }}
.gate {{ fill: var(--page); stroke: var(--composed); stroke-width: 3; }}
.arrow {{ fill: none; stroke: var(--faint); stroke-width: 1.8; }}
.tip {{ fill: var(--faint); }}
"""


class Diagram:
    """Boxes with words, and arrows from one to the next; it grows downwards."""

    def __init__(self, title: str, about: str) -> None:
        self.title, self.about = title, about
        self.parts: list[str] = []
        self.bottom = MARGIN

    def text(self, x: float, y: float, words: str, *, kind: str = "", anchor: str = "middle") -> None:
        """Write a line; ``y`` is its base line."""
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>')

    def box(
        self, across: tuple[float, float], top: float, lines: list[str], *, kind: str = "box", even: bool = False
    ) -> float:
        """Draw a box, its first line strong and the others small, or all ``even``; return where it ends."""
        left, right = across
        height = len(lines) * LINE + 2 * PADDING - 2
        self.parts.append(
            f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{height:g}" rx="8"/>'
        )
        for number, words in enumerate(lines):
            base = top + PADDING + 14 + number * LINE
            self.text((left + right) / 2, base, words, kind="" if even else "small" if number else "strong")
        self.bottom = max(self.bottom, top + height)
        return top + height

    def down(self, x: float, top: float, bottom: float) -> None:
        """Draw an arrow from above to below."""
        self.parts.append(f'<path class="arrow" d="M{x:g} {top + 3:g}V{bottom - 8:g}"/>')
        self.parts.append(f'<path class="tip" d="M{x:g} {bottom - 2:g}l-5 -9h10z"/>')

    def across(self, left: float, right: float, y: float) -> None:
        """Draw an arrow from left to right."""
        self.parts.append(f'<path class="arrow" d="M{left + 2:g} {y:g}H{right - 8:g}"/>')
        self.parts.append(f'<path class="tip" d="M{right - 2:g} {y:g}l-9 -5v10z"/>')

    def svg(self) -> str:
        """Return the diagram as a file that follows the reader's light or dark."""
        light, dark = (
            ":root { " + " ".join(f"--{name}: {value};" for name, value in colours(dark=is_dark).items()) + " }"
            for is_dark in (False, True)
        )
        rules = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}" + STYLE.format(
            letters=LETTERS, small=SMALL
        )
        height = self.bottom + MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="title about">\n'
            f'<title id="title">{escape(self.title)}</title>\n<desc id="about">{escape(self.about)}</desc>\n'
            f'<style>\n{rules}</style>\n<rect class="page" width="{WIDTH}" height="{height:g}" rx="10"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def center(across: tuple[float, float]) -> float:
    """Return the middle of a left and a right."""
    return sum(across) / 2


def data_flow() -> Diagram:
    """From annotations and pictures to losses, rankings and an index."""
    one = Diagram(
        "How data flows through composir",
        "Annotations name queries and a gallery. A frozen tower makes image tokens of pictures. Gated fusion lets the "
        "sentence change the reference's tokens, the Q-Former makes embeddings, and their similarity gives losses, "
        "rankings and search.",
    )
    end = one.box(FULL, MARGIN, ["annotations", "name queries, their right answers and a gallery"])
    top = end + ARROW
    for across, words in ((LEFT, "reference"), (MIDDLE, "sentence"), (RIGHT, "target")):
        one.down(center(across), end, top)
        one.box(across, top, [words, "“make it red”" if across is MIDDLE else "a picture"])
    end = one.bottom
    top, tokens = end + ARROW, 0.0
    for across in (LEFT, RIGHT):
        one.down(center(across), end, top)
        towers = one.box(across, top, ["tower", "frozen"], kind="frozen")
        one.down(center(across), towers, towers + ARROW)
        tokens = one.box(across, towers + ARROW, ["image tokens", "fp16, cached"])
    fusion = tokens + ARROW
    one.down(center(LEFT), tokens, fusion)
    one.down(center(MIDDLE), end, fusion)
    fused = one.box(QUERY, fusion, ["gated fusion", "the sentence changes the tokens"], kind="gate")
    qformer = fused + ARROW
    one.down(center(QUERY), fused, qformer)
    one.down(center(RIGHT), tokens, qformer)
    end = one.box(FULL, qformer, ["Q-Former", "reads a reference with the sentence, a target alone"])
    top = end + ARROW
    one.down(center(QUERY), end, top)
    one.down(center(RIGHT), end, top)
    one.box(QUERY, top, ["query embedding", "one vector"])
    end = one.box(RIGHT, top, ["target vectors", "several"])
    top = end + ARROW
    one.down(center(QUERY), end, top)
    one.down(center(RIGHT), end, top)
    end = one.box(FULL, top, ["similarity", "the largest dot product with a target's vectors"])
    top = end + ARROW
    for across, words in (
        (LEFT, ["losses", "training"]),
        (MIDDLE, ["ranking", "figures, sheets"]),
        (RIGHT, ["index", "search, page"]),
    ):
        one.down(center(across), end, top)
        one.box(across, top, words)
    return one


def passes() -> Diagram:
    """The model's four passes through one Q-Former, and the losses between what comes out."""
    one = Diagram(
        "The model's four passes",
        "Fuse: query tokens and sentence read the reference and give fused queries. Compose: fused queries and "
        "sentence give the query embedding. Look: query tokens read the target and give its vectors. Prompt: prompt "
        "tokens and sentence give an embedding of the sentence alone.",
    )
    inputs, middle, output = (12, 186), (218, 298), (330, 468)
    rows = (
        (
            "1  fuse: read the reference with the sentence",
            ["query tokens", "sentence", "reference's tokens"],
            ["fused", "queries"],
        ),
        ("2  compose: read on without the picture", ["fused queries", "sentence"], ["query", "embedding"]),
        ("3  look: read a target alone", ["query tokens", "target's tokens"], ["vectors", "of the target"]),
        ("4  prompt: the sentence alone, in training", ["prompt tokens", "sentence"], ["embedding of", "the sentence"]),
    )
    top = MARGIN
    for title, read, made in rows:
        one.text(MARGIN, top + 16, title, kind="strong", anchor="start")
        at = top + 28
        end = one.box(inputs, at, read, even=True)
        y = (at + end) / 2
        height = 2 * LINE + 2 * PADDING - 2
        one.across(inputs[1], middle[0], y)
        one.box(middle, y - height / 2, ["Q-", "Former"], even=True)
        one.across(middle[1], output[0], y)
        one.box(output, y - height / 2, made, even=True)
        top = end + 22
    one.text(MARGIN, top + 16, "What training brings together", kind="strong", anchor="start")
    top += 28
    for name, words in (
        ("loss_itc", "the query of 2 and its target of 3"),
        ("loss_rtc", "the sentence of 4 and the target of 3"),
        ("loss_align", "the queries of 1 and the prompts of 4"),
    ):
        one.text(MARGIN, top + 18, name, kind="strong", anchor="start")
        one.text(112, top + 18, words, kind="small", anchor="start")
        top += 26
    one.bottom = max(one.bottom, top)
    return one


def gate() -> Diagram:
    """Where the gate acts, and what is in it."""
    one = Diagram(
        "Where the gate acts",
        "Only the reference's image tokens pass through gated fusion, together with the sentence; a target's tokens "
        "go to the Q-Former as they are. Inside, every token x becomes x plus alpha times gate times delta.",
    )
    end = MARGIN
    for across, words in ((LEFT, "reference"), (MIDDLE, "sentence"), (RIGHT, "target")):
        end = one.box(across, MARGIN, [words, "words" if across is MIDDLE else "a picture"])
    top, tokens = end + ARROW, 0.0
    for across in (LEFT, RIGHT):
        one.down(center(across), end, top)
        tokens = one.box(across, top, ["image tokens", "frozen tower"], kind="frozen")
    fusion = tokens + ARROW
    one.down(center(LEFT), tokens, fusion)
    one.down(center(MIDDLE), end, fusion)
    fused = one.box(QUERY, fusion, ["gated fusion", "x + alpha · gate · delta", "for every token x"], kind="gate")
    qformer = fused + ARROW
    one.down(center(QUERY), fused, qformer)
    one.down(center(RIGHT), tokens, qformer)
    end = one.box(FULL, qformer, ["Q-Former", "reads a reference with the sentence, a target alone"])
    top = end + ARROW
    one.down(center(QUERY), end, top)
    one.down(center(RIGHT), end, top)
    one.box(QUERY, top, ["query embedding"])
    end = one.box(RIGHT, top, ["target vectors"])
    end += 14
    for name, words in (
        ("gate", "0 to 1: how much this channel of this patch"),
        ("", "may change; reads the patch and the sentence"),
        ("delta", "−1 to 1: in which direction; reads the"),
        ("", "sentence alone, the same for all patches"),
        ("alpha", "one learned number, 0.5 at the start"),
    ):
        if name:
            one.text(MARGIN, end + 18, name, kind="strong", anchor="start")
        one.text(74, end + 18, words, kind="small", anchor="start")
        end += 22
    one.bottom = end
    return one


DIAGRAMS: dict[str, Callable[[], Diagram]] = {"data-flow.svg": data_flow, "passes.svg": passes, "gate.svg": gate}


def main() -> None:
    """Write every diagram into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/images")
    out = parser.parse_args().out
    for name, make in DIAGRAMS.items():
        write_text(out / name, make().svg())


if __name__ == "__main__":
    main()
