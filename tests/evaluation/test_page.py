from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from composir.errors import ComposirError
from composir.evaluation import (
    KINDS,
    load_rankings,
    measure,
    metric_label,
    rank,
    recalls,
    save_rankings,
    write_page,
)
from composir.evaluation.page import THUMBNAIL

from .full_sizes import CIRR, CIRR_VAL, FASHIONIQ, FASHIONIQ_VAL

VOID = {"meta", "link", "img", "br", "wbr", "rect", "line", "polyline", "polygon"}
FIGURES = ("metrics", "intervals", "baselines", "audit")


class Node:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children = []

    @property
    def text(self):
        return " ".join("".join(self.pieces()).split())

    def pieces(self):
        for child in self.children:
            yield from (child,) if isinstance(child, str) else child.pieces()

    def all(self, tag=None, **attributes):
        """Every element below with that tag and those attributes; ``class_`` is one of the classes."""
        class_ = attributes.pop("class_", None)
        for child in self.children:
            if isinstance(child, Node):
                fits = all(child.attributes.get(name.replace("_", "-")) == value for name, value in attributes.items())
                if fits and tag in (None, child.tag) and (class_ is None or class_ in child.classes):
                    yield child
                yield from child.all(tag, **attributes, **({"class_": class_} if class_ else {}))

    def one(self, tag=None, **attributes):
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()


class Tree(HTMLParser):
    """A strict reader: every element that is opened must be closed, in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.root = self.open = Node("", {}, None)
        self.feed(html)
        self.close()
        assert self.open is self.root, f"<{self.open.tag}> is not closed"

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"<{tag}> repeats an attribute"
        node = Node(tag, dict(attributes), self.open)
        self.open.children.append(node)
        if tag not in VOID:
            self.open = node

    def handle_startendtag(self, tag, attributes):
        self.open.children.append(Node(tag, dict(attributes), self.open))

    def handle_endtag(self, tag):
        assert tag == self.open.tag, f"</{tag}> closes <{self.open.tag}>"
        self.open = self.open.parent

    def handle_data(self, data):
        self.open.children.append(data)


def parse(file):
    return Tree(file.read_text(encoding="utf-8")).root


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "blue.png"
    Image.new("RGB", (40, 20), "blue").save(path)
    return path


@pytest.fixture
def make_result(make_split, make_query, picture):
    """Make a result over random scores: ``num_queries`` a category, a subset of five where the data set has one."""

    def make(
        *, dataset="CIRR", categories=("",), num_queries=24, num_images=60, kinds=KINDS, num_targets=1, aspects=()
    ):
        splits = []
        for category in categories:
            queries = [
                make_query(
                    100 + number,
                    f"g{number % num_images}",
                    [f"g{(number + 1 + other) % num_images}" for other in range(num_targets)],
                    [f"g{(number + place) % num_images}" for place in range(1, 6)] if dataset == "CIRR" else (),
                    " ".join(["word"] * (1 + number % 7)),
                    aspects=[aspects[number % len(aspects)]] if aspects else (),
                )
                for number in range(num_queries)
            ]
            split = make_split(queries, num_images, dataset=dataset, category=category)
            splits.append(dataclasses.replace(split, images=dict.fromkeys(split.gallery, picture)))
        generator = torch.Generator().manual_seed(0)
        rankings = {}
        for kind in kinds:
            similarities = [torch.randn(num_queries, num_images, generator=generator) for _ in splits]
            if kind == "composed":
                for scores in similarities:
                    scores[torch.arange(num_queries), (torch.arange(num_queries) + 1) % num_images] += 1.5
            rankings[kind] = [rank(scores, split) for scores, split in zip(similarities, splits, strict=True)]
        return measure(rankings, weights_hash="abc", num_resamples=50)

    return make


@pytest.fixture
def make_page(tmp_path):
    def make(result, **options):
        return parse(write_page(result, tmp_path / "report", **options))

    return make


def leaves(value, path=""):
    """Every number and word of the document under its path."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, (dict, list)):
        yield path, value
    for key, part in entries:
        yield from leaves(part, f"{path}/{key}" if path else str(key))


