"""ResNets with the faults of public repositories: each difference is named, and nothing else."""

from functools import partial

import pytest
import torch

from parity.patients.people import PEOPLE
from resnet_core.comparison.compare import compare
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.resnet import BasicBlock, Bottleneck

RUNGS = ("names and shapes", "logits", "other shapes", "loss and gradients")

REFERENCES = {
    "BasicBlock": partial(Backbone, BasicBlock, (1, 1, 1, 1), 10),
    "Bottleneck": partial(Backbone, Bottleneck, (1, 1, 1, 1), 10),
    "small BasicBlock": partial(Backbone, BasicBlock, (1, 1, 1, 1), 10, small_images=True),
    "cifar A": partial(CifarResNet, 1),
    "cifar B": partial(CifarResNet, 1, shortcut="B"),
}


def means(text, words):
    return all(word in str(text).lower() for word in words.split())


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("name", PEOPLE)
def test_a_hand_written_network_is_explained(name):
    person = PEOPLE[name]
    reference = partial(REFERENCES[person.reference], in_channels=person.network.channels)
    inputs = torch.randn(2, person.network.channels, 32, 32, generator=torch.Generator().manual_seed(0))
    result = compare(person.network, reference, inputs, rungs=RUNGS, diagnosis_seconds=1e-3)

    assert bool(result) == (not person.differences)
    found = result.differences
    for words in person.differences:
        assert any(means(each, words) for each in found), (words, found)
    for each in found:
        assert any(means(each, words) for words in person.differences), (each, person.differences)
