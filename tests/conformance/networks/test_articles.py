"""The networks that people ask about when they wonder why an input size fits or does not: each runs from its
description, with PyTorch's numbers, and fails where PyTorch fails."""

import json

import numpy
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional

from networks_support import FP32_LOGITS, ROOT, infer, relative_difference, run, seed_network, settle_batchnorm, torch_shapes

TABLES = ["ref", "openblas"]


def save(model, folder):
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def agree(model, description, folder, sizes, channels=3, tables=TABLES):
    """Same logits and same shapes at every size."""
    weights = save(model, folder)
    for height, width in sizes:
        tensor = torch.randn(1, channels, height, width)
        expected, calls = torch_shapes(model, tensor)
        for table in tables:
            actual, stages, done = infer(folder, description, weights, tensor.numpy(), table)
            assert actual is not None, done.stderr.decode()
            assert relative_difference(actual, expected) <= FP32_LOGITS
            assert [(stage["name"], stage["shape"]) for stage in stages if not stage["function"]] == calls
    return weights


def refused(description, weights, folder, height, width, channels=3):
    """What the command line says of an input that does not fit, from the weights and from the shapes alone."""
    _, _, done = infer(folder, description, weights, numpy.zeros((1, channels, height, width), numpy.float32), "ref")
    summary = run("summary", "--model", description, "--input", "%dx%d" % (height, width))
    assert done.returncode == 1 and summary.returncode == 1
    return done.stderr.decode(), summary.stderr.decode()


# ---- any image size: ResNet-50's module tree


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2",
                                  "vgg16"])
def test_module_tree_prints_as_pytorch_prints_it(name):
    model = getattr(torchvision.models, name)(weights=None)
    assert run("modules", "--model", name).stdout.decode() == str(model) + "\n"


# ---- the ResNet family: a fixed 7x7 average pool takes 224x224 only


@pytest.fixture(scope="module")
def old_resnet152(tmp_path_factory):
    folder = tmp_path_factory.mktemp("avgpool7")
    model = settle_batchnorm(seed_network(torchvision.models.resnet152(weights=None)))
    weights = save(model, folder)
    yield model, folder, weights
    weights.unlink()


def test_fixed_average_pool_at_224(old_resnet152):
    model, folder, _ = old_resnet152
    adaptive, model.avgpool = model.avgpool, nn.AvgPool2d(7, stride=1)
    agree(model, "resnet152-avgpool7", folder, [(224, 224), (217, 210)])
    model.avgpool = adaptive


def test_fixed_average_pool_at_256_is_the_size_mismatch(old_resnet152):
    _, folder, weights = old_resnet152
    for text in refused("resnet152-avgpool7", weights, folder, 256, 256):
        assert "fc expects 2048 features, a 256x256 input gives 2048x2x2 = 8192" in text


def test_adaptive_average_pool_at_256(old_resnet152):
    model, folder, _ = old_resnet152
    agree(model, "resnet152", folder, [(256, 256)], tables=["openblas"])


# ---- one-channel ResNet-18 with biased convolutions: the printed output shape of every stage


class Residual(nn.Module):
    def __init__(self, channels_in, channels, shortcut, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv3 = nn.Conv2d(channels_in, channels, 1, stride) if shortcut else None
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (self.conv3(x) if self.conv3 else x))


def grey_resnet18():
    stages = [nn.Sequential(nn.Conv2d(1, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))]
    channels = 64
    for width in (64, 128, 256, 512):
        first = width == 64
        stages.append(nn.Sequential(Residual(channels, width, not first, 1 if first else 2),
                                    Residual(width, width, False, 1)))
        channels = width
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(512, 10))


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    model = settle_batchnorm(seed_network(grey_resnet18()), channels=1)
    return model, folder, agree(model, "resnet18-grey", folder, [(224, 224), (33, 65), (1, 1)], channels=1)


def test_the_eight_output_shapes(grey):
    _, folder, weights = grey
    _, stages, _ = infer(folder, "resnet18-grey", weights, numpy.zeros((1, 1, 224, 224), numpy.float32), "openblas")
    top = [(stage["type"], stage["shape"]) for stage in stages if "." not in stage["name"]]
    assert [shape for _, shape in top] == [[1, 64, 56, 56], [1, 64, 56, 56], [1, 128, 28, 28], [1, 256, 14, 14],
                                           [1, 512, 7, 7], [1, 512, 1, 1], [1, 512], [1, 10]]
    assert [name for name, _ in top] == ["Sequential"] + 4 * ["Residual"] + ["AdaptiveAvgPool2d", "Flatten", "Linear"]


def test_grey_module_tree():
    assert run("modules", "--model", "resnet18-grey").stdout.decode() == str(grey_resnet18()) + "\n"


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png"])
def test_colour_image_becomes_grey_as_pillow_does(grey, name):
    _, folder, _ = grey
    photo = ROOT / "tests" / "data" / name
    done = run("tensor", photo, "--model", "resnet18-grey", "--size", "native", "--output", folder / "tensor.npy")
    assert done.returncode == 0, done.stderr.decode()
    with Image.open(photo) as image:
        expected = torchvision.transforms.functional.to_tensor(image.convert("L"))[None].numpy()
    assert numpy.array_equal(numpy.load(folder / "tensor.npy"), expected)


# ---- VGG16 at 400x400, both ways

