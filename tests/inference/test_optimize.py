"""Fast predictions: float32 and bfloat16 beside float64, int8 beside the labels, and what is refused."""

import copy
import pickle
import sys

import pytest
import torch
import torchvision
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import resnet_core
from parity.error_budget import trained_statistics
from resnet_core import optimize_for_inference
from resnet_core.foundation.precision import FACTOR
from resnet_core.inference.optimize import OptimizedNetwork, fastest, relative_error
from resnet_core.inference.quantize import max_pool_in_8_bits
from resnet_core.models.resnet import BasicBlock, Bottleneck


def body():
    network = resnet_core.Backbone(BasicBlock, [1, 1, 1, 1])
    network.reset_classifier(0)
    return network


class Maps(nn.Module):
    """Several outputs, of which one is a shortcut, too."""

    def __init__(self):
        super().__init__()
        self.network = resnet_core.ResNet(Bottleneck, [2, 1, 1, 1])

    def forward(self, x):
        x = self.network.relu(self.network.bn1(self.network.conv1(x)))
        first = self.network.layer1[0](x)
        second = self.network.layer1[1](first)
        return {"maps": [first, second], "mean": first.mean((2, 3))}


class Odd(nn.Module):
    """A convolution that is used with a ReLU, without one and in a sum, and a sum of maps of two sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.narrow = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.relu(self.bn2(self.conv(self.bn1(self.conv(self.relu(self.conv(x)))))))
        return torch.flatten(self.pool(self.relu(self.conv(x) + self.narrow(self.pool(x)))), 1)


NETWORKS = {
    "basic": lambda: resnet_core.ResNet(BasicBlock, [2, 1, 1, 1], num_classes=5),
    "grouped": lambda: resnet_core.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=4, width_per_group=16),
    "v1 dilated": lambda: resnet_core.ResNet(
        Bottleneck, [1, 2, 1, 1], stride_in_1x1=True, replace_stride_with_dilation=[False, True, True]
    ),
    "small images": lambda: resnet_core.Backbone(BasicBlock, [1, 1, 1, 1], num_classes=5, small_images=True),
    "cifar, shortcut A": lambda: resnet_core.cifar_resnet20(),
    "cifar, shortcut B": lambda: resnet_core.cifar_resnet20(shortcut="B"),
    "body": body,
    "several outputs": Maps,
    "odd": Odd,
    "torchvision": lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5),
}


def exact(network, images):
    with torch.no_grad():
        return copy.deepcopy(network).eval().double()(images.double())


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_as_exact_as_the_network_and_bfloat16_as_the_network_in_bfloat16(name):
    torch.manual_seed(0)
    network, images = trained_statistics(NETWORKS[name]()), torch.randn(2, 3, 40, 40)
    before, was_training = copy.deepcopy(network.state_dict()), network.training
    expected = exact(network, images)

    for dtype in (torch.float32, torch.bfloat16):
        optimized = optimize_for_inference(network, images, str(dtype).removeprefix("torch."))
        with torch.no_grad():
            plain = copy.deepcopy(network).eval().to(dtype)(images.to(dtype))
        assert optimized.error <= FACTOR * max(relative_error(plain, expected), torch.finfo(dtype).eps / 2)
        assert optimized.error == relative_error(optimized(images), expected)

    assert network.training == was_training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_every_convolution_is_one_operation():
    network = NETWORKS["torchvision"]()
    operations = [
        type(module).__name__ for module in optimize_for_inference(network, torch.randn(1, 3, 40, 40)).modules()
    ]
    assert operations.count("FusedConv") == 17
    assert not {"BatchNorm2d", "ReLU", "Identity", "Conv2d"} & set(operations)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "v1 dilated"])
def test_int8_is_near_and_the_same_each_time(name):
    torch.manual_seed(0)
    network, images = trained_statistics(NETWORKS[name]()), torch.randn(2, 3, 40, 40)
    optimized = optimize_for_inference(network, images, "int8", calibration=[images, images.flip(3)])
    assert optimized.error < 0.15  # one value that is written over too early would be wrong by its own size
    again = [optimized(images) for _ in range(2)]
    assert relative_error(again[0], again[1]) == 0
    assert relative_error(optimized(images[:1]), exact(network, images[:1])) < 0.15


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_gives_the_same_bits_after_the_original_has_predicted(copied):
    network, images = NETWORKS["small images"](), torch.randn(2, 3, 16, 16)
    optimized = optimize_for_inference(network, images, "int8", calibration=[images])
    assert torch.equal(copied(optimized)(images), optimized(images))


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
)
def test_the_pool_of_8_bit_numbers_equals_torch_s_of_16(size, kernel, stride, padding, dilation, ceil_mode):
    x, arguments = (
        torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8),
        (kernel, stride, padding, dilation, ceil_mode),
    )
    try:
        expected = torch.max_pool2d(x.half(), *arguments)
    except RuntimeError:
        assume(False)
    assume(expected.isfinite().all())  # no window lies in the padding alone
    assert torch.equal(max_pool_in_8_bits(x, *arguments).half(), expected)


def test_auto_takes_what_was_faster_and_says_so(monkeypatch):
    network, images = resnet_core.cifar_resnet20(), torch.randn(1, 3, 32, 32)
    candidates = [optimize_for_inference(network, images, dtype) for dtype in ("float32", "bfloat16")]
    ticks = [10 * trial + tick for trial in range(5) for tick in (0, 1, 2, 4)]  # float32 takes 1 s, bfloat16 2 s
    monkeypatch.setattr("time.perf_counter", iter(ticks).__next__)

    chosen = fastest(candidates, images)
    assert chosen.seconds == {"float32": 1, "bfloat16": 2}
    assert "19 convolutions in float32, the faster for the example (float32 1.0000 s, bfloat16 2.0000 s)" in repr(
        chosen
    )
    monkeypatch.undo()
    assert optimize_for_inference(network, images).dtype in ("float32", "bfloat16")


def with_changed(**modules):
    network = resnet_core.ResNet(BasicBlock, [1, 1, 1, 1])
    for path, module in modules.items():
        network.set_submodule(path, module)
    return network


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (lambda: with_changed(relu=nn.SiLU()), {}, "and this one has SiLU; for others use torch.compile"),
        (lambda: with_changed(bn1=nn.GroupNorm(8, 64)), {}, "has GroupNorm"),
        (lambda: with_changed(bn1=nn.BatchNorm2d(64, track_running_stats=False)), {}, "BatchNorm without running"),
        (lambda: with_changed(conv1=nn.Conv2d(3, 64, 3, padding_mode="reflect")), {}, "a convolution with padding"),
        (
            resnet_core.cifar_resnet20,
            {"dtype": "float16"},
            "dtype must be one of the words auto, float32, bfloat16, int8, got 'float16'",
        ),
        (resnet_core.cifar_resnet20, {"dtype": "int8"}, "int8, and no other dtype, takes calibration"),
        (resnet_core.cifar_resnet20, {"calibration": []}, "int8, and no other dtype, takes calibration"),
        (resnet_core.cifar_resnet20, {"dtype": "int8", "calibration": []}, "give at least one batch"),
    ],
)
def test_what_cannot_be_optimized_is_refused(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(build(), torch.randn(1, 3, 32, 32), **arguments)


def with_nan():
    network = resnet_core.cifar_resnet20()
    nn.init.constant_(network.fc.bias, torch.nan)
    return network


IMAGES = torch.randn(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("build", "images", "calibration", "message"),
    [
        (resnet_core.cifar_resnet20, IMAGES[0], [IMAGES], r"example_inputs .* got shape \[3, 32, 32\]"),
        (resnet_core.cifar_resnet20, IMAGES[:, :1], [IMAGES], "does not take example_inputs .* to have 3 channels"),
        (resnet_core.cifar_resnet20, IMAGES * torch.nan, [IMAGES], "example_inputs must be finite"),
        (with_nan, IMAGES, [IMAGES], "the model's outputs for example_inputs are not finite"),
        (resnet_core.cifar_resnet20, IMAGES, IMAGES, "put a single one into a list"),
        (resnet_core.cifar_resnet20, IMAGES, [(IMAGES, torch.zeros(1))], r"got a tuple; of a loader's pairs take"),
        (resnet_core.cifar_resnet20, IMAGES, [IMAGES[0]], r"a batch of calibration .* got shape"),
        (
            lambda: optimize_for_inference(resnet_core.cifar_resnet20(), IMAGES, "float32"),
            IMAGES,
            [IMAGES],
            "this network is optimized already, in float32",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(build, images, calibration, message):
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(build(), images, "int8", calibration)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_optimized_network_names_the_inputs_that_it_takes(dtype):
    calibration = [IMAGES] if dtype == "int8" else None
    optimized = optimize_for_inference(resnet_core.cifar_resnet20(), IMAGES, dtype, calibration)
    with pytest.raises(ValueError, match=r"inputs must be \[N, 3, H, W\], got shape \[1, 1, 32, 32\]"):
        optimized(IMAGES[:, :1])


def test_a_network_of_zeros_has_no_error():
    network = resnet_core.cifar_resnet20()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    assert optimize_for_inference(network, IMAGES, "float32").error == 0


def test_what_is_missing_here_is_named(monkeypatch):
    network, images = resnet_core.cifar_resnet20(), torch.randn(1, 3, 32, 32)
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(ValueError, match=r"int8 needs torchao: pip install 'resnet-core\[quantize\]'"):
        optimize_for_inference(network, images, "int8", calibration=[images])
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with pytest.raises(TypeError, match="takes a network and a tensor of images, got a str and a tuple"):
        optimize_for_inference("resnet18", (2, 3, 32, 32))
    with pytest.raises(ValueError, match="this build of torch lacks oneDNN"):
        optimize_for_inference(network, images)


def test_an_optimized_network_is_not_trained():
    optimized = optimize_for_inference(resnet_core.cifar_resnet20(), torch.randn(1, 3, 32, 32), "float32")
    assert isinstance(optimized.eval(), OptimizedNetwork)
    with pytest.raises(ValueError, match="an optimized network only predicts"):
        optimized.train()