# -- the figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind_of_result",
    [
        {},
        {"kinds": ("composed",)},
        {"kinds": ("composed", "text_only")},
        {"dataset": "FashionIQ", "categories": ("dress", "shirt", "toptee"), "num_queries": 9},
        {"dataset": "CIRCO", "num_targets": 3, "aspects": ("cardinality", "addition <b>")},
        {"dataset": "Fashion200k", "num_targets": 3},
        {"dataset": "Shoes", "num_images": 400},
        {"num_queries": 1, "num_images": 7},
    ],
)
def test_every_figure_equals_the_json(make_result, make_page, kind_of_result):
    result = make_result(**kind_of_result)
    document = json.loads(json.dumps(result.to_json()))
    expected = {
        path: value
        for path, value in leaves(document)
        if path.split("/")[0] in (*FIGURES, "num_queries", "num_gallery", "signature", "signature_fields")
    }
    page = make_page(result)
    shown = {node.attributes["data-path"]: node for node in page.all() if "data-path" in node.attributes}
    assert shown.keys() == expected.keys()
    for path, value in expected.items():
        node = shown[path]
        if isinstance(value, str):
            assert node.text == (value.replace("_", " ") if path.endswith("/over") else value)
        elif isinstance(value, int):
            assert (node.attributes["value"], node.text) == (str(value), f"{value:,}")
        else:
            assert float(node.attributes["value"]) == value
            signed = "/gain/" in f"/{path}"
            text = f"{100 * value:+.2f}" if signed else f"{100 * value:.2f}"
            assert node.text == text.replace("-", "−")


def test_the_headline_is_the_primary_figure_with_its_interval(make_result, make_page):
    result = make_result()
    key = "mean_r5_rs1"
    low, high = result.intervals[key]
    gain = result.audit.gain[key]
    tiles = [" ".join(part.text for part in tile.all("p")) for tile in make_page(result).all("div", class_="tile")]
    assert tiles == [
        f"{100 * result.metrics[key]:.2f} % 95 % interval {100 * low:.2f} – {100 * high:.2f}",
        f"{100 * result.baselines['image_only'][key]:.2f} % the same model without the sentence",
        f"{100 * result.baselines['text_only'][key]:.2f} % the same model without the picture",
        f"{100 * gain.delta:+.2f} {100 * gain.low:+.2f} to {100 * gain.high:+.2f} points over "
        f"{gain.over.replace('_', ' ')}".replace("-", "−"),
    ]


def test_the_audit_table_adds_up(make_result, make_page):
    result = make_result()
    page = make_page(result)
    table = next(table for table in page.all("table") if table.one("caption").text == "What solves the queries")
    counts = [int(next(row.all("td")).text) for row in table.one("tbody").all("tr")]
    audit = result.audit
    assert counts[0] + counts[1] == audit.num_image_solves
    assert counts[1] + counts[2] == audit.num_text_solves
    assert counts[3:] == [audit.num_composition_required, audit.num_unresolved]
    assert sum(counts) == 24
    widths = [float(part.attributes["width"]) for part in page.one("svg", class_="stack").all("rect")]
    assert widths == counts


def rows_of(page, caption):
    (table,) = (table for table in page.all("table") if table.one("caption").text == caption)
    return [[cell.text for cell in row.children if isinstance(cell, Node)] for row in table.one("tbody").all("tr")]


# -- published results -------------------------------------------------------------------------------------------------


def test_published_cirr_stands_beside_val_and_is_said_to_be_test1(full_size, make_page):
    page = make_page(measure({"composed": full_size(CIRR_VAL, **CIRR)}, num_resamples=2))
    rows = rows_of(page, "Published results")
    # The target is always third: R@1 is 0, R@5 and more 100; in the set of five R_s@1 and 2 are 0, R_s@3 is 100.
    ours = ["0.00", "100.00", "100.00", "100.00", "0.00", "0.00", "100.00", "50.00"]
    assert rows[0] == ["this result", "val", "", *ours, "", "measured here"]
    (sprc,) = (row for row in rows if row[0] == "SPRC")
    assert sprc == [
        *["SPRC", "test1", "its train split", "51.96", "82.12", "89.74", "97.69", "80.65", "92.31", "96.60", "81.39"],
        "",
        "Bai et al., ICLR 2024, arXiv 2310.05473; figures from github.com/He-Changhao/2025-CVPR-TME, table 1",
    ]
    assert all(row[1] == "test1" and row[-1] for row in rows[1:])
    assert "They are of CIRR test1, this result is of val" in page.text


