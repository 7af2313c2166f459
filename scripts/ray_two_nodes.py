"""Indexes a folder by a Ray cluster of two nodes, kills one in the middle, and compares: as root, on Linux.

    python scripts/ray_two_nodes.py FOLDER

Each node has a network namespace of its own, with an address and a loopback that the other does not see, and one core
(``ray start --num-cpus 1``); a bridge joins the two. FOLDER gets pictures, drawn once, and the indexes: one made
without Ray, one by the first node alone, one by both, and one by both of which all processes of the second are killed
(SIGKILL) at a third of the pictures. Prints pictures a second from the first batch to the last, the whole run's
seconds with and beside it the machine's load, and whether each index is the one made without Ray: every byte of the
vector file and every row of the tables. All processes and namespaces are gone at the end, whatever happens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from PIL import Image, ImageDraw

BRIDGE, NODES, ENDS = "composir-ray", ("composir-ray-1", "composir-ray-2"), ("composir-end-1", "composir-end-2")
ADDRESSES, PORT = ("10.77.0.1", "10.77.0.2"), 6379
OBJECT_STORE_BYTES = 200 * 2**20
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
}
RUN = """
import json, sys, time
from pathlib import Path
from composir.search import index_folder
engine = {"engine": "ray", "address": sys.argv[4]} if sys.argv[4] else {}
tell = lambda *progress: print(json.dumps([time.time(), *progress]), flush=True)
index_folder(Path(sys.argv[1]), Path(sys.argv[2]), model=Path(sys.argv[3]), device="cpu", progress=tell, **engine)
"""


def _draw(folder: Path, num_pictures: int) -> None:
    """Fill a folder with JPEGs of 640 x 480, each of a dozen shapes; the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_pictures):
        chance = random.Random(number)
        picture = Image.new("RGB", (640, 480), "white")
        pen = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y, side = chance.randrange(560), chance.randrange(400), chance.randrange(20, 200)
            colour = tuple(chance.randrange(256) for _ in range(3))
            chance.choice((pen.ellipse, pen.rectangle))((x, y, x + side, y + side), fill=colour)
        picture.save(folder / f"{number:05}.jpg")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _kill(node: str) -> None:
    """Kill every process of a node at once, as a machine that loses its power."""
    found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def _cluster(num_nodes: int, folder: Path) -> Iterator[None]:
    """Run so many Ray nodes of one core, each in a network namespace of its own."""
    ray = str(Path(sys.executable).with_name("ray"))
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        for node, end, address in zip(NODES[:num_nodes], ENDS, ADDRESSES, strict=False):
            _ip("netns", "add", node)
            _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", node)
            _ip("link", "set", end, "master", BRIDGE, "up")
            for command in ("addr add {}/24 dev eth0", "link set eth0 up", "link set lo up"):
                _ip("-n", node, *command.format(address).split())
            head = ["--head", "--port", str(PORT), "--include-dashboard", "false", "--temp-dir", str(folder / "ray")]
            command = ["ip", "netns", "exec", node, ray, "start", "--node-ip-address", address, "--num-cpus", "1"]
            command += ["--object-store-memory", str(OBJECT_STORE_BYTES)]
            command += head if node == NODES[0] else ["--address", f"{ADDRESSES[0]}:{PORT}"]
            # In a session of its own, a node has a share of the processor of its own (sched_autogroup_enabled).
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT, start_new_session=True)
        yield
    finally:
        for node in NODES[:num_nodes]:
            _kill(node)
            subprocess.run(["ip", "netns", "del", node], check=False)
        for link in (*ENDS[:num_nodes], BRIDGE):
            subprocess.run(["ip", "link", "del", link], check=False, stderr=subprocess.DEVNULL)  # its end may be gone
        shutil.rmtree(folder / "ray", ignore_errors=True)


def _index(pictures: Path, out: Path, model: str, *, by_ray: bool, kill: bool = False) -> dict[str, object]:
    """Return seconds and rates of a fresh index; ``kill`` the second node at a third of the pictures."""
    shutil.rmtree(out, ignore_errors=True)
    inside = ["ip", "netns", "exec", NODES[0]] if by_ray else []
    address = f"{ADDRESSES[0]}:{PORT}" if by_ray else ""
    command = [*inside, sys.executable, "-c", RUN, str(pictures), str(out), model, address]
    load, start, told, killed_at = os.getloadavg()[0], time.time(), [], None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if not line.startswith("["):  # Ray's own, of the machine that is lost
                sys.stderr.write(line)
                continue
            moment, what, done, total = json.loads(line)
            if what == "pictures":
                told.append((moment, done))
                if kill and killed_at is None and done >= total / 3:
                    _kill(NODES[1])
                    killed_at = done
    if run.returncode:
        raise SystemExit(f"composir index ended with {run.returncode}")
    (first, before), (last, done) = told[0], told[-1]
    return {
        "pictures a second": round((done - before) / (last - first), 2),
        "seconds": round(time.time() - start, 1),
        "killed at": killed_at,
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "state": _state(out),
    }


def _state(out: Path) -> str:
    """Return a hash of all that an index holds: vectors byte for byte, ids, rows and files."""
    with closing(sqlite3.connect(out / "images.sqlite")) as database:
        tables = [database.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in ("images", "files")]
    digest = hashlib.sha256(repr(tables).encode())
    digest.update((out / "vectors-1.f16").read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Print a line for each index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--model", default="photos")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or nothing would be cleared away
    pictures = options.folder / f"pictures-{options.images}"
    if not pictures.exists():
        _draw(pictures, options.images)
    expected = None
    for _ in range(options.rounds):
        for name, num_nodes in (("without Ray", 0), ("one node", 1), ("two nodes", 2), ("two nodes, one killed", 2)):
            out = options.folder / f"{name.replace(',', '').replace(' ', '-')}.index"
            with _cluster(num_nodes, options.folder) if num_nodes else nullcontext():
                told = _index(pictures, out, options.model, by_ray=num_nodes > 0, kill="killed" in name)
            expected = expected or told["state"]
            told["same index"] = told.pop("state") == expected
            sys.stdout.write(f"{name}: {json.dumps(told)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
