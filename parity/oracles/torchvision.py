"""torchvision's ResNets: our names, our weights from the same seed, our bits."""

from __future__ import annotations

from torch import nn

from parity.oracles.oracle import Oracle
from resnet_core.weights.libraries import NETWORKS


def build(name: str) -> nn.Module:
    from torchvision import models

    return models.get_model(name)


ORACLE = Oracle(
    package="torchvision", models=NETWORKS, build=build, source="torchvision", deviations=("torchvision: v1.5",)
)
