"""Weights files that PyTorch itself wrote: every tensor that the C reader hands out equals torch's.

The reader is compiled here, with sanitizers, into a small program that prints names, types, shapes and digests.
"""

import collections
import hashlib
import json
import os
import pathlib
import subprocess
import zipfile

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ["tests/e2e/weights_dump.c", "model/status.c", "model/weights.c", "model/weights_safetensors.c",
           "model/weights_pth.c", "model/weights_pickle.c"]
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
         torch.float64: "F64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
CONVERTED = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="session")
def dump(tmp_path_factory):
    program = tmp_path_factory.mktemp("weights_dump") / "weights_dump"
    subprocess.run([*os.environ.get("CC", "cc").split(), "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread",
                    "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
                    *[str(ROOT / source) for source in SOURCES], "-o", str(program), "-lnettle"], check=True)

    def run(path):
        done = subprocess.run([str(program), str(path)], capture_output=True, text=True)
        if done.returncode != 0:
            assert done.returncode == 1, done.stderr
            raise Refused(done.stderr.strip())
        head, *lines = [line.split("\t") for line in done.stdout.splitlines()]
        return head, lines

    return run


class Refused(Exception):
    pass


def raw_bytes(tensor):
    """The tensor's elements in the order of its shape, as bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.numel() == 0:
        return b""
    return flat.view(torch.uint8).numpy().tobytes() if flat.dtype != torch.bool else flat.numpy().tobytes()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def expected_line(name, tensor):
    known = tensor.dtype in CONVERTED or tensor.dtype == torch.int64
    values = sha256(raw_bytes(tensor.float())) if tensor.dtype in CONVERTED else "-"
    return [name, NAMES[tensor.dtype], str(list(tensor.shape)), sha256(raw_bytes(tensor) if known else b""), values]


def write_safetensors(path, tensors, metadata=None):
    header, blobs, at = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, tensor in tensors.items():
        blob = raw_bytes(tensor)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def check(dump, path, file_format, tensors):
    head, lines = dump(path)
    assert head == [file_format, sha256(path.read_bytes())]
    assert sorted(lines) == sorted(expected_line(name, tensor) for name, tensor in tensors.items())


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def state(request):
    torch.manual_seed(1)
    return getattr(torchvision.models, request.param)(weights=None).state_dict()


def test_zip(dump, tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    assert zipfile.is_zipfile(tmp_path / "w.pth")
    check(dump, tmp_path / "w.pth", "pth (zip)", state)


def test_legacy(dump, tmp_path, state):
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    check(dump, tmp_path / "w.pth", "pth (legacy)", state)


@pytest.mark.parametrize("dtype", CONVERTED, ids=str)
def test_safetensors(dump, tmp_path, state, dtype):
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    write_safetensors(tmp_path / "w.safetensors", cast, {"format": "pt"})
    check(dump, tmp_path / "w.safetensors", "safetensors", cast)


FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(dump, tmp_path, zipped, protocol):
    tensors = collections.OrderedDict((f"t{i}", torch.randn(2, 3)) for i in range(400))
    torch.save(tensors, tmp_path / "w.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    check(dump, tmp_path / "w.pt", f"pth ({'zip' if zipped else 'legacy'})", tensors)


@FORMATS
def test_every_type(dump, tmp_path, zipped):
    tensors = {str(dtype): (torch.arange(-3, 9) % 7).to(dtype).reshape(3, 4) for dtype in NAMES}
    tensors["scalar"], tensors["empty"] = torch.tensor(2.5), torch.zeros(0, 3)
    torch.save(tensors, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    check(dump, tmp_path / "w.pt", f"pth ({'zip' if zipped else 'legacy'})", tensors)
    write_safetensors(tmp_path / "w.safetensors", tensors)
    check(dump, tmp_path / "w.safetensors", "safetensors", tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_bit_pattern(dump, tmp_path, dtype):
    """All 65536 patterns but the signalling NaNs, whose payload torch is free to quiet."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[~torch.isnan(values)].clone()
    assert len(values) > 63000
    write_safetensors(tmp_path / "w.safetensors", {"all": values})
    check(dump, tmp_path / "w.safetensors", "safetensors", {"all": values})


