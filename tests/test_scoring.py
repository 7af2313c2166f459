from __future__ import annotations

import torch

import composir
from composir.models.checkpoint import from_pretrained
from composir.scoring import similarity
from composir.search import Retriever


def test_is_the_largest_dot_product_with_any_vector():
    torch.manual_seed(0)
    query, target = torch.randn(5, 8), torch.randn(7, 3, 8)
    scores = similarity(query, target)
    assert scores.shape == (5, 7)
    for i in range(5):
        for j in range(7):
            torch.testing.assert_close(scores[i, j], max(query[i] @ vector for vector in target[j]))


def test_by_hand():
    # (1, 0) against {(0, 1), (0.6, 0.8)}: the larger of 0 and 0.6; against {(-1, 0), (0, -1)}: of -1 and 0.
    query = torch.tensor([[1.0, 0.0]])
    target = torch.tensor([[[0.0, 1.0], [0.6, 0.8]], [[-1.0, 0.0], [0.0, -1.0]]])
    torch.testing.assert_close(similarity(query, target), torch.tensor([[0.6, 0.0]]))


def test_the_parts_of_a_query_are_added_up():
    # (1, 0): 0.6 and -0; (0, 0.5): 0.5 and 0. Sums 1.1 and 0.
    query = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    target = torch.tensor([[[0.0, 1.0], [0.6, 0.8]], [[-1.0, 0.0], [0.0, -1.0]]])
    torch.testing.assert_close(similarity(query, target), torch.tensor([[1.1, 0.0]]))


def test_one_part_is_one_vector():
    torch.manual_seed(0)
    query, target = torch.randn(5, 8), torch.randn(7, 3, 8)
    torch.testing.assert_close(similarity(query[:, None], target), similarity(query, target))


def test_the_package_s_names_stay_what_they_are():
    assert composir.similarity is similarity
    assert composir.load is from_pretrained
    assert composir.Retriever is Retriever
    assert sorted(composir.__all__) == [
        "Retriever",
        "__version__",
        "load",
        "push_to_hub",
        "save_pretrained",
        "similarity",
    ]
