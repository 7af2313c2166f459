from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import composir
from composir.data.images import files as image_files
from composir.errors import ComposirError
from composir.models.backbones.efficientnet import NormedConv2d
from composir.models.checkpoint import TRAINED_ON
from composir.search import content_id, encoder, index_folder, merge_vectors, read_manifest

from .conftest import draw, same_state, state


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


# -- what cannot be looked at ------------------------------------------------------------------------------------------


def unlistable(monkeypatch, name):
    """Let a folder of this name give an error when it is listed."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_cannot_be_listed_keeps_its_pictures(pictures, out, model_folder, monkeypatch, count):
    index_folder(pictures, out, model=model_folder)
    before = state(out)
    (pictures / "00.png").unlink()
    with monkeypatch.context() as patch:
        unlistable(patch, "sea")
        report = index_folder(pictures, out)
    assert (report.num_images, report.num_removed, report.num_kept) == (19, 1, 5)
    assert [(one.file, one.reason) for one in report.skipped] == [
        ("sea", "cannot be listed (Permission denied); 5 in the index stay")
    ]
    count()
    report = index_folder(pictures, out)
    assert (report.num_images, report.num_kept, report.skipped, count()) == (19, 0, (), 0)
    assert state(out)[0] == before[0][1:]


def test_a_folder_that_is_suddenly_empty_keeps_its_pictures_till_it_is_gone(pictures, out, model_folder):
    (pictures / "sea/deep").mkdir()
    shutil.copy(pictures / "sea/15.png", pictures / "sea/deep/15.png")
    index_folder(pictures, out, model=model_folder)
    away = (pictures / "sea").rename(pictures.parent / "away")
    (pictures / "sea").mkdir()
    report = index_folder(pictures, out)
    assert (report.num_images, report.num_files, report.num_kept) == (20, 21, 6)
    ((file, reason),) = [(one.file, one.reason) for one in report.skipped]
    assert (file, reason) == (
        "sea",
        "is empty, as the place of a missing drive is; 6 in the index stay (delete the folder if they are gone)",
    )
    (pictures / "sea").rmdir()
    report = index_folder(pictures, out)
    assert (report.num_images, report.num_removed, report.num_kept, report.skipped) == (15, 5, 0, ())
    away.rename(pictures / "sea")
    assert index_folder(pictures, out).num_images == 20


def test_an_empty_folder_that_never_held_a_picture_is_nothing_to_speak_of(pictures, out, model_folder):
    (pictures / "empty").mkdir()
    for _ in range(2):
        assert index_folder(pictures, out, model=model_folder).skipped == ()


def test_a_file_that_gives_an_error_keeps_its_picture(pictures, out, model_folder, monkeypatch):
    index_folder(pictures, out, model=model_folder)
    stat, open_at_once = Path.stat, image_files._open_at_once

    def failing_stat(path, **options):
        if path.name == "03.png":
            raise OSError(5, "Input/output error", str(path))
        return stat(path, **options)

    def failing_open(path, flags):
        if Path(path).name in ("04.png", "new.png"):
            raise OSError(5, "Input/output error", str(path))
        return open_at_once(path, flags)

    os.utime(pictures / "04.png", (1, 1))
    shutil.copy(pictures / "05.png", pictures / "new.png")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", failing_stat)
        patch.setattr(image_files, "_open_at_once", failing_open)
        report = index_folder(pictures, out)
    assert (report.num_images, report.num_removed, report.num_kept) == (20, 0, 2)
    assert [(one.file, one.reason) for one in report.skipped] == [
        ("03.png", "cannot be looked at (Input/output error); what the index has of it stays"),
        ("04.png", "cannot be opened (Input/output error); what the index has of it stays"),
        ("new.png", "cannot be opened (Input/output error)"),
    ]
    assert index_folder(pictures, out).num_files == 21


def test_a_picture_that_needs_too_much_memory_or_that_the_model_refuses_is_skipped(
    pictures, out, model_folder, monkeypatch
):
    prepare, embed = encoder.ComposerEncoder.prepare, encoder.ComposerEncoder.embed_pictures
    refused = []

    def failing(self, picture):
        if picture.size == (9, 9):
            raise MemoryError
        if picture.size == (8, 8):
            raise RuntimeError("no such\nshape")
        prepared = prepare(self, picture)
        if picture.size == (7, 7):
            refused.append(prepared.tobytes())
        return prepared

    def refusing(self, prepared):
        if any(one.tobytes() in refused for one in prepared):
            raise ValueError("too long")
        return embed(self, prepared)

    monkeypatch.setattr(encoder.ComposerEncoder, "prepare", failing)
    monkeypatch.setattr(encoder.ComposerEncoder, "embed_pictures", refusing)
    for side, colour in ((9, "red"), (8, "green"), (7, "blue")):
        Image.new("RGB", (side, side), colour).save(pictures / f"00-{side}.png")
    report = index_folder(pictures, out, model=model_folder)
    assert report.num_images == 20
    assert [(one.file, one.reason) for one in report.skipped] == [
        ("00-7.png", "the model does not take it (too long)"),
        ("00-8.png", "the model does not take it (no such shape)"),
        ("00-9.png", "needs more memory than there is left"),
    ]


# -- odd pictures ------------------------------------------------------------------------------------------------------


def test_a_thin_picture_costs_the_others_nothing(pictures, out, model_folder):
    Image.new("RGB", (60_000, 1), "red").save(pictures / "wide.png")
    Image.new("RGB", (1, 60_000), "red").save(pictures / "tall.png")
    report = index_folder(pictures, out, model=model_folder)
    assert (report.num_images, report.skipped) == (22, ())


def test_a_picture_beyond_the_bounds_is_skipped(pictures, out, model_folder, monkeypatch):
    monkeypatch.setenv("COMPOSIR_MAX_SIDE", "63")
    Image.new("RGB", (40, 40), "red").save(pictures / "small.png")
    report = index_folder(pictures, out, model=model_folder)
    assert report.num_images == 1
    assert {one.reason for one in report.skipped} == {
        "too many pixels: 64 x 48; at most 250,000,000, and 63 a side, are taken"
    }
    monkeypatch.setenv("COMPOSIR_MAX_SIDE", "0")
    with pytest.raises(ComposirError, match=r"the environment variable COMPOSIR_MAX_SIDE is '0'; expected a whole"):
        index_folder(pictures, out)


def test_a_cut_jpeg_is_indexed_with_a_note_and_found_by_itself(pictures, out, model_folder, caplog):
    Image.open(pictures / "01.png").save(pictures / "cut.jpg", quality=95)
    (pictures / "cut.jpg").write_bytes((pictures / "cut.jpg").read_bytes()[:-2])
    report = index_folder(pictures, out, model=model_folder)
    assert (report.num_images, report.skipped) == (21, ())
    note = "its last bytes are missing; it is used as far as it goes"
    assert [(one.file, one.note) for one in report.noted] == [("cut.jpg", note)]
    with composir.Retriever(out) as retriever:
        hits = retriever.search(pictures / "cut.jpg", "x", top_k=30, exclude=())
    assert len(hits) == 21
    assert f"cut.jpg: {note}" in caplog.text


def test_large_jpegs_are_decoded_at_a_scale_that_changes_next_to_nothing(tmp_path, out, model_folder):
    root = tmp_path / "large"
    root.mkdir()
    large = draw(3).resize((1600, 1200), Image.Resampling.BICUBIC)
    large.save(root / "large.jpg", quality=95)
    index_folder(root, out, model=model_folder)
    ((found,),) = (state(out)[2],)
    whole = composir.load(model_folder).embed_target([root / "large.jpg"])[0]
    cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(found).float(), whole, dim=-1)
    assert cosines.min() > 0.999
    with composir.Retriever(out) as retriever:
        assert retriever.encoder.side == 120  # 2 x 1.25 x 48


def test_folders_are_excluded_and_later_runs_know_it(pictures, out, model_folder):
    for name in ("raw", "@eaDir", "2020/raw", "2020/fine"):
        (pictures / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), (len(name), 0, 0)).save(pictures / name / "p.png")
    report = index_folder(pictures, out, model=model_folder)
    assert (report.num_images, report.excluded) == (23, ("@eaDir",))
    report = index_folder(pictures, out, exclude=["raw", "s*/"])
    assert (report.num_images, report.num_removed, report.num_kept) == (16, 7, 0)
    assert sorted(report.excluded) == ["2020/raw", "@eaDir", "raw", "sea"]
    report = index_folder(pictures, out)
    assert (report.num_images, len(report.excluded)) == (16, 4)
    assert index_folder(pictures, out, exclude=[""]).num_images == 23
    assert read_manifest(out).exclude == ()


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
        ('{"format": 1}', r"index.json: model is missing; weights_hash is missing"),
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


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], r"holds no picture that is read \(nothing is there\); expected files that end in .jpg, .*; fix: give the"),
        (
            ["a.DNG", "b.dng", "c.txt", "README"],
            r"\(files: 2 .dng, 1 without a suffix, 1 .txt\).* fix: export the .dng files as JPEG",
        ),
        (["@eaDir/a.png"], r"\(left out: @eaDir\)"),
    ],
)
def test_a_folder_without_pictures_is_an_error_that_says_what_is_there(tmp_path, out, model_folder, names, words):
    root = tmp_path / "folder"
    root.mkdir()
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    with pytest.raises(ComposirError, match=words):
        index_folder(root, out, model=model_folder)
    assert not out.exists()


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path, out, model_folder, monkeypatch):
    root = tmp_path / "folder"
    root.mkdir()
    (root / "a.jpg").touch()
    with pytest.raises(ComposirError, match=r"holds no picture that can be read: 1 x the image file is empty .*mend"):
        index_folder(root, out, model=model_folder)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in "bc":
        (root / f"{name}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + name.encode())
    with pytest.raises(ComposirError, match=r"2 x a HEIC picture needs .*; fix: pip install 'pillow-heif>="):
        index_folder(root, out, model=model_folder)
    Image.new("RGB", (9, 9)).save(root / "good.png")
    assert index_folder(root, out).num_images == 1


@pytest.mark.parametrize("old", ["exact", "faiss"])
def test_an_engine_that_fails_leaves_the_old_one_in_charge(pictures, out, model_folder, monkeypatch, old):
    monkeypatch.setattr("composir.search.qdrant.FIRST_WAIT", 0)
    index_folder(pictures, out, model=model_folder, backend=old)
    before, manifest = state(out), (out / "index.json").read_text()
    with socket.socket() as unused:  # a port where nobody answers
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ComposirError, match="Qdrant does not do what it is asked for"):
            index_folder(pictures, out, backend="qdrant", options={"url": url})
    assert (out / "index.json").read_text() == manifest
    with composir.Retriever(out) as retriever:
        assert len(retriever.search(pictures / "01.png", "x", top_k=20, exclude=())) == 20
    assert index_folder(pictures, out).num_images == 20
    same_state(state(out), before)


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        OSError(28, "No space left on device"),
        RuntimeError("write error in faiss-1.index: No space left on device"),
    ],
)
def test_a_full_disk_is_one_error_and_the_next_run_goes_on(pictures, out, model_folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("composir.search.folder.Table.put_files", fail)
        with pytest.raises(
            ComposirError, match=r"index: cannot be written \(No space left on device\); fix: make room"
        ):
            index_folder(pictures, out, model=model_folder)
    assert index_folder(pictures, out).num_images == 20


def test_an_index_says_what_its_model_was_trained_on(pictures, out, model_folder, tmp_path):
    model = tmp_path / "models" / "run" / "best"
    shutil.copytree(model_folder, model)
    report = index_folder(pictures, out, model=model)
    assert report.model == "run/best (tiny backbone; it does not say what it was trained on)"
    line = "trained on generated scenes of coloured shapes, and knows only those: no photographs"
    (model / TRAINED_ON).write_text(f"{line}\n")
    assert index_folder(pictures, out).model == f"run/best ({line})"
    assert read_manifest(out).about == line


def test_what_cannot_be_indexed(pictures, tmp_path, out, model_folder):
    with pytest.raises(ComposirError, match=r"no/where: is not a folder; expected a folder with pictures"):
        index_folder(tmp_path / "no/where", out, model=model_folder)
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
    with pytest.raises(ComposirError, match=rf"the {backend} engine needs .* fix: pip install '{backend}-[a-z]+>="):
        index_folder(pictures, out, backend=backend)


# -- kills -------------------------------------------------------------------------------------------------------------

# What a process does: it indexes, and kills itself before (``<name``) or after (``name>``) the n-th call of a function
# of the table, the system or Qdrant's client.
KILL_AT = """
from pathlib import Path
from composir.models import vision
from composir.search import folder, index_folder, qdrant, table
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
vision.TOWER_BATCH, folder.IMAGES_A_COMMIT, qdrant.POINTS_AT_ONCE = 2, 4, 3
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
        patch.setattr("composir.models.vision.TOWER_BATCH", 2)
        index_folder(pictures, root / "index", model=model_folder)
    return pictures, root / "index"