def test_the_page_greys_what_was_measured_by_other_rules_and_says_by_which(full_size, make_page):
    page = make_page(measure({"composed": full_size(CIRR_VAL, **CIRR)}, num_resamples=2))
    rows = rows_of(page, "Published results")[1:]
    reasons = {row[0]: row[-2] for row in rows}
    assert reasons["TME"] == ""
    assert reasons["LinCIR (CLIP-L)"] == "text 'in a prompt', here 'as annotated'"
    assert reasons["BGE-VL-base"] == "text not stated"
    assert [bool(row[-2]) for row in rows] == sorted(bool(row[-2]) for row in rows), "those that compare come first"
    (body,) = (table.one("tbody") for table in page.all("table") if table.one("caption").text == "Published results")
    grey = [row.one("th").text for row in body.all("tr", class_="other")]
    assert grey == [name for name, reason in reasons.items() if reason]


def test_published_fashioniq_stands_beside_all_three_categories_of_val(full_size, make_page):
    page = make_page(measure({"composed": full_size(FASHIONIQ_VAL, **FASHIONIQ)}, num_resamples=2))
    rows = rows_of(page, "Published results")
    assert [row[:1] + row[3:5] for row in rows if not row[-2]] == [
        ["this result", "100.00", "100.00"],
        ["CLIP4CIR", "38.40", "61.74"],
        ["CLIP4CIR (2023)", "42.52", "65.60"],
        ["BLIP4CIR+Bi", "43.49", "67.31"],
        ["QuRe", "52.60", "73.48"],
        ["SPRC", "54.72", "74.97"],
        ["TME", "55.15", "75.02"],
        ["SPRC+SPN", "56.37", "76.45"],
    ]
    assert "the reference rule and the text are the same as here" in page.text
    reasons = {row[0]: row[-2] for row in rows if row[-2]}
    assert reasons["ENCODER"] == (
        "gallery 'val-union', here 'original'; reference 'excluded', here 'kept'; "
        "text 'both captions, spelling corrected', here 'both captions'"
    )
    assert reasons["CASE"] == "gallery not stated; reference not stated; text not stated"


def test_where_no_published_results_fit_the_page_says_so(make_result, make_page):
    page = make_page(make_result())
    assert (
        "composir holds none that were measured by these rules: CIRR val, gallery original, reference excluded, "
        "text as annotated, 24 queries over 60 images."
    ) in page.text
    assert "SPRC" not in page.text


# -- recall curves -----------------------------------------------------------------------------------------------------


def test_the_curve_passes_through_the_metrics(make_result, make_page):
    result = make_result()
    page = make_page(result)
    rows = rows_of(page, "R@K, percent")
    assert [row[0] for row in rows] == [str(k) for k in range(1, 51)]
    for k in (1, 5, 10, 50):
        key = f"recall_at_{k}"
        figures = [result.metrics[key], *(result.baselines[kind][key] for kind in ("image_only", "text_only"))]
        assert rows[k - 1][1:] == [f"{100 * figure:.2f}" for figure in figures]
    markers = {marker.text for marker in page.all("circle")}
    assert f"text only R@10 {100 * result.baselines['text_only']['recall_at_10']:.2f} %" in markers
    assert len(markers) == 3 * 4


def test_the_curve_has_its_points_in_the_right_places(make_split, make_query, make_page):
    # Three queries over four images, the reference out: the targets are at 1, 2 and 3, so recall is 1/3, 2/3, 1.
    split = make_split([make_query(n, "g3", [f"g{n}"], ["g0", "g1", "g2"]) for n in range(3)], 4)
    page = make_page(measure({"composed": [rank(torch.tensor([3.0, 2.0, 1.0, 0.0]).repeat(3, 1), split)]}))
    line = page.one("polyline", class_="composed")
    # x is 100 ln K / ln 3, y is 100 - 100 recall: ln 2 / ln 3 = 0.6309.
    assert line.attributes["points"] == "0.00,66.67 63.09,33.33 100.00,0.00"
    assert [tick.text for tick in page.one("svg", class_="plot").all("text")][6:] == ["1", "2", "3", "K"]


def test_recall_by_k_is_that_of_each_query(make_split, make_query):
    split = make_split([make_query(n, "g3", [f"g{n}"], ["g0", "g1", "g2"]) for n in range(3)], 4)
    ranking = rank(torch.tensor([3.0, 2.0, 1.0, 0.0]).repeat(3, 1), split)
    assert recalls(ranking, (1, 2))["recall_at_1"].tolist() == [1, 0, 0]
    assert recalls(ranking, (1, 2))["recall_at_2"].tolist() == [1, 1, 0]


