"""timm's ResNets: our names and bits; the last BatchNorm of each block starts at zero."""

from __future__ import annotations

from torch import nn

from parity.oracles.oracle import Oracle
from resnet_core.weights.libraries import NETWORKS


def build(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


ORACLE = Oracle(
    package="timm",
    models=NETWORKS,
    build=build,
    source="torchvision",
    deviations=("timm: zero-init",),
    known={"seeded initialisation": "timm: zero-init"},
)
