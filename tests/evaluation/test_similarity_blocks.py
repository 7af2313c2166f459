from __future__ import annotations

import importlib

import pytest
import torch

from composir.evaluation import similarity as blocked_similarity
from composir.evaluation.similarity import similarity

MODULE = importlib.import_module("composir.evaluation.similarity")  # the package has a function of that name


def slow(query: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    products = query.double()[:, None, None, :] * target.double()[None]  # (queries, targets, vectors, dim)
    return products.sum(dim=-1).max(dim=-1).values


@pytest.mark.parametrize(("num_queries", "num_targets", "num_vectors"), [(1, 1, 1), (7, 5, 3), (5, 9, 1)])
def test_blocks_equal_the_short_version(monkeypatch, num_queries, num_targets, num_vectors):
    monkeypatch.setattr(MODULE, "QUERIES_PER_BLOCK", 2)
    monkeypatch.setattr(MODULE, "PRODUCTS_PER_BLOCK", 50)
    query = torch.randn(num_queries, 8)
    target = torch.randn(num_targets, num_vectors, 8)
    scores = similarity(query, target)
    assert scores.shape == (num_queries, num_targets)
    torch.testing.assert_close(scores.double(), slow(query, target), rtol=0, atol=1e-5)


def test_no_block_exceeds_the_bound(monkeypatch):
    monkeypatch.setattr(MODULE, "QUERIES_PER_BLOCK", 4)
    monkeypatch.setattr(MODULE, "PRODUCTS_PER_BLOCK", 96)
    sizes = []

    def spy(query, target):
        sizes.append(len(query) * target.shape[0] * target.shape[1])
        return query @ target.amax(dim=1).T

    monkeypatch.setattr(MODULE, "similarity_of_block", spy)
    similarity(torch.rand(10, 8), torch.rand(11, 3, 8))
    # 96 products over 3 vectors of 8 numbers: 4 targets at once, and 4 queries: 48 products at most.
    assert max(sizes) == 48
    assert sum(sizes) == 10 * 11 * 3


def test_half_precision_is_scored_in_float32():
    query, target = torch.randn(3, 16).half(), torch.randn(4, 2, 16).half()
    scores = similarity(query, target)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), slow(query, target), rtol=0, atol=1e-5)


def test_autocast_does_not_reach_the_scores():
    query, target = torch.randn(3, 16), torch.randn(4, 2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = similarity(query, target)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, similarity(query, target), rtol=0, atol=0)


def test_gradients_pass_through_the_blocks(monkeypatch):
    query = torch.randn(5, 6, requires_grad=True)
    target = torch.randn(7, 3, 6, requires_grad=True)
    weights = torch.randn(5, 7)
    expected = torch.autograd.grad((slow(query, target).float() * weights).sum(), (query, target))
    monkeypatch.setattr(MODULE, "QUERIES_PER_BLOCK", 2)
    monkeypatch.setattr(MODULE, "PRODUCTS_PER_BLOCK", 40)
    found = torch.autograd.grad((similarity(query, target) * weights).sum(), (query, target))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_package_offers_the_same_function():
    assert blocked_similarity is similarity
