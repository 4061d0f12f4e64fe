"""Search: any configuration gives the same bits as torchvision's, or the same kind of error."""

from functools import partial

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import resnet_core
from resnet_core.foundation.precision import same_bits

NORM_LAYERS = {
    "default": None,
    "BatchNorm2d": nn.BatchNorm2d,
    "eps": partial(nn.BatchNorm2d, eps=1e-3),
    "no momentum": partial(nn.BatchNorm2d, momentum=None),
    "not affine": partial(nn.BatchNorm2d, affine=False),
    "no running statistics": partial(nn.BatchNorm2d, track_running_stats=False),
    "GroupNorm": partial(nn.GroupNorm, 4),
    "InstanceNorm2d": nn.InstanceNorm2d,
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
    "none": nn.Identity,
}

configurations = st.fixed_dictionaries(
    {
        "block": st.sampled_from(["BasicBlock", "Bottleneck", "Bottleneck"]),
        "layers": st.lists(st.integers(1, 3), min_size=4, max_size=4),
    },
    optional={
        "num_classes": st.sampled_from([1, 2, 10, 1000]),
        "zero_init_residual": st.booleans(),
        "replace_stride_with_dilation": st.none() | st.lists(st.booleans(), min_size=2, max_size=4),
        "norm_layer": st.sampled_from(list(NORM_LAYERS)),
    },
)
# Widths that stay small: 32 groups of 128 would take 15 GB.
widths = st.sampled_from([(1, 64), (1, 64), (1, 16), (1, 128), (2, 64), (2, 7), (3, 4), (8, 16), (32, 1), (32, 4)])
inputs = st.tuples(st.integers(1, 4), st.integers(32, 97), st.integers(32, 97))


def outcomes(package, configuration, shape, seed):
    """Weights, logits and updated buffers, or the type of the exception, at the first step that raises."""
    configuration = dict(configuration)
    block = getattr(package, configuration.pop("block"))
    if "norm_layer" in configuration:
        configuration["norm_layer"] = NORM_LAYERS[configuration["norm_layer"]]

    batch, height, width = shape
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))

    torch.manual_seed(seed)
    try:
        model = package.ResNet(block, **configuration)
        weights = [(name, value.clone()) for name, value in model.state_dict().items()]
        with torch.no_grad():
            logits = model(images)
            buffers = list(model.named_buffers())
            return [*weights, ("train logits", logits), *buffers, ("eval logits", model.eval()(images))]
    except Exception as error:
        return type(error)


def check(configuration, width, shape, seed):
    configuration = configuration | dict(zip(("groups", "width_per_group"), width, strict=True))
    ours = outcomes(resnet_core, configuration, shape, seed)
    theirs = outcomes(torchvision.models.resnet, configuration, shape, seed)
    if isinstance(theirs, type):
        assert ours is theirs
        return
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, value), (_, expected) in zip(ours, theirs, strict=True):
        assert same_bits(value, expected), name


search = given(configurations, widths, inputs, st.integers(0, 2**32))
unhurried = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(unhurried, max_examples=25)
@search
def test_random_configuration_gives_the_same_bits_or_the_same_error(configuration, width, shape, seed):
    check(configuration, width, shape, seed)


@pytest.mark.slow
@settings(unhurried, max_examples=75)
@search
def test_many_random_configurations_give_the_same_bits_or_the_same_errors(configuration, width, shape, seed):
    check(configuration, width, shape, seed)
