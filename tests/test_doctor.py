"""The doctor names every mistake planted in independently written ResNets, and finds the healthy ones healthy."""

import copy

import pytest
import torch
from torch import nn

from resnet_core.doctor import diagnose
from resnet_core.mistakes import MISTAKES
from resnet_core.resnet import BasicBlock, Bottleneck, ResNet
from tests.patients import flat, functional, teaching

DEPTHS = (1, 1, 2, 1)
OTHER_NAMES = {"wrong groups": "2 groups in the 3x3", "width doubled": "3x3 twice as wide"}
CASES = [(mistake, True) for mistake in functional.MISTAKES]
CASES += [(mistake, False) for mistake in functional.MISTAKES[::5] if mistake not in functional.NEEDS_BOTTLENECK]


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def reference(bottleneck):
    torch.manual_seed(1)
    return ResNet(Bottleneck if bottleneck else BasicBlock, DEPTHS, num_classes=7)


def shaken(model):
    """The model with norms as if trained: with scales of 1 and shifts of 0 some mistakes do not show."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.bias.data = 0.2 * torch.randn(module.bias.shape, generator=generator)
    return model


@pytest.mark.parametrize(("mistake", "bottleneck"), CASES)
def test_a_planted_mistake_is_named(mistake, bottleneck):
    torch.manual_seed(3)
    patient = shaken(functional.build(DEPTHS, bottleneck=bottleneck, mistake=mistake, num_classes=7))
    diagnosis = diagnose(patient, reference(bottleneck), images(), seconds=0)
    assert diagnosis.mistakes == (OTHER_NAMES.get(mistake, mistake),), diagnosis


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("patients", [flat, functional, teaching], ids=lambda module: module.__name__)
def test_a_healthy_network_gets_a_clean_bill(patients, bottleneck):
    torch.manual_seed(3)
    patient = shaken(patients.build(DEPTHS, bottleneck=bottleneck, num_classes=7))
    diagnosis = diagnose(patient, reference(bottleneck), images(), seconds=0)
    assert diagnosis.healthy, diagnosis
    assert diagnosis.tried == 1


def test_two_mistakes_are_named_together():
    patient = shaken(functional.build(DEPTHS, mistake="shortcut halved", num_classes=7))
    for norm in patient.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3
    diagnosis = diagnose(patient, reference(True), images(), seconds=600)
    assert set(diagnosis.mistakes) == {"shortcut halved", "BatchNorm eps 1e-3"}


def test_an_unknown_mistake_is_called_unknown():
    model = reference(True)
    model.layer3[0].relu = nn.LeakyReLU(0.3)
    diagnosis = diagnose(model, reference(True), images(), seconds=0)
    assert diagnosis.mistakes is None
    assert str(diagnosis).startswith("unknown: none of ")


def test_the_networks_given_are_not_changed():
    models = [reference(True), functional.build(DEPTHS, num_classes=7)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    diagnose(models[1], models[0], images(), seconds=0)
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_a_mistake_of_the_catalogue_is_told_from_the_others():
    for name in ("no stride in layer4", "no shortcut", "max-pool without padding", "max-pool at the head"):
        patient = MISTAKES[name](shaken(reference(True)))
        assert diagnose(patient, reference(True), images(), seconds=0).mistakes == (name,)
