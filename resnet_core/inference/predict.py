"""Images in, the most likely classes or the features out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnet_core.data.images import ImageError
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.files import results_of_files
from resnet_core.inference.networks import ExportedNetwork
from resnet_core.inference.optimize import head_of


@dataclass(frozen=True)
class Guess:
    """A class number, its name where known, and its probability (0..1)."""

    index: int
    name: str | None
    probability: float


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
    (guesses,) = predict_files(model, transform, [Path(image)], class_names, top)
    if isinstance(guesses, ImageError):
        raise guesses
    return guesses


def predict_files(
    model: nn.Module,
    transform: ImageTransform,
    images: Sequence[Path],
    class_names: Sequence[str] | None = None,
    top: int = 5,
    **options: Any,
) -> list[list[Guess] | ImageError]:
    """For each image file what `predict` returns or, where the file is not a whole image, the ImageError.

    `options` are those of `results_of_files`: batch, workers, world. Raises ValueError where logits are not finite.
    """
    guesses = partial(guesses_of, class_names=class_names, top=top)
    return results_of_files(model, guesses, transform, images, **options)


def guesses_of(logits: Tensor, class_names: Sequence[str] | None, top: int) -> list[list[Guess]]:
    """The most likely classes of each sample of `logits [N, K]`."""
    probabilities = logits.softmax(1)
    if not probabilities.isfinite().all():
        raise ValueError("the model's logits are not finite: its weights are damaged or diverged")
    best = probabilities.topk(min(top, probabilities.shape[1]))
    return [
        [
            Guess(index, class_names[index] if class_names else None, probability)
            for index, probability in zip(indices, values, strict=True)
        ]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def embed_files(
    model: nn.Module, transform: ImageTransform, images: Sequence[Path], **options: Any
) -> list[Tensor | ImageError]:
    """For each image file the head's input, which is the pooled features `[D]`, or the ImageError.

    Options as in `predict_files`.
    """
    if isinstance(model, ExportedNetwork):
        return results_of_files(model.features(), list, transform, images, **options)
    features: list[Tensor] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        return results_of_files(model, lambda _: list(features.pop().cpu()), transform, images, **options)
    finally:
        hook.remove()


def as_npy(features: Sequence[Tensor]) -> bytes:
    """The content of a NumPy file with a row for each."""
    file = io.BytesIO()
    np.save(file, torch.stack(list(features)).numpy())
    return file.getvalue()
