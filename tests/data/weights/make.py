#!/usr/bin/python3
"""Write the small PyTorch files beside this script, with PyTorch itself; the unit tests read them.

Every file holds the same tensors: conv.weight [2, 1, 2, 2] = 0, 0.5, 1, ..., bn.weight [3] as a half,
bn.num_batches_tracked, and tied, which shares conv.weight's storage.
"""

import collections
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


if __name__ == "__main__":
    state = state_dict()
    torch.save(state, HERE / "zip.pth")
    torch.save(state, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, HERE / "protocol4.pth", pickle_protocol=4, _use_new_zipfile_serialization=False)
    wrapped = collections.OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    torch.save({"epoch": 3, "lr": 0.1, "state_dict": wrapped}, HERE / "checkpoint.pth",
               _use_new_zipfile_serialization=False)
