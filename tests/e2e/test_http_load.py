"""Many clients, slow clients, clients that go away, a full queue, and the end of the server."""

import concurrent.futures
import signal
import socket
import threading
import time

import pytest
import requests

from conftest import Server, error_of, image_bytes, post, read_reply

# The reference kernels are slow on purpose: one such image keeps a worker busy long enough to look around.
SLOW = {"ENGINE_KERNELS": "ref", "ENGINE_WORKERS": 1, "LIMITS_DEADLINE_MS": 0}


@pytest.fixture(scope="module")
def slow_image():
    """An image for about a second and a half, whatever the machine and the build."""
    server = Server(**SLOW)
    took = min(server.classify(image_bytes(32, 32), "?size=native").json()["timing_ms"]["inference"] for _ in range(3))
    server.stop()
    side = max(32, min(1000, int(32 * (1500 / took) ** 0.5)))
    return image_bytes(side, side)


@pytest.fixture(scope="module")
def quick_image():
    return image_bytes(32, 32)


class Background:
    """A request on a thread of its own."""

    def __init__(self, call, *arguments, **options):
        self.reply = None
        self.thread = threading.Thread(target=self._run, args=(call, arguments, options), daemon=True)
        self.thread.start()

    def _run(self, call, arguments, options):
        try:
            self.reply = call(*arguments, **options)
        except requests.RequestException as error:
            self.reply = error

    def result(self):
        self.thread.join()
        return self.reply


def test_two_hundred_at_once(server, quick_image):
    expected = server.classify(quick_image).json()["predictions"]
    queue = int(server.metric("resnetd_queue_limit"))

    def one(_):
        while True:
            reply = server.classify(quick_image)
            if reply.status_code == 200:
                return reply.json()["predictions"]
            error_of(reply, 503, "queue_full")
            assert int(reply.headers["Retry-After"]) >= 1
            time.sleep(0.05)

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        assert all(predictions == expected for predictions in pool.map(one, range(200)))
    assert queue > 0
    server.wait_metric(0, "resnetd_queue_depth")
    server.wait_metric(0, "resnetd_body_memory_bytes")


def test_answers_belong_to_their_requests(server):
    pictures = {(w, h): image_bytes(w, h, "PNG") for w in (20, 31, 50) for h in (17, 40)}

    def one(size):
        reply = server.classify(pictures[size], "?size=native&stages=0", headers={"X-Request-Id": "%dx%d" % size}).json()
        return reply["request_id"], reply["image"]["width"], reply["image"]["height"]

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        sizes = list(pictures) * 10
        assert list(pool.map(one, sizes)) == [("%dx%d" % (w, h), w, h) for w, h in sizes]


def test_pipelined_requests_are_answered_in_order(server, quick_image):
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(post(quick_image, "/v1/classify?top_k=1") + post(path="/healthz/live", method="GET") +
                           post(b"text") + post(quick_image, "/v1/classify?top_k=2") + post(path="/none", method="HEAD") +
                           post(quick_image, "/v1/classify?top_k=3"))
        assert len(read_reply(file).json()["predictions"]) == 1
        assert read_reply(file).json() == {"status": "live"}
        assert read_reply(file).status == 415
        assert len(read_reply(file).json()["predictions"]) == 2
        assert read_reply(file, head=True).status == 404
        assert len(read_reply(file).json()["predictions"]) == 3


def test_a_kept_connection(server, quick_image):
    with requests.Session() as session:
        for i in range(50):
            reply = session.post(server.url + "/v1/classify?stages=0", data=quick_image, timeout=60)
            assert reply.status_code == 200
            assert reply.headers.get("Connection", "").lower() != "close"


def test_slow_clients_do_not_hold_up_others(server, quick_image):
    request = post(quick_image)
    slow = [server.connect() for _ in range(20)]
    for at in range(0, len(request), 101):
        for connection in slow:
            connection.sendall(request[at:at + 101])
        if at % 3 == 0:
            assert server.classify(quick_image).status_code == 200
    for connection in slow:
        with connection, connection.makefile("rb") as file:
            assert read_reply(file).status == 200


def test_a_client_that_sends_byte_by_byte(server, quick_image):
    with server.connect() as connection, connection.makefile("rb") as file:
        for byte in post(quick_image):
            connection.sendall(bytes([byte]))
        assert read_reply(file).status == 200


def test_a_client_that_reads_slowly(server, quick_image):
    with server.connect() as connection:
        connection.sendall(post(quick_image) * 20)
        time.sleep(0.2)
        with connection.makefile("rb") as file:
            for _ in range(20):
                assert read_reply(file).status == 200


