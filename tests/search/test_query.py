"""What is asked for, as a vector: numbers worked by hand, and what has to be what it was."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from composir.data.images.files import content_id, read_bytes
from composir.errors import ComposirError
from composir.search import NothingAskedError, SearchQuery, Sentence
from composir.search.encoder import NO_PICTURE
from composir.search.query import check_query, embed_queries, move_by_marks, read_pictures, warnings_of

ALONE = NO_PICTURE


class Table:
    """An encoder of a few vectors that were written down; it keeps what it was asked."""

    def __init__(self, vectors):
        self.vectors = {key: torch.tensor(value) for key, value in vectors.items()}
        self.asked = []

    def embed_asked(self, pictures, asked):
        self.asked += [(ALONE if place == ALONE else pictures[place], text) for place, text in asked]
        return torch.stack([self.vectors[one] for one in self.asked[-len(asked) :]])

    def read(self, text, *, with_reference):
        return None

    def scripts(self, *, with_reference):
        return frozenset({"LATIN"})


@pytest.fixture
def table():
    return Table(
        {
            ("A", ""): [1.0, 0.0, 0.0],
            ("A", "red"): [0.6, 0.8, 0.0],
            ("A", "small"): [0.8, 0.0, 0.6],
            ("A", "people"): [0.0, 0.6, 0.8],
            ("B", ""): [0.0, 1.0, 0.0],
            ("B", "small"): [0.0, 0.8, 0.6],
            (ALONE, "red"): [0.0, 1.0, 0.0],
            (ALONE, "small"): [0.0, 0.0, 1.0],
            (ALONE, ""): [0.6, 0.0, 0.8],
        }
    )


def embedded(table, query, *pictures):
    return embed_queries(table, [query], [pictures])[0]


def unit(*numbers):
    return normalize(torch.tensor(numbers), dim=0)


def test_half_is_the_model_s_own_composition_bit_for_bit_and_asks_nothing_else(table):
    plain = SearchQuery(("A",), "red", negative_text="people")
    found = embedded(table, plain, "A")
    assert table.asked == [("A", "red"), ("A", "people"), ("A", "")]
    a, b, c = (table.vectors[one] for one in table.asked)
    assert torch.equal(found, normalize((0 + a - b + c)[None], dim=-1)[0])
    assert torch.equal(found, embedded(table, SearchQuery(("A",), "red", "people", image_weight=0.5), "A"))


def test_the_ends_are_the_picture_alone_and_the_sentence_alone_bit_for_bit(table):
    asked = {"text": "red", "negative_text": "small"}
    picture = embedded(table, SearchQuery(("A",), **asked, image_weight=1.0), "A")
    assert table.asked == [("A", "")]
    assert torch.equal(picture, embedded(table, SearchQuery(("A",)), "A"))
    table.asked.clear()
    sentence = embedded(table, SearchQuery(("A", "B"), **asked, image_weight=0.0), "A", "B")
    assert table.asked == [(ALONE, "red"), (ALONE, "small"), (ALONE, "")]
    assert torch.equal(sentence, embedded(table, SearchQuery(**asked)))


def test_between_them_the_query_moves_on_a_line(table):
    nearer = embedded(table, SearchQuery(("A",), "red", image_weight=0.75), "A")  # half of each
    torch.testing.assert_close(nearer, unit(0.8, 0.4, 0.0))
    further = embedded(table, SearchQuery(("A",), "red", image_weight=0.4), "A")  # a fifth of the way: 0.8 and 0.2
    torch.testing.assert_close(further, unit(0.48, 0.84, 0.0))


def test_a_sentence_counts_as_many_times_the_difference_that_it_makes(table):
    twice = embedded(table, SearchQuery(("A",), texts=(Sentence("red", 2),)), "A")
    torch.testing.assert_close(twice, unit(0.2, 1.6, 0.0))
    # (1, 0, 0) + (-0.4, 0.8, 0) + 0.5 * (-0.2, 0, 0.6) - 0.5 * (-1, 0.6, 0.8)
    several = SearchQuery(
        ("A",), texts=(Sentence("red"), Sentence("small", 0.5), Sentence(" ")), without=(Sentence("people", 0.5),)
    )
    torch.testing.assert_close(embedded(table, several, "A"), unit(1.0, 0.5, -0.1))
    none = embedded(table, SearchQuery(("A",), texts=(Sentence("red", 0),)), "A")
    torch.testing.assert_close(none, unit(1.0, 0.0, 0.0))
    alone = embedded(table, SearchQuery(text="red", texts=(Sentence("small"),)))
    torch.testing.assert_close(alone, unit(-0.6, 1.0, 0.2))


def test_several_pictures_have_one_sentence_or_each_its_own(table):
    each = SearchQuery(("A", "B"), texts=(Sentence("red"), Sentence("small")))
    torch.testing.assert_close(embedded(table, each, "A", "B"), unit(0.6, 1.6, 0.6))
    assert table.asked == [("A", "red"), ("B", "small")]
    mixed = SearchQuery(("A", "B"), "red", texts=(Sentence("", 3),))
    torch.testing.assert_close(embedded(table, mixed, "A", "B"), unit(0.6, 1.8, 0.0))
    both = SearchQuery(("A", "B"), texts=(Sentence("small"),))
    torch.testing.assert_close(embedded(table, both, "A", "B"), unit(0.8, 0.8, 1.2))
    told = SearchQuery(("A", "B"), texts=(Sentence("red"), Sentence("small")), image_weight=0.0)
    torch.testing.assert_close(embedded(table, told, "A", "B"), unit(0.0, 1.0, 1.0))


def test_many_queries_are_one_pass(table):
    queries = [SearchQuery(("A",), "red", image_weight=0.0), SearchQuery(("B",), "small"), SearchQuery(("A",), "red")]
    pictures = [["A"], ["B"], ["A"]]
    together = embed_queries(table, queries, pictures)
    alone = [embedded(table, query, *own) for query, own in zip(queries, pictures, strict=True)]
    assert torch.equal(together, torch.stack(alone))


def test_marks_move_the_query_by_rocchio_s_rule():
    query = torch.tensor([1.0, 0.0, 0.0])
    more = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.6, 0.8], [0.0, 0.6, -0.8]]])  # means: (0, 1, 0)
    less = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(move_by_marks(query, more, less), unit(1.0, 0.75, -0.15))
    torch.testing.assert_close(move_by_marks(query, more[:0], less), unit(1.0, 0.0, -0.15))
    torch.testing.assert_close(move_by_marks(query, more[1:], less[:0]), unit(1.0, 0.75, 0.0))


@pytest.mark.parametrize(
    ("written", "text", "weight"),
    [
        ("red:2", "red", 2.0),
        ("red:.5", "red", 0.5),
        ("a dog: on grass:1.25", "a dog: on grass", 1.25),
        ("in 2020 :2", "in 2020", 2.0),
        ("two\nlines:3", "two\nlines", 3.0),
        ("red:0", "red", 0.0),
        ("16:9", "16:9", 1.0),
        ("at 12:30", "at 12:30", 1.0),
        ("score: 2", "score: 2", 1.0),
        ("red:", "red:", 1.0),
        ("red:two", "red:two", 1.0),
        ("red:nan", "red:nan", 1.0),
        (":2", ":2", 1.0),
        ("", "", 1.0),
    ],
)
def test_a_number_after_the_last_colon_is_a_weight(written, text, weight):
    assert Sentence.parse(written) == Sentence(text, weight)


@pytest.mark.parametrize("written", ["red:11", "red:-1", "red:10.5"])
def test_a_weight_out_of_range_is_told(written):
    with pytest.raises(ComposirError, match=r"the weight of 'red' is -?[0-9.]+; expected 0 to 10"):
        Sentence.parse(written)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": "x", "texts": (Sentence("red", 11),)}, "the weight of 'red' is 11; expected 0 to 10"),
        ({"text": "x", "without": (Sentence("red", float("nan")),)}, "the weight of 'red' is nan; expected 0 to 10"),
        ({"text": "x", "image_weight": 1.1}, "the image weight is 1.1; expected 0 (the sentence alone) to 1 (the pic"),
        ({"text": "x", "image_weight": float("nan")}, "the image weight is nan; expected 0"),
        ({"text": "x", "image_weight": 0.6}, "the image weight is 0.6, and there is no picture; fix: give one"),
        ({"images": ("A",), "image_weight": 0.4}, "the image weight is 0.4, and there is no sentence; fix: give one"),
        ({"text": "x", "min_score": float("inf")}, "the least score is inf; expected a number"),
        ({"text": "x", "more": ("0" * 32,)}, f"more: '{'0' * 32}' is not in the index; expected the id of one of its"),
        ({"text": "x", "less": ("known", "no")}, "less: 'no' is not in the index"),
        (
            {"images": ("A", "B"), "texts": (Sentence("x"),) * 3},
            "there are 2 pictures and 3 sentences; expected one sentence for all pictures, or one for each",
        ),
        ({"images": ("A", "B", "C"), "text": "x", "texts": (Sentence("y"),)}, "there are 3 pictures and 2 sentences"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(table, asked, words):
    with pytest.raises(ComposirError, match=re.escape(words)) as error:
        check_query(SearchQuery(**asked), table, {"known"})
    assert "\n" not in str(error.value)


class Deaf(Table):
    """A model that can use no sentence alone, and one or all beside a picture."""

    def read(self, text, *, with_reference):
        return None if with_reference else Unusable()


class Unusable:
    is_usable = False

    def told(self, *, with_reference):
        return "it has no ears"


@pytest.mark.parametrize("asked", [{"text": "x"}, {"images": ("A",), "text": "x", "image_weight": 0.4}])
def test_a_sentence_alone_is_refused_in_the_model_s_own_words(asked):
    line = "there is nothing to search for in 'x': it has no ears; expected a picture, or a sentence that the model can"
    with pytest.raises(NothingAskedError, match=re.escape(line)):
        check_query(SearchQuery(**asked), Deaf({}), set())


def test_one_sentence_that_can_be_used_and_a_picture_beside_it_are_enough(table):
    check_query(SearchQuery(images=("A",), text="x"), Deaf({}), set())
    half = Deaf({})
    half.read = lambda text, *, with_reference: Unusable() if text == "x" else None
    check_query(SearchQuery(text="x", texts=(Sentence("y"),)), half, set())
    with pytest.raises(NothingAskedError, match="'x', 'x'"):
        check_query(SearchQuery(text="x", texts=(Sentence("x"),)), half, set())


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        (SearchQuery(text="a red dog, 3 of them"), []),
        (SearchQuery(images=("A",), text=""), []),
        (
            SearchQuery(text="红色的狗"),
            ["'红色的狗' is hardly read: it holds no word that the model knows; the answers owe it little"],
        ),
        (
            SearchQuery(images=("A",), texts=(Sentence("..."), Sentence("red")), without=(Sentence("...", 0.5),)),
            ["'...' is hardly read: it holds no word that the model knows; the answers owe it little"],
        ),
        (
            SearchQuery(text="dog 红色", negative_text="кот"),
            [
                "'dog 红色' is hardly read: 40% of it is in a script that the model does not know; the answers owe it "
                "little",
                "'кот' is hardly read: it holds no word that the model knows; the answers owe it little",
            ],
        ),
        (SearchQuery(text="a dog in Αθήνα, the capital of a country"), []),
    ],
)
def test_a_sentence_that_the_model_hardly_reads_is_told(table, asked, lines):
    assert warnings_of(asked, table) == lines


def test_who_reads_all_scripts_or_tells_its_own_reading_is_not_warned_of(table, monkeypatch):
    asked = SearchQuery(text="红色的狗")
    for known in (None, frozenset({"LATIN", "CJK"})):
        monkeypatch.setattr(table, "scripts", lambda known=known, **_: known)
        assert warnings_of(asked, table) == []
    monkeypatch.undo()
    monkeypatch.setattr(table, "read", lambda text, **_: "a reading")
    assert warnings_of(asked, table) == []


def test_a_file_is_read_once_so_that_its_picture_and_id_are_of_one_content(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(file)
    content = file.read_bytes()

    def read_then_replace(path):
        found = read_bytes(path)
        Image.new("RGB", (4, 4), "blue").save(path)
        return found

    monkeypatch.setattr("composir.search.query.read_bytes", read_then_replace)
    ((picture,),), ((image_id,),) = read_pictures([SearchQuery((file,))], 4)
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert image_id == content_id(content)
