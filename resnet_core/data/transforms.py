"""What happens to an image before the network sees it: an augmentation for training, a preparation for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B in 0..1


def random_crop(image: Tensor, generator: Generator, *, padding: int) -> Tensor:
    """Same size, moved by up to `padding` pixels each way; the border repeats outward (He et al. 2015, section 4.2).

    The paper pads CIFAR's normalised images with zeros, their mean; repeating the border is right for any range.
    """
    if padding == 0:
        return image
    height, width = image.shape[-2:]
    top, left = torch.randint(2 * padding + 1, (2,), generator=generator).tolist()
    padded = F.pad(image, (padding,) * 4, mode="replicate")
    return padded[:, top : top + height, left : left + width]


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """An image of any size -> `[channels, crop_size, crop_size]` float32, as weights saw images in their evaluation.

    The shorter side becomes `resize_size` pixels (bilinear, antialiased), the middle `crop_size` x `crop_size` are
    kept, and values in 0..1 are normalised with `mean` and `std`: 3 of each for RGB, 1 for grey.
    """

    resize_size: int
    crop_size: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.crop_size <= self.resize_size <= LARGEST_SIZE:
            raise ValueError(
                f"sizes must be 1 <= crop_size <= resize_size <= {LARGEST_SIZE}, "
                f"got crop_size {self.crop_size} and resize_size {self.resize_size}"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be above 0, got {self.std}")
        if len(self.mean) != len(self.std) or len(self.mean) not in CHANNEL_MODES:
            raise ValueError(f"mean and std need 1 value (grey) or 3 (RGB), got {self.mean} and {self.std}")

    def __call__(self, image: Image) -> Tensor:
        from torchvision.transforms.v2 import functional as V

        mode = CHANNEL_MODES[len(self.mean)]
        resized = V.resize(image.convert(mode), [self.resize_size], antialias=True)
        pixels = V.pil_to_tensor(V.center_crop(resized, [self.crop_size]))
        # Divided, not multiplied by 1/255: to the bit as torchvision prepared the images of its published weights.
        return V.normalize(pixels / 255, list(self.mean), list(self.std))


LARGEST_SIZE = 4096  # pixels
CHANNEL_MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode
