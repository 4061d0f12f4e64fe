"""The CIFAR networks against section 4.2 of the paper."""

import pytest
import torch
from torch import nn

import resnet_core
from resnet_core.models.cifar import PadShortcut

# Counted once from the widely used implementation (pytorch_resnet_cifar10), option A; B adds two projections.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameter_counts(depth):
    assert count(resnet_core.get_model(f"cifar_resnet{depth}")) == PARAMETERS[depth]
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count(resnet_core.get_model(f"cifar_resnet{depth}", shortcut="B")) == PARAMETERS[depth] + projections


@pytest.mark.parametrize("depth", PARAMETERS)
def test_depth_is_6n_plus_2_weighted_layers(depth):
    model = resnet_core.get_model(f"cifar_resnet{depth}")
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == depth


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_maps_are_32_16_and_8_pixels_wide_with_16_32_and_64_channels(shortcut):
    rows = resnet_core.describe(resnet_core.cifar_resnet20(shortcut=shortcut), image_size=32).rows
    shapes = {row.name: row.output_shape for row in rows}
    assert [shapes[f"layer{stage}"] for stage in (1, 2, 3)] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_shortcut_a_takes_every_second_pixel_and_pads_channels_evenly():
    x = torch.randn(2, 16, 5, 6)
    out = PadShortcut(new_channels=16)(x)
    assert out.shape == (2, 32, 3, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_classes_and_channels_follow_the_arguments():
    model = resnet_core.cifar_resnet20(num_classes=3, in_channels=1)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)


def test_a_head_is_replaced_and_removed():
    model = resnet_core.cifar_resnet20().eval()
    x = torch.randn(2, 3, 16, 16)
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    with pytest.raises(ValueError, match="num_classes must be at least 0, got -1"):
        model.reset_classifier(-1)


def test_a_stage_without_blocks_is_refused():
    with pytest.raises(ValueError, match="n, the number of blocks in each stage, must be at least 1, got 0"):
        resnet_core.CifarResNet(0)


def test_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match=r"'A' \(identity, zero-padded\) or 'B' \(projection\), got 'C'"):
        resnet_core.cifar_resnet20(shortcut="C")
