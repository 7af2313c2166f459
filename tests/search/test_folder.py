from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

import composir
from composir.errors import ComposirError
from composir.search import content_id, index_folder, merge_vectors, read_manifest

from .conftest import same_state, state


@pytest.fixture
def out(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def count(monkeypatch):
    """Return how many pictures the tower has looked at since it was asked last."""
    seen = []
    merge = merge_vectors
    monkeypatch.setattr(
        "composir.search.embedding.merge_vectors", lambda vectors, n: seen.append(len(vectors)) or merge(vectors, n)
    )

    def counted():
        number = sum(seen)
        seen.clear()
        return number

    return counted


def test_an_index_holds_every_picture_s_target_vectors(pictures, out, model_folder):
    told = []
    report = index_folder(pictures, out, model=model_folder, progress=lambda *progress: told.append(progress))
    assert (report.num_images, report.num_files, report.num_added, report.num_removed) == (20, 20, 20, 0)
    assert report.skipped == ()
    assert told[-1] == ("pictures", 20, 20)
    files = sorted(pictures.rglob("*.png"), key=lambda file: file.relative_to(pictures).as_posix())
    ids, paths, vectors = state(out)
    assert ids == [content_id(file.read_bytes()) for file in files]
    assert paths == [[file.relative_to(pictures).as_posix()] for file in files]
    model = composir.load(model_folder)
    torch.testing.assert_close(torch.from_numpy(vectors).float(), model.embed_target(files), atol=1e-3, rtol=0)


def test_the_same_folder_indexed_twice_gives_the_same_index(pictures, tmp_path, model_folder):
    index_folder(pictures, tmp_path / "a", model=model_folder)
    index_folder(pictures, tmp_path / "b", model=model_folder, num_workers=1)
    same_state(state(tmp_path / "a"), state(tmp_path / "b"))


def test_a_second_run_embeds_nothing(pictures, out, model_folder, count):
    index_folder(pictures, out, model=model_folder)
    before = state(out)
    count()
    report = index_folder(pictures, out)
    assert (report.num_images, report.num_added, report.num_removed) == (20, 0, 0)
    assert count() == 0
    same_state(state(out), before)


def test_what_is_new_is_added_and_what_is_gone_is_dropped(pictures, out, model_folder, count):
    index_folder(pictures, out, model=model_folder)
    count()
    (pictures / "00.png").unlink()
    Image.new("RGB", (9, 9), "red").save(pictures / "zz.png")
    Image.new("RGB", (9, 9), "blue").save(pictures / "05.png")
    (pictures / "sea").rename(pictures / "lake")
    report = index_folder(pictures, out)
    assert count() == 2
    assert (report.num_images, report.num_added, report.num_removed) == (20, 2, 2)
    ids, paths, _ = state(out)
    assert sorted(path for several in paths for path in several) == sorted(
        file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png")
    )
    assert len(set(ids)) == 20


def test_files_of_one_content_are_one_image(pictures, out, model_folder):
    shutil.copy(pictures / "03.png", pictures / "sea" / "copy.png")
    shutil.copy(pictures / "03.png", pictures / "again.png")
    report = index_folder(pictures, out, model=model_folder)
    assert (report.num_images, report.num_files) == (20, 22)
    _, paths, _ = state(out)
    assert ["03.png", "again.png", "sea/copy.png"] in paths
    (pictures / "03.png").unlink()
    report = index_folder(pictures, out)
    assert (report.num_images, report.num_files, report.num_removed) == (20, 21, 0)


def test_moving_the_pictures_or_the_index_keeps_it_working(pictures, tmp_path, model_folder, count):
    out = tmp_path / "index"
    index_folder(pictures, out, model=model_folder)
    count()
    assert read_manifest(out).root.find(out) == pictures
    (tmp_path / "both").mkdir()
    together = (pictures.rename(tmp_path / "both/pictures"), out.rename(tmp_path / "both/index"))
    assert read_manifest(together[1]).root.find(together[1]) == together[0]
    alone = together[1].rename(tmp_path / "elsewhere")
    apart = together[0].rename(tmp_path / "moved")
    report = index_folder(apart, alone)
    assert (report.num_images, report.num_added, report.num_removed, count()) == (20, 0, 0, 0)
    assert read_manifest(alone).root.find(alone) == apart


def test_an_index_that_moved_without_its_pictures_still_finds_them(pictures, tmp_path, model_folder):
    index_folder(pictures, tmp_path / "index", model=model_folder)
    (tmp_path / "far/away").mkdir(parents=True)
    moved = (tmp_path / "index").rename(tmp_path / "far/away/index")
    assert read_manifest(moved).root.find(moved) == pictures


def test_formats_and_orientation(tmp_path, out, model_folder):
    root = tmp_path / "formats"
    root.mkdir()
    left, right = Image.new("RGB", (48, 64), "red"), Image.new("RGB", (48, 64), "blue")
    picture = Image.new("RGB", (96, 64))
    picture.paste(left, (0, 0))
    picture.paste(right, (48, 0))
    for suffix in ("png", "webp", "tiff", "bmp"):
        picture.save(root / f"a.{suffix}", lossless=True)
    frames = [picture, Image.new("RGB", (96, 64), "green")]
    frames[0].save(root / "a.gif", save_all=True, append_images=frames[1:])
    picture.save(root / "a.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 3
    picture.rotate(180).save(root / "rotated.png", exif=exif)
    import pillow_heif  # noqa: PLC0415

    pillow_heif.from_pillow(picture).save(root / "a.heic", quality=95)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    report = index_folder(root, out, model=model_folder)
    assert (report.num_images, report.skipped) == (8, ())
    _, paths, vectors = state(out)
    expected = composir.load(model_folder).embed_target([picture])[0]
    for (path,), one in zip(paths, vectors, strict=True):
        tolerance = 0.05 if path in ("a.jpg", "a.heic") else 1e-3
        torch.testing.assert_close(torch.from_numpy(one).float(), expected, atol=tolerance, rtol=0, msg=path)


def test_broken_files_are_reported_with_their_reason_and_nothing_else_is_lost(pictures, out, model_folder, tmp_path):
    whole = (pictures / "01.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[:60])
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "text.gif").write_text("not a picture")
    (pictures / "link.png").symlink_to(tmp_path / "nowhere.png")
    (pictures / "loop.png").symlink_to("loop.png")
    os.mkfifo(pictures / "pipe.png")
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(pictures / "02.png", outside)
    (pictures / "away.png").symlink_to(outside / "02.png")
    (pictures / "folder").symlink_to(outside)
    with open(os.fsencode(pictures) + b"/\xff.png", "wb") as file:  # noqa: PTH123 (a name that is no text)
        file.write(whole)
    report = index_folder(pictures, out, model=model_folder)
    assert report.num_images == 20
    leads_out = "a link that leads out of the folder"
    reasons = {one.file: one.reason for one in report.skipped}
    assert reasons.pop("cut.png").startswith("the image data is cut off or damaged")
    assert reasons.pop("text.gif").startswith("not an image of a format that is read")
    assert reasons == {
        "empty.jpg": "the image file is empty (0 bytes)",
        "link.png": leads_out,
        "loop.png": "a link that leads to itself",
        "pipe.png": "not a regular file",
        "away.png": leads_out,
        "folder": leads_out,
        "\\xff.png": "its name is not UTF-8",
    }
    assert index_folder(pictures, out).skipped == report.skipped  # said again, not once


def test_a_picture_that_broke_is_dropped_and_one_that_was_mended_is_added(pictures, out, model_folder):
    index_folder(pictures, out, model=model_folder)
    whole = (pictures / "04.png").read_bytes()
    (pictures / "04.png").write_bytes(whole[:50])
    report = index_folder(pictures, out)
    assert (report.num_images, report.num_removed) == (19, 1)
    assert [one.file for one in report.skipped] == ["04.png"]
    (pictures / "04.png").write_bytes(whole)
    report = index_folder(pictures, out)
    assert (report.num_images, report.num_added, report.skipped) == (20, 1, ())


def test_the_index_may_lie_inside_the_pictures(pictures, model_folder):
    for _ in range(2):
        assert index_folder(pictures, pictures / "index", model=model_folder).num_images == 20


def test_fewer_vectors_an_image(pictures, tmp_path, model_folder):
    index_folder(pictures, tmp_path / "all", model=model_folder)
    index_folder(pictures, tmp_path / "two", model=model_folder, vectors_per_image=2)
    every, two = state(tmp_path / "all")[2], state(tmp_path / "two")[2]
    assert (every.shape, two.shape) == ((20, 4, 16), (20, 2, 16))
    torch.testing.assert_close(
        merge_vectors(torch.from_numpy(every), 2), torch.from_numpy(two).float(), atol=2e-3, rtol=0
    )


def test_another_backend_is_made_from_the_vectors_that_are_there(pictures, out, model_folder, count):
    index_folder(pictures, out, model=model_folder)
    before = state(out)
    count()
    for backend in ("qdrant", "faiss", "exact"):
        assert index_folder(pictures, out, backend=backend).num_images == 20
        assert read_manifest(out).backend == backend
    assert count() == 0
    same_state(state(out), before)


def test_a_lost_drive_does_not_empty_the_index(pictures, out, model_folder):
    index_folder(pictures, out, model=model_folder)
    empty = pictures.parent / "empty"
    empty.mkdir()
    with pytest.raises(ComposirError, match=r"empty: holds no picture, and the index 20; expected the folder that was"):
        index_folder(empty, out)
    assert len(state(out)[0]) == 20


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_another_model_is_refused_with_the_command_that_rebuilds(pictures, out, model_folder, other_model_folder):
    index_folder(pictures, out, model=model_folder)
    before = state(out)
    with pytest.raises(ComposirError) as error:
        index_folder(pictures, out, model=other_model_folder)
    assert "is the index of another model (weights " in str(error.value)
    command = f"composir index {pictures} --model {other_model_folder} --out {out} --vectors-per-image 4 --rebuild"
    assert error.value.fix == command
    same_state(state(out), before)
    index_folder(pictures, out, backend="qdrant")
    index_folder(pictures, out, model=other_model_folder, vectors_per_image=4, rebuild=True)
    assert read_manifest(out).backend == "qdrant"
    ids, _, vectors = state(out)
    assert ids == before[0]
    assert not np.allclose(vectors, before[2], atol=1e-2)


def test_the_command_that_rebuilds_is_ready_for_a_shell(pictures, tmp_path, model_folder, other_model_folder):
    named = pictures.rename(tmp_path / "my pictures")
    index_folder(named, tmp_path / "an index", model=model_folder)
    with pytest.raises(ComposirError) as error:
        index_folder(named, tmp_path / "an index", model=other_model_folder)
    assert shlex.split(error.value.fix)[2:6] == [str(named), "--model", str(other_model_folder), "--out"]


def test_another_number_of_vectors_is_refused(pictures, out, model_folder):
    index_folder(pictures, out, model=model_folder)
    with pytest.raises(ComposirError, match=r"holds 4 vectors an image, not 2; fix: composir index .* --rebuild"):
        index_folder(pictures, out, vectors_per_image=2)
    with pytest.raises(ComposirError, match=r"--vectors-per-image 9 is more than the model makes; expected at most 4"):
        index_folder(pictures, out, vectors_per_image=9)


def test_an_index_of_another_format_is_refused_with_the_command_that_rebuilds(pictures, out, model_folder):
    index_folder(pictures, out, model=model_folder)
    fields = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({**fields, "format": 99, "composir_version": "9.0"}))
    words = (
        rf"was written by composir 9.0 in format 99; expected format 1; fix: composir index {pictures} "
        rf"--model {model_folder} --out {out} --rebuild"
    )
    for ask in (lambda: index_folder(pictures, out), lambda: composir.Retriever(out)):
        with pytest.raises(ComposirError, match=words):
            ask()
    assert index_folder(pictures, out, model=model_folder, rebuild=True).num_images == 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"index.json: is not JSON .* fix: composir index IMAGES_DIR --model MODEL_DIR --out .* --rebuild"),
        ("[]", r"index.json: is not JSON \(a list, not an object\)"),
        ('{"format": 1}', r"index.json: model: Field required; weights_hash: Field required"),
    ],
)
def test_a_damaged_manifest_is_refused(pictures, out, model_folder, text, words):
    index_folder(pictures, out, model=model_folder)
    (out / "index.json").write_text(text)
    with pytest.raises(ComposirError, match=words):
        index_folder(pictures, out)