VGG16_ROWS = """
Conv2d-1 64,400,400 1,792
ReLU-2 64,400,400 0
Conv2d-3 64,400,400 36,928
ReLU-4 64,400,400 0
MaxPool2d-5 64,200,200 0
Conv2d-6 128,200,200 73,856
ReLU-7 128,200,200 0
Conv2d-8 128,200,200 147,584
ReLU-9 128,200,200 0
MaxPool2d-10 128,100,100 0
Conv2d-11 256,100,100 295,168
ReLU-12 256,100,100 0
Conv2d-13 256,100,100 590,080
ReLU-14 256,100,100 0
Conv2d-15 256,100,100 590,080
ReLU-16 256,100,100 0
MaxPool2d-17 256,50,50 0
Conv2d-18 512,50,50 1,180,160
ReLU-19 512,50,50 0
Conv2d-20 512,50,50 2,359,808
ReLU-21 512,50,50 0
Conv2d-22 512,50,50 2,359,808
ReLU-23 512,50,50 0
MaxPool2d-24 512,25,25 0
Conv2d-25 512,25,25 2,359,808
ReLU-26 512,25,25 0
Conv2d-27 512,25,25 2,359,808
ReLU-28 512,25,25 0
Conv2d-29 512,25,25 2,359,808
ReLU-30 512,25,25 0
MaxPool2d-31 512,12,12 0
Conv2d-32 4096,1,1 301,993,984
ReLU-33 4096,1,1 0
Dropout-34 4096,1,1 0
Conv2d-35 4096,1,1 16,781,312
ReLU-36 4096,1,1 0
Dropout-37 4096,1,1 0
Conv2d-38 3,1,1 12,291
AdaptiveAvgPool2d-39 3,1,1 0
Softmax-40 3,1,1 0
"""


def test_vgg16_summary_at_400():
    done = run("summary", "--model", "vgg16-conv400", "--input", "400x400")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    expected = []
    for line in VGG16_ROWS.split("\n"):
        if line:
            name, shape, parameters = line.split()
            expected.append([name] + ("[-1, %s]" % ", ".join(shape.split(","))).split() + [parameters])
    rows = [line.split() for line in text.split("\n") if "[-1," in line]
    assert [row[:-1] for row in rows] == expected  # the last column is ours: multiply-adds
    for line in ("Total params: 333,502,275", "Trainable params: 318,787,587", "Non-trainable params: 14,714,688",
                 "Input size (MB): 1.83", "Forward/backward pass size (MB): 696.55", "Params size (MB): 1272.21",
                 "Estimated Total Size (MB): 1970.59"):
        assert line + "\n" in text


def test_vgg16_as_convolutions_at_400(tmp_path):
    model = torchvision.models.vgg16(weights=None)
    classifier = nn.Sequential(nn.Conv2d(512, 4096, 12), nn.ReLU(True), nn.Dropout(), nn.Conv2d(4096, 4096, 1),
                               nn.ReLU(True), nn.Dropout(), nn.Conv2d(4096, 3, 1), nn.AdaptiveAvgPool2d((1, 1)),
                               nn.Softmax(dim=1))
    with torch.no_grad():  # 302 M weights: a uniform fill is faster than a normal one, and as good
        for parameter in classifier.parameters():
            parameter.uniform_(-0.01, 0.01)
    network = nn.Sequential()
    network.features, network.classifier = model.features, classifier
    weights = agree(network.eval(), "vgg16-conv400", tmp_path, [(400, 400)], tables=["openblas"])
    weights.unlink()


def test_vgg16_with_adaptive_pool_at_400(tmp_path):
    model = seed_network(torchvision.models.vgg16(weights=None)).eval()
    agree(model, "vgg16", tmp_path, [(400, 400)], tables=["openblas"]).unlink()


# ---- LeNet is tied to 32x32


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(functional.relu(self.fc2(x)))


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lenet")
    model = seed_network(LeNet()).eval()
    # 16x112 also leaves 400 features (16x1x25), so PyTorch takes it.
    return model, folder, agree(model, "lenet", folder, [(32, 32), (16, 112)], channels=1)


def test_lenet_tree(lenet):
    tree = run("modules", "--model", "lenet").stdout.decode()
    assert tree == str(lenet[0]).replace("LeNet(", "Net(") + "\n"


def test_lenet_at_64_is_refused_with_the_numbers(lenet):
    _, folder, weights = lenet
    for text in refused("lenet", weights, folder, 64, 64, channels=1):
        assert "fc1 expects 400 features, a 64x64 input gives 16x13x13 = 2704" in text


def test_lenet_classifies_32_and_refuses_64(lenet):
    model, folder, weights = lenet
    for side in (32, 64):
        Image.effect_noise((side, side), 60).save(folder / ("noise%d.png" % side))
    flags = ["--model-description", "lenet", "--weights", weights, "--size", "native", "--json", "--top-k", "10",
             "--precision", "fp32"]
    done = run("classify", folder / "noise32.png", *flags)
    assert done.returncode == 0, done.stderr.decode()
    with Image.open(folder / "noise32.png") as image, torch.no_grad():
        logits = model(torchvision.transforms.functional.to_tensor(image.convert("L"))[None])
    expected = logits.softmax(1)[0]
    for prediction in json.loads(done.stdout)[0]["predictions"]:
        assert abs(prediction["probability"] - float(expected[prediction["class"]])) < 1e-4
    done = run("classify", folder / "noise64.png", *flags)
    assert done.returncode == 1
    assert "fc1 expects 400 features, a 64x64 input gives 16x13x13 = 2704" in done.stderr.decode()