# -- misses and hits ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ranked(make_split, make_query, picture):
    """Make rankings of 60 descending scores; each query's target has the given rank."""

    def make(ranks, *, sentences=None, images=True, **options):
        queries = [
            make_query(100 + number, "g59", [f"g{rank - 1}"], ["g0", f"g{rank - 1}"] if rank > 1 else ["g0", "g1"])
            for number, rank in enumerate(ranks)
        ]
        if sentences:
            queries = [dataclasses.replace(query, text=text) for query, text in zip(queries, sentences, strict=True)]
        split = make_split(queries, 60, **options)
        split = dataclasses.replace(split, images=dict.fromkeys(split.gallery, picture) if images else {})
        return rank(torch.linspace(1, 0, 60).repeat(len(queries), 1), split)

    return make


def examples(page, prefix):
    return [
        article
        for article in page.all("article", class_="query")
        if article.attributes["aria-labelledby"].startswith(prefix)
    ]


def ids(articles):
    return [next(article.all("h3")).text for article in articles]


def test_misses_come_worst_first_and_hits_only_where_the_first_is_right(ranked, make_page):
    page = make_page(measure({"composed": [ranked([2, 1, 56, 14, 1, 3])]}))
    assert ids(examples(page, "miss")) == ["query 102", "query 103", "query 105", "query 100"]
    assert ids(examples(page, "hit")) == ["query 101", "query 104"]


def test_hits_come_by_their_lead_over_the_second(make_split, make_query, make_page):
    split = make_split([make_query(n, "g3", ["g0"], ["g0", "g1"]) for n in range(3)], 4)
    similarity = torch.tensor([[0.9, 0.8, 0, 0], [0.9, 0.1, 0, 0], [0.5, 0.2, 0, 0]])  # leads 0.1, 0.8, 0.3
    page = make_page(measure({"composed": [rank(similarity, split)]}))
    assert ids(examples(page, "hit")) == ["query 1", "query 2", "query 0"]
    assert "the first picture of every query is right" in page.text


def test_the_number_of_queries_shown(ranked, make_page):
    result = measure({"composed": [ranked([1, 2] * 15)]})
    assert [len(examples(make_page(result), prefix)) for prefix in ("miss", "hit")] == [10, 10]
    assert [len(examples(make_page(result, num_queries=3), prefix)) for prefix in ("miss", "hit")] == [3, 3]


def test_an_example_shows_ten_and_the_target(ranked, make_page):
    page = make_page(measure({"composed": [ranked([3, 14])]}))
    far, near = examples(page, "miss")
    items = list(near.all("li"))
    # Scores fall from 1 by 1/59.
    assert [item.text for item in items[:4]] == ["1 · 1.000", "2 · 0.983", "3 · 0.966 target", "4 · 0.949"]
    assert [item.classes for item in items] == [[], [], ["right"], *[[]] * 7]
    items = list(far.all("li"))
    assert [item.classes for item in items] == [*[[]] * 10, ["apart"]]
    assert items[-1].text == "target at 14 · 0.780"
    assert [image.attributes["alt"] for image in far.all("img")] == ["g59", *[f"g{n}" for n in range(10)], "g13"]


def test_every_right_answer_is_marked_and_the_first_of_them_counts(make_split, make_query, make_page):
    split = make_split([make_query(0, "g59", ["g40", "g4", "g2"])], 60, dataset="CIRCO", exclude_reference=False)
    page = make_page(measure({"composed": [rank(torch.linspace(1, 0, 60)[None], split)]}))
    (example,) = examples(page, "miss")
    assert [place for place, item in enumerate(example.all("li"), start=1) if "right" in item.classes] == [3, 5]
    assert [item.text for item in example.all("li")][-1] == "g40 picture missing target at 41 · 0.322"  # 1 - 40/59
    assert "right answer at 3 composed" in example.text


def test_the_rank_of_each_modality_alone_stands_beside(ranked, make_page):
    rankings = {"composed": [ranked([2])], "image_only": [ranked([2])], "text_only": [ranked([2])]}
    split = rankings["composed"][0].split
    rankings["text_only"] = [rank(torch.linspace(0, 1, 60)[None], split)]
    page = make_page(measure(rankings))
    # Ascending scores put g1 before g0 alone, the reference g59 is out: 58 of 59.
    (example,) = examples(page, "miss")
    assert example.one("p", class_="ranks").text == "right answer at 2 composed · 2 image only · 58 text only"


