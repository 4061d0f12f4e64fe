"""Rungs of `optimize_for_inference`: float32 and bfloat16 keep float64's budget, int8 the classes."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

import resnet_core
from parity.benchmarks.speed import case_of
from parity.error_budget import trained_statistics
from resnet_core.foundation.precision import FACTOR
from resnet_core.inference.optimize import optimize_for_inference, relative_error
from resnet_core.models.resnet import BasicBlock, Bottleneck


@torch.no_grad()
def budget(network, images, dtype):
    """Logits of a float64 run, and the largest error that is allowed in a precision."""
    exact = copy.deepcopy(network).eval().double()(images.double())
    plain = copy.deepcopy(network).eval().to(dtype)(images.to(dtype))
    return exact, FACTOR * max(relative_error(plain, exact), torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "resnet50", "resnext50_32x4d"])
def test_a_model_keeps_to_the_budget_in_float32_and_bfloat16_and_its_classes_in_int8(name, tmp_path):
    case = case_of(name, 4, 40, "cpu", tmp_path)  # whose head knows the images apart
    network, images = case.network, case.images
    for dtype in (torch.float32, torch.bfloat16):
        exact, allowed = budget(network, images, dtype)
        optimized = optimize_for_inference(network, images, str(dtype).removeprefix("torch."))
        assert relative_error(optimized(images), exact) <= allowed
        assert torch.equal(optimized(images).argmax(1), exact.argmax(1))

    logits = optimize_for_inference(network, images, "int8", calibration=[images])(images)
    assert torch.cosine_similarity(logits, exact).min() > 0.9
    assert torch.equal(logits.argmax(1), exact.argmax(1))


@settings(max_examples=6, deadline=None, database=None)
@given(
    block=st.sampled_from([BasicBlock, Bottleneck]), layers=st.tuples(*[st.integers(1, 2)] * 4),
    groups=st.sampled_from([1, 2, 4]), channels=st.integers(1, 4), classes=st.integers(1, 7),
    size=st.integers(33, 48), batch=st.integers(1, 3), small_images=st.booleans(), seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_any_configuration_and_any_batch_keep_to_the_budget(
    block, layers, groups, channels, classes, size, batch, small_images, seed, dtype
):
    torch.manual_seed(seed)
    wide = {} if block is BasicBlock else {"groups": groups, "width_per_group": 16}
    size = size // 2 if small_images else size  # whose stem keeps all pixels
    network = trained_statistics(
        resnet_core.Backbone(
            block, layers, num_classes=classes, in_channels=channels, small_images=small_images, **wide
        )
    )
    example, images = torch.randn(2, channels, size, size), torch.randn(batch, channels, size, size)
    optimized = optimize_for_inference(network, example, str(dtype).removeprefix("torch."))
    exact, allowed = budget(network, images, dtype)
    assert relative_error(optimized(images), exact) <= allowed


def test_torchvisions_own_network_is_taken():
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    images = torch.randn(2, 3, 40, 40)
    exact, allowed = budget(network, images, torch.float32)
    assert relative_error(optimize_for_inference(network, images, "float32")(images), exact) <= allowed
