"""Published weights: torchvision's for the ten models, akamaster's for CIFAR's; and the names of ImageNet's classes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import resources
from pathlib import PurePosixPath

from resnet_core.data.datasets import CIFAR10_CLASSES
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.suggestions import did_you_mean


@dataclass(frozen=True)
class WeightSet:
    """One published set of weights: its file, its accuracy, and how its images are prepared."""

    model: str
    name: str
    url: str
    top1: float
    """Single-crop accuracy in percent, as published: on ImageNet's validation images, or on CIFAR-10's test images."""
    top5: float | None
    """The same among the five likeliest classes; None where it was not published."""
    transform: ImageTransform
    num_classes: int = 1000
    credit: str = ""
    """Who trained it and under which licence it is published, where that is not torchvision."""

    @property
    def sha256_prefix(self) -> str:
        """The first 8 hex digits of the file's SHA-256, which its name ends with."""
        return PurePosixPath(self.url).stem[-8:]

    @property
    def class_names(self) -> tuple[str, ...]:
        return imagenet_classes() if self.num_classes == 1000 else CIFAR10_CLASSES


# Source: torchvision 0.29.2, models/resnet.py, which parity/test_catalog.py compares with this table.
# fmt: off
PUBLISHED = [
    # model               set              SHA-256     top-1   top-5  resize
    ("resnet18",         "IMAGENET1K_V1", "f37072fd", 69.758, 89.078, 256),
    ("resnet34",         "IMAGENET1K_V1", "b627a593", 73.314, 91.420, 256),
    ("resnet50",         "IMAGENET1K_V1", "0676ba61", 76.130, 92.862, 256),
    ("resnet50",         "IMAGENET1K_V2", "11ad3fa6", 80.858, 95.434, 232),
    ("resnet101",        "IMAGENET1K_V1", "63fe2227", 77.374, 93.546, 256),
    ("resnet101",        "IMAGENET1K_V2", "cd907fc2", 81.886, 95.780, 232),
    ("resnet152",        "IMAGENET1K_V1", "394f9c45", 78.312, 94.046, 256),
    ("resnet152",        "IMAGENET1K_V2", "f82ba261", 82.284, 96.002, 232),
    ("resnext50_32x4d",  "IMAGENET1K_V1", "7cdf4587", 77.618, 93.698, 256),
    ("resnext50_32x4d",  "IMAGENET1K_V2", "1a0047aa", 81.198, 95.340, 232),
    ("resnext101_32x8d", "IMAGENET1K_V1", "8ba56ff5", 79.312, 94.526, 256),
    ("resnext101_32x8d", "IMAGENET1K_V2", "110c445d", 82.834, 96.228, 232),
    ("resnext101_64x4d", "IMAGENET1K_V1", "173b62eb", 83.246, 96.454, 232),
    ("wide_resnet50_2",  "IMAGENET1K_V1", "95faca4d", 78.468, 94.086, 256),
    ("wide_resnet50_2",  "IMAGENET1K_V2", "9ba9bcbe", 81.602, 95.758, 232),
    ("wide_resnet101_2", "IMAGENET1K_V1", "32ee1156", 78.848, 94.284, 256),
    ("wide_resnet101_2", "IMAGENET1K_V2", "d733dc28", 82.510, 96.020, 232),
]

# Source: https://github.com/akamaster/pytorch_resnet_cifar10, README.md, which gives 100 - top-1, the test error.
PUBLISHED_FOR_CIFAR10 = [
    # depth, SHA-256, top-1
    (20,  "12fca82f", 91.73),
    (32,  "d509ac18", 92.63),
    (44,  "014dd654", 93.10),
    (56,  "4bfd9763", 93.39),
    (110, "1d1ed7c2", 93.68),
]
# fmt: on


def _catalog() -> dict[str, dict[str, WeightSet]]:
    catalog: dict[str, dict[str, WeightSet]] = {}
    for model, name, sha256, top1, top5, resize_size in PUBLISHED:
        url = f"https://download.pytorch.org/models/{model}-{sha256}.pth"
        transform = ImageTransform(resize_size=resize_size, crop_size=224)
        catalog.setdefault(model, {})[name] = WeightSet(model, name, url, top1, top5, transform)

    folder = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
    credit = "trained by Yerlan Idelbayev, BSD 2-Clause licence"
    transform = ImageTransform(resize_size=32, crop_size=32)  # with ImageNet's mean and deviation, as its trainer.py
    for depth, sha256, top1 in PUBLISHED_FOR_CIFAR10:
        model, url = f"cifar_resnet{depth}", f"{folder}/resnet{depth}-{sha256}.th"
        row = WeightSet(model, "CIFAR10_V1", url, top1, None, transform, num_classes=10, credit=credit)
        catalog[model] = {row.name: row}
    return catalog


CATALOG = _catalog()  # model -> set -> what is published; a model's last set is its best


def find_weights(model: str, name: str | Enum) -> WeightSet:
    """The set of `model` that `name` stands for: "DEFAULT" (the best), "IMAGENET1K_V1", or torchvision's own name.

    torchvision's name is the text "ResNet50_Weights.IMAGENET1K_V1" or the enum member itself. Raises ValueError for a
    model or a set that is not published, with the nearest one that is, and for a set of another model; TypeError for
    anything that is not a name.
    """
    if model not in CATALOG:
        raise ValueError(f"no weights are published for {model!r}; {did_you_mean(model, CATALOG)}")
    if not isinstance(name, str | Enum):
        raise TypeError(f"weights are chosen by name, such as 'DEFAULT' or 'IMAGENET1K_V1', got {name!r:.40}")
    spelled = f"{type(name).__name__}.{name.name}" if isinstance(name, Enum) else name
    owner, _, member = spelled.rpartition(".")
    sets = CATALOG[model] | {"DEFAULT": list(CATALOG[model].values())[-1]}
    if owner.lower() not in ("", f"{model}_weights"):
        raise ValueError(f"{spelled} does not belong to {model}, whose weights are {', '.join(sets)}")
    if member not in sets:
        raise ValueError(f"{model} has no weights {spelled!r}; {did_you_mean(member, sets)}")
    return sets[member]


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes in the order of the logits, as torchvision spells them."""
    listed = resources.files("resnet_core.weights") / "imagenet_classes.txt"
    return tuple(listed.read_text(encoding="utf-8").splitlines())
