"""The ladder beside torchvision, all ten models, as tests."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

import resnet_core
from parity.drop_in import DROP_IN, difference, images, judge, names_and_shapes
from resnet_core.comparison.compare import DEFAULT_RUNGS, FAST_RUNGS, compare
from resnet_core.comparison.rungs import SLOW
from resnet_core.models.resnet import TABLE_1, WIDER

MODELS = (*TABLE_1, *WIDER)

# The same code as resnet50 and resnext50_32x4d, deeper or wider, which take long to build and to compare.
LARGE = ("resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")
SMALL = [name for name in MODELS if name not in LARGE]

# Published by torchvision with its weights (meta["num_params"] of each set).
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}


def builders(name):
    return partial(resnet_core.get_model, name), partial(torchvision.models.get_model, name)


@pytest.mark.parametrize("name", SMALL)
def test_model_equals_torchvision_bitwise_on_every_rung(name):
    result = compare(*builders(name), images())
    assert {rung.name: rung.status for rung in result.rungs} == dict.fromkeys(DEFAULT_RUNGS, "equal"), result
    assert not result.renamed


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_model_equals_torchvision_bitwise_on_the_main_rungs(name):
    """`make report` climbs all rungs with all ten models."""
    rungs = (*FAST_RUNGS, "seeded initialisation")
    result = compare(*builders(name), images(), rungs=rungs)
    assert {rung.name: rung.status for rung in result.rungs} == dict.fromkeys(rungs, "equal"), result


def test_compiled_and_exported_a_small_network_computes_what_torchvisions_does():
    """`make report` climbs these rungs with all ten models."""
    ours, theirs = resnet_core, torchvision.models.resnet
    result = compare(
        *(partial(each.ResNet, each.Bottleneck, [1, 2, 1, 1]) for each in (ours, theirs)), images(), rungs=SLOW
    )
    assert result, result
    assert "torch.compile" not in {rung.name for rung in result.rungs if rung.status == "not run"}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_torchvisions_in_order(name):
    rung = judge("state-dict keys in order", names_and_shapes(*builders(name)))
    assert rung.status == "equal", rung


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("check", [name for name, check in DROP_IN.items() if check is not names_and_shapes])
def test_model_stands_in_for_torchvisions(name, check):
    rung = judge(check, DROP_IN[check](*builders(name)))
    assert rung.status == "equal", rung


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_published_one(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    with torch.device("meta"):
        model = resnet_core.get_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name] == published


def test_all_of_torchvisions_resnets_are_compared():
    torchvisions = torchvision.models.list_models(torchvision.models, include=["resne*", "wide_resnet*"])
    assert sorted(MODELS) == torchvisions


def test_a_ten_millionth_in_the_logits_is_found():
    class Nudged(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = resnet_core.resnet18()

        def forward(self, x):
            return self.network(x) * (1 + 1e-7)

    rungs = ("activations", "logits")
    result = compare(Nudged(), torchvision.models.resnet18(), images(), rungs=rungs, diagnosis_seconds=0)
    assert "activations" in {rung.name for rung in result.rungs if not rung.passed}, result


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("state-dict keys in order", lambda model: setattr(model, "bn1", model.__dict__["_modules"].pop("bn1"))),
        ("strict loading", lambda model: setattr(model, "more", nn.Linear(1, 1))),
        ("fx nodes", lambda model: setattr(model, "relu", nn.Identity())),
    ],
)
def test_each_check_of_a_drop_in_can_fail(check, change):
    def changed():
        model = resnet_core.resnet18()
        change(model)
        return model

    assert not judge(check, DROP_IN[check](changed, torchvision.models.resnet18)).passed


def test_differences_without_a_number_are_infinite():
    assert difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert difference(torch.zeros(2), torch.tensor([0.5, float("nan")])) == float("inf")
