"""How the server reads pictures: as the index does, from the copy that is there, in sRGB."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from composir.data.images.formats import FORMATS_TEXT
from composir.search import Retriever, content_id, index_folder
from composir.search.thumbnails import Thumbnails
from composir.web.pictures import read_thumbnail
from composir.web.problems import HttpProblem


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def searched(client, content: bytes, status: int = 200):
    answer = client.post("/api/search", files={"image": ("a.jpg", content)}, data={"text": "x"})
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
def served(shapes_index, serving, tmp_path):
    """Return a client, the folder of pictures that it serves, and what adds to the index."""
    pictures, index = tmp_path / "pictures", tmp_path / "index"
    shutil.copytree(shapes_index.parent / "pictures", pictures)
    index_folder(pictures, index, model=shapes_index.parent / "model")
    with Retriever(index) as retriever, serving(retriever) as client:

        def add(name: str, content: bytes) -> str:
            (pictures / name).parent.mkdir(exist_ok=True)
            (pictures / name).write_bytes(content)
            index_folder(pictures, index)
            retriever.reload_if_changed()
            return content_id(content)

        yield client, pictures, add


def test_an_image_is_served_from_the_copy_that_is_left(served):
    client, pictures, add = served
    content = encoded(Image.new("RGB", (40, 30), "orange"), "PNG")
    image_id = add("first/copy.png", content)
    add("second/copy.png", content)
    (pictures / "first/copy.png").unlink()
    found = client.get(f"/api/images/{image_id}")
    assert Image.open(io.BytesIO(found.content)).size == (40, 30)
    assert client.post("/api/search", data={"image_id": image_id}).status_code == 200
    (pictures / "first/copy.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))  # another picture now
    assert client.get(f"/api/images/{image_id}?size=preview").status_code == 200
    (pictures / "second/copy.png").unlink()
    assert client.get(f"/api/images/{image_id}?size=thumbnail").status_code == 404


def test_an_upload_finds_what_the_indexed_file_finds(served):
    client, _, add = served
    large = Image.effect_noise((40, 30), 90).convert("RGB").resize((1600, 1200), Image.Resampling.BICUBIC)
    content = encoded(large, "JPEG", quality=90)
    image_id = add("large.jpg", content)
    uploaded = searched(client, content)
    chosen = client.post("/api/search", data={"image_id": image_id, "text": "x"}).json()
    assert uploaded["reference"] == chosen["reference"] == image_id
    assert uploaded["results"] == chosen["results"]
    assert Image.open(io.BytesIO(client.get(f"/api/images/{image_id}").content)).size == (1600, 1200)


def test_a_jpeg_is_held_against_the_limit_by_what_is_decoded_of_it(client):
    large = Image.new("RGB", (3000, 2000), "red")  # six million pixels; the limit here is one
    assert len(searched(client, encoded(large, "JPEG"))["results"]) == 10
    assert searched(client, encoded(large, "PNG"), 413)["type"].endswith("too-many-pixels")


def test_the_docs_name_the_formats_that_are_read(client):
    docs = Path(__file__).parents[2].joinpath("docs/serve.md").read_text(encoding="utf-8")
    assert FORMATS_TEXT in docs
    assert FORMATS_TEXT in searched(client, b"no picture", 415)["detail"]


def test_thin_pictures_and_cut_jpegs_are_taken_and_postscript_is_not(client):
    for size in ((60_000, 1), (1, 60_000)):
        assert len(searched(client, encoded(Image.new("RGB", size), "PNG"))["results"]) == 10
    assert len(searched(client, encoded(Image.new("RGB", (80, 60), "red"), "JPEG")[:-1])["results"]) == 10
    document = searched(client, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\nshowpage\n", 415)
    assert document["type"].endswith("not-a-picture")


def test_the_page_is_given_the_colours_that_the_model_is_given(served):
    client, _, add = served
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    picture = encoded(Image.new("RGB", (64, 48), (230, 10, 10)), "PNG", icc_profile=bytes(profile))
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/api/images/{add('swapped.png', picture)}").content)))
    assert np.abs(shown.reshape(-1, 3).mean(axis=0) - (10, 10, 230)).max() <= 3


def test_a_thumbnail_is_kept_beside_the_index_and_gone_with_its_file(served, monkeypatch):
    client, pictures, add = served
    index, large = pictures.parent / "index", pictures / "large.png"
    image_id = add("large.png", encoded(Image.new("RGB", (900, 600), "red"), "PNG"))
    kept = Thumbnails(index)
    jpeg = kept.get(image_id)
    assert client.get(f"/api/images/{image_id}?size=thumbnail").content == jpeg
    kept.drop([image_id])  # as an index is that was made before there were thumbnails
    with Retriever(index) as retriever:
        assert read_thumbnail(retriever.images, kept, image_id) == jpeg == kept.get(image_id)
        monkeypatch.setattr("composir.web.pictures.read_image", None)  # from here on nothing is decoded
        assert read_thumbnail(retriever.images, kept, image_id) == jpeg
        content = large.read_bytes()
        large.unlink()
        large.write_bytes(content)  # another file of the same content
        assert not list(retriever.images.unchanged(image_id))
        assert read_thumbnail(retriever.images, kept, image_id) == jpeg
        monkeypatch.setattr("composir.web.pictures.read_bytes", None)
        large.unlink()
        with pytest.raises(HttpProblem, match="gone"):
            read_thumbnail(retriever.images, kept, image_id)
