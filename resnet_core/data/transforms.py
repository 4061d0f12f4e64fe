"""Augmentations of one image `[C, H, W]`: pure functions of the image and a random generator."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


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
