from __future__ import annotations

import threading

import pytest

from composir.web.batcher import Batcher


def test_what_came_in_meanwhile_is_one_batch_in_order():
    held, sizes = threading.Event(), []

    def answer(asked):
        held.wait()
        return [10 * one for one in asked]

    batcher = Batcher(answer, max_batch=3, on_batch=sizes.append)
    futures = [batcher.ask(number) for number in range(8)]
    held.set()
    batcher.close()
    assert [future.result() for future in futures] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert sum(sizes) == 8
    assert max(sizes) == 3


def test_one_that_fails_does_not_take_the_others_with_it():
    held = threading.Event()

    def answer(asked):
        held.wait()
        return [1 / one for one in asked]

    batcher = Batcher(answer, max_batch=8)
    futures = [batcher.ask(number) for number in (9, 1, 0, 2)]
    held.set()
    batcher.close()
    assert [futures[place].result() for place in (1, 3)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        futures[2].result()


def test_what_is_taken_back_is_not_answered():
    held, seen = threading.Event(), []

    def answer(asked):
        held.wait()
        seen.extend(asked)
        return asked

    batcher = Batcher(answer, max_batch=1)
    futures = [batcher.ask(number) for number in range(4)]
    assert futures[2].cancel()
    held.set()
    batcher.close()
    assert seen == [0, 1, 3]


def test_closing_answers_what_was_asked_and_takes_no_more():
    batcher = Batcher(lambda asked: asked, max_batch=2)
    futures = [batcher.ask(number) for number in range(5)]
    batcher.close()
    assert [future.result(timeout=0) for future in futures] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.ask(5)
