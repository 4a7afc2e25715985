"""The command line: what works without HTTP, and what it refuses."""

import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import threading

import numpy
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("RESNETD_BINARY", str(ROOT / "build/release/resnetd"))
CHELSEA = str(ROOT / "tests/data/chelsea.png")
COFFEE = str(ROOT / "tests/data/coffee.png")
DEMO_MEAN = numpy.array([0.485, 0.456, 0.406], dtype=numpy.float32)
DEMO_STD = numpy.array([0.229, 0.224, 0.225], dtype=numpy.float32)

OK, FAILED, USAGE = 0, 1, 2


def run(*arguments, environment=None, stdin=b"", cwd=ROOT, binary=BINARY):
    """A finished process; the environment holds no RESNETD_ variable but those given."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RESNETD_")}
    done = subprocess.run([binary, *map(str, arguments)], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**clean, **(environment or {})}, cwd=str(cwd), timeout=120)
    done.out, done.err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return done


def refused(status, text, *arguments, **more):
    done = run(*arguments, **more)
    assert done.returncode == status, done.err
    assert text in done.err
    assert done.err.count("\n") <= 2, "one sentence, and where to read more"
    return done


def in_force(*arguments, **more):
    done = run("check-config", *arguments, **more)
    assert done.returncode == OK, done.err
    return json.loads(done.out)


# ------------------------------------------------------------------------------------------ help and usage

def test_help_names_every_command_and_key():
    done = run("--help")
    assert done.returncode == OK
    shipped = json.loads((ROOT / "config/resnetd.json").read_text())
    for section, keys in shipped.items():
        for key in keys:
            assert "%s.%s" % (section, key) in done.out
    for command in ("serve", "classify", "tensor", "infer", "summary", "modules", "kernels", "check-config",
                    "healthcheck"):
        assert "\n  %s " % command in done.out


def test_readme_has_every_key_with_its_default():
    readme = (ROOT / "README.md").read_text()
    for section, keys in json.loads((ROOT / "config/resnetd.json").read_text()).items():
        for key, value in keys.items():
            assert "| `%s.%s` | `%s` |" % (section, key, value if value != "" else '""') in readme


def test_help_wins_over_the_rest():
    assert run("classify", "--help").out == run("-h").out


def test_version():
    done = run("--version")
    assert done.returncode == OK
    assert done.out.startswith("resnetd ") and done.out.count("\n") == 1


@pytest.mark.parametrize("arguments, text", [
    (["fly"], 'unknown command "fly"'),
    (["--fly"], "unknown option --fly"),
    (["-x"], "unknown option -x"),
    (["classify"], "classify needs FILE..."),
    (["tensor", COFFEE, CHELSEA, "--output", "x"], "tensor takes one file"),
    (["tensor", COFFEE], "tensor needs --output"),
    (["infer", COFFEE], "infer needs --output FILE, --stages or both"),
    (["summary", "extra"], "summary takes no operand"),
    (["serve", "extra"], "serve takes no operand"),
    (["classify", COFFEE, "--top-k"], "--top-k needs a value"),
    (["classify", COFFEE, "--top-k", "0"], "--top-k is a number from 1"),
    (["classify", COFFEE, "--top-k", "five"], "--top-k is a number from 1"),
    (["classify", COFFEE, "--top-k", "65"], "at most the model's 64 classes"),
    (["classify", COFFEE, "--size", "huge"], "--size is native, fit or crop"),
    (["classify", COFFEE, "--orient", "up"], "--orient is exif or ignore"),
    (["classify", COFFEE, "--json=1"], "--json takes no value"),
    (["summary", "--top-k", "3"], "summary: unknown option --top-k"),
    (["summary", "--input", "224"], "--input is HEIGHTxWIDTH"),
    (["summary", "--input", "0x5"], "--input is HEIGHTxWIDTH"),
    (["summary", "--input", "5x99999999999"], "--input is HEIGHTxWIDTH"),
    (["check-config", "--set", "server.port"], "--set takes KEY=VALUE"),
])
def test_usage_errors(arguments, text):
    refused(USAGE, text, *arguments)


# ------------------------------------------------------------------------------------------ configuration

def test_sources_in_order(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"server": {"port": 1001, "http_threads": 3}, "limits": {"max_files": 7}}')
    environment = {"RESNETD_CONFIG": str(file), "RESNETD_SERVER_PORT": "1002", "RESNETD_LOG_LEVEL": "warn"}
    config = in_force("--set", "limits.queue_length=9", "--log-format=json", environment=environment)
    assert config["server"]["port"] == 1002
    assert config["server"]["http_threads"] == 3
    assert config["limits"]["max_files"] == 7
    assert config["limits"]["queue_length"] == 9
    assert config["log"] == {"format": "json", "level": "warn"}
    assert in_force("--port", 1003, environment=environment)["server"]["port"] == 1003
    assert in_force("--config", ROOT / "config/resnetd.json", environment=environment)["limits"]["max_files"] == 16


def test_what_is_printed_is_a_configuration(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(run("check-config", "--port", "1234").out)
    assert in_force("--config", file) == json.loads(file.read_text())


@pytest.mark.parametrize("arguments, environment, text", [
    (["--port", "70000"], {}, "server.port must be between 0 and 65535"),
    (["--set", "server.prot=1"], {}, "did you mean server.port?"),
    (["--host", "example.org"], {}, "server.host"),
    ([], {"RESNETD_LIMITS_MAX_BODY_BYTE": "1"}, "did you mean RESNETD_LIMITS_MAX_BODY_BYTES?"),
    ([], {"RESNETD_SERVER_PORT": "http"}, "server.port must be an integer"),
    ([], {"RESNETD_CONFIG": "/nonexistent.json"}, "/nonexistent.json"),
    ([], {"RESNETD_DATA": "/nonexistent"}, "RESNETD_DATA"),
    (["--kernels", "fastest"], {}, "fastest"),
    (["--weights", "/nonexistent.pth"], {}, "models.0.description is missing"),
])
def test_mistakes_name_the_key(arguments, environment, text):
    for command in ("check-config", "serve"):
        done = run(command, *arguments, environment=environment)
        assert done.returncode == FAILED
        assert text in done.err


def test_check_config_opens_the_models(tmp_path):
    done = run("check-config")
    assert done.returncode == OK
    assert "model demo64: 4296096 parameters, 64 labels" in done.err
    done = run("check-config", "--model-description", "demo64", "--weights", tmp_path / "none.pth")
    assert done.returncode == FAILED
    assert "none.pth" in done.err


def test_service_links_do_not_hinder():
    assert in_force(environment={"RESNETD_PORT": "tcp://10.0.0.1:8080", "RESNETD_SERVICE_HOST": "10.0.0.1"})


# ------------------------------------------------------------------------------------------------ classify

def test_classify_for_people():
    done = run("classify", COFFEE, CHELSEA)
    assert done.returncode == OK
    lines = done.out.splitlines()
    assert lines[0].startswith("%s: png 600x400, input [1, 3, 64, 96] (fit), " % COFFEE)
    assert len(lines) == 12
    assert "bundled demo model" in done.err


def test_classify_as_json():
    done = run("classify", "--json", "--top-k", "3", COFFEE, CHELSEA)
    assert done.returncode == OK and done.err == ""
    coffee, chelsea = json.loads(done.out)
    assert coffee["file"] == COFFEE and chelsea["file"] == CHELSEA
    assert coffee["model"] == "demo64"
    assert coffee["image"] == {"format": "png", "width": 600, "height": 400, "orientation": 1}
    assert coffee["input"] == {"size": "fit", "scaled": False, "shape": [1, 3, 64, 96]}
    assert len(coffee["predictions"]) == 3
    first, second, third = (p["probability"] for p in coffee["predictions"])
    assert 1 >= first >= second >= third >= 0
    assert coffee["stages"][-1] == {"name": "fc", "type": "Linear", "shape": [1, 64]}


def test_classify_standard_input():
    data = pathlib.Path(COFFEE).read_bytes()
    (piped,) = json.loads(run("classify", "--json", "-", stdin=data).out)
    (named,) = json.loads(run("classify", "--json", COFFEE).out)
    assert piped["predictions"] == named["predictions"]


def test_one_bad_file_fails_alone(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    files = [tmp_path / "text.jpg", COFFEE, tmp_path / "empty.png", tmp_path / "none.png", tmp_path]
    done = run("classify", "--json", *files)
    assert done.returncode == FAILED
    results = json.loads(done.out)
    assert [result.get("error", {}).get("code") for result in results[:3]] == ["not_an_image", None, "empty_body"]
    assert "predictions" in results[1]
    assert len(results) == 5
    for file in files[:1] + files[2:]:
        assert str(file) in done.err


def test_input_sizes():
    for size, shape in (("native", [1, 3, 400, 600]), ("fit", [1, 3, 64, 96]), ("crop", [1, 3, 64, 64])):
        (result,) = json.loads(run("classify", "--json", "--size", size, COFFEE).out)
        assert result["input"] == {"size": size, "scaled": False, "shape": shape}
    (result,) = json.loads(run("classify", "--json", "--size=native", "--set", "limits.max_native_pixels=10000",
                               COFFEE).out)
    assert result["input"]["scaled"] is True
    assert result["input"]["shape"][2] * result["input"]["shape"][3] <= 10000


def test_limits_hold(tmp_path):
    done = run("classify", "--set", "limits.max_body_bytes=1000", COFFEE)
    assert done.returncode == FAILED and "limits.max_body_bytes" in done.err
    done = run("classify", "--json", "--set", "limits.max_image_pixels=1000", COFFEE)
    assert done.returncode == FAILED
    assert json.loads(done.out)[0]["error"]["code"] == "image_too_large"


def test_unknown_model():
    refused(FAILED, 'no model is called "resnet9000"', "classify", "--model", "resnet9000", COFFEE)
    assert run("classify", "--model", "demo64", COFFEE).returncode == OK


def test_full_disk_is_noticed():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([BINARY, "classify", COFFEE], stdout=full, stderr=subprocess.PIPE, cwd=str(ROOT))
    assert done.returncode == FAILED
    assert b"standard output" in done.stderr


# ------------------------------------------------------------------------------------------ tensor, infer

def load(done_or_path):
    data = done_or_path.read_bytes() if isinstance(done_or_path, pathlib.Path) else done_or_path.stdout
    return numpy.load(io.BytesIO(data), allow_pickle=False)


def test_tensor_is_what_torchvision_makes(tmp_path):
    out = tmp_path / "t.npy"
    assert run("tensor", COFFEE, "--size", "native", "--output", out).returncode == OK
    pixels = numpy.asarray(Image.open(COFFEE).convert("RGB"), dtype=numpy.float32)
    expected = ((pixels / numpy.float32(255) - DEMO_MEAN) / DEMO_STD).transpose(2, 0, 1)[None]
    tensor = load(out)
    assert tensor.shape == (1, 3, 400, 600) and tensor.dtype == numpy.float32
    assert (tensor == expected).all()


def test_tensor_to_standard_output():
    done = run("tensor", "--model", "resnet50", "--size", "crop", "--output", "-", COFFEE)
    assert load(done).shape == (1, 3, 224, 224)


def test_tensor_leaves_nothing_half_written(tmp_path):
    out = tmp_path / "t.npy"
    refused(FAILED, "neither a JPEG nor a PNG", "tensor", ROOT / "Makefile", "--output", out)
    assert not out.exists()
    refused(FAILED, "cannot write", "tensor", COFFEE, "--output", tmp_path / "no" / "t.npy")


def test_infer_agrees_with_classify(tmp_path):
    (result,) = json.loads(run("classify", "--json", COFFEE, "--top-k", "64", "--precision", "fp32").out)
    out, tensor = tmp_path / "logits.npy", tmp_path / "tensor.npy"
    assert run("infer", COFFEE, "--output", out, "--precision", "fp32").returncode == OK
    logits = load(out)
    assert logits.shape == (1, 64) and logits.dtype == numpy.float32
    exponents = numpy.exp(logits[0].astype(float) - logits.max())
    probabilities = exponents / exponents.sum()
    for prediction in result["predictions"]:
        assert abs(prediction["probability"] - probabilities[prediction["class"]]) < 1e-5

    assert run("tensor", COFFEE, "--output", tensor).returncode == OK
    again = run("infer", tensor, "--output", "-", "--precision", "fp32")
    assert (load(again) == logits).all()


def test_infer_takes_several_images(tmp_path):
    rng = numpy.random.RandomState(1)
    batch = rng.randn(3, 3, 40, 56).astype(numpy.float32)
    numpy.save(tmp_path / "batch.npy", batch)
    together = load(run("infer", tmp_path / "batch.npy", "--output", "-", "--precision", "fp32"))
    assert together.shape == (3, 64)
    for i in range(3):
        numpy.save(tmp_path / "one.npy", batch[i:i + 1])
        alone = load(run("infer", tmp_path / "one.npy", "--output", "-", "--precision", "fp32"))
        assert numpy.abs(alone[0] - together[i]).max() <= 1e-5 * numpy.ptp(together)


def test_infer_prints_every_shape():
    done = run("infer", COFFEE, "--stages")
    stages = json.loads(done.out)
    assert stages[0] == {"name": "conv1", "type": "Conv2d", "function": False, "shape": [1, 64, 32, 48]}
    assert {"name": "layer4.2", "type": "Bottleneck", "function": False, "shape": [1, 2048, 2, 3]} in stages
    assert stages[-1]["shape"] == [1, 64]


@pytest.mark.parametrize("make, text", [
    (lambda: b"\x93NUMPY", "not a .npy file"),
    (lambda: save(numpy.zeros((1, 3, 8, 8))), "float32"),
    (lambda: save(numpy.zeros((3, 8, 8), numpy.float32)), "[N, 3, H, W]"),
    (lambda: save(numpy.zeros((1, 1, 8, 8), numpy.float32)), "[N, 3, H, W]"),
    (lambda: save(numpy.zeros((1, 3, 8, 8), numpy.float32, order="F")), "C order"),
    (lambda: save(numpy.zeros((1, 3, 0, 8), numpy.float32)), "sizes of 1 or more"),
    (lambda: save(numpy.zeros((1, 3, 8, 8), numpy.float32))[:-4], "more or less data"),
    (lambda: save(numpy.zeros((1, 3, 8, 8), numpy.float32)) + b"1234", "more or less data"),
    (lambda: save(numpy.zeros((1, 3, 8, 8), numpy.float32))[:40], "header does not fit"),
])
def test_arrays_that_are_refused(tmp_path, make, text):
    (tmp_path / "x.npy").write_bytes(make())
    refused(FAILED, text, "infer", tmp_path / "x.npy", "--output", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def save(array):
    out = io.BytesIO()
    numpy.save(out, array)
    return out.getvalue()


# ----------------------------------------------------------------------------------------- summary, modules

def test_summary_needs_no_weights():
    done = run("summary", "--model", "vgg16-conv400", "--input", "400x400")
    assert done.returncode == OK
    assert "Total params: 333,502,275" in done.out
    by_path = run("summary", "--model", ROOT / "config/models/vgg16-conv400.json", "--input", "400x400")
    assert by_path.out == done.out


def test_summary_as_json():
    summary = json.loads(run("summary", "--model", "resnet50", "--input", "375x500", "--json").out)
    assert summary["model"] == "resnet50"
    assert summary["input"]["shape"] == [1, 3, 375, 500]
    assert summary["rows"][0]["shape"] == [1, 64, 188, 250]
    assert summary["totals"]["parameters"] == 25557032


def test_summary_refuses_with_the_numbers():
    refused(FAILED, "fc1 expects 400 features, a 64x64 input gives 16x13x13 = 2704", "summary", "--model", "lenet",
            "--input", "64x64")
    assert run("summary", "--model", "lenet", "--input", "32x32").returncode == OK


def test_summary_of_nothing():
    refused(FAILED, 'no model and no description is called "alexnet"', "summary", "--model", "alexnet")


def test_modules():
    done = run("modules", "--model", "resnet50")
    assert done.out.startswith("ResNet(\n  (conv1): Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), ")
    assert done.out.endswith("  (fc): Linear(in_features=2048, out_features=1000, bias=True)\n)\n")


def test_kernels():
    done = run("kernels", "--kernels", "ref")
    assert done.returncode == OK
    (line,) = [line for line in done.out.splitlines() if line.startswith("ref ")]
    assert line.endswith("in use")


# ------------------------------------------------------------------------------- installation, healthcheck

def test_data_is_found_beside_the_binary(tmp_path):
    binary, share = tmp_path / "bin/resnetd", tmp_path / "share/resnetd"
    binary.parent.mkdir()
    shutil.copy(BINARY, binary)
    for folder in ("models", "labels", "weights"):
        shutil.copytree(ROOT / "config" / folder, share / folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run("classify", COFFEE, binary=str(binary), cwd=elsewhere)
    assert done.returncode == OK, done.err
    shutil.move(str(share), str(tmp_path / "moved"))
    refused(FAILED, "RESNETD_DATA", "classify", COFFEE, binary=str(binary), cwd=elsewhere)
    done = run("classify", COFFEE, binary=str(binary), cwd=elsewhere,
               environment={"RESNETD_DATA": str(tmp_path / "moved")})
    assert done.returncode == OK, done.err


@pytest.mark.parametrize("answer, status", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", OK),
    (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", FAILED),
    (b"SSH-2.0-OpenSSH\r\n", FAILED),
    (b"", FAILED),
])
@pytest.mark.parametrize("host, family", [("0.0.0.0", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_healthcheck(answer, status, host, family):
    with socket.socket(family) as listener:
        try:
            listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except OSError:
            pytest.skip("no loopback address for %s" % host)
        listener.listen(1)
        seen = []

        def serve():
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(4096))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = run("healthcheck", "--host", host, "--port", listener.getsockname()[1])
        thread.join()
    assert done.returncode == status, done.err
    assert seen[0].startswith(b"GET /healthz/ready HTTP/1.1\r\n")


def test_healthcheck_without_a_server():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused(FAILED, "no answer on port", "healthcheck", "--port", unused.getsockname()[1])
