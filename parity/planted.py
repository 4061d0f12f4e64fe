"""The mutation test of the ladder: each known mistake is made in our network, and some rung must catch it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torchvision
from torch import nn

from parity.drop_in import images
from parity.patients.plants import PLANTS, NotApplicable
from resnet_core.comparison.climb import DEFAULT_RUNGS, INITIALISATIONS, higher_rungs, starting_rungs
from resnet_core.comparison.pair import match
from resnet_core.comparison.rungs import Rung
from resnet_core.comparison.twins import share_weights
from resnet_core.models.resnet import Bottleneck, ResNet

CATALOGUE = (*PLANTS, *INITIALISATIONS)
CLASSES = 7
# Small networks: a mistake is made in the first in which it is one. A stage of one block, for one, has none to spare.
SHAPES: tuple[dict[str, Any], ...] = (
    {"layers": (1, 1, 2, 1)},
    {"layers": (1, 1, 2, 1), "groups": 32, "width_per_group": 4},
    {"layers": (2, 2, 2, 2)},
)


def rungs_that_catch(mistake: str) -> Iterator[Rung]:
    """The rungs at which a small ResNet of ours with that mistake differs from torchvision's, lowest first."""
    theirs = torchvision.models.resnet
    for shape in SHAPES:
        ours = partial(network, ResNet, Bottleneck, shape, mistake)
        try:
            ours()
        except NotApplicable:
            continue

        reference = partial(network, theirs.ResNet, theirs.Bottleneck, shape)
        pair = match(ours, reference, images())
        yield from (rung for rung in starting_rungs(pair, DEFAULT_RUNGS) if not rung.passed)
        yield from (rung for rung in higher_rungs(share_weights(pair), DEFAULT_RUNGS) if not rung.passed)
        return


def network(resnet: type, block: type, shape: dict[str, Any], mistake: str | None = None) -> nn.Module:
    model = resnet(block, num_classes=CLASSES, **shape)
    if mistake in PLANTS:
        return PLANTS[mistake](model)
    if mistake is not None:
        INITIALISATIONS[mistake](model)
    return model
