#!/usr/bin/python3
"""PyTorch as a peer of the engine benchmark: frozen TorchScript, which folds batch norms and lets oneDNN work.

    torch_peer.py WEIGHTS THREADS fp32|bf16

Lines in, one JSON line out for each: see bench_engine.c for `shape`, `run` and `throughput`.
"""

import json
import sys
import time

import numpy
import torch
import torchvision


def test_input(n, height, width):
    """The input that every peer makes for itself, NCHW."""
    index = numpy.arange(n * 3 * height * width, dtype=numpy.uint32)
    hashed = (index * numpy.uint32(2654435761)) >> numpy.uint32(8)
    values = hashed.astype(numpy.float32) * numpy.float32(4 / 16777216) - numpy.float32(2)
    return torch.from_numpy(values.reshape(n, 3, height, width))


def say(value):
    print(json.dumps(value), flush=True)


def main():
    weights, threads, precision = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    model = torchvision.models.resnet50(weights=None)
    model.load_state_dict(torch.load(weights))
    model.eval()
    if precision == "bf16":
        model = model.bfloat16()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # What measured fastest: in bf16 channels last, by half; in fp32 oneDNN brings its own layout either way.
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model = model.to(memory_format=layout)
    given = None
    with torch.no_grad():
        example = torch.zeros(1, 3, 224, 224, dtype=dtype).contiguous(memory_format=layout)
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, example)))
        say({"ready": True, "version": torch.__version__, "precision": precision})
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "shape":
                given = test_input(*map(int, arguments)).to(dtype).contiguous(memory_format=layout)
                logits = frozen(given)
                say({"logits": logits[0].float().tolist()})
            elif command == "run":
                times = []
                for _ in range(int(arguments[0])):
                    start = time.perf_counter()
                    frozen(given)
                    times.append((time.perf_counter() - start) * 1e3)
                say({"ms": times})


if __name__ == "__main__":
    main()
