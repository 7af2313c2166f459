from __future__ import annotations

import pytest
import torch

from composir.search import merge_vectors
from composir.search.merging import IMAGES_AT_ONCE


def test_the_nearest_two_become_their_mean_first():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]])
    # cosines: 1-2 0, 1-3 0.8, 2-3 0.6: the first and the third become (1.8, 0.6) / sqrt(3.6)
    merged = merge_vectors(vectors, 2)
    expected = torch.tensor([[[1.8 / 3.6**0.5, 0.6 / 3.6**0.5], [0.0, 1.0]]])
    torch.testing.assert_close(merged, expected)


def test_a_merged_vector_weighs_as_many_as_it_stands_for():
    vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    # two copies of (1, 0) and one of (0, 1): (2, 1) / sqrt(5)
    torch.testing.assert_close(merge_vectors(vectors, 1), torch.tensor([[[2 / 5**0.5, 1 / 5**0.5]]]))


@pytest.mark.parametrize("batch", [1, 5])
def test_images_do_not_depend_on_each_other(batch):
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(batch, 8, 16), dim=-1)
    together = merge_vectors(vectors, 3)
    assert together.shape == (batch, 3, 16)
    torch.testing.assert_close(together, torch.cat([merge_vectors(one[None], 3) for one in vectors]))
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(batch, 3))


def test_as_many_as_there_are_stay_as_they_are():
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(2, 4, 16), dim=-1)
    torch.testing.assert_close(merge_vectors(vectors, 4), vectors)


def test_copies_are_merged_without_loss():
    torch.manual_seed(0)
    different = torch.nn.functional.normalize(torch.randn(3, 4, 16), dim=-1)
    merged = merge_vectors(different.repeat(1, 4, 1), 4)
    torch.testing.assert_close((merged @ different.transpose(1, 2)).amax(dim=-1), torch.ones(3, 4))


@pytest.mark.parametrize("num_vectors", [1, 3, 7])
def test_the_fast_way_gives_what_the_short_slow_one_gives(num_vectors):
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(30, 8, 16), dim=-1)
    expected = []
    for image in vectors:
        sums = list(image)
        while len(sums) > num_vectors:
            pairs = [(a, b) for b in range(len(sums)) for a in range(b)]
            first, second = max(pairs, key=lambda p: float(torch.cosine_similarity(sums[p[0]], sums[p[1]], dim=0)))
            sums[first] = sums[first] + sums[second]
            del sums[second]
        expected.append(torch.stack(sums))
    expected = torch.nn.functional.normalize(torch.stack(expected), dim=-1)
    torch.testing.assert_close(merge_vectors(vectors, num_vectors), expected)


def test_images_beyond_those_merged_at_once():
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(IMAGES_AT_ONCE + 3, 4, 8), dim=-1)
    torch.testing.assert_close(merge_vectors(vectors, 2)[-3:], merge_vectors(vectors[-3:], 2))
    assert merge_vectors(vectors[:0], 2).shape == (0, 2, 8)