def test_an_unknown_backend_names_the_nearest(pictures, out, model_folder):
    with pytest.raises(ComposirError, match=r"backend 'fais' is not known; fix: did you mean 'faiss'\?"):
        index_folder(pictures, out, model=model_folder, backend="fais")
    index_folder(pictures, out, model=model_folder)
    fields = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({**fields, "backend": "annoy"}))
    with pytest.raises(ComposirError, match="backend 'annoy' is not known"):
        read_manifest(out)


def test_what_cannot_be_indexed(pictures, tmp_path, out, model_folder):
    with pytest.raises(ComposirError, match=r"no/where: is not a folder; expected a folder with pictures"):
        index_folder(tmp_path / "no/where", out, model=model_folder)
    with pytest.raises(ComposirError, match=r"index: a new index needs a model; fix: --model models/RUN/best"):
        index_folder(pictures, out)
    with pytest.raises(ComposirError, match=r"is not an index \(it has no index.json\) and not empty; fix: give a new"):
        index_folder(pictures, pictures / "sea", model=model_folder)
    with pytest.raises(ComposirError, match=r"00.png: is a file; expected a folder for the index"):
        index_folder(pictures, pictures / "00.png", model=model_folder)
    assert not out.exists()


@pytest.mark.parametrize("missing", [("faiss", "faiss"), ("qdrant_client", "qdrant")])
def test_a_missing_extra_says_what_to_install(pictures, out, model_folder, monkeypatch, missing):
    package, backend = missing
    index_folder(pictures, out, model=model_folder)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("composir.search.faiss.SCAN_BELOW", 1)
    with pytest.raises(ComposirError, match=rf"the {backend} engine needs .* fix: pip install 'composir\[{backend}\]'"):
        index_folder(pictures, out, backend=backend)


