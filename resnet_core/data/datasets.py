"""Datasets as tensors in memory, and the digits that ship with the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.data.transforms import ImageTransform


@dataclass(frozen=True)
class Split:
    """Images `[N, C, H, W]` float32 in -1..1 and their class numbers `[N]` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a recipe trains and evaluates on."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    transform: ImageTransform
    """Makes an image file's pixels into what `test` holds."""

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]


def load_digits() -> Dataset:
    """Handwritten digits: 1,437 images to train on and 360 to test, 8x8 grey pixels enlarged to 16x16 (bilinear).

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998,
    doi:10.24432/C50P49, licence CC BY 4.0: its test set, as in scikit-learn's `load_digits()`. The file also holds
    the split: `train_test_split(range(1797), test_size=360, stratify=labels, random_state=0)` of scikit-learn 1.9.1.
    """
    packed = resources.files("resnet_core.data") / "digits.npz"
    with packed.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels, is_test = (torch.from_numpy(arrays[key]) for key in ("images", "labels", "is_test"))
    enlarged = F.interpolate(images[:, None].float() / 8 - 1, size=(16, 16), mode="bilinear")  # grey levels are 0..16
    return Dataset(
        train=Split(enlarged[~is_test], labels[~is_test].long()),
        test=Split(enlarged[is_test], labels[is_test].long()),
        class_names=tuple("0123456789"),
        transform=ImageTransform(resize_size=16, crop_size=16, mean=(0.5,), std=(0.5,)),
    )


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": load_digits}
