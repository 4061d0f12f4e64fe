"""What a dataset consists of: images by number, in memory or in files, with their labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resnet_core.data.images import read_image
from resnet_core.data.transforms import CHANNEL_MODES, Images, ImageTransform


class LabelledImages(Protocol):
    """Images by number, each uint8 (0..255) or float32 (0..1) `[C, H, W]`, with class numbers `labels` `[N]` int64."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...

    def take(self, indices: Sequence[int], /) -> Images:
        """The images of a batch."""


@dataclass(frozen=True)
class Split:
    """Images in memory, `[N, C, H, W]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def take(self, indices: Sequence[int], /) -> Tensor:
        return self.images.index_select(0, torch.as_tensor(indices))


@dataclass(frozen=True)
class ImageFiles:
    """Images in files, of any size, decoded when they are needed. ImageError names a file that cannot be decoded."""

    folder: Path
    names: npt.NDArray[Any]
    """Paths inside the folder, as bytes in one array: a million Python objects would be copied to each worker."""
    labels: Tensor
    channels: int = 3
    bits: int = 0
    """How many bits the values of 16-bit files fill; 0 takes what each file says."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        image = read_image(self.path(index), self.bits).convert(CHANNEL_MODES[self.channels])
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, self.channels)
        return pixels.permute(2, 0, 1), int(self.labels[index])

    def take(self, indices: Sequence[int], /) -> list[Tensor]:
        return [self[index][0] for index in indices]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a recipe trains and evaluates on."""

    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
    transform: ImageTransform
    """Turns an image into what the network is evaluated on."""
    notes: tuple[tuple[str, str], ...] = ()
    """What people should know before they train: `("evaluation", "flowers/val")`, `("skipped", "2 hidden names")`."""

    @property
    def in_channels(self) -> int:
        return len(self.transform.mean)
