"""Hostile requests: each is refused with a problem document, costs little, and shows nothing."""

from __future__ import annotations

import importlib.resources
import io
import itertools
import os
import shutil
import struct
import zlib

import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

from composir.data.images.decoding import MAX_SCANS
from composir.search import Retriever, index_folder
from composir.web.guard import PAGE_FILES
from composir.web.pictures import read_upload
from composir.web.problems import HttpProblem


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def heic(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file)
    return file.getvalue()


def upload(client, content: bytes, name: str = "a.png", kind: str = "image/png"):
    return client.post("/api/search", files={"image": (name, content, kind)}, data={"text": "x"})


def is_problem(answer, status: int, name: str = "") -> bool:
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(document) == {"type", "title", "status", "detail", "instance", "errors"}
    assert document["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"
    assert "Traceback" not in answer.text
    assert "/pictures" not in answer.text
    kind = f"urn:composir:problem:{name}" if name else "about:blank"
    assert (answer.status_code, document["status"], document["type"]) == (status, status, kind), answer.text
    return True


def png_of(width: int, height: int) -> bytes:
    """Return a tiny PNG that claims to be so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def many_scans() -> bytes:
    content = encoded(Image.new("RGB", (32, 32), "red"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (MAX_SCANS + 1) + content[-2:]


PHOTO = Image.effect_noise((64, 48), 80).convert("RGB")
SCRIPT = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
NOT_A_PICTURE = {
    "nothing": b"",
    "text": b"no picture",
    "a zip": b"PK\x03\x04" + bytes(60),
    "SVG": SCRIPT,
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "PostScript, which Pillow would hand to another program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "PDF": b"%PDF-1.7\n1 0 obj",
    "a program": b"\x7fELF" + bytes(60),
    "a pickle": b"\x80\x04\x95\x10\x00",
    "a format that is not taken": encoded(PHOTO, "PPM"),
    "an icon": encoded(PHOTO, "ICO"),
    "only a signature": b"\x89PNG\r\n\x1a\n",
}
DAMAGED = {
    "a cut JPEG": encoded(PHOTO, "JPEG")[:-400],
    "a cut PNG": encoded(PHOTO)[:-1500],
    "a cut WebP": encoded(PHOTO, "WEBP", lossless=True)[:-1000],
    "float pixels": encoded(Image.new("F", (9, 9), 0.5), "TIFF"),
    "a JPEG of very many scans": many_scans(),
}
USABLE = {
    "CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "16 bits": encoded(Image.new("I;16", (40, 30), 30000)),
    "a palette with transparency": encoded(PHOTO.convert("P"), "GIF", transparency=3),
    "an animation": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)] * 3),
    "an animated WebP": encoded(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(90)] * 3),
    "one bit": encoded(PHOTO.convert("1")),
    "one pixel": encoded(Image.new("RGB", (1, 1))),
    "transparency": encoded(PHOTO.convert("RGBA"), "WEBP"),
    "TIFF": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "HEIC": heic(PHOTO),
    "AVIF": encoded(PHOTO, "AVIF"),
    "very wide": encoded(Image.new("RGB", (60_000, 1))),
}


@pytest.mark.parametrize("content", NOT_A_PICTURE.values(), ids=NOT_A_PICTURE)
def test_what_is_no_picture_is_refused_by_its_content(client, content):
    assert is_problem(upload(client, content), 415, "not-a-picture")


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_refused(client, content):
    assert is_problem(upload(client, content), 422, "damaged-picture")


@pytest.mark.parametrize("content", USABLE.values(), ids=USABLE)
def test_pictures_of_every_kind_are_taken_whatever_they_are_called(client, content):
    answer = upload(client, content, "../../etc/passwd\x00.exe", "text/html")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 10


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 1), (1001, 1000)])
def test_too_many_pixels_are_refused_before_one_is_decoded(client, size):
    assert is_problem(upload(client, png_of(*size)), 413, "too-many-pixels")


def test_a_large_request_is_refused_before_it_is_read(client):
    def body():
        raise AssertionError("the body was asked for")
        yield b""

    headers = {"Content-Length": "999999999", "Content-Type": "multipart/form-data; boundary=x"}
    assert is_problem(client.post("/api/search", content=body(), headers=headers), 413, "too-large")


def test_a_request_that_does_not_say_how_large_it_is_is_cut_off(client):
    sent = itertools.count()

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while next(sent) < 1000:
            yield bytes(2**16)

    answer = client.post("/api/search", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert is_problem(answer, 413)


@pytest.mark.parametrize(
    "data",
    [
        {"text": "x" * 1001},
        {"text": "x", "negative_text": "x" * 1001},
        {"text": "x", "where": "*" * 201},
        {"text": "x", "top_k": "0"},
        {"text": "x", "top_k": "201"},
        {"text": "x", "top_k": "many"},
        {"image_id": "../../etc/passwd"},
        {"image_id": "0" * 31},
        {"image_id": "0" * 32 + "\n"},
    ],
)
def test_fields_beyond_their_bounds_are_refused(client, data):
    assert is_problem(client.post("/api/search", data=data), 422, "invalid-request")


def test_what_does_not_go_together_is_refused(client, id_by_name):
    assert is_problem(client.post("/api/search"), 422, "nothing-asked")
    assert is_problem(client.post("/api/search", data={"text": "  "}), 422, "nothing-asked")
    assert is_problem(client.post("/api/heat", data={"text": "x"}), 422, "nothing-asked")
    both = client.post(
        "/api/search", data={"image_id": id_by_name["val-red-ellipse.png"]}, files={"image": encoded(PHOTO)}
    )
    assert is_problem(both, 422, "two-references")
    assert is_problem(client.post("/api/search", data={"image_id": "0" * 32}), 404, "no-such-image")
    two = [("image", encoded(PHOTO)), ("image", encoded(PHOTO))]
    assert is_problem(client.post("/api/search", files=two), 400)


FIELDS = (
    "image_id, text, negative_text, top_k, where, keep_reference, "
    "image_ids, texts, without, image_weight, min_score, more, less"
)
UNKNOWN = f"is no field of this request; one of: {', '.join(sorted(['image', *FIELDS.split(', ')]))}"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"image_weight": 1.5}, "image_weight: Input should be less than or equal to 1"),
        ({"image_weight": "nan"}, "image_weight: Input should be "),
        ({"min_score": "inf"}, "min_score: Input should be a finite number"),
        ({"texts": ["red:11"]}, "texts.0: Value error, the weight of 'red' is 11; expected 0 to 10"),
        ({"without": ["a", "x" * 201]}, "without.1: String should have at most 200 characters"),
        ({"texts": ["x"] * 9}, "texts: List should have at most 8 items"),
        ({"more": ["val-red-ellipse.png"]}, "more.0: String should match pattern"),
        ({"less": ["0" * 32] * 51}, "less: List should have at most 50 items"),
    ],
)
def test_what_a_query_is_moved_by_has_bounds(client, fields, error):
    answer = client.post("/api/search", data={"text": "x", **fields})
    assert is_problem(answer, 422, "invalid-request")
    assert answer.json()["errors"][0].startswith(error)
    if not isinstance(next(iter(fields.values())), str):  # JSON has neither inf nor nan
        assert client.post("/api/search", json={"text": "x", **fields}).json()["errors"] == answer.json()["errors"]


def test_what_does_not_fit_the_query_is_named(client, id_by_name):
    red, blue = id_by_name["val-red-ellipse.png"], id_by_name["val-blue-ellipse.png"]
    for fields, words in (
        ({"text": "x", "image_weight": 0.9}, "the image weight is 0.9, and there is no picture"),
        ({"image_id": red, "image_weight": 0.1}, "the image weight is 0.1, and there is no sentence"),
        (
            {"image_id": red, "image_ids": [blue], "texts": ["a", "b", "c"]},
            "there are 2 pictures and 3 sentences; expected one sentence for all pictures, or one for each",
        ),
    ):
        answer = client.post("/api/search", json=fields)
        assert is_problem(answer, 422, "cannot-be-asked")
        assert answer.json()["detail"].startswith(words)
    for fields in ({"more": ["0" * 32]}, {"less": [red, "0" * 32]}, {"image_ids": ["0" * 32]}):
        assert is_problem(client.post("/api/search", json={"text": "x", **fields}), 404, "no-such-image")


@pytest.mark.parametrize("kind", ["image/png", "text/plain", "application/octet-stream", "application/xml", None])
def test_another_kind_of_body_is_told_what_to_send(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post("/api/search", content=encoded(PHOTO), headers=headers)
    assert is_problem(answer, 415, "no-form")
    detail = answer.json()["detail"]
    assert f"the fields image (a picture's file), {FIELDS}, or application/json with the same" in detail
    assert f"the body is of type {kind!r}; send a form" in detail or (kind is None and "is not said" in detail)
    heat = client.post("/api/heat", content=b"x", headers=headers).json()["detail"]
    assert "image (a picture's file), image_id, text, or" in heat


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({"txt": "x"}, ["txt: is no field of this request; did you mean 'text'?"]),
        ({"imageid": "x", "topk": 3},
         ["imageid: is no field of this request; did you mean 'image_id'?",
          "topk: is no field of this request; did you mean 'top_k'?"]),
        ({"q": "x"}, [f"q: {UNKNOWN}"]),
        ({"text": "x", "top_k": 0, "colour": "red"},
         ["top_k: Input should be greater than or equal to 1",
          f"colour: {UNKNOWN}"]),
        ({"a" * 900: "x"}, ["a" * 60 + f": {UNKNOWN}"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["data", "json", "files"])
def test_every_field_that_is_wrong_is_named_with_the_nearest(client, body, errors, encoding):
    if encoding == "files":
        answer = client.post("/api/search", data=body, files={"image": encoded(PHOTO)})
    else:
        answer = client.post("/api/search", **{encoding: body})
    assert is_problem(answer, 422, "invalid-request")
    assert answer.json()["errors"] == errors


def test_a_file_and_a_text_in_each_others_place_are_told_so(client):
    path = client.post("/api/search", data={"image": "photo.jpg", "text": "x"})
    assert path.json()["errors"] == ["image: is no file; send its content, as curl -F image=@FILE does"]
    inside = client.post("/api/search", json={"image": "iVBORw0KGgo=", "text": "x"})
    assert inside.json()["errors"] == ["image: JSON takes no file: send it as multipart/form-data"]
    wrong = client.post("/api/search", files={"text": ("a.txt", b"x")})
    assert wrong.json()["errors"] == ["text: is a file; a picture's is called image, all else is text"]
    twice = client.post(
        "/api/search", content=b"text=a&text=b", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert twice.json()["errors"] == ["text: is given more than once"]
    for answer in (path, inside, wrong, twice):
        assert is_problem(answer, 422, "invalid-request")


def test_what_stands_in_the_address_and_nobody_reads_is_named(client, id_by_name):
    answer = client.post("/api/search", params={"top_k": 3}, data={"text": "x"})
    assert answer.json()["errors"] == ["top_k: stands in the address; send it in the body"]
    listing = client.get("/api/images", params={"cout": 3})
    assert listing.json()["errors"] == ["cout: is no parameter of this address; did you mean 'count'?"]
    picture = client.get(f"/api/images/{id_by_name['val-red-ellipse.png']}", params={"sizes": "full"})
    assert picture.json()["errors"] == ["sizes: is no parameter of this address; did you mean 'size'?"]
    for one in (answer, listing, picture):
        assert is_problem(one, 422, "invalid-request")


@pytest.mark.parametrize(
    ("content", "status", "name"),
    [
        (b"", 422, "invalid-request"),
        (b"{", 422, "invalid-request"),
        (b"[]", 422, "invalid-request"),
        (b'"text"', 422, "invalid-request"),
        (b"\xff\xfe", 422, "invalid-request"),
        (b'{"text": "\\ud800"}', 422, "invalid-request"),
        (b'{"text": ["x"]}', 422, "invalid-request"),
        (b'{"text": "x", "top_k": "3"}', 422, "invalid-request"),
        (b'{"text": "x", "top_k": 1e99}', 422, "invalid-request"),
        (b"[" * 60_000, 422, "invalid-request"),
        (b"{" + b",".join(b'"%d": 1' % number for number in range(5_000)) + b"}", 422, "invalid-request"),
        (b'{"text": "' + bytes(2**16) + b'"}', 413, "too-large"),
        (b"{}", 422, "nothing-asked"),
    ],
    ids=str,
)
def test_json_that_is_none_or_too_much_is_refused(client, content, status, name):
    answer = client.post("/api/search", content=content, headers={"Content-Type": "application/json"})
    assert is_problem(answer, status, name)
    assert len(answer.json()["errors"]) <= 16


@pytest.mark.parametrize("charset", ["undefined", "idna", "nothing", "zip", "utf-7", "\xff"])
@pytest.mark.parametrize("name", [b"text", b"a\xffb"])
def test_a_form_in_an_odd_encoding_is_no_failure(client, charset, name):
    body = b'--x\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\na\xff+2AA-\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}".encode("latin-1")
    answer = client.post("/api/search", content=body, headers={b"Content-Type": kind})
    assert answer.status_code in (200, 400, 422)


@pytest.mark.parametrize("text", ["\x00", "\ud7ff\U0010ffff", "'; DROP TABLE images; --", "[" * 500, "👩🏿‍🎨" * 99])
def test_any_text_is_only_text(client, text):
    answer = client.post("/api/search", data={"text": text, "where": text[:150]})
    assert answer.status_code == 200
    assert client.get("/api/health").json()["num_images"] == 12


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "0" * 32,
        "0" * 32 + "%00",
        "val-red-ellipse.png",
        "....//....//etc/passwd",
    ],
)
def test_an_id_is_never_a_path(client, path):
    answer = client.get(f"/api/images/{path}")
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/docs/..%2f..%2fcore.py", "/docs/../core.py", "/docs/%2e%2e/core.py", "/page.js/x", "//etc/passwd"]
)
def test_the_page_and_the_documentation_give_their_files_only(client, path):
    assert is_problem(client.get(path), 404)


def test_a_file_that_became_another_is_not_shown(shapes_index, tmp_path, serving):
    shutil.copytree(shapes_index.parent, tmp_path / "all")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    pictures = tmp_path / "all/pictures"
    with (
        Retriever(tmp_path / "all/index") as retriever,
        serving(retriever) as client,
    ):
        id_by_name = {path.name: image_id for image_id, path in retriever.images.items()}
        linked, same, replaced, pipe, gone = sorted(id_by_name)[:5]
        (pictures / linked).unlink()
        (pictures / linked).symlink_to(secret)
        shutil.copy(pictures / same, tmp_path / "outside.png")
        (pictures / same).unlink()
        (pictures / same).symlink_to(tmp_path / "outside.png")
        shutil.copy(secret, pictures / replaced)
        (pictures / pipe).unlink()
        os.mkfifo(pictures / pipe)
        (pictures / gone).unlink()
        for name in (linked, same, replaced, pipe, gone):
            assert is_problem(client.get(f"/api/images/{id_by_name[name]}"), 404, "image-gone")
            assert is_problem(client.post("/api/search", data={"image_id": id_by_name[name]}), 404, "image-gone")


def test_nothing_beside_the_pixels_is_given_away(shapes_index, tmp_path, serving):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6  # maker; to be turned by 90 degrees
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a secret")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "pictures/a.jpg", exif=exif, comment=b"a secret")
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "pictures/b.png", pnginfo=text)
    index_folder(tmp_path / "pictures", tmp_path / "index", model=shapes_index.parent / "model")
    with (
        Retriever(tmp_path / "index") as retriever,
        serving(retriever) as client,
    ):
        for image_id, path in retriever.images.items():
            for size in ("thumbnail", "preview", "full"):
                content = client.get(f"/api/images/{image_id}", params={"size": size}).content
                picture = Image.open(io.BytesIO(content))
                assert picture.size == ((40, 60) if path.suffix == ".jpg" else (60, 40))
                assert not picture.getexif()
                assert not {"comment", "exif", "icc_profile", "xmp"} & set(picture.info)
                assert b"secret" not in content


def test_a_key_opens_everything_and_without_it_only_the_door_is_open(guarded, key):
    files = {one.name for one in importlib.resources.files("composir.web").joinpath("page").iterdir()}
    assert files == {"index.html", *PAGE_FILES}
    for path in ("/", *sorted(files - {"index.html"}), "/api/health", "/docs", "/docs/swagger-ui.css", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    wrong = [
        {},
        {"Authorization": f"Bearer {key}x"},
        {"Authorization": f"Bearer {key[:-1]}"},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xff".encode("latin-1")},
        {"Cookie": f"composir-session={key}"},
        {"Cookie": "composir-session=\xe9; ;;=".encode("latin-1")},
    ]
    for headers in wrong:
        for path in ("/api/images", "/metrics", "/api/images/" + "0" * 32, "/nowhere", "/docsx"):
            answer = guarded.get(path, headers=headers)
            assert is_problem(answer, 401, "key-needed")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert is_problem(guarded.post("/api/search", data={"text": "x"}, headers=headers), 401, "key-needed")
        assert is_problem(guarded.post("/api/session", headers=headers), 401, "key-needed")
    assert guarded.get("/api/images", headers={"Authorization": f"bearer {key}"}).status_code == 200


def test_a_browser_gets_a_cookie_for_the_key_that_is_not_the_key(guarded, key):
    answer = guarded.post("/api/session", headers={"Authorization": f"Bearer {key}"})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 204
    assert {"HttpOnly", "SameSite=strict", "Secure"} <= {part.strip() for part in cookie.split(";")}
    assert key not in cookie
    assert guarded.get("/api/images").status_code == 200  # the client has kept it
    guarded.cookies.clear()
    assert guarded.get("/api/images").status_code == 401


def test_another_sites_page_may_not_ask(client, guarded):
    hosts = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""]
    for host in [
        *hosts,
        "128.0.0.1",
        "10.0.0.1",
        "[::2]",
        "0.0.0.0",
        "127.0.0.01",
        "[127.0.0.1]x",
        "[::ffff:10.0.0.1]",
    ]:
        assert is_problem(client.get("/api/images", headers={"Host": host}), 421, "not-this-host")
    hosts = ["localhost:1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "LocalHost.:8000", "[::1]", "127.0.0.2"]
    for host in [*hosts, "127.255.255.254:80", "[0:0:0:0:0:0:0:1]:80", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]:8000"]:
        assert client.get("/api/health", headers={"Host": host}).status_code == 200
    assert guarded.get("/api/health", headers={"Host": "anything.example"}).status_code == 200
    for site in ("cross-site", "same-site"):
        answer = client.post("/api/search", data={"text": "x"}, headers={"Sec-Fetch-Site": site})
        assert is_problem(answer, 403, "another-site")
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert not [name for name in client.options("/api/search", headers=headers).headers if "access-control" in name]
    answer = client.get("/api/health", headers={"Origin": "https://evil.example"})
    assert not [name for name in answer.headers if "access-control" in name]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_every_answer_has_the_security_headers(client, id_by_name):
    for path in (
        "/",
        "/docs",
        "/docs/swagger-ui.css",
        "/api/health",
        f"/api/images/{id_by_name['val-red-ellipse.png']}",
        "/no",
        "/metrics",
    ):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_a_reader_of_uploads_looks_at_no_more_than_it_must():
    wide = read_upload(encoded(Image.new("RGB", (60_000, 2))), max_pixels=10**6)
    assert wide.size == (4096, 1)
    with pytest.raises(HttpProblem, match=r"more than 0\.1 million pixels") as problem:
        read_upload(encoded(Image.new("RGB", (400, 400))), max_pixels=100_000)
    assert problem.value.status_code == 413
