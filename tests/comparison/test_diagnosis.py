"""The doctor names every mistake planted in ResNets of another style, and finds the healthy ones healthy."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

from parity.diagnoses import DEPTHS, HEALTHY, OTHER_NAMES, of_healthy, of_mistake, reference
from parity.drop_in import images as random_images
from parity.patients import functional
from parity.patients.plants import PLANTS
from resnet_core.comparison.diagnosis import diagnose


def size_for(mistake):
    """Pixels at which the mistake shows: at 32 the last map is 1x1, where every pool does the same."""
    return 64 if mistake == "max-pool at the head" else 32


images = partial(random_images, size=32)
CASES = [(mistake, True) for mistake in functional.MISTAKES]
CASES += [(mistake, False) for mistake in functional.MISTAKES[::5] if mistake not in functional.NEEDS_BOTTLENECK]


@pytest.mark.parametrize(("mistake", "bottleneck"), CASES)
def test_a_planted_mistake_is_named(mistake, bottleneck):
    diagnosis = of_mistake(mistake, bottleneck=bottleneck, size=size_for(mistake))
    assert diagnosis.mistakes == (OTHER_NAMES.get(mistake, mistake),), diagnosis


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("patients", HEALTHY)
def test_a_healthy_network_gets_a_clean_bill(patients, bottleneck):
    diagnosis = of_healthy(patients, bottleneck=bottleneck, size=32)
    assert diagnosis.healthy, diagnosis


def test_two_mistakes_are_named_together():
    patient = functional.build(DEPTHS, mistake="shortcut halved", num_classes=7)
    for norm in patient.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3
    diagnosis = diagnose(patient, reference(True), images())
    assert set(diagnosis.mistakes) == {"shortcut halved", "BatchNorm eps 1e-3"}


def test_an_operation_without_a_name_is_still_placed():
    class Odd(nn.Module):
        def forward(self, x):
            return x.relu().cumsum(1)

    model = reference(True)
    model.layer3[0].relu, model.maxpool = Odd(), nn.MaxPool2d(2, 2)
    diagnosis = diagnose(model, reference(True), images())
    assert diagnosis.mistakes is None
    assert re.match(
        r"found so far: 2x2 max-pool; the rest begins at torch.cumsum .*test_diagnosis.py:\d+", str(diagnosis)
    )
    assert [each.name for each in diagnosis.differences] == ["2x2 max-pool"]


def test_the_networks_given_are_not_changed():
    models = [reference(True), functional.build(DEPTHS, num_classes=7)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    diagnose(models[1], models[0], images())
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_similar_mistakes_of_the_catalogue_are_not_confused():
    for name in ("no stride in layer4", "no shortcut", "max-pool without padding", "max-pool at the head"):
        patient = PLANTS[name](reference(True))
        inputs = images(size=size_for(name))
        assert diagnose(patient, reference(True), inputs).mistakes == (name,)
