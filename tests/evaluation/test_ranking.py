from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composir.errors import ComposirError, ProblemsError
from composir.evaluation import PADDING, rank, rank_blocks


def slow_order(scores, query, split):
    """All candidates of a query, best first: by score, then others before targets, then by place."""

    def key(place):
        name = split.gallery[place]
        role = 2 if name == query.targets[0] else 1 if name in query.targets else 0
        return (-float(scores[place]), role, place)

    candidates = [
        place
        for place, name in enumerate(split.gallery)
        if not (split.exclude_reference and name == query.reference) and name in (query.gallery or split.gallery)
    ]
    return sorted(candidates, key=key)


@st.composite
def problems(draw):
    """Similarities of few distinct values, hence full of ties, and queries with several targets."""
    num_queries, num_images = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 2.0**-100, float("inf"), float("-inf")])
    row = st.one_of(
        st.lists(values, min_size=num_images, max_size=num_images),
        values.map(lambda value: [value] * num_images),
    )
    rows = draw(st.lists(row, min_size=num_queries, max_size=num_queries))
    names = st.permutations([f"g{place}" for place in range(num_images)])
    queries = []
    for _ in range(num_queries):
        reference, *others = draw(names)
        num_targets = draw(st.integers(1, len(others)))
        subset = draw(st.permutations(others))[: draw(st.integers(0, len(others)))]
        gallery = (
            {*others[:num_targets], *subset, *draw(st.sets(st.sampled_from(others)))} if draw(st.booleans()) else ()
        )
        queries.append((reference, others[:num_targets], subset, gallery))
    return rows, queries, draw(st.booleans()), draw(st.integers(1, num_images + 2)), draw(st.integers(1, 4))


@given(problem=problems())
def test_ranking_equals_a_full_sort(make_split, make_query, problem):
    rows, queries, exclude_reference, depth, block = problem
    split = make_split(
        [make_query(number, *query, gallery=sorted(gallery)) for number, (*query, gallery) in enumerate(queries)],
        len(rows[0]),
        exclude_reference=exclude_reference,
    )
    similarity = torch.tensor(rows)
    ranking = rank(similarity, split, depth=depth)
    assert ranking.top.shape == ranking.scores.shape == (len(queries), depth)
    for row, query in enumerate(split.queries):
        whole_order = slow_order(rows[row], query, split)
        order = whole_order[:depth]
        assert ranking.target_ranks[row] == whole_order.index(split.gallery.index(query.targets[0])) + 1
        padding = depth - len(order)
        assert ranking.top[row].tolist() == order + [PADDING] * padding
        assert ranking.scores[row].tolist() == [rows[row][place] for place in order] + [-np.inf] * padding
        members = [split.gallery[place] for place in whole_order]
        assert ranking.subset[row] == tuple(name for name in members if name in query.subset)

    by_blocks = rank_blocks(similarity.split(block), split, depth=depth)
    np.testing.assert_array_equal(by_blocks.top, ranking.top)
    np.testing.assert_array_equal(by_blocks.scores, ranking.scores)
    np.testing.assert_array_equal(by_blocks.target_ranks, ranking.target_ranks)
    assert by_blocks.subset == ranking.subset


def test_many_rows_are_ranked_in_blocks_of_bounded_size(monkeypatch, make_split, make_query):
    queries = [make_query(number, "g0", [f"g{number + 1}"]) for number in range(7)]
    split = make_split(queries, 9)
    similarity = torch.randn(7, 9)
    whole = rank(similarity, split)
    monkeypatch.setattr("composir.evaluation.ranking.KEYS_PER_BLOCK", 20)  # two rows of nine images
    np.testing.assert_array_equal(rank(similarity, split).top, whole.top)