# -- kills -------------------------------------------------------------------------------------------------------------

# What a process does: it indexes, and kills itself before (``<name``) or after (``name>``) the n-th call of a function
# of the table, the system or Qdrant's client.
KILL_AT = """
from pathlib import Path
from composir.search import encoder, folder, index_folder, qdrant, table
place, moment, left = {place!r}, {moment!r}, [{times}]
name = moment.strip("<>")

def killing(function):
    def wrapped(*arguments, **options):
        left[0] -= 1
        if moment.startswith("<") and not left[0]:
            os.kill(os.getpid(), 9)
        result = function(*arguments, **options)
        if not left[0]:
            os.kill(os.getpid(), 9)
        return result
    return wrapped

connect = qdrant._connect
def connected(*arguments):
    client = connect(*arguments)
    setattr(client, name, killing(getattr(client, name)))
    return client

if place == "qdrant":
    qdrant._connect = connected
else:
    owner = dict(table=table.Table, os=os)[place]
    setattr(owner, name, killing(getattr(owner, name)))
encoder.TOWER_BATCH, folder.IMAGES_A_COMMIT, qdrant.POINTS_AT_ONCE = 2, 4, 3
index_folder(Path({pictures!r}), Path({out!r}), model=Path({model!r}), backend={backend!r})
"""

