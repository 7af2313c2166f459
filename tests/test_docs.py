"""What holds of every page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READER = re.compile(r"\b([Ff]or\*{0,2} (whoever|researchers|programs)|[Rr]ead|you|your)\b")
TERM = re.compile(r'^\| <a id="([a-z0-9-]+)"></a>\*\*(.+?)\*\*', re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_begins_with_what_it_is_for_and_who_should_read_it(page):
    title, beginning, _ = page.read_text(encoding="utf-8").split("\n\n", 2)
    assert title.startswith("# ")
    assert re.match(r"[A-Z*`c]", beginning), "whole sentences, no table, code or picture"
    assert beginning.endswith((".", ":"))
    assert READER.search(beginning), beginning


def test_the_glossary_is_in_order_and_every_term_can_be_linked_to():
    text = (DOCS / "reference/glossary.md").read_text(encoding="utf-8")
    terms = TERM.findall(text)
    assert len(terms) == text.count("\n| ") - 1  # of the head
    anchors = [anchor for anchor, _ in terms]
    assert len(set(anchors)) == len(anchors)
    names = [re.sub(r"[^a-z0-9]", "", name.lower()) for _, name in terms]
    assert names == sorted(names)
