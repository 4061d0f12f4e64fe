"""The rungs, as tests: each of torchvision's ten models against ours."""

from pathlib import Path

import pytest
import torch
import torchvision

import resnet_core
from parity.__main__ import first_failure, judge_model
from parity.mutants import MUTANTS
from parity.rungs import RUNGS, TORCHVISION_MODELS, difference, judge, same_bits

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


@pytest.mark.parametrize(("name", "rung"), [(name, rung) for rung in RUNGS for name in RUNGS[rung].models])
def test_model_equals_torchvision_bitwise(name, rung):
    verdict = judge_model(name, rung)
    assert verdict.passed, verdict


@pytest.mark.parametrize("name", TORCHVISION_MODELS)
def test_parameter_count_is_the_published_one(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert resnet_core.describe(name, image_size=32).parameters == PARAMETERS[name] == published


def test_all_of_torchvisions_resnets_are_compared():
    torchvisions = torchvision.models.list_models(torchvision.models, include=["resne*", "wide_resnet*"])
    assert sorted(TORCHVISION_MODELS) == torchvisions


@pytest.mark.parametrize("name", MUTANTS)
def test_known_wrong_variant_is_found_by_the_rung_that_the_docs_name(name):
    rung, _ = first_failure(MUTANTS[name])
    docs = Path(__file__).parent.parent / "docs" / "parity.md"
    assert f"| {name} | {rung} |" in docs.read_text().splitlines()


def test_every_rung_that_compares_values_can_tell_a_millionth():
    def nudged():
        model = resnet_core.resnet18()
        model.fc.weight.data *= 1 + 1e-6
        return model

    static = {"names, shapes", "parameters", "strict loading"}
    for name in RUNGS.keys() - static:
        verdict = judge(RUNGS[name].compare(nudged, torchvision.models.resnet18))
        assert not verdict.passed, name
        assert 0 < verdict.largest_difference < 1, name


def test_same_bits_tells_what_equality_does_not():
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert difference(torch.zeros(2), torch.tensor([0.5, float("nan")])) == float("inf")
