"""The same answer as torchvision: the bundled model over HTTP, ResNet-50 from every file that PyTorch writes."""

import json
import os
import struct
import subprocess
import sys

import pytest

from conftest import BINARY, ROOT

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

sys.path.insert(0, str(ROOT / "tests"))
from test_weights_files import write_safetensors  # noqa: E402
from tolerances import BF16_PROBABILITY, FP32_LOGITS, FP32_PROBABILITY  # noqa: E402

DATA = ROOT / "tests" / "data"


def read_safetensors(path):
    """The tensors of a .safetensors file, as the format's description says."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    types = {"F16": torch.float16, "F32": torch.float32}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            data = bytearray(raw[8 + length + begin:8 + length + end])
            tensors[name] = torch.frombuffer(data, dtype=types[entry["dtype"]]).reshape(entry["shape"]).float()
    return tensors


@pytest.fixture(scope="module")
def demo():
    """The bundled model in torch."""
    model = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], num_classes=64,
                                      width_per_group=8)
    missing = model.load_state_dict(read_safetensors(ROOT / "config" / "weights" / "demo64.safetensors"), strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return model.eval()


def expected_probabilities(model, photo):
    transform = torchvision.transforms.Compose([
        torchvision.transforms.Resize(64), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    with Image.open(photo) as image, torch.no_grad():
        return model(transform(image.convert("RGB"))[None]).softmax(1)[0]


@pytest.mark.parametrize("precision, tolerance", [("fp32", FP32_PROBABILITY), ("auto", BF16_PROBABILITY)])
@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png"])
def test_bundled_model_answers_what_torch_answers(start, demo, name, precision, tolerance):
    server = start(ENGINE_PRECISION=precision)
    reply = server.classify((DATA / name).read_bytes(), "?top_k=64").json()
    labels = [line.split("\t")[2] for line in (ROOT / "config/labels/demo64.tsv").read_text().splitlines()]
    expected = expected_probabilities(demo, DATA / name)
    got = {entry["class"]: entry["probability"] for entry in reply["predictions"]}

    assert len(got) == 64
    assert all(entry["label"] == labels[entry["class"]] for entry in reply["predictions"])
    for index in range(64):
        assert abs(got[index] - float(expected[index])) <= tolerance
    if precision == "fp32":  # the order, but for classes closer than the tolerance
        order = [float(expected[entry["class"]]) for entry in reply["predictions"]]
        assert all(a >= b - 2 * tolerance for a, b in zip(order, order[1:]))


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(7)
    model = torchvision.models.resnet50(weights=None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, *((0.1, 0.4) if name.endswith("bn3") else (0.5, 1.0)))
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


@pytest.mark.parametrize("file_format", ["zip", "legacy", "safetensors", "safetensors-f16", "safetensors-bf16"])
def test_resnet50_has_torchs_logits(resnet50, tmp_path, file_format):
    model, state = resnet50, resnet50.state_dict()
    weights = tmp_path / ("weights.safetensors" if "safetensors" in file_format else "weights.pth")
    if "-" in file_format:  # torch then computes with the rounded weights too
        dtype = torch.bfloat16 if file_format.endswith("-bf16") else torch.float16
        state = {name: tensor.to(dtype) if tensor.dim() > 1 else tensor for name, tensor in state.items()}
        model = torchvision.models.resnet50(weights=None)
        model.load_state_dict({name: tensor.float() if tensor.dim() > 1 else tensor for name, tensor in state.items()})
        model.eval()
    if "safetensors" in file_format:
        write_safetensors(weights, state)
    else:
        torch.save(state, weights, _use_new_zipfile_serialization=file_format == "zip")

    torch.manual_seed(8)
    tensor = torch.randn(1, 3, 224, 224)
    numpy.save(tmp_path / "input.npy", tensor.numpy())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESNETD_")}
    done = subprocess.run([str(BINARY), "infer", str(tmp_path / "input.npy"), "--model-description", "resnet50",
                           "--weights", str(weights), "--kernels", "openblas", "--output", str(tmp_path / "out.npy")],
                          env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=600)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(tensor).numpy()
    actual = numpy.load(tmp_path / "out.npy")
    assert numpy.abs(actual - expected).max() <= FP32_LOGITS * numpy.ptp(expected)
