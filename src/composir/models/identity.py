"""What identifies a folder of weights, without reading gigabytes at every start."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from composir.errors import ComposirError
from composir.files import default_cache_dir, write_text

CONFIGS = (".json", ".txt", ".model", ".jinja")
"""Files that say how weights are used: sizes, preprocessing, vocabulary, templates. They are small and read."""
KNOWN_HASHES = "weights.json"
"""In the cache folder: SHA-256 of files of weights by path, size and time."""
_BLOCK = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def folder_hash(folder: Path) -> str:
    """Return 16 hex digits of a SHA-256 over names and contents of what makes a model of a folder in the hub's layout.

    That is its weights (safetensors; pickles where there are none) and the files of ``CONFIGS``; the place of the
    folder has no part in it. The hub's cache names files of weights by their SHA-256, which is believed; elsewhere a
    file of weights is read once and remembered by path, size and time of its last change. Raises ``ComposirError``
    where the folder holds no weights.
    """
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    visible = {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.split("/"))}
    weights = [name for name in visible if name.endswith(".safetensors")]
    weights = weights or [name for name in visible if name.endswith(".bin")]
    if not weights:
        raise ComposirError("holds no weights", file=folder, expected="files that end in .safetensors, or in .bin")
    configs = [name for name in visible if name.endswith(CONFIGS)]
    digest = hashlib.sha256()
    for name in sorted({*weights, *configs}):
        content = _weights_sha256(visible[name]) if name in weights else _sha256(visible[name])
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:16]


def files_hash(version: int, files: Iterable[Path]) -> str:
    """Return 16 hex digits of a SHA-256 over a version of rules and the contents of files, in their order."""
    digest = hashlib.sha256(f"{version}".encode())
    for file in files:
        digest.update(bytes.fromhex(_sha256(file)))
    return digest.hexdigest()[:16]


def _weights_sha256(file: Path) -> str:
    blob = file.resolve()
    if _SHA256.fullmatch(blob.name) and blob.parent.name == "blobs":
        return blob.name
    found = blob.stat()
    key = f"{blob} {found.st_size} {found.st_mtime_ns}"
    memory = default_cache_dir() / KNOWN_HASHES
    known = _read(memory)
    if key not in known:
        known = {**_read(memory), key: _sha256(blob)}
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_text(memory, json.dumps(known))
        except OSError:  # a cache that cannot be written costs the next start its time
            pass
    return known[key]


def _read(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
