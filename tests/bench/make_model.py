#!/usr/bin/python3
"""The network that every runtime of the benchmark runs: torchvision's ResNet-50 with seeded weights.

    make_model.py FOLDER    writes resnet50.pth (resnetd, PyTorch) and resnet50.onnx (ONNX Runtime)

Speed does not depend on what the weights know, but it does depend on their size: a network whose activations die
out or overflow computes on zeros, subnormals or infinities. So the batch norms get the statistics that inputs
really have at their place, as training would leave them, and scales and shifts that vary as trained ones do.
"""

import os
import sys
import warnings

import torch
import torchvision

SEED = 50


def inputs(count, size):
    """Normalised pictures without a picture: smooth noise at several scales, as photographs have."""
    total = torch.zeros(count, 3, size, size)
    for cells in (4, 16, 64, size):
        noise = torch.randn(count, 3, cells, cells)
        total += torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return total / total.std()


def build():
    torch.manual_seed(SEED)
    model = torchvision.models.resnet50(weights=None)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0.0, 0.2)
        norm.momentum = None  # average over all batches instead of forgetting the first ones
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(inputs(8, 160))
    return model.eval()


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    model = build()
    weights = os.path.join(folder, "resnet50.pth")
    onnx = os.path.join(folder, "resnet50.onnx")
    torch.save(model.state_dict(), weights + ".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            torch.zeros(1, 3, 224, 224),
            onnx + ".part",
            opset_version=13,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "n", 2: "h", 3: "w"}, "logits": {0: "n"}},
        )
    os.replace(weights + ".part", weights)
    os.replace(onnx + ".part", onnx)


if __name__ == "__main__":
    main()
