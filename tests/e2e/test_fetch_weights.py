"""make weights: the download leaves the whole, right file or nothing, and says which, whatever the server does."""

import hashlib
import http.server
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "config" / "fetch-weights.sh"
TOOLS = "sh sha256sum cut mkdir mktemp rm mv chmod sleep wc".split()
BODY = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(BODY).hexdigest()
NAME = f"resnet50-{DIGEST[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        folder = self.path.split("/")[1]
        if folder == "gone":
            self.send_error(404)
            return
        if folder == "moved":
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "good"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if folder == "wrong":
            self.wfile.write(b"x" + BODY[1:])
        elif folder == "cut":
            self.wfile.write(BODY[: len(BODY) // 2])
        elif folder == "stalled":
            self.wfile.write(BODY[: len(BODY) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.release.wait(30)
        else:
            self.wfile.write(BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths, server.stalled, server.release = [], threading.Event(), threading.Event()
    server.base = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["curl", "wget", "python3"])
def environment(request, tmp_path):
    """An environment whose PATH has the one downloader only."""
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in [*TOOLS, request.param]:
        (programs / tool).symlink_to(shutil.which(tool, path="/usr/bin:/bin"))
    return {"PATH": str(programs), "WEIGHTS_DIR": str(tmp_path / "weights")}


def start(environment, **settings):
    """A shell cannot trap a signal that it inherits as ignored, as a job in the background may: start as from a
    terminal."""
    return subprocess.Popen([str(SCRIPT)], env={**environment, **settings}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def run(environment, **settings):
    process = start(environment, **settings)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def kept(environment):
    folder = pathlib.Path(environment["WEIGHTS_DIR"])
    return sorted(os.listdir(folder)) if folder.exists() else []


def check_failure(environment, result, sentence):
    status, _, err = result
    assert status == 1
    said = [line for line in err.splitlines() if line.startswith("make weights: ")]
    assert len(said) == 1 and sentence in said[0], err
    assert err.endswith(said[0] + "\n")
    assert kept(environment) == []


def test_good(server, environment):
    status, out, err = run(environment, WEIGHTS_URL=f"{server.base}/good/{NAME}")
    assert status == 0, err
    assert out.splitlines()[-1].endswith(f"{NAME}: SHA-256 {DIGEST}")
    assert err.endswith("\n1 MB\n"), "no progress was shown"  # it was a carriage return
    assert kept(environment) == [NAME]
    file = pathlib.Path(environment["WEIGHTS_DIR"], NAME)
    assert file.read_bytes() == BODY
    assert file.stat().st_mode & 0o444 == 0o444 & ~current_umask()

    # Once more: nothing is asked for.
    status, out, err = run(environment, WEIGHTS_URL=f"{server.base}/good/{NAME}")
    assert (status, err) == (0, "") and "is there already" in out
    assert len(server.paths) == 1

    # A damaged one is replaced.
    file.write_bytes(BODY[:100])
    status, out, err = run(environment, WEIGHTS_URL=f"{server.base}/good/{NAME}")
    assert status == 0 and "is damaged" in out, err
    assert file.read_bytes() == BODY and kept(environment) == [NAME]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_redirect(server, environment):
    status, out, err = run(environment, WEIGHTS_URL=f"{server.base}/moved/{NAME}")
    assert status == 0, out + err
    assert kept(environment) == [NAME]


@pytest.mark.parametrize("weights, name", [("V1", "resnet50-0676ba61.pth"), ("V2", "resnet50-11ad3fa6.pth")])
def test_mirror_folder_is_asked_for_torchvisions_file(server, environment, weights, name):
    result = run(environment, WEIGHTS_URL=f"{server.base}/good/", WEIGHTS=weights)
    assert server.paths == [f"/good/{name}"]
    check_failure(environment, result, f"its SHA-256 is {DIGEST} and should begin with {name[9:17]}")


def test_wrong_digest(server, environment):
    check_failure(environment, run(environment, WEIGHTS_URL=f"{server.base}/wrong/{NAME}"),
                  f"is not the right one: its SHA-256 is {hashlib.sha256(b'x' + BODY[1:]).hexdigest()}")


def test_cut_off_body(server, environment):
    check_failure(environment, run(environment, WEIGHTS_URL=f"{server.base}/cut/{NAME}"), "cannot download")


def test_not_found(server, environment):
    check_failure(environment, run(environment, WEIGHTS_URL=f"{server.base}/gone/{NAME}"),
                  "the server answered that it does not have it")


def test_connection_refused(environment):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        check_failure(environment, run(environment, WEIGHTS_URL=f"http://127.0.0.1:{unused.getsockname()[1]}/{NAME}"),
                      f"/{NAME}: the ")


def test_unknown_host(environment):
    check_failure(environment, run(environment, WEIGHTS_URL="http://mirror.invalid/models"), "is there a network?"
                  if "wget" not in os.listdir(environment["PATH"]) else "the server cannot be reached")


def test_a_failure_keeps_the_old_file(server, environment):
    folder = pathlib.Path(environment["WEIGHTS_DIR"])
    folder.mkdir()
    (folder / NAME).write_bytes(b"old")
    assert run(environment, WEIGHTS_URL=f"{server.base}/cut/{NAME}")[0] == 1
    assert kept(environment) == [NAME] and (folder / NAME).read_bytes() == b"old"


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted(server, environment, number, status):
    process = start(environment, WEIGHTS_URL=f"{server.base}/stalled/{NAME}")
    assert server.stalled.wait(30)
    assert [name for name in kept(environment) if name.startswith(f".{NAME}")]
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status
    assert err.splitlines()[-1] == "make weights: interrupted, nothing was kept"
    assert kept(environment) == []


@pytest.mark.parametrize("settings, sentence", [
    ({"WEIGHTS": "V3"}, "WEIGHTS must be V1 or V2, not 'V3'"),
    ({"WEIGHTS_URL": "http://127.0.0.1/resnet50.pth"}, "does not end in -HEX.pth"),
    ({"WEIGHTS_URL": "http://127.0.0.1/resnet50-1234567.pth"}, "does not end in -HEX.pth"),
    ({"WEIGHTS_URL": "http://127.0.0.1/resnet50-0123456g.pth"}, "does not end in -HEX.pth"),
], ids=["version", "no digest", "short digest", "no hex"])
def test_wrong_settings(environment, settings, sentence):
    check_failure(environment, run(environment, **settings), sentence)


def test_no_downloader(environment, tmp_path):
    for name in ("curl", "wget", "python3"):
        (tmp_path / "bin" / name).unlink(missing_ok=True)
    check_failure(environment, run(environment, WEIGHTS_URL="http://127.0.0.1:1/models"),
                  "neither curl nor wget nor python3 is installed")


def test_folder_that_cannot_be_written(environment, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = run({**environment, "WEIGHTS_DIR": str(tmp_path / "file")})
    assert status == 1
    assert f"make weights: cannot create {tmp_path}/file/" in err
