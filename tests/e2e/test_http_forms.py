"""multipart/form-data: files, fields, and every way to get it wrong."""

import pytest
import requests

from conftest import error_of, image_bytes, read_reply

CRLF = b"\r\n"


def part(data, name="image", filename="a.jpg", extra=b""):
    head = b'Content-Disposition: form-data; name="%s"' % name.encode()
    if filename is not None:
        head += b'; filename="%s"' % filename.encode()
    return b"--B\r\n" + head + CRLF + extra + CRLF + data + CRLF


def send(server, body, content_type="multipart/form-data; boundary=B", query=""):
    return server.classify(body, query, headers={"Content-Type": content_type})


@pytest.fixture(scope="module")
def picture():
    return image_bytes(48, 32)


def test_one_file_is_answered_like_a_bare_body(server, picture):
    form = requests.post(server.url + "/v1/classify", files={"image": ("a.jpg", picture, "image/jpeg")}, timeout=60).json()
    bare = server.classify(picture).json()
    assert list(form) == list(bare)
    assert form["predictions"] == bare["predictions"]


def test_several_files(server, picture, cat):
    files = [("image", ("a.jpg", picture)), ("image", ("notes.txt", b"hello")), ("other", ("cat.png", cat)),
             ("image", ("cut.png", cat[:1000])), ("image", ("empty.jpg", b""))]
    reply = requests.post(server.url + "/v1/classify?stages=0&top_k=1", files=files, timeout=60)
    assert reply.status_code == 200
    body = reply.json()
    assert list(body) == ["model", "results", "timing_ms", "request_id"]
    results = body["results"]
    assert [result["filename"] for result in results] == ["a.jpg", "notes.txt", "cat.png", "cut.png", "empty.jpg"]
    assert [result.get("error", {}).get("code") for result in results] == [None, "not_an_image", None, "image_truncated",
                                                                           "empty_body"]
    assert results[0]["predictions"] == server.classify(picture, "?top_k=1").json()["predictions"]
    assert results[2]["image"]["width"] == 451
    assert "stages" not in results[0]


def test_fields_are_parameters(server, picture):
    body = requests.post(server.url + "/v1/classify", files={"image": picture}, data={"top_k": "2", "size": "native"},
                         timeout=60).json()
    assert len(body["predictions"]) == 2 and body["input"]["size"] == "native"

    def refuse(code, status=400, query="", **fields):
        error_of(requests.post(server.url + "/v1/classify" + query, files={"image": picture}, data=fields, timeout=60),
                 status, code)

    refuse("bad_parameter", top_k="0")
    refuse("unknown_parameter", colour="red")
    refuse("duplicate_parameter", query="?top_k=2", top_k="2")
    refuse("unknown_model", 404, model="nothing")


def test_a_file_without_a_name_is_told_by_its_bytes(server, picture):
    assert send(server, part(picture, filename=None) + b"--B--\r\n").status_code == 200


@pytest.mark.parametrize("content_type", [
    'multipart/form-data; boundary="B"', "multipart/form-data;boundary=B", "Multipart/Form-Data; charset=utf-8; Boundary=B",
    "multipart/form-data; boundary=B;"])
def test_spellings_of_the_type(server, picture, content_type):
    assert send(server, part(picture) + b"--B--\r\n", content_type).status_code == 200


def test_lenient_where_the_standard_is(server, picture):
    assert send(server, b"a preamble\r\n" + part(picture) + b"--B--\r\nan epilogue").status_code == 200
    assert send(server, part(picture).replace(b"--B\r\n", b"--B \t\r\n") + b"--B--").status_code == 200
    header = b"content-type: image/jpeg\r\nContent-Transfer-Encoding: binary\r\nX-Other: yes\r\n"
    assert send(server, part(picture, extra=header) + b"--B--\r\n").status_code == 200
    nothing_chosen = part(b"", "more", "")
    assert "results" not in send(server, part(picture) + nothing_chosen + b"--B--\r\n").json()


def test_boundary_inside_the_data(server, picture):
    tricky = picture + b"\r\n-B" + b"--B" + b"\r\n--A--\r\n"
    assert send(server, part(tricky) + b"--B--\r\n").status_code == 200


