"""What the doctor calls the ResNets of `parity/patients/`, healthy ones and ones with each mistake.

They belong to this repository and were written for it, in other styles than the package's and without importing it.
"""

from __future__ import annotations

from functools import cache

import torch

from parity.drop_in import images
from parity.patients import flat, functional, teaching
from resnet_core.comparison.diagnosis import Diagnosis, Examined, diagnose
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet

DEPTHS, CLASSES = (1, 1, 2, 1), 7
HEALTHY = {module.__name__.rpartition(".")[2]: module for module in (flat, functional, teaching)}
OTHER_NAMES = {"wrong groups": "2 groups in the 3x3", "width doubled": "3x3 twice as wide"}
"""The patients' name of a mistake -> the catalogue's, where they differ."""


def reference(bottleneck: bool) -> ResNet:
    torch.manual_seed(1)
    return ResNet(Bottleneck if bottleneck else BasicBlock, DEPTHS, num_classes=CLASSES)


@cache
def examined(bottleneck: bool, size: int) -> Examined:
    return Examined(reference(bottleneck), images(size=size))


def of_mistake(mistake: str, *, bottleneck: bool = True, size: int = 64) -> Diagnosis:
    """The diagnosis of the functional patient with that mistake of its own list."""
    torch.manual_seed(3)
    patient = functional.build(DEPTHS, bottleneck=bottleneck, mistake=mistake, num_classes=CLASSES)
    return diagnose(patient, examined(bottleneck, size), images(size=size))


def of_healthy(patients: str, *, bottleneck: bool = True, size: int = 64) -> Diagnosis:
    torch.manual_seed(3)
    patient = HEALTHY[patients].build(DEPTHS, bottleneck=bottleneck, num_classes=CLASSES)
    return diagnose(patient, examined(bottleneck, size), images(size=size))


def table() -> list[tuple[str, str, bool]]:
    """What was planted, what the doctor calls it, and whether that is right."""
    rows = []
    for name in HEALTHY:
        for bottleneck in (True, False):
            found = of_healthy(name, bottleneck=bottleneck)
            kind = "Bottleneck" if bottleneck else "BasicBlock"
            rows.append((f"healthy ({name}, {kind})", in_words(found), found.healthy))
    for mistake in functional.MISTAKES:
        found = of_mistake(mistake)
        rows.append((mistake, in_words(found), found.mistakes == (OTHER_NAMES.get(mistake, mistake),)))
    return rows


def in_words(diagnosis: Diagnosis) -> str:
    return "unknown" if diagnosis.mistakes is None else " and ".join(diagnosis.mistakes) or "healthy"
