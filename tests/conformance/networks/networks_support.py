"""What the network tests share: the binary, seeded networks, PyTorch's shapes by hooks, the tolerances."""

import json
import os
import pathlib
import subprocess
import sys

import numpy
import torch

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = os.environ.get("RESNETD_BINARY", str(ROOT / "build" / "release" / "resnetd"))

sys.path.insert(0, str(ROOT / "tests"))
from tolerances import BF16_MARGIN, FP32_LOGITS  # noqa: E402,F401

ROWS = []  # {"network", "table", "size", "difference"}, for the summary


def run(*arguments, **options):
    """Run the binary with an empty configuration; returns the finished process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RESNETD_")}
    environment["RESNETD_DATA"] = str(ROOT / "config")
    return subprocess.run([BINARY, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=environment, timeout=1800, **options)


def seed_network(network, seed=0):
    """Give a network seeded weights as a trained one has them.

    The batch norm that ends a residual branch gets a small weight: trained ResNets have 0.1 to 0.4 there. With 0.5 to
    1, PyTorch's own float32 logits of ResNet-152 are 1e-4 of their range away from its float64 ones, which says
    nothing about anybody's kernels; with these they are 7e-6 away."""
    torch.manual_seed(seed)
    last = {}  # the batch norm with the highest number in each block
    for name, _ in network.named_modules():
        block, _, leaf = name.rpartition(".")
        if leaf in ("bn2", "bn3"):
            last[block] = name
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.uniform_(module.bias, -0.1, 0.1)
        elif isinstance(module, torch.nn.BatchNorm2d):
            ends_branch = name in last.values()
            torch.nn.init.uniform_(module.weight, 0.1 if ends_branch else 0.5, 0.4 if ends_branch else 1.0)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            module.momentum = None  # average over the batches seen
    return network


def settle_batchnorm(network, channels=3, side=96):
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()):
        network.train()
        with torch.no_grad():
            for _ in range(2):
                network(torch.randn(4, channels, side, side))
    return network.eval()


def torch_shapes(network, tensor):
    """[(state dict path, output shape)] of every module call, by hooks, in the order in which they finish."""
    calls, handles = [], []
    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_hook(
                lambda _module, _input, output, name=name: calls.append((name, list(output.shape)))))
    with torch.no_grad():
        output = network(tensor)
    for handle in handles:
        handle.remove()
    return output.numpy(), calls


def infer(folder, description, weights, tensor, table, *flags):
    """Logits (or None), the shapes of every call, and the finished process."""
    numpy.save(folder / "input.npy", tensor)
    done = run("infer", folder / "input.npy", "--model-description", description, "--weights", weights, "--kernels",
               table, "--output", folder / "logits.npy", "--stages", *flags)
    if done.returncode:
        return None, None, done
    stages = json.loads(done.stdout)
    return numpy.load(folder / "logits.npy"), stages, done


def relative_difference(actual, expected):
    return float(numpy.abs(actual - expected).max() / max(numpy.ptp(expected), 1e-9))


def available_tables():
    listing = run("kernels").stdout.decode()
    tables = {}
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[1] in ("fp32", "bf16"):
            tables[fields[0]] = (fields[1], "not here" not in line, line.strip())
    return tables
