"""POST /v1/classify: what a good request is answered."""

import io
import math
import re

import pytest
from PIL import Image

from conftest import error_of, image_bytes

ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


def shape_after(size, kernel, stride, padding):
    return (size + 2 * padding - kernel) // stride + 1


def test_json_has_every_member(server, cat):
    reply = server.classify(cat)
    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == "application/json"
    body = reply.json()
    assert list(body) == ["model", "image", "input", "predictions", "stages", "timing_ms", "request_id"]
    assert body["image"] == {"format": "png", "width": 451, "height": 300, "orientation": 1}
    assert list(body["input"]) == ["size", "scaled", "shape"]
    assert len(body["predictions"]) == 5
    for prediction in body["predictions"]:
        assert list(prediction) == ["class", "id", "label", "probability"]
        assert 0 <= prediction["probability"] <= 1
    probabilities = [prediction["probability"] for prediction in body["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    timing = body["timing_ms"]
    assert list(timing) == ["queue", "decode", "preprocess", "inference", "total"]
    assert all(value >= 0 for value in timing.values())
    assert sum(timing.values()) - timing["total"] <= timing["total"] + 0.01
    assert ULID.fullmatch(body["request_id"])
    assert reply.headers["X-Request-Id"] == body["request_id"]
    header = dict(re.findall(r"(\w+);dur=([\d.]+)", reply.headers["Server-Timing"]))
    assert {name: float(value) for name, value in header.items()} == timing


@pytest.mark.parametrize("width,height", [(375, 500), (64, 64), (1, 1), (97, 211), (33, 3)])
def test_stages_have_pytorchs_shapes(server, width, height):
    body = server.classify(image_bytes(width, height, "PNG"), "?size=native").json()
    assert body["input"] == {"size": "native", "scaled": False, "shape": [1, 3, height, width]}
    stages = {stage["name"]: stage["shape"] for stage in body["stages"]}
    assert list(stages) == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool",
                            "flatten", "fc"]
    h, w = (shape_after(side, 7, 2, 3) for side in (height, width))
    assert stages["conv1"] == stages["bn1"] == stages["relu"] == [1, 64, h, w]
    h, w = (shape_after(side, 3, 2, 1) for side in (h, w))
    assert stages["maxpool"] == [1, 64, h, w]
    for layer, channels in (("layer1", 256), ("layer2", 512), ("layer3", 1024), ("layer4", 2048)):
        if layer != "layer1":
            h, w = (shape_after(side, 3, 2, 1) for side in (h, w))
        assert stages[layer] == [1, channels, h, w]
    assert stages["avgpool"] == [1, 2048, 1, 1]
    assert stages["flatten"] == [1, 2048]
    assert len(stages["fc"]) == 2
    assert {stage["name"]: stage["type"] for stage in body["stages"]}["layer3"] == "Bottleneck"


def test_top_k(server, cat):
    classes = server.get("/v1/models").json()["models"][0]["classes"]
    everything = server.classify(cat, "?top_k=%d" % classes).json()["predictions"]
    assert sorted(p["class"] for p in everything) == list(range(classes))
    assert math.isclose(sum(p["probability"] for p in everything), 1, abs_tol=1e-4)
    assert [p["class"] for p in server.classify(cat, "?top_k=3").json()["predictions"]] == \
        [p["class"] for p in everything[:3]]
    assert len(server.classify(cat, "?top_k=1").json()["predictions"]) == 1


def test_stages_can_be_left_out(server, cat):
    assert "stages" not in server.classify(cat, "?stages=0").json()
    assert "stages" in server.classify(cat, "?stages=1").json()


def test_size_modes(server):
    spec = server.get("/v1/models").json()["models"][0]["input"]
    picture = image_bytes(200, 100, "PNG")
    native = server.classify(picture, "?size=native").json()["input"]
    assert native["shape"] == [1, 3, 100, 200]
    fit = server.classify(picture, "?size=fit").json()["input"]
    assert fit == {"size": "fit", "scaled": fit["scaled"], "shape": [1, 3, spec["fit"], 2 * spec["fit"]]}
    crop = server.classify(picture, "?size=crop").json()["input"]
    assert crop["shape"] == [1, 3, spec["crop"], spec["crop"]]
    assert server.classify(picture).json()["input"]["size"] == spec["size"]


def test_large_native_images_are_scaled_down(server):
    body = server.classify(image_bytes(3000, 1000), "?size=native").json()
    _, _, height, width = body["input"]["shape"]
    assert body["input"]["scaled"] is True
    assert height * width <= 1048576 and abs(width / height - 3) < 0.01
    assert body["image"]["width"] == 3000


def test_orientation(server):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = image_bytes(60, 40, "JPEG", exif=exif)
    turned = server.classify(picture, "?size=native").json()
    assert turned["image"] == {"format": "jpeg", "width": 60, "height": 40, "orientation": 6}
    assert turned["input"]["shape"] == [1, 3, 60, 40]
    assert server.classify(picture, "?size=native&orient=exif").json()["input"] == turned["input"]
    assert server.classify(picture, "?size=native&orient=ignore").json()["input"]["shape"] == [1, 3, 40, 60]


def test_model_by_name(server, cat):
    name = server.get("/v1/models").json()["models"][0]["name"]
    assert server.classify(cat, "?model=" + name).json()["model"] == name


@pytest.mark.parametrize("content_type", [None, "image/png", "image/jpeg", "text/plain", "application/octet-stream",
                                          "application/x-www-form-urlencoded", "nonsense", "multipart/mixed"])
def test_declared_type_is_advice(server, cat, content_type):
    reply = server.classify(cat, headers={"Content-Type": content_type} if content_type else {})
    assert reply.status_code == 200
    assert reply.json()["image"]["format"] == "png"


@pytest.mark.parametrize("kind,mode,options", [
    ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"progressive": True}), ("PNG", "P", {}), ("PNG", "LA", {}),
    ("PNG", "RGBA", {}), ("PNG", "1", {}), ("PNG", "I", {})])