@pytest.fixture
def index_and_kill(spawn, unbroken, out, model_folder, monkeypatch):
    """Return the starter of a run that ends in a kill; what comes after it embeds in batches of the same size."""
    monkeypatch.setattr("composir.models.vision.TOWER_BATCH", 2)

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
    monkeypatch.setattr("composir.models.vision.TOWER_BATCH", 2)
    assert index_folder(pictures, out, model=model_folder).num_images == 20
    same_state(state(out), state(expected))


def test_ctrl_c_keeps_what_was_embedded(pictures, out, model_folder, monkeypatch):
    monkeypatch.setattr("composir.models.vision.TOWER_BATCH", 2)

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


def test_an_index_from_before_norms_were_folded_is_searched_and_brought_up_to_date(tmp_path, monkeypatch):
    root, out = tmp_path / "pictures", tmp_path / "index"
    root.mkdir()
    for number in range(2):
        draw(number).save(root / f"{number}.png")

    def convolve_then_norm(self, x):
        sides = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size, kernel, stride in sides)
        x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self.norm(functional.conv2d(x, self.weight, stride=self.stride, groups=self.groups))

    with monkeypatch.context() as patch:
        patch.setattr(NormedConv2d, "fold", lambda self, norm: object.__setattr__(self, "norm", norm))
        patch.setattr(NormedConv2d, "forward", convolve_then_norm)
        index_folder(root, out, model=Path("lite0"))
        index_folder(root, tmp_path / "old", model=Path("lite0"))
    draw(2).save(root / "2.png")
    assert index_folder(root, out).num_added == 1
    index_folder(root, tmp_path / "new", model=Path("lite0"))
    (ids, _, updated), (_, _, old), (new_ids, _, new) = map(state, (out, tmp_path / "old", tmp_path / "new"))
    assert ids == new_ids
    np.testing.assert_array_equal(updated[:2], old)
    np.testing.assert_array_equal(updated[2], new[2])
    np.testing.assert_allclose(updated.astype(np.float32), new.astype(np.float32), atol=1e-3, rtol=0)
    with composir.Retriever(out) as retriever:
        hit = retriever.search(root / "2.png", exclude=())[0]
    assert hit.path == root / "2.png"
    assert hit.score == pytest.approx(1, abs=1e-3)