def test_clients_that_go_away(server, quick_image):
    request = post(quick_image)
    for end in (10, 60, len(request) // 2, len(request) - 1):
        with server.connect() as connection:
            connection.sendall(request[:end])
    for _ in range(30):  # complete requests whose answers nobody reads
        connection = server.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
        connection.sendall(request)
        connection.close()
    assert server.classify(quick_image).status_code == 200
    server.wait_metric(1, "resnetd_requests_in_flight")  # the scrape itself
    server.wait_metric(0, "resnetd_body_memory_bytes")


def test_idle_connections_are_closed(start):
    server = start(SERVER_IDLE_TIMEOUT_MS=1000)
    with server.connect() as connection:
        assert connection.recv(10) == b""
    with server.connect() as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        assert connection.recv(10) == b""
    server.wait_metric(lambda count: count >= 1, "resnetd_requests_total", route="/v1/classify", status="499")


def test_a_full_queue_is_refused_and_health_still_answers(start, slow_image):
    server = start(LIMITS_QUEUE_LENGTH=2, **SLOW)
    busy = Background(server.classify, slow_image, "?size=native")
    server.wait_metric(1, "resnetd_workers_busy")
    waiting = [Background(server.classify, slow_image, "?size=native") for _ in range(2)]
    server.wait_metric(2, "resnetd_queue_depth")
    reply = server.classify(slow_image)
    error_of(reply, 503, "queue_full")
    assert int(reply.headers["Retry-After"]) >= 1
    assert server.get("/healthz/live").status_code == 200
    assert server.get("/healthz/ready").status_code == 200
    assert server.get("/v1/models").status_code == 200
    for one in [busy, *waiting]:
        assert one.result().status_code == 200
    assert server.metric("resnetd_requests_total", route="/v1/classify", status="503") == 1


def test_the_deadline_while_waiting(start, slow_image):
    server = start(**{**SLOW, "LIMITS_DEADLINE_MS": 1})
    replies = [Background(server.classify, slow_image, "?size=native") for _ in range(4)]
    refused = [reply for reply in (one.result() for one in replies) if reply.status_code != 200]
    assert refused
    for reply in refused:
        error_of(reply, 503, "deadline")
        assert int(reply.headers["Retry-After"]) >= 1


def test_clients_that_leave_the_queue(start, slow_image):
    server = start(**SLOW)
    request = post(image_bytes(8, 8), "/v1/classify?size=native")
    busy = Background(server.classify, slow_image, "?size=native")
    server.wait_metric(1, "resnetd_workers_busy")
    for i in range(10):
        connection = server.connect()
        connection.sendall(request)
        server.wait_metric(i + 1, "resnetd_queue_depth")
        if i % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert busy.result().status_code == 200
    assert server.classify(image_bytes(8, 8), "?size=native").status_code == 200
    server.wait_metric(1, "resnetd_requests_in_flight")
    server.wait_metric(0, "resnetd_body_memory_bytes")


def test_the_memory_for_bodies_is_bounded(start, quick_image):
    server = start(LIMITS_MAX_BODY_BYTES=1 << 20, LIMITS_MAX_BODY_MEMORY_BYTES=1 << 20)
    body = quick_image + bytes((1 << 20) - len(quick_image))
    held = server.connect()
    held.sendall(post(headers=["Content-Length: %d" % len(body)]) + body[:700000])
    server.wait_metric(lambda bytes_held: bytes_held > 600000, "resnetd_body_memory_bytes")
    reply = server.classify(body)
    error_of(reply, 503, "out_of_memory")
    assert int(reply.headers["Retry-After"]) >= 1
    with held, held.makefile("rb") as file:
        held.sendall(body[700000:])
        assert read_reply(file).status == 200
    assert server.classify(body).status_code == 200


# --- the end --------------------------------------------------------------------------------------------

def test_a_signal_on_an_idle_server(start):
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start()
        kept = server.connect()  # an idle connection does not hold it up
        server.signal(number)
        assert server.wait() == 0
        kept.close()


def test_draining_answers_what_was_accepted(start, slow_image, quick_image):
    server = start(**SLOW)
    busy = Background(server.classify, slow_image, "?size=native")
    server.wait_metric(1, "resnetd_workers_busy")
    waiting = [Background(server.classify, slow_image, "?size=native") for _ in range(3)]
    server.wait_metric(3, "resnetd_queue_depth")
    half = server.connect()  # an upload that has begun is accepted too
    request = post(quick_image)
    half.sendall(request[:len(request) // 2])
    server.wait_metric(6, "resnetd_requests_in_flight")

    server.signal()
    server.wait_log("draining: ")
    ready = server.get("/healthz/ready")
    assert ready.status_code == 503 and ready.json() == {"status": "draining"}
    assert server.get("/healthz/live").status_code == 200
    refused = server.classify(quick_image)
    error_of(refused, 503, "draining")
    assert refused.headers["Connection"].lower() == "close" and int(refused.headers["Retry-After"]) >= 1

    half.sendall(request[len(request) // 2:])
    with half, half.makefile("rb") as file:
        assert read_reply(file).status == 200
    for one in [busy, *waiting]:
        assert one.result().status_code == 200
    assert server.wait() == 0


def test_the_delay_before_draining(start, quick_image):
    server = start(SERVER_DRAIN_DELAY_MS=1500)
    server.signal()
    server.wait_log("not ready")
    assert server.get("/healthz/ready").status_code == 503
    assert server.classify(quick_image).status_code == 200
    assert server.wait() == 0


def test_the_drain_is_bounded(start):
    server = start(SERVER_DRAIN_TIMEOUT_MS=200)
    with server.connect() as connection:
        connection.sendall(post(headers=["Content-Length: 100"]))  # and nothing more
        server.wait_metric(2, "resnetd_requests_in_flight")
        server.signal()
        assert server.wait() == 0
        assert "exiting without them" in server.log()


def test_a_second_signal_ends_it_at_once(start):
    server = start(SERVER_DRAIN_DELAY_MS=600000)
    server.signal()
    server.wait_log("not ready")
    server.expected_status = 1
    server.signal(signal.SIGINT)
    assert server.wait() == 1
    assert "at once" in server.log()
