"""Everything a client can get wrong: the status, the code, and never a 500."""

import random
import socket
import struct
import zlib

import pytest

from conftest import error_of, image_bytes, post, read_reply


def png_claiming(width, height):
    """A PNG whose header claims a size, with almost no data."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def test_bodies(server, cat):
    error_of(server.classify(b""), 400, "empty_body")
    error_of(server.classify(b"hello, this is a text file\n"), 415, "not_an_image")
    error_of(server.classify(b"GIF89a" + bytes(100)), 415, "not_an_image")
    error_of(server.classify(bytes(100)), 415, "not_an_image")
    error_of(server.classify(image_bytes(200, 200)[:900]), 422, "image_truncated")
    error_of(server.classify(cat[:60000]), 422, "image_truncated")
    message = error_of(server.classify(png_claiming(60000, 60000)), 413, "image_too_large")
    assert "60000" in message
    reply = server.classify(png_claiming(0, 10))
    assert reply.status_code == 422
    assert server.classify(b"\xff\xd8\xff").status_code == 422
    assert server.classify(b"\x89PNG\r\n\x1a\n").status_code == 422


def test_memory_budget(start):
    server = start(LIMITS_MAX_REQUEST_BYTES=64 << 20)
    assert server.classify(image_bytes(64, 64)).status_code == 200
    reply = server.classify(image_bytes(6000, 6000, "PNG"))
    assert error_of(reply, 413, reply.json()["error"]["code"])
    assert reply.json()["error"]["code"] in ("memory_budget", "image_too_large")


def test_broken_images_never_give_500(server, cat):
    rng = random.Random(7)
    good = [image_bytes(40, 30), image_bytes(40, 30, "PNG"), image_bytes(40, 30, "JPEG", progressive=True)]
    for i in range(150):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if i % 3 == 0:
            del data[rng.randrange(1, len(data)):]
        assert server.classify(bytes(data)).status_code in (200, 400, 413, 415, 422)
    assert server.metric("resnetd_requests_total", status="500") == 0


@pytest.mark.parametrize("query,status,code,says", [
    ("?top_k=0", 400, "bad_parameter", "top_k"),
    ("?top_k=100000", 400, "bad_parameter", "1 to"),
    ("?top_k=99999999999999999999", 400, "bad_parameter", "top_k"),
    ("?top_k=-1", 400, "bad_parameter", "top_k"),
    ("?top_k=five", 400, "bad_parameter", "five"),
    ("?top_k=", 400, "bad_parameter", "top_k"),
    ("?top_k", 400, "bad_parameter", "top_k"),
    ("?top_k=5%00", 400, "bad_parameter", "NUL"),
    ("?top_k=+5", 400, "bad_parameter", "top_k"),
    ("?top_k=1e1", 400, "bad_parameter", "top_k"),
    ("?top_k=1&top_k=2", 400, "duplicate_parameter", "top_k"),
    ("?size=huge", 400, "bad_parameter", "native, fit or crop"),
    ("?size=Native", 400, "bad_parameter", "size"),
    ("?orient=maybe", 400, "bad_parameter", "exif or ignore"),
    ("?stages=yes", 400, "bad_parameter", "0 or 1"),
    ("?stages=" + "1" * 500, 400, "bad_parameter", "stages"),
    ("?topk=5", 400, "unknown_parameter", "topk"),
    ("?a=b&top_k=5", 400, "unknown_parameter", "top_k, size, orient, model, stages"),
    ("?height=5", 400, "unknown_parameter", "height"),
    ("?%22%0a%ff=1", 400, "unknown_parameter", "there are"),
    ("?model=nothing", 404, "unknown_model", "/v1/models"),
    ("?model=", 404, "unknown_model", "/v1/models"),
])
def test_parameters(server, cat, query, status, code, says):
    assert says in error_of(server.classify(cat, query), status, code)


def test_percent_decoded_parameters(server, cat):
    assert len(server.classify(cat, "?top%5fk=%32").json()["predictions"]) == 2
    assert len(server.classify(cat, "?&top_k=2&").json()["predictions"]) == 2


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/", "/v1/classify/", "/v1//classify", "/V1/classify", "/v1/models/",
                                  "/v1/models/x/y", "/healthz", "/v1/models//summary", "/%00", "/..%2f..%2fetc/passwd"])
def test_unknown_routes(server, path):
    error_of(server.get(path), 404, "unknown_route")


@pytest.mark.parametrize("method,path,allow", [
    ("GET", "/v1/classify", "POST, OPTIONS"), ("HEAD", "/v1/classify", "POST, OPTIONS"),
    ("PUT", "/v1/classify", "POST, OPTIONS"), ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
    ("POST", "/metrics", "GET, HEAD, OPTIONS"), ("POST", "/", "GET, HEAD, OPTIONS"),
    ("PATCH", "/healthz/live", "GET, HEAD, OPTIONS"), ("BREW", "/v1/classify", "POST, OPTIONS")])
def test_wrong_methods(server, method, path, allow):
    import requests
    reply = requests.request(method, server.url + path, data=b"x" if method in ("POST", "PUT") else None, timeout=60)
    assert reply.status_code == 405
    assert reply.headers["Allow"] == allow
    if method != "HEAD":
        error_of(reply, 405, "method_not_allowed")


def test_a_compressed_body_is_refused(server, cat):
    error_of(server.classify(zlib.compress(cat), headers={"Content-Encoding": "gzip"}), 415, "unsupported_encoding")
    assert server.classify(cat, headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.fixture
def small(start):
    return start(LIMITS_MAX_BODY_BYTES=100000)


def test_body_over_the_limit(small):
    limit = 100000
    picture = image_bytes(32, 32)
    assert small.classify(picture + bytes(limit - len(picture))).status_code == 200
    message = error_of(small.classify(picture + bytes(limit - len(picture) + 1)), 413, "body_too_large")
    assert str(limit) in message
    error_of(small.classify(bytes(5000000)), 413, "body_too_large")
    assert small.classify(picture).status_code == 200


def test_chunked_body_over_the_limit(small):
    def pieces(count):
        for _ in range(count):
            yield bytes(10000)

    error_of(small.classify(pieces(11)), 413, "body_too_large")
    error_of(small.classify(pieces(300)), 413, "body_too_large")
    error_of(small.classify(pieces(10)), 415, "not_an_image")


def test_expect_continue_is_refused_before_the_upload(small):
    with small.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(post(headers=["Content-Length: 5000000", "Expect: 100-continue"]))
        reply = read_reply(file)
        assert reply.status == 413 and reply.json()["error"]["code"] == "body_too_large"
        assert file.read() == b""  # and the connection is over
    with small.connect() as connection, connection.makefile("rb") as file:
        picture = image_bytes(32, 32)
        connection.sendall(post(headers=["Content-Length: %d" % len(picture), "Expect: 100-continue"]))
        assert read_reply(file).status == 100
        connection.sendall(picture)
        assert read_reply(file).status == 200


def test_refused_uploads_read_their_answer_on_a_kept_connection(small):
    with small.connect() as connection, connection.makefile("rb") as file:
        for _ in range(3):
            connection.sendall(post(bytes(400000)))
            assert read_reply(file).status == 413
        connection.sendall(post(image_bytes(32, 32)))
        assert read_reply(file).status == 200


def test_an_absurd_content_length(small):
    for length in (1 << 40, (1 << 64) - 2, (1 << 64) - 1, 1 << 64, 1 << 70):
        with small.connect() as connection, connection.makefile("rb") as file:
            connection.sendall(post(headers=["Content-Length: %d" % length]))
            reply = read_reply(file)
            assert reply is None or reply.status in (400, 413)
    assert small.get("/healthz/live").status_code == 200


@pytest.mark.parametrize("data", [
    b"\r\n\r\n\r\n", b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00\x01\x02\x03\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET /" + b"a" * 200000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 200000 + b"\r\n\r\n", b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: five\r\n\r\n",
    b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)])
def test_bytes_that_are_not_http(server, data):
    with server.connect() as connection:
        connection.settimeout(120)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
        assert b" 500 " not in answer.split(b"\r\n")[0]
    assert server.get("/healthz/live").status_code == 200


def test_http_1_0(server, cat):
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"POST /v1/classify HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(cat) + cat)
        assert read_reply(file).status == 200
        assert file.read() == b""


def test_a_get_with_a_body(server):
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(post(bytes(100000), "/healthz/live", method="GET") + post(path="/healthz/ready", method="GET"))
        assert read_reply(file).json() == {"status": "live"}
        assert read_reply(file).json() == {"status": "ready"}
