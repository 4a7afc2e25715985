"""The real binary on a port that the system chooses, ended by its own process id."""

import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading

import pytest

requests = pytest.importorskip("requests")
Image = pytest.importorskip("PIL.Image")

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("RESNETD_BINARY", ROOT / "build/release/resnetd"))
SANITIZER = re.compile(r"AddressSanitizer|LeakSanitizer|ThreadSanitizer|MemorySanitizer|runtime error:")
CURL = {"User-Agent": "tests"}


class Server:
    """One resnetd. Settings are the configuration's environment variables without their prefix."""

    def __init__(self, arguments=(), binary=BINARY, **settings):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RESNETD_")}
        environment.update({"RESNETD_" + name: str(value) for name, value in settings.items()})
        self.lines = []
        self.expected_status = 0
        self.url = None
        self.process = subprocess.Popen([str(binary), "serve", "--host", "127.0.0.1", "--port", "0", *arguments],
                                        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        errors="replace")
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._listening.wait()
        assert self.url, "the server did not start:\n" + self.log()
        assert requests.get(self.url + "/healthz/ready", timeout=60).status_code == 200

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"listening on (http://[^\s,\"]+)", line)
            if found:
                self.url = found.group(1)
                self._listening.set()
        self._listening.set()

    def log(self):
        return "\n".join(self.lines)

    def wait_log(self, pattern):
        """Wait until a line of the log matches; the test runner's own limit ends a wait in vain."""
        while True:
            for line in list(self.lines):
                if re.search(pattern, line):
                    return line
            assert self.process.poll() is None, self.log()
            threading.Event().wait(0.01)

    @property
    def address(self):
        host, port = re.fullmatch(r"http://\[?(.*?)\]?:(\d+)", self.url).groups()
        return host, int(port)

    def connect(self):
        connection = socket.create_connection(self.address, timeout=600)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def get(self, path, **options):
        return requests.get(self.url + path, timeout=600, **options)

    def classify(self, data=None, query="", **options):
        return requests.post(self.url + "/v1/classify" + query, data=data, timeout=600, **options)

    def metric(self, name, **labels):
        """One sample of /metrics, 0 when it is not there."""
        for line in self.get("/metrics").text.splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found.group(1) == name:
                have = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found.group(2) or ""))
                if all(have.get(key) == value for key, value in labels.items()):
                    return float(found.group(3))
        return 0.0

    def wait_metric(self, value, name, **labels):
        """Wait until a sample has a value, or one that satisfies it."""
        satisfied = value if callable(value) else lambda have: have == value
        while not satisfied(self.metric(name, **labels)):
            assert self.process.poll() is None, self.log()
            threading.Event().wait(0.01)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        """The exit status; the log is complete afterwards."""
        status = self.process.wait(timeout=300)
        self._reader.join()
        return status

    def stop(self):
        if self.process.poll() is None:
            self.signal()
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert not SANITIZER.search(self.log()), self.log()
        assert status == self.expected_status, self.log()


@pytest.fixture(scope="session")
def server():
    """One server with the default configuration, for tests that do not change its state."""
    it = Server()
    yield it
    it.stop()


@pytest.fixture
def start():
    """Start a server with settings of its own: start(LIMITS_QUEUE_LENGTH=1)."""
    started = []

    def run(arguments=(), **settings):
        it = Server(arguments, **settings)
        started.append(it)
        return it

    yield run
    for it in started:
        it.stop()


@pytest.fixture(scope="session")
def cat():
    return (ROOT / "tests/data/chelsea.png").read_bytes()


@pytest.fixture(scope="session")
def coffee():
    return (ROOT / "tests/data/coffee.png").read_bytes()


def image_bytes(width=64, height=64, kind="JPEG", mode="RGB", **options):
    """A small picture with some structure."""
    image = Image.radial_gradient("L").resize((width, height)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def error_of(reply, status, code):
    """Check that a reply is the error it should be, and return its message."""
    assert reply.status_code == status, reply.text
    assert reply.headers["Content-Type"] == "application/json"
    body = reply.json()
    assert body["error"]["code"] == code, body
    assert body["request_id"] == reply.headers["X-Request-Id"]
    assert body["error"]["message"] and not body["error"]["message"].endswith(".")
    return body["error"]["message"]


class RawReply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


def read_reply(file, head=False):
    """One HTTP/1.1 reply with a Content-Length from a socket's file; None when the connection is over."""
    line = file.readline()
    if not line:
        return None
    status = int(line.split()[1])
    headers = {}
    while (line := file.readline().strip()):
        name, _, value = line.partition(b":")
        headers[name.decode().lower()] = value.strip().decode()
    length = 0 if head or status in (100, 204) else int(headers.get("content-length", 0))
    return RawReply(status, headers, file.read(length))


def post(body=b"", path="/v1/classify", headers=(), method="POST"):
    """The bytes of a request."""
    lines = ["%s %s HTTP/1.1" % (method, path), "Host: test", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append("Content-Length: %d" % len(body))
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