def test_predictions_without_scores_and_without_the_target(ranked, make_page):
    known = ranked([2, 56])
    ranking = dataclasses.replace(known, scores=np.full_like(known.scores, np.nan), target_ranks=np.array([2, 0]))
    page = make_page(measure({"composed": [ranking]}))
    lost, second = examples(page, "miss")
    assert [item.text for item in second.all("li")][:3] == ["1", "2 target", "3"]
    assert [item.text for item in lost.all("li")][-1] == "target below 50"
    assert "right answer at below 50 composed" in lost.text


def test_a_file_of_subset_predictions_alone_makes_a_page_of_what_is_known(ranked, make_page):
    known = ranked([2, 2, 3])
    nothing = np.zeros((3, 0))
    ranking = dataclasses.replace(
        known, top=nothing.astype(int), scores=nothing.astype(np.float32), target_ranks=np.zeros(3, int)
    )
    page = make_page(measure({"composed": [ranking]}))
    assert not {"curves", "misses", "hits"} & {node.attributes.get("id") for node in page.all()}
    assert next(page.all("h2")).text == "R_s@1"
    # g0 scores more than the target in every set of two.
    assert rows_of(page, "Queries by the target's place") == [
        ["1", "0", "0.00", "0.00 – 0.00", ""],
        ["2", "3", "100.00", "100.00 – 100.00", ""],
    ]


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_small_jpegs_in_the_page_itself(ranked, make_page, tmp_path):
    ranking = ranked([2])
    wide = tmp_path / "wide.png"
    Image.new("RGB", (800, 400), "red").save(wide)
    images = {**ranking.split.images, "g59": wide}
    ranking = dataclasses.replace(ranking, split=dataclasses.replace(ranking.split, images=images))
    (example,) = examples(make_page(measure({"composed": [ranking]})), "miss")
    image = next(example.all("img"))
    content = base64.b64decode(image.attributes["src"].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(content)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (THUMBNAIL, THUMBNAIL // 2))
        assert np.abs(np.asarray(thumbnail)[40, 80].astype(int) - (255, 0, 0)).max() < 4
    assert (image.attributes["width"], image.attributes["height"]) == (str(THUMBNAIL), str(THUMBNAIL // 2))


def test_names_stand_for_the_pictures_of_saved_rankings(ranked, make_page, tmp_path):
    save_rankings(measure({"composed": [ranked([2])]}), tmp_path / "rankings.safetensors")
    saved = load_rankings(tmp_path / "rankings.safetensors")
    page = make_page(measure(saved.rankings, signature=saved.signature_fields))
    assert "Names stand for the pictures." in page.text
    assert not list(page.all("img"))
    (example,) = examples(page, "miss")
    assert [item.text for item in example.all("li")][:2] == ["g0 1 · 1.000", "g1 2 · 0.983 target"]
    assert "picture missing" not in page.text


def test_a_missing_or_broken_picture_leaves_a_marked_gap(ranked, make_page, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    ranking = ranked([2])
    images = {**ranking.split.images, "g0": tmp_path / "empty.png", "g3": tmp_path / "none.png"}
    ranking = dataclasses.replace(ranking, split=dataclasses.replace(ranking.split, images=images))
    page = make_page(measure({"composed": [ranking]}))
    (example,) = examples(page, "miss")
    assert next(item.text for item in example.all("li")) == "g0 picture missing 1 · 1.000"
    assert len(list(example.all("img"))) == 9  # the reference and eight of ten
    notice = page.one("div", class_="notice").text
    assert "2 pictures could not be shown." in notice
    assert f"{tmp_path / 'empty.png'}: the image file is empty (0 bytes)" in notice
    assert f"{tmp_path / 'none.png'}: no such image file" in notice
    assert "Names stand for the pictures." not in page.text


def test_of_many_missing_pictures_the_first_are_named(ranked, make_page, tmp_path):
    ranking = ranked([2])
    images = {name: tmp_path / f"{name}.png" for name in ranking.split.gallery}
    page = make_page(
        measure({"composed": [dataclasses.replace(ranking, split=dataclasses.replace(ranking.split, images=images))]})
    )
    notice = page.one("div", class_="notice")
    assert "11 pictures could not be shown." in notice.text  # the reference and the best ten
    items = [item.text for item in notice.all("li")]
    assert len(items) == 6
    assert items[-1] == "and 6 more (composir data check lists them all)"


def test_a_page_full_of_noise_stays_under_five_megabytes(make_split, make_query, tmp_path):
    """Noise is what JPEG is worst at: no photograph takes more. As many pictures as a page can hold."""
    noise = np.random.default_rng(0).integers(0, 256, (THUMBNAIL, THUMBNAIL, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    members = [[f"g{6 * image_set + place}" for place in range(6)] for image_set in range(10)]
    queries = [
        make_query(4 * number + place, names[0], [names[place]], names[1:])
        for number, names in enumerate(members)
        for place in range(1, 5)
    ]
    split = make_split(queries, 1000)
    split = dataclasses.replace(split, images=dict.fromkeys(split.gallery, tmp_path / "noise.png"))
    scores = torch.rand(40, 1000, generator=torch.Generator().manual_seed(0))
    for row in range(0, 40, 4):
        scores[row, split.gallery.index(queries[row].targets[0])] = 2.0
    result = measure({"composed": [rank(scores, split)]}, num_resamples=2)
    file = write_page(result, tmp_path / "report")
    # Ten misses of twelve pictures, ten hits of eleven, five image sets of six.
    assert len(list(parse(file).all("img"))) == 120 + 110 + 30
    assert 4_000_000 < file.stat().st_size < 5_000_000


# -- what is written in the page ---------------------------------------------------------------------------------------

MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
SENTENCES = [
    MARKUP,
    "换成红色的裙子，而且更长",
    "اجعلها حمراء وأطول",
    "תעשה את זה אדום",
    "더 길고 빨간색으로",
    "लाल और लंबा",
    "สีแดงและยาวกว่า",
    "plus élégante – façon « années 20 »",
    "cafe\u0301 \U0001f469\U0001f3fd\u200d\U0001f680 👗",
    "x" * 3000,
]


def test_sentences_of_any_script_are_shown_as_they_are(ranked, make_page):
    page = make_page(measure({"composed": [ranked([2] * len(SENTENCES), sentences=SENTENCES)]}))
    shown = list(page.all("p", class_="sentence"))
    assert [sentence.text for sentence in shown] == SENTENCES
    assert all(sentence.attributes["dir"] == "auto" and sentence.attributes["lang"] == "" for sentence in shown)


def test_markup_in_sentences_and_names_stays_text(make_split, make_query, make_page, tmp_path):
    named = tmp_path / "<b>.png"  # a file of that name is not there: its error is shown
    queries = [dataclasses.replace(make_query(MARKUP, MARKUP, ["g1"]), text=MARKUP, aspects=(MARKUP,))]
    split = make_split(queries, 4, dataset="CIRCO", category=MARKUP)
    split = dataclasses.replace(
        split,
        gallery=(*split.gallery, MARKUP),
        images={MARKUP: named, "g0": named},
        text_rule=MARKUP,
        gallery_rule=MARKUP,
    )
    page = make_page(measure({"composed": [rank(torch.linspace(1, 0, 5)[None], split)]}, weights_hash=MARKUP))
    assert not list(page.all("script"))
    assert not list(page.all("img"))
    assert not list(page.all("b"))
    assert page.one("p", class_="sentence").text == MARKUP
    assert page.one(data_path="signature_fields/weights").text == MARKUP
    assert page.one("div", class_="notice").text.count(f"{named}: no such image file") == 2


def test_a_name_that_is_no_text_does_not_stop_the_page(ranked, make_page):
    ranking = ranked([2], images=False)
    odd = dataclasses.replace(
        ranking.split, gallery=("dr\udce9ss", *ranking.split.gallery[1:]), queries=ranking.split.queries
    )
    query = dataclasses.replace(odd.queries[0], subset=("dr\udce9ss", "g1"))
    ranking = dataclasses.replace(
        ranking, split=dataclasses.replace(odd, queries=(query,)), subset=(("dr\udce9ss", "g1"),)
    )
    (example,) = examples(make_page(measure({"composed": [ranking]})), "miss")
    assert next(example.all("li")).text == "dr\\udce9ss 1 · 1.000"


def test_nothing_in_the_page_asks_for_anything_outside(make_result, make_page):
    page = make_page(make_result())
    policy = page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    style = "".join(page.one("style").pieces())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not list(page.all("script"))
    assert "url(" not in style
    assert "@import" not in style
    for node in page.all():
        assert not [name for name in node.attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            assert re.match("data:|#", node.attributes.get(name, "#"))


def test_the_page_can_be_read_aloud_and_walked_by_key(make_result, make_page):
    page = make_page(make_result(num_queries=60))
    assert page.one("html").attributes["lang"] == "en"
    found = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(found) == len(set(found))
    pointed = [node.attributes["href"][1:] for node in page.all("a")]
    labelled = [node.attributes["aria-labelledby"] for node in page.all() if "aria-labelledby" in node.attributes]
    assert {*pointed, *labelled} <= set(found)
    levels = [int(node.tag[1]) for node in page.all() if re.fullmatch("h[1-6]", node.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(node.attributes["alt"] for node in page.all("img"))
    for table in page.all("table"):
        assert table.one("caption").text
        assert table.parent.attributes["tabindex"] == "0"
        assert table.parent.attributes["aria-label"]
        heads = [head for head in table.all("th") if head.attributes.get("aria-hidden") != "true"]
        assert all(head.text and head.attributes["scope"] in ("row", "col") for head in heads)
        widths = {len([cell for cell in row.children if isinstance(cell, Node)]) for row in table.all("tr")}
        assert len(widths) == 1
    for drawing in page.all("svg"):
        outer = drawing.parent.tag != "svg"
        assert not outer or drawing.attributes.get("aria-hidden") == "true" or drawing.attributes["aria-label"]


def test_tiny_galleries_of_their_own(make_split, make_query, make_page):
    candidates = ["g1", "g2", "g3"]
    queries = [make_query(number, "g0", [f"g{number + 1}"], gallery=candidates) for number in range(3)]
    split = make_split(queries, 9, dataset="GeneCIS", category="focus_attribute")
    page = make_page(measure({"composed": [rank(torch.linspace(1, 0, 9).repeat(3, 1), split)]}))
    assert [len(list(example.all("li"))) for example in examples(page, "miss")] == [3, 3]
    assert len(rows_of(page, "R@K, percent")) == 3
    heads = [head.text for table in page.all("table") for head in table.all("th")]
    assert heads.count("target not first") == 2


# -- by group ----------------------------------------------------------------------------------------------------------


def test_figures_by_length_of_the_sentence(ranked, make_page):
    # Ten queries, two a bin: lengths 1 1 | 2 2 | 3 4 | 6 9 | 9 30; 9 is one length, so it fills the fourth bin alone.
    lengths = [1, 1, 2, 2, 3, 4, 6, 9, 9, 30]
    ranks = [2, 2, 14, 2, 2, 2, 14, 14, 14, 2]
    ranking = ranked(ranks, sentences=[" ".join(["w"] * length) for length in lengths], dataset="LaSCo")
    page = make_page(measure({"composed": [ranking]}))
    rows = rows_of(page, "R@10 by length")
    # label, queries, R@10, interval, its drawing, not in the best ten
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("1 word", "2", "100.00", "0"),
        ("2 words", "2", "50.00", "1"),
        ("3 – 4 words", "2", "100.00", "0"),
        ("6 – 9 words", "3", "0.00", "3"),
        ("30 words", "1", "100.00", "0"),
    ]
    assert rows[0][3] == "100.00 – 100.00"
    assert rows[1][3] == "0.00 – 100.00"  # of two queries, one found: both draws may be either


def test_figures_by_category_are_the_results_own(make_result, make_page):
    result = make_result(dataset="FashionIQ", categories=("dress", "shirt"), num_queries=12)
    rows = rows_of(make_page(result), "mean(R@10+R@50) by category")
    for row, category in zip(rows, ("dress", "shirt"), strict=True):
        key = f"{category}.mean_r10_r50"
        low, high = result.intervals[key]
        baselines = [result.baselines[kind][key] for kind in ("image_only", "text_only")]
        missed = round(12 * (1 - result.metrics[f"{category}.recall_at_10"]))
        assert row == [
            category,
            "12",
            f"{100 * result.metrics[key]:.2f}",
            f"{100 * low:.2f} – {100 * high:.2f}",
            "",
            *(f"{100 * figure:.2f}" for figure in baselines),
            str(missed),
        ]


def test_figures_by_aspect_count_the_queries_that_have_it(make_result, make_page):
    result = make_result(dataset="CIRCO", num_targets=2, aspects=("addition", "negation", "viewpoint"), num_queries=25)
    rows = rows_of(make_page(result), "mAP@10 by semantic aspect")
    assert [row[:3] for row in rows] == [
        [aspect, count, f"{100 * result.metrics[f'{aspect}.map_at_10']:.2f}"]
        for aspect, count in (("addition", "9"), ("negation", "8"), ("viewpoint", "8"))
    ]


def test_queries_by_the_targets_place_in_its_subset(make_split, make_query, make_page):
    # Scores fall with the number: the targets are first, third, third and fifth of their five.
    members = [f"g{n}" for n in (0, 1, 2, 3, 30)]
    targets = ["g0", "g2", "g2", "g30"]
    split = make_split([make_query(n, "g59", [target], members) for n, target in enumerate(targets)], 60)
    result = measure({"composed": [rank(torch.linspace(1, 0, 60).repeat(4, 1), split)]})
    page = make_page(result)
    rows = rows_of(page, "Queries by the target's place")
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("1", "1", "25.00", "0"),
        ("2", "0", "0.00", "0"),
        ("3", "2", "50.00", "0"),
        ("4", "0", "0.00", "0"),
        ("5", "1", "25.00", "1"),  # g30 is 31st of the gallery
    ]
    assert result.metrics["recall_subset_at_1"] == 0.25
    assert "chance puts it first in 20.00 % of the queries" in page.text


def test_a_target_below_the_known_part_of_its_subset(ranked, make_page):
    ranking = dataclasses.replace(ranked([2, 5, 9]), subset=(("g1", "g0"), ("g0", "g3"), ("g0", "g8")))
    rows = rows_of(make_page(measure({"composed": [ranking]})), "Queries by the target's place")
    assert [row[:2] for row in rows] == [["1", "1"], ["2", "1"], ["below 2", "1"]]


def test_the_image_sets_with_the_most_confusions(make_split, make_query, make_page):
    # Scores fall with the number. Set A = g0..g5: asked for g1 (g0 is the reference, so g1 is first), for g2 and g3
    # (g0 or g1 comes first: two wrong). Set B = g10..g15: one right, one wrong. Set C has one query, D none wrong.
    def members(first, reference):
        return [f"g{n}" for n in range(first, first + 6) if n != reference]

    asked = [(0, 0, 1), (0, 4, 2), (0, 5, 3), (10, 15, 10), (10, 10, 12), (20, 20, 25), (30, 35, 30), (30, 34, 30)]
    queries = [
        make_query(number, f"g{reference}", [f"g{target}"], members(first, reference))
        for number, (first, reference, target) in enumerate(asked)
    ]
    page = make_page(measure({"composed": [rank(torch.linspace(1, 0, 60).repeat(8, 1), make_split(queries, 60))]}))
    sets = list(page.all("article", class_="image-set"))
    assert [next(image_set.all("h4")).text for image_set in sets] == ["2 of 3 queries wrong", "1 of 2 queries wrong"]
    assert [item.text for item in sets[0].all("li")] == [
        "g0 picture missing never asked for wrongly first 2×",
        "g1 picture missing found 1 of 1",
        "g2 picture missing found 0 of 1",
        "g3 picture missing found 0 of 1",
        "g4 picture missing never asked for",
        "g5 picture missing never asked for",
    ]


def test_data_sets_without_subsets_have_no_such_part(make_result, make_page):
    page = make_page(make_result(dataset="LaSCo"))
    assert "Inside the subset" not in page.text
    assert not list(page.all("article", class_="image-set"))


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_same_result_gives_the_same_bytes_and_replaces_the_old_page(make_result, tmp_path):
    result = make_result()
    file = write_page(result, tmp_path / "new" / "report")
    assert file == tmp_path / "new" / "report" / "index.html"
    first = file.read_bytes()
    write_page(make_result(kinds=("composed",)), file.parent)
    assert file.read_bytes() != first
    write_page(result, file.parent)
    assert file.read_bytes() == first
    assert [path.name for path in file.parent.iterdir()] == ["index.html"]


def test_a_folder_that_is_a_file_is_an_error(make_result, tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ComposirError) as error:
        write_page(make_result(), tmp_path / "report")
    assert str(error.value) == (
        f"{tmp_path / 'report' / 'index.html'}: the report cannot be written (File exists); expected a folder that "
        "is there or can be made, and can be written to; fix: name another folder"
    )
    assert (tmp_path / "report").read_text() == "mine"


def test_the_title_names_data_set_split_and_figure(make_result, make_page):
    result = make_result()
    label = metric_label("mean_r5_rs1")
    assert make_page(result).one("head").one("title").text == (
        f"CIRR val: {label} {100 * result.metrics['mean_r5_rs1']:.2f} – composir"
    )