@FORMATS
def test_views_and_strides(dump, tmp_path, zipped):
    base = torch.randn(6, 5, 4, 3)
    tensors = {"base": base, "slice": base[2:4], "row": base[5, 4], "transposed": base.transpose(1, 3),
               "last": base.to(memory_format=torch.channels_last), "stepped": base[::2, :, 1::2], "tied": base}
    torch.save(tensors, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    check(dump, tmp_path / "w.pt", f"pth ({'zip' if zipped else 'legacy'})", tensors)


@FORMATS
def test_expanded_tensor_is_refused(dump, tmp_path, zipped):
    torch.save({"wide": torch.ones(1).expand(1 << 40)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused, match="tensor wide repeats"):
        dump(tmp_path / "w.pt")


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoint_of_a_training(dump, tmp_path, zipped, key):
    model = torchvision.models.resnet18(weights=None, num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    torch.save({"epoch": 90, "arch": "resnet18", key: torch.nn.DataParallel(model).state_dict(), "best_acc1": 69.7,
                "optimizer": optimizer.state_dict(), "big": 1 << 100, "best": torch.tensor(69.7)}, tmp_path / "w.pth",
               _use_new_zipfile_serialization=zipped)
    check(dump, tmp_path / "w.pth", f"pth ({'zip' if zipped else 'legacy'})", model.state_dict())


@FORMATS
def test_parameters(dump, tmp_path, zipped):
    tensors = {"weight": torch.nn.Parameter(torch.randn(4, 4)), "frozen": torch.nn.Parameter(torch.ones(2), False)}
    torch.save(tensors, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    check(dump, tmp_path / "w.pt", f"pth ({'zip' if zipped else 'legacy'})", tensors)


@FORMATS
def test_whole_module_is_refused(dump, tmp_path, zipped):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused, match=r"byte \d+ \(pickle\): the global torch\.nn\.modules\.linear\.Linear is not part"):
        dump(tmp_path / "w.pt")


def test_torchscript_is_refused(dump, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "w.pt"))
    with pytest.raises(Refused, match="zip|pickle"):
        dump(tmp_path / "w.pt")


class Evil:
    def __reduce__(self):
        return os.system, ("touch /nonexistent/evil",)


@FORMATS
def test_code_is_refused(dump, tmp_path, zipped):
    torch.save({"weight": torch.ones(1), "evil": Evil()}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused, match=r"byte \d+ \(pickle\): the global posix\.system is not part of a state dict"):
        dump(tmp_path / "w.pt")


def test_compressed_zip_is_refused(dump, tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as stored, \
            zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as deflated:
        for entry in stored.namelist():
            deflated.writestr(entry, stored.read(entry))
    with pytest.raises(Refused, match=r"byte \d+ \(zip\): an entry of the archive is compressed"):
        dump(tmp_path / "z.pt")


def test_python_zip_with_any_prefix(dump, tmp_path):
    """As repacked by another tool: no alignment, no zip64 records, another folder's name."""
    tensors = {"weight": torch.randn(10, 3)}
    torch.save(tensors, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as stored, zipfile.ZipFile(tmp_path / "z.pt", "w") as again:
        for entry in stored.namelist():
            again.writestr("my model/" + entry.split("/", 1)[1], stored.read(entry))
        again.writestr("my model/byteorder", "little")
    check(dump, tmp_path / "z.pt", "pth (zip)", tensors)


def test_big_endian_is_refused(dump, tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/byteorder", "big")
    with pytest.raises(Refused, match="big-endian"):
        dump(tmp_path / "w.pt")


@pytest.mark.parametrize("make, message", [
    (lambda path: None, "cannot open it: No such file"),
    (lambda path: path.mkdir(), "not a regular file"),
    (lambda path: path.write_bytes(b""), "the file is empty"),
    (lambda path: path.write_bytes(b"<!DOCTYPE html><html></html>"), "neither a safetensors file nor"),
], ids=["missing", "directory", "empty", "html"])
def test_not_weights(dump, tmp_path, make, message):
    path = tmp_path / "weights.pth"
    make(path)
    with pytest.raises(Refused, match=message) as refused:
        dump(path)
    assert str(path)[-100:] in str(refused.value)
