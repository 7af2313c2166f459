"""Load for `composir serve`, by locust: people who search, upload, look at pictures and heat maps without a pause.

    pip install locust
    composir serve INDEX --port 8000
    locust -f scripts/serve_load.py --headless --users 50 --spawn-rate 25 --run-time 2m --host http://localhost:8000

At the end it prints locust's table, how often the server said "come back later" (503 with Retry-After, which counts as
an answer), and the server's memory over time.
"""

from __future__ import annotations

import io
import random
import re

import gevent
from locust import FastHttpUser, events, task
from PIL import Image

SENTENCES = ("make it blue", "the same at night", "with a dog", "is a woman and has dark skin", "larger", "")
SECONDS_BETWEEN = 10
memory: list[float] = []
refused = 0


def _photograph() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((1600, 1200), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()


UPLOAD = _photograph()


class Person(FastHttpUser):
    """Asks again as soon as the answer is there."""

    def on_start(self) -> None:
        """Learn which pictures there are."""
        self.ids = [one["id"] for one in self.client.get("/api/images?count=200", name="listing").json()["images"]]

    def _ask(self, path: str, name: str, **form: object) -> None:
        global refused  # noqa: PLW0603
        with self.client.post(path, name=name, catch_response=True, **form) as answer:
            if answer.status_code == 503 and answer.headers.get("Retry-After"):
                refused += 1
                answer.request_meta["name"] = "told to come back"
                answer.success()
                gevent.sleep(float(answer.headers["Retry-After"]))

    @task(8)
    def search(self) -> None:
        """Search by a picture of the gallery and a sentence."""
        data = {"image_id": random.choice(self.ids), "text": random.choice(SENTENCES)}
        self._ask("/api/search", "search by id", data=data)

    @task(2)
    def search_by_upload(self) -> None:
        """Search by a picture of 1,600 x 1,200 pixels."""
        form = {"files": {"image": ("a.jpg", UPLOAD)}, "data": {"text": random.choice(SENTENCES)}}
        self._ask("/api/search", "search by upload", **form)

    @task(6)
    def look(self) -> None:
        """Look at a picture."""
        self.client.get(f"/api/images/{random.choice(self.ids)}?size=thumbnail", name="thumbnail")

    @task(1)
    def heat(self) -> None:
        """Look where the model looks."""
        self._ask("/api/heat", "heat", data={"image_id": random.choice(self.ids), "text": random.choice(SENTENCES)})


@events.test_start.add_listener
def watch_memory(environment, **_: object) -> None:
    """Read the server's memory every few seconds, from its own metrics."""
    import urllib.request  # noqa: PLC0415

    def read() -> None:
        while True:
            with urllib.request.urlopen(f"{environment.host}/metrics") as metrics:
                found = re.search(rb"^process_resident_memory_bytes (\S+)", metrics.read(), re.MULTILINE)
            memory.append(float(found[1]) / 2**20 if found else float("nan"))
            gevent.sleep(SECONDS_BETWEEN)

    gevent.spawn(read)


@events.quitting.add_listener
def report(environment, **_: object) -> None:
    """Print what locust's table does not say."""
    print(f"told to come back (503): {refused}")  # noqa: T201
    print(f"server's memory every {SECONDS_BETWEEN} s, MiB: {' '.join(f'{one:.0f}' for one in memory)}")  # noqa: T201
