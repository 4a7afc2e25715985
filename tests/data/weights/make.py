#!/usr/bin/python3
"""Write the small weights files beside this script; the unit tests read them, and fuzzing starts from them.

The .pth files are written by PyTorch itself, the safetensors file by hand.
Every file holds the same tensors: conv.weight [2, 1, 2, 2] = 0, 0.5, 1, ..., bn.weight [3] as a half,
bn.num_batches_tracked, and tied, which shares conv.weight's storage.
"""

import collections
import json
import pathlib

import torch

HERE = pathlib.Path(__file__).resolve().parent


def state_dict():
    weight = torch.arange(8, dtype=torch.float32).div(2).reshape(2, 1, 2, 2)
    state = collections.OrderedDict([
        ("conv.weight", weight),
        ("bn.weight", torch.tensor([1.0, -2.0, 0.25]).half()),
        ("bn.num_batches_tracked", torch.tensor(7)),
        ("tied", weight[1, 0]),
    ])
    state._metadata = collections.OrderedDict([("", {"version": 1}), ("conv", {"version": 1})])
    return state


def safetensors(state):
    """As bytes; bfloat16 where PyTorch has half, so that the type occurs."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in state.items():
        kind = {torch.float32: "F32", torch.float16: "BF16", torch.int64: "I64"}[tensor.dtype]
        tensor = tensor.bfloat16().view(torch.int16) if kind == "BF16" else tensor
        blob = tensor.contiguous().numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


if __name__ == "__main__":
    state = state_dict()
    torch.save(state, HERE / "zip.pth")
    torch.save(state, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, HERE / "protocol4.pth", pickle_protocol=4, _use_new_zipfile_serialization=False)
    wrapped = collections.OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    torch.save({"epoch": 3, "lr": 0.1, "state_dict": wrapped}, HERE / "checkpoint.pth",
               _use_new_zipfile_serialization=False)
    (HERE / "small.safetensors").write_bytes(safetensors(state))
