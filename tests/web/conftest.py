"""A served index for the tests of the interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from fastapi.testclient import TestClient

from composir.search import Retriever
from composir.web import open_server
from composir.web.app import create_app
from composir.web.limits import Limits
from composir.web.server import Server

LOCAL = "http://localhost:8000"


@pytest.fixture(scope="session")
def retriever(shapes_index) -> Iterator[Retriever]:
    with Retriever(shapes_index) as opened:
        yield opened


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits(max_upload_bytes=2**20, max_pixels=1_000_000, max_seconds=10, reload_seconds=0.05)


@pytest.fixture(scope="session")
def key() -> str:
    return "a-key-that-nobody-guesses"


@pytest.fixture
def serving() -> Callable[..., TestClient]:
    """Return the maker of a client of a server over a retriever, to be used with ``with``."""
    return lambda retriever, **limits: TestClient(create_app(retriever, limits=Limits(**limits)), base_url=LOCAL)


@pytest.fixture(scope="session")
def client(retriever, limits) -> Iterator[TestClient]:
    with TestClient(create_app(retriever, limits=limits), base_url=LOCAL) as opened:
        yield opened


@pytest.fixture(scope="session")
def guarded(retriever, limits, key) -> Iterator[TestClient]:
    """Return a client of a server with a key, which it does not show."""
    with TestClient(create_app(retriever, api_key=key, limits=limits), base_url="https://pictures.example") as opened:
        yield opened


@pytest.fixture
def id_by_name(retriever) -> dict[str, str]:
    return {path.name: image_id for image_id, path in retriever.images.items()}


@pytest.fixture(scope="session")
def running() -> Callable[..., AbstractContextManager[Server]]:
    """Return the starter of a real server on a port of its own, to be used with ``with``."""

    @contextmanager
    def start(index, prepare: Callable[[Server], object] = lambda server: None, **options) -> Iterator[Server]:
        server = open_server(index, port=0, **options)
        prepare(server)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()

    return start


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """Return the waiter for what another thread does; it raises where that does not happen."""

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(6000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError("it did not happen within a minute")

    return wait