MOMENTS = [
    ("exact", "table.<append>", 1),  # nothing is there yet
    ("exact", "os.fsync>", 2),  # the manifest; then vectors on disk of which nobody knows
    ("exact", "table.<commit>", 1),
    ("exact", "table.commit>", 1),
    ("exact", "os.fsync>", 6),  # in the middle
    ("exact", "table.commit>", 3),
    ("exact", "table.<drop_files>", 1),  # all embedded
    ("exact", "table.<compact>", 1),
    ("faiss", "table.<compact>", 1),
    ("qdrant", "qdrant.<create_collection>", 1),
    ("qdrant", "qdrant.create_collection>", 1),
    ("qdrant", "qdrant.<upsert>", 3),
    ("qdrant", "qdrant.upsert>", 3),  # pushed, and not noted as pushed
    ("qdrant", "table.tell_pushed>", 3),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, model_folder):
    """Return a folder of pictures and its index by a run that was not broken off."""
    from composir.data.scenes import generate  # noqa: PLC0415

    root = tmp_path_factory.mktemp("unbroken")
    generate(root / "scenes", num_images=144)
    pictures = root / "pictures"
    pictures.mkdir()
    for file in sorted((root / "scenes").rglob("*.png"))[:20]:
        shutil.copy(file, pictures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("composir.search.encoder.TOWER_BATCH", 2)
        index_folder(pictures, root / "index", model=model_folder)
    return pictures, root / "index"


@pytest.fixture
def index_and_kill(spawn, unbroken, out, model_folder, monkeypatch):
    """Return the starter of a run that ends in a kill; what comes after it embeds in batches of the same size."""
    monkeypatch.setattr("composir.search.encoder.TOWER_BATCH", 2)

    def start(backend, call, times):
        place, _, moment = call.partition(".")
        names = {"pictures": str(unbroken[0]), "out": str(out), "model": str(model_folder), "backend": backend}
        code, words = spawn(KILL_AT.format(place=place, moment=moment, times=times, **names)).end()
        assert code == -signal.SIGKILL, words

    return start


@pytest.mark.parametrize("killed", MOMENTS)
def test_after_a_kill_the_next_run_completes_and_the_index_is_the_same(
    unbroken, out, model_folder, index_and_kill, killed
):
    pictures, expected = unbroken
    backend, *_ = killed
    index_and_kill(*killed)
    report = index_folder(pictures, out, model=model_folder, backend=backend)
    assert report.num_images == 20
    same_state(state(out), state(expected))
    with composir.Retriever(out) as retriever, composir.Retriever(expected) as whole:
        asked = sorted(pictures.iterdir())[0]
        found, truth = (one.search(asked, "x", top_k=20, exclude=()) for one in (retriever, whole))
        assert [hit.id for hit in found] == [hit.id for hit in truth]
        if backend == "qdrant":
            assert retriever.index.client.count(retriever.index.collection).count == 20


def test_a_kill_at_any_time_loses_nothing(unbroken, tmp_path, model_folder, monkeypatch):
    pictures, expected = unbroken
    out = tmp_path / "index"
    arguments = [
        "-c",
        "from composir.cli import main; main()",
        "index",
        pictures,
        "--model",
        model_folder,
        "--out",
        out,
    ]
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "images.sqlite").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    monkeypatch.setattr("composir.search.encoder.TOWER_BATCH", 2)
    assert index_folder(pictures, out, model=model_folder).num_images == 20
    same_state(state(out), state(expected))


def test_ctrl_c_keeps_what_was_embedded(pictures, out, model_folder, monkeypatch):
    monkeypatch.setattr("composir.search.encoder.TOWER_BATCH", 2)

    def stop(name, done, total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_folder(pictures, out, model=model_folder, progress=stop)
    assert len(state(out)[0]) == 8
    assert index_folder(pictures, out).num_added == 12


def test_a_killed_rebuild_is_gone_on_with(pictures, out, model_folder, other_model_folder, monkeypatch):
    index_folder(pictures, out, model=model_folder)
    monkeypatch.setattr("composir.search.folder.Table.recover", lambda table: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        index_folder(pictures, out, model=other_model_folder, rebuild=True)
    monkeypatch.undo()
    report = index_folder(pictures, out, model=other_model_folder, rebuild=True)
    assert (report.num_images, report.num_added) == (20, 20)


def test_the_table_is_ordinary_sqlite(pictures, out, model_folder):
    index_folder(pictures, out, model=model_folder)
    with closing(sqlite3.connect(out / "images.sqlite")) as database:
        assert database.execute("SELECT COUNT(*) FROM files WHERE path GLOB 'sea/*'").fetchone() == (5,)
