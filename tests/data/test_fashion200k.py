from __future__ import annotations

import pytest
import torch

from composir.data import fashion200k
from composir.data.annotations import SplitNotFoundError
from composir.data.triplets import Query
from composir.errors import ComposirError
from composir.evaluation.metrics import averages, per_query
from composir.evaluation.ranking import rank

QUERIES = "test_queries.txt"
DRESS = "labels/dress_test_detect_all.txt"


def image(kind: str, number: int, split: str = "test") -> str:
    return f"women/{kind}/{split}/{number}/{number}_0.jpeg"


def test_a_whole_root(fashion200k_root):
    (split,) = fashion200k.load(fashion200k_root, "test")
    assert split.queries == (
        Query(
            id="0",
            reference=image("dress", 1),
            text="replace red with black",
            texts=("replace red with black",),
            # every image called "black lace dress": the annotated one, then the others in the gallery's order
            targets=(image("dress", 2), image("dress", 0), image("top", 0)),
        ),
        Query(
            id="1",
            reference=image("pants", 0),
            text="replace blue with red",
            texts=("replace blue with red",),
            targets=(image("pants", 1),),
        ),
        Query(
            id="2",
            reference=image("dress", 1),
            text="replace red with blue",
            texts=("replace red with blue",),
            targets=(image("jacket", 0),),
        ),
    )
    assert split.gallery == (
        *(image("dress", number) for number in range(3)),
        image("jacket", 0),
        *(image("pants", number) for number in range(2)),
        image("top", 0),
    )
    assert split.images[image("top", 0)] == fashion200k_root / image("top", 0)
    assert (split.dataset, split.name, split.category) == ("Fashion200k", "test", "")
    assert (split.gallery_rule, split.exclude_reference, split.text_rule) == ("original", True, "replace A with B")
    assert split.file == fashion200k_root / QUERIES


def test_a_hit_is_any_image_with_the_target_s_caption(fashion200k_root):
    (split,) = fashion200k.load(fashion200k_root, "test")
    similarity = torch.zeros(3, 7)
    similarity[:, split.gallery.index(image("top", 0))] = 1.0
    figures = averages({"": per_query(rank(similarity, split))})
    assert figures["recall_at_1"] == pytest.approx(1 / 3)  # a right answer of query 0, not the annotated one


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("black dress", "red dress", "replace black with red"),
        ("long black dress", "black lace dress", "replace long with lace"),
        ("black dress", "black lace dress", "replace dress with lace"),  # nothing is removed: the last word
        ("black lace dress", "black dress", "replace lace with dress"),  # nothing is added: the last word
        ("red dress", "red dress", "replace dress with dress"),
    ],
)
def test_the_sentence_names_the_first_word_that_differs(source, target, text):
    assert fashion200k.replacement(source, target) == text


def test_marks_are_spelt_as_the_published_loader_spells_them(fashion200k_root):
    (fashion200k_root / QUERIES).write_text(f"{image('pants', 0)} {image('jacket', 0)}\n")
    # "blue andmark white pants" and "blue jacket wdotmark hood"
    assert fashion200k.load(fashion200k_root, "test")[0].queries[0].text == "replace andmark with jacket"
    assert "a.b?c&d*e".translate(fashion200k.NAME_BY_MARK) == "adotmarkbquestionmarkcandmarkdstarmarke"


def test_training_pairs_go_round_the_captions_that_differ_in_one_word(fashion200k_root):
    (split,) = fashion200k.load(fashion200k_root, "train")
    # rings: (dress: red, blue, green), (red: dress, jacket); "wide grey pants" differs from all in more than a word
    assert [(query.id, query.reference, query.text, query.targets) for query in split.queries] == [
        # the first "red dress" takes the next of "... dress", the second the next of "red ..."
        ("0", image("dress", 0, "train"), "replace red with blue", (image("dress", 1, "train"),)),
        ("1", image("dress", 2, "train"), "replace dress with jacket", (image("jacket", 0, "train"),)),
        ("2", image("dress", 1, "train"), "replace blue with green", (image("skirt", 0, "train"),)),
        (
            "3",
            image("jacket", 0, "train"),
            "replace jacket with dress",
            (image("dress", 0, "train"), image("dress", 2, "train")),
        ),
        (
            "4",
            image("skirt", 0, "train"),
            "replace green with red",
            (image("dress", 0, "train"), image("dress", 2, "train")),
        ),
    ]
    assert len(split.gallery) == 6
    assert split.file == fashion200k_root / "labels"


def test_further_images_of_a_caption_go_on_along_the_rings():
    names = {"red dress": ["a", "b", "c", "d"], "blue dress": ["e"], "red coat": ["f", "g"], "green dress": ["h"]}
    pairs = list(fashion200k.training_pairs(names))
    # rings of "red dress": dress (red, blue, green) and red (dress, coat); the targets of "red coat" in turn
    assert pairs[:4] == [("a", "e"), ("b", "g"), ("c", "h"), ("d", "g")]
    assert pairs == list(fashion200k.training_pairs(names))


def test_a_word_that_comes_twice():
    names = {"red red": ["a"], "red blue": ["b"], "": ["c"]}
    assert list(fashion200k.training_pairs(names)) == [("a", "b"), ("b", "a")]