def test_kinds_of_images(server, kind, mode, options):
    picture = image_bytes(50, 30, kind, mode, **options)
    assert server.classify(picture, "?size=native").json()["input"]["shape"] == [1, 3, 30, 50]


def test_same_pixels_same_answer(server, cat):
    first = server.classify(cat).json()
    image = Image.open(io.BytesIO(cat))
    again = io.BytesIO()
    image.save(again, "PNG", compress_level=1)
    second = server.classify(again.getvalue()).json()
    assert first["predictions"] == second["predictions"]


def test_chunked_upload(server, cat):
    def pieces():
        for at in range(0, len(cat), 7000):
            yield cat[at:at + 7000]

    assert server.classify(pieces()).json()["image"]["width"] == 451


def test_request_id_of_the_client(server, cat):
    reply = server.classify(cat, headers={"X-Request-Id": "order-66.b_C"})
    assert reply.headers["X-Request-Id"] == reply.json()["request_id"] == "order-66.b_C"
    for bad in ("has space", "x" * 65, 'a"b', "é".encode("utf-8")):
        reply = server.classify(b"", headers={"X-Request-Id": bad})
        assert ULID.fullmatch(reply.headers["X-Request-Id"])


def test_cross_origin(server, cat, start):
    reply = server.classify(cat, headers={"Origin": "https://example.org"})
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert "Server-Timing" in reply.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Origin" not in start(SERVER_CORS_ORIGIN="").get("/healthz/live").headers
    one = start(SERVER_CORS_ORIGIN="https://example.org").get("/healthz/live")
    assert one.headers["Access-Control-Allow-Origin"] == "https://example.org" and one.headers["Vary"] == "Origin"


def test_several_models(start, cat, tmp_path):
    demo = ('{"models": [{"name": "%s", "description": "%s/config/models/demo64.json", '
            '"weights": "%s/config/weights/demo64.safetensors"}')
    from conftest import ROOT
    file = tmp_path / "config.json"
    first = demo % ("first", ROOT, ROOT)
    second = (demo % ("second", ROOT, ROOT))[len('{"models": ['):]
    file.write_text(first + ", " + second + "]}")
    server = start(["--config", str(file)])
    assert server.classify(cat).json()["model"] == "first"
    assert server.classify(cat, "?model=second").json()["model"] == "second"
    assert [m["name"] for m in server.get("/v1/models").json()["models"]] == ["first", "second"]
    assert [m["default"] for m in server.get("/v1/models").json()["models"]] == [True, False]
    error_of(server.classify(cat, "?model=third"), 404, "unknown_model")