@pytest.mark.parametrize("name,content_type,make", [
    ("no boundary", "multipart/form-data", lambda p: part(p) + b"--B--\r\n"),
    ("empty boundary", "multipart/form-data; boundary=", lambda p: part(p) + b"--B--\r\n"),
    ("open quote", 'multipart/form-data; boundary="B', lambda p: part(p) + b"--B--\r\n"),
    ("long boundary", "multipart/form-data; boundary=" + "B" * 71, lambda p: part(p) + b"--B--\r\n"),
    ("two boundaries", "multipart/form-data; boundary=B; boundary=C", lambda p: part(p) + b"--B--\r\n"),
    ("another boundary", "multipart/form-data; boundary=C", lambda p: part(p) + b"--B--\r\n"),
    ("a bare image", None, lambda p: p),
    ("not closed", None, part),
    ("cut inside the header", None, lambda p: part(p)[:20]),
    ("cut after the delimiter", None, lambda p: b"--B"),
    ("cut after the header", None, lambda p: part(b"")[:-2]),
    ("no disposition", None, lambda p: b"--B\r\nContent-Type: image/jpeg\r\n\r\n" + p + b"\r\n--B--\r\n"),
    ("no header", None, lambda p: b"--B\r\n\r\n" + p + b"\r\n--B--\r\n"),
    ("not form-data", None, lambda p: part(p).replace(b"form-data", b"attachment") + b"--B--\r\n"),
    ("no name", None, lambda p: part(p).replace(b"name=", b"nome=", 1) + b"--B--\r\n"),
    ("open quote in the header", None, lambda p: part(p, filename=None).replace(b'"image"', b'"image') + b"--B--\r\n"),
    ("a header without colon", None, lambda p: part(p, extra=b"nonsense\r\n") + b"--B--\r\n"),
    ("a huge header", None, lambda p: part(p, extra=b"X: " + b"a" * 10000 + b"\r\n") + b"--B--\r\n"),
    ("text after the delimiter", None, lambda p: part(p).replace(b"--B\r\n", b"--Bxyz\r\n") + b"--B--\r\n"),
    ("bare line feeds", None, lambda p: part(b"x").replace(b"\r\n", b"\n") + b"--B--\n"),
    ("base64", None, lambda p: part(p, extra=b"Content-Transfer-Encoding: base64\r\n") + b"--B--\r\n"),
])
def test_malformed(server, picture, name, content_type, make):
    reply = send(server, make(picture), content_type or "multipart/form-data; boundary=B")
    error_of(reply, 400, "malformed_multipart")


def test_no_file(server):
    error_of(send(server, b"--B--\r\n"), 400, "no_file")
    error_of(send(server, part(b"2", "top_k", None) + b"--B--\r\n"), 400, "no_file")
    error_of(send(server, part(b"", "image", "") + b"--B--\r\n"), 400, "no_file")
    error_of(send(server, b""), 400, "empty_body")
    error_of(send(server, part(b"", "image", "a.jpg") + b"--B--\r\n"), 400, "empty_body")


def test_too_many_files(start, picture):
    server = start(LIMITS_MAX_FILES=3)
    assert len(send(server, 3 * part(picture) + b"--B--\r\n").json()["results"]) == 3
    assert "3" in error_of(send(server, 4 * part(picture) + b"--B--\r\n"), 413, "too_many_files")


def test_more_files_than_the_queue_is_long(start, picture):
    server = start(LIMITS_QUEUE_LENGTH=2, ENGINE_WORKERS=1)
    assert len(send(server, 9 * part(picture) + b"--B--\r\n").json()["results"]) == 9


def test_strange_file_names_come_back_as_valid_json(server, picture):
    body = part(picture, filename="\u732b \\\"x\\\" \t.jpg") + part(picture, filename="@").replace(b"@", b"\xff\x01<b>")
    names = [result["filename"] for result in send(server, body + b"--B--\r\n").json()["results"]]
    assert names[0].startswith("\u732b") and names[1] == "\ufffd\x01<b>"


def test_a_form_in_tiny_pieces(server, picture):
    body = part(picture) + b"--B--\r\n"
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=B\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 37):
            connection.sendall(body[at:at + 37])
        assert read_reply(file).status == 200