def test_training_labels_without_a_pair(fashion200k_root, problems_of):
    for file in fashion200k_root.glob("labels/*_train_*"):
        file.write_text("")
    (fashion200k_root / "labels/top_train_detect_all.txt").write_text("a.jpeg\t0.5\tred top\n")
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "train")
    assert (problem.file, problem.message) == (str(fashion200k_root / "labels"), "holds no query")


def test_the_parent_folder_will_do(fashion200k_root):
    assert fashion200k.load(fashion200k_root.parent, "test") == fashion200k.load(fashion200k_root, "test")


@pytest.mark.parametrize(
    ("line", "message", "fix"),
    [
        (image("dress", 0), "holds 1 field, expected 2: reference, target", "restore the published file"),
        ("a b c", "holds 3 fields, expected 2: reference, target", "restore the published file"),
        (
            f"{image('dress', 0)} women/dress/test/1/1_1.jpeg",
            "target 'women/dress/test/1/1_1.jpeg' is not in labels",
            "did you mean 'women/dress/test/1/1_0.jpeg'? else add it to labels",
        ),
        (f"nowhere {image('dress', 0)}", "reference 'nowhere' is not in labels", "add it to labels"),
    ],
)
def test_a_broken_query(fashion200k_root, problems_of, line, message, fix):
    file = fashion200k_root / QUERIES
    file.write_text(file.read_text() + line + "\n")
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "test")
    assert (problem.file, problem.where, problem.message) == (str(file), "line 4", message)
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpeg\t0.9", "holds 2 fields, expected 3: file, score, caption"),
        ("a.jpeg\t0.9\tred\tdress", "holds 4 fields, expected 3: file, score, caption"),
        ("\t0.9\tred dress", "the image's path is empty"),
        (f"{image('dress', 1)}\t0.9\tred dress", f"the name '{image('dress', 1)}' is repeated with another caption"),
    ],
)
def test_a_broken_label(fashion200k_root, problems_of, line, message):
    file = fashion200k_root / DRESS
    file.write_text(file.read_text() + line + "\n")
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "test")
    assert (problem.file, problem.where, problem.message) == (str(file), "line 4", message)


def test_a_line_given_twice_and_a_target_that_is_the_reference_are_noted(fashion200k_root):
    labels, queries = fashion200k_root / DRESS, fashion200k_root / QUERIES
    labels.write_text(labels.read_text() + f"{image('dress', 1)}\t0.5\tred lace dress \n")
    queries.write_text(queries.read_text() + f"{image('dress', 0)} {image('dress', 0)}\n")
    (split,) = fashion200k.load(fashion200k_root, "test")
    assert (len(split.gallery), len(split.queries)) == (7, 4)
    assert [str(note) for note in split.notes] == [
        f"{labels} (line 4): the name '{image('dress', 1)}' is repeated",
        f"{queries} (line 4): the target is also the reference",
    ]


def test_a_name_is_repeated_in_another_label_file(fashion200k_root, problems_of):
    (fashion200k_root / "labels/skirt_test_detect_all.txt").write_text(f"{image('top', 0)}\t0.1\tblack skirt\n")
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "test")
    assert (problem.where, problem.message) == (
        "line 1",
        f"the name '{image('top', 0)}' is repeated with another caption",
    )


def test_an_empty_caption_is_a_problem_only_where_a_sentence_is_made_of_it(fashion200k_root, problems_of):
    (fashion200k_root / "labels/skirt_test_detect_all.txt").write_text("skirt.jpeg\t0.1\t \n")
    assert len(fashion200k.load(fashion200k_root, "test")[0].gallery) == 8
    (fashion200k_root / QUERIES).write_text(f"{image('top', 0)} skirt.jpeg\n")
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "test")
    assert problem.message == "target 'skirt.jpeg' has an empty caption in labels"
    assert problem.fix == "write it there, or restore the published file"


def test_a_missing_label_file_is_one_problem(fashion200k_root, problems_of):
    (fashion200k_root / DRESS).unlink()
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "test")
    assert (problem.file, problem.message) == (str(fashion200k_root / DRESS), "the file is missing")


def test_missing_queries(fashion200k_root, problems_of):
    (fashion200k_root / QUERIES).unlink()
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "test")
    assert str(problem) == (
        f"{fashion200k_root / QUERIES}: the file is missing; fix: put the published test_queries.txt there"
    )


def test_no_query(fashion200k_root, problems_of):
    (fashion200k_root / QUERIES).write_text("\n")
    (problem,) = problems_of(fashion200k.load, fashion200k_root, "test")
    assert (problem.file, problem.message) == (str(fashion200k_root / QUERIES), "holds no query")


def test_an_absent_split(fashion200k_root):
    for file in fashion200k_root.glob("labels/*_train_*"):
        file.unlink()
    with pytest.raises(SplitNotFoundError, match="the train split of Fashion200k is not in this data root"):
        fashion200k.load(fashion200k_root, "train")


def test_a_root_of_something_else(tmp_path):
    with pytest.raises(ComposirError, match=r"no labels/ folder in it; expected .* its parent with Fashion200k/"):
        fashion200k.load(tmp_path, "test")


def test_an_unknown_split_and_categories(fashion200k_root):
    with pytest.raises(SplitNotFoundError, match="Fashion200k has no split 'val'; expected train, test"):
        fashion200k.load(fashion200k_root, "val")
    with pytest.raises(ComposirError, match="Fashion200k has no categories, got dress"):
        fashion200k.load(fashion200k_root, "test", categories=["dress"])
