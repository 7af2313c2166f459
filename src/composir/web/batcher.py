"""Many requests, one model: what came in while the last batch was answered is the next batch."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


class Batcher(Generic[Asked, Answer]):
    """A thread that answers what others ask, up to ``max_batch`` at a time, in the order in which it was asked.

    There is no waiting for a batch to fill: alone, a question is answered at once. A batch that fails is answered
    again one by one, so that no question suffers for another. ``close`` answers what was asked before it.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Sequence[Answer]],
        *,
        max_batch: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._answer = answer
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._waiting: queue.SimpleQueue[tuple[Asked, Future[Answer]] | None] = queue.SimpleQueue()
        self._lock = Lock()
        self._closed = False
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def ask(self, asked: Asked) -> Future[Answer]:
        """Return the answer to come; cancelling it before its batch begins takes the question back."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.put((asked, future))
        return future

    def close(self) -> None:
        """Answer what was asked, then end."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            batch = []
            one = self._waiting.get()
            while True:
                if one is None:
                    going_on = False
                    break
                if one[1].set_running_or_notify_cancel():
                    batch.append(one)
                if len(batch) == self._max_batch or self._waiting.empty():
                    break
                one = self._waiting.get()
            if batch:
                self._on_batch(len(batch))
                self._answer_batch(batch)

    def _answer_batch(self, batch: Sequence[tuple[Asked, Future[Answer]]]) -> None:
        try:
            answers = self._answer([asked for asked, _ in batch])
        except Exception as error:  # of whatever kind: those who asked have to hear of it
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            logger.warning("a batch of %d failed and is answered one by one", len(batch), exc_info=error)
            for one in batch:
                self._answer_batch([one])
            return
        for (_, future), given in zip(batch, answers, strict=True):
            future.set_result(given)
