"""The card's initializers: which tensors they change, and to what."""

import math
from enum import Enum

import pytest
import torch
from torch import nn

from resnet_core.classifier.initializers import INITIALIZERS, Initializer

NAMES = [
    "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform",
    "bn_uniform", "bn_ones", "linear_log_constant_bias",
]  # fmt: skip

# Of a 3x3 convolution 64 -> 128 and a linear layer 512 -> 300: (inputs, outputs) of one unit.
FANS = {"conv.weight": (64 * 9, 128 * 9), "fc.weight": (512, 300)}

# The standard deviation in the papers: He et al. 2015b, fan-in; Glorot & Bengio 2010.
DEVIATIONS = {
    "kaiming_normal": lambda inputs, outputs: math.sqrt(2 / inputs),
    "kaiming_uniform": lambda inputs, outputs: math.sqrt(2 / inputs),
    "xavier_normal": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
    "xavier_uniform": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(64, 128, 3)
        self.bn = nn.BatchNorm2d(2000)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(512, 300)


def initialized(name):
    """The layers' state before, all threes, and after."""
    torch.manual_seed(0)
    model = Layers()
    for tensor in model.state_dict().values():
        tensor.fill_(3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.apply(Initializer(name).get_initializer())
    return before, model.state_dict()


def test_the_seven_names_are_the_cards():
    assert sorted(Initializer) == sorted(NAMES)
    assert set(INITIALIZERS) == set(Initializer)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_found_in_any_case_and_from_any_enum(name):
    class Theirs(Enum):
        MEMBER = name

    for written in (name, name.upper(), name.title(), Initializer(name), Theirs.MEMBER):
        assert Initializer(written) is Initializer[name.upper()]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("kaiming_norm", "unknown initializer 'kaiming_norm'; did you mean kaiming_normal or"),
        ("zzz", f"unknown initializer 'zzz'; known are {', '.join(Initializer)}"),
        (3, "unknown initializer 3; known are kaiming_normal"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Initializer(wrong)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_weights_get_the_papers_deviation_and_nothing_else_changes(name):
    before, after = initialized(name)
    assert {key for key in after if not torch.equal(before[key], after[key])} == set(FANS)
    for key, fans in FANS.items():
        deviation = DEVIATIONS[name](*fans)
        assert after[key].std().item() == pytest.approx(deviation, rel=0.01)
        furthest = after[key].abs().max().item() / deviation
        assert (furthest <= math.sqrt(3)) == name.endswith("uniform")


def test_bn_ones_and_uniform_set_scale_and_shift_of_batch_norm_alone():
    for name in ("bn_ones", "bn_uniform"):
        before, after = initialized(name)
        assert {key for key in after if not torch.equal(before[key], after[key])} == {"bn.weight", "bn.bias"}
        assert not after["bn.bias"].any()
    assert after["bn.weight"].min() >= 0
    assert after["bn.weight"].max() < 1
    assert after["bn.weight"].mean().item() == pytest.approx(0.5, abs=0.02)
    assert initialized("bn_ones")[1]["bn.weight"].eq(1).all()


def test_log_bias_is_minus_log_of_the_outputs_and_nothing_else_changes():
    before, after = initialized("linear_log_constant_bias")
    assert {key for key in after if not torch.equal(before[key], after[key])} == {"fc.bias"}
    assert after["fc.bias"].unique().tolist() == pytest.approx([-5.703782474656201])  # -log(300)


def test_layers_without_the_parameter_are_left_alone():
    bare = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm2d(4, affine=False))
    before = {name: value.clone() for name, value in bare.named_buffers()}
    for initializer in Initializer:
        bare.apply(initializer.get_initializer())
    assert [name for name, _ in bare.named_parameters()] == ["0.weight"]
    assert all(torch.equal(value, before[name]) for name, value in bare.named_buffers())
