"""Images in, the most likely classes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from resnet_core.data.images import read_image
from resnet_core.data.transforms import ImageTransform


@dataclass(frozen=True)
class Guess:
    """A class number, its name where known, and its probability (0..1)."""

    index: int
    name: str | None
    probability: float


@torch.inference_mode()
def predict(
    model: nn.Module,
    transform: ImageTransform,
    image: str | Path,
    class_names: Sequence[str] | None = None,
    top: int = 5,
) -> list[Guess]:
    """The `top` most likely classes of an image file, the most likely first.

    Raises ImageError for a file that is not a whole image, ValueError where the logits are not finite.
    """
    pixels = transform(read_image(image))
    probabilities = model(pixels[None])[0].softmax(0)
    if not probabilities.isfinite().all():
        raise ValueError(f"the model's logits for {image} are not finite: its weights are damaged or diverged")
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        Guess(index, class_names[index] if class_names else None, probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
