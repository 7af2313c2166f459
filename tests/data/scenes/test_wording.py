from __future__ import annotations

from random import Random

from composir.data.scenes.wording import word
from composir.data.scenes.world import Edit, Object, Scene


def test_picture_and_sentence_together_leave_exactly_one_scene(splits):
    for split in splits.values():
        gallery = set(split.scenes)
        for query in split.queries:
            reference = split.scenes[query.reference]
            results = {meaning.apply(reference) for meaning in query.sentence.meanings}
            assert results & gallery == {split.scenes[query.target]}


def test_every_edit_can_be_said_without_ambiguity():
    # Two equal shapes: only the place tells them apart, so the place is said.
    star = Object("red", "star", "large")
    base = Scene("white", (star, None, None, None, star, None, None, None, None))
    edit = Edit("recolour", 0, 0, Object("blue", "star", "large"))
    gallery = {base: 0, edit.apply(base): 1, base.put(4, edit.thing): 2}
    sentences = word(base, edit, gallery, Random(0))
    assert all("at the top left" in sentence.text and "blue" in sentence.text for sentence in sentences)


def test_two_wordings_a_pair(splits):
    texts_by_pair: dict[tuple[int, int], list[str]] = {}
    for query in splits["val"].queries:
        texts_by_pair.setdefault((query.reference, query.target), []).append(query.sentence.text)
    assert {len(texts) for texts in texts_by_pair.values()} == {2}
    assert all(first != second for first, second in texts_by_pair.values())


def test_validation_uses_no_word_that_training_does_not(splits):
    words = {
        name: {word for query in split.queries for word in query.sentence.text.split()}
        for name, split in splits.items()
    }
    assert words["val"] <= words["train"]
    assert words["test1"] <= words["train"]
    assert len(words["train"]) > 50
