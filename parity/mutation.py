"""The mutation test of this suite: each known mistake is made in our network, and some rung must catch it."""

from __future__ import annotations

from functools import partial

import torch
import torchvision
from torch import nn

from parity.rungs import images
from resnet_core.compare import DEFAULT_RUNGS, compare
from resnet_core.mistakes import INITIALISATIONS, MISTAKES, NotApplicable
from resnet_core.resnet import Bottleneck, ResNet

DEPTHS, CLASSES, SIZE = (2, 2, 2, 2), 7, 32
SHAPES = ({}, {"groups": 32, "width_per_group": 4})  # the second for what is no mistake in the first: 1 group


def rungs_that_catch(mistake: str) -> list[str]:
    """The rungs at which a small ResNet of ours with that mistake differs from torchvision's."""
    theirs = torchvision.models.resnet
    for shape in SHAPES:
        ours = partial(seeded, ResNet, Bottleneck, shape, mistake)
        try:
            ours()
        except NotApplicable:
            continue
        reference = partial(seeded, theirs.ResNet, theirs.Bottleneck, shape, None)
        result = compare(ours, reference, images(size=SIZE), rungs=DEFAULT_RUNGS, diagnosis_seconds=0)
        return [rung.name for rung in result.rungs if not rung.passed]
    raise NotApplicable(mistake)


def seeded(network: type, block: type, shape: dict[str, int], mistake: str | None) -> nn.Module:
    model = network(block, DEPTHS, num_classes=CLASSES, **shape)
    if mistake in MISTAKES:
        return MISTAKES[mistake](model)
    if mistake is not None:
        INITIALISATIONS[mistake](model)
    return model


def table(mistakes: list[str]) -> list[tuple[str, list[str]]]:
    return [(mistake, rungs_that_catch(mistake)) for mistake in mistakes]


CATALOGUE = (*MISTAKES, *INITIALISATIONS)