def test_a_tied_target_comes_last_and_the_annotated_one_after_all(make_split, make_query):
    split = make_split([make_query(0, "g4", ["g0", "g2"], ["g0", "g1"])], 5)
    ranking = rank(torch.full((1, 5), 0.3), split, depth=5)
    assert ranking.top.tolist() == [[1, 3, 2, 0, PADDING]]
    assert ranking.subset == (("g1", "g0"),)
    assert ranking.target_ranks.tolist() == [4]


def test_the_reference_is_kept_where_the_split_says_so(make_split, make_query):
    query = make_query(0, "g1", ["g0"])
    scores = torch.tensor([[0.5, 0.9, 0.1]])
    assert rank(scores, make_split([query], 3), depth=3).top.tolist() == [[0, 2, PADDING]]
    kept = make_split([query], 3, exclude_reference=False)
    assert rank(scores, kept, depth=3).top.tolist() == [[1, 0, 2]]


def test_scores_are_compared_as_float32(make_split, make_query):
    # 1 + 1e-9 rounds to 1 in float32: a tie, which the target loses.
    split = make_split([make_query(0, "g2", ["g0"])], 3)
    scores = torch.tensor([[1 + 1e-9, 1.0, 0.0]], dtype=torch.float64)
    assert rank(scores, split, depth=2).top.tolist() == [[1, 0]]


def test_a_query_without_targets_is_ranked_and_has_no_target_rank(make_split, make_query):
    split = make_split([make_query(0, "g0", [])], 3)
    ranking = rank(torch.tensor([[0.1, 0.2, 0.3]]), split, depth=3)
    assert ranking.top.tolist() == [[2, 1, PADDING]]
    assert ranking.target_ranks.tolist() == [0]


def test_nan_is_an_error_that_names_the_query(make_split, make_query):
    split = make_split([make_query(7, "g0", ["g1"]), make_query(8, "g0", ["g1"])], 3)
    with pytest.raises(ComposirError) as error:
        rank(torch.tensor([[0.1, 0.2, 0.3], [0.1, float("nan"), 0.3]]), split)
    assert str(error.value) == (
        "CIRR val: the similarity of query 8 is not a number (NaN); "
        "expected a finite score for every image of the gallery; "
        "fix: check the model's weights: a training run that diverged gives NaN"
    )


@pytest.mark.parametrize(
    ("shape", "got"),
    [((2, 3), "3 columns"), ((2, 5), "5 columns"), ((1, 4), "1 rows"), ((3, 4), "more rows"), ((0, 4), "0 rows")],
)
def test_a_wrong_shape_is_an_error(make_split, make_query, shape, got):
    split = make_split([make_query(0, "g0", ["g1"]), make_query(1, "g0", ["g1"])], 4)
    with pytest.raises(ComposirError) as error:
        rank(torch.zeros(shape), split)
    assert str(error.value) == (
        f"CIRR val: the similarity has {got}; "
        "expected a row for each of 2 queries and a column for each of 4 images; "
        "fix: embed every query and every gallery image of this split once, in the split's order"
    )


def test_names_outside_the_gallery_are_all_listed(make_split, make_query):
    split = make_split([make_query(0, "g0", ["x"], ["g1", "y"]), make_query(1, "g0", ["g1"])], 3)
    with pytest.raises(ProblemsError) as error:
        rank(torch.zeros(2, 3), split)
    fix = "fix: run `composir data check --dataset CIRR` and complete the split file"
    assert str(error.value) == (
        f"2 problems: CIRR val (query 0): target 'x' is not among the 3 images of the gallery; {fix} | "
        f"CIRR val (query 0): subset member 'y' is not among the 3 images of the gallery; {fix}"
    )


@pytest.mark.parametrize("num_images", [0, 3])
def test_an_empty_split_is_an_error(make_split, num_images):
    with pytest.raises(ComposirError) as error:
        rank(torch.zeros(0, num_images), make_split([], num_images, name="test1"))
    assert str(error.value) == (
        f"CIRR test1: 0 queries and {num_images} gallery images; expected at least one of each; "
        "fix: run `composir data check --dataset CIRR`"
    )
