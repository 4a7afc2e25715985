"""torchvision's networks at many sizes: the same logits, and the same output shape of every module."""

import numpy
import pytest
import torch
import torchvision

from networks_support import (BF16_MARGIN, FP32_LOGITS, ROWS, infer, relative_difference, seed_network,
                              settle_batchnorm, torch_shapes)

NETWORKS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "vgg16"]
SIZES = [(1, 1), (32, 32), (33, 65), (97, 211), (224, 224), (256, 256), (375, 500), (640, 480)]
TABLES = ["ref", "openblas", "avx2", "avx512", "amx"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = settle_batchnorm(seed_network(getattr(torchvision.models, request.param)(weights=None)))
    weights = folder / "weights.pth"
    torch.save(model.state_dict(), weights)
    torch.manual_seed(1)
    references = {}
    for height, width in SIZES:
        tensor = torch.randn(1, 3, height, width)
        if request.param == "vgg16" and (height < 32 or width < 32):
            references[height, width] = (tensor.numpy(), None, None)
            continue
        references[height, width] = (tensor.numpy(), *torch_shapes(model, tensor))
    yield request.param, weights, references, folder
    weights.unlink()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "%dx%d" % size)
def test_logits_and_shapes(network, table, size, tables):
    name, weights, references, folder = network
    precision, available, line = tables[table]
    if not available:
        pytest.skip(line)
    tensor, expected, calls = references[size]
    actual, stages, done = infer(folder, name, weights, tensor, table)

    if expected is None:  # five 2x2 poolings leave nothing of it, in PyTorch too
        assert done.returncode == 1
        assert b"needs at least" in done.stderr
        return
    assert actual is not None, done.stderr.decode()
    # torch.flatten is a function without a module: no hook reports it.
    assert [(stage["name"], stage["shape"]) for stage in stages if not stage["function"]] == calls

    difference = relative_difference(actual, expected)
    ROWS.append({"network": name, "table": table, "size": size, "difference": difference})
    assert actual.shape == expected.shape
    if precision == "fp32":
        assert difference <= FP32_LOGITS
    else:
        best, second = numpy.sort(expected[0])[[-1, -2]]
        if best - second > BF16_MARGIN * numpy.ptp(expected):
            assert actual.argmax() == expected.argmax()
