"""Images in, the likeliest classes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import nn

from resnet_core.data.transforms import ImageTransform


@dataclass(frozen=True)
class Guess:
    """A class number, its name where known, and its probability (0..1)."""

    index: int
    name: str | None
    probability: float


class ImageError(ValueError):
    """A file that is not a whole image; the message names it."""


@torch.inference_mode()
def predict(
    model: nn.Module,
    transform: ImageTransform,
    image: str | Path,
    class_names: Sequence[str] | None = None,
    top: int = 5,
) -> list[Guess]:
    """The `top` likeliest classes of an image file, the likeliest first. Raises ImageError."""
    pixels = transform(read_image(image))
    probabilities = model(pixels[None])[0].softmax(0)
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        Guess(index, class_names[index] if class_names else None, probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def read_image(path: str | Path) -> Image.Image:
    """The decoded image, upright as its camera says. Raises ImageError for what is not a whole image."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    # Pillow's decoders raise these for damaged or oversized files.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"not an image that Pillow reads ({error})"
        raise ImageError(f"{path}: {reason}") from error


def find_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The files named, and those with an image's ending in the folders named, at any depth, sorted.

    Raises ImageError for a folder without any.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        endings = Image.registered_extensions()
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in endings and file.is_file())
        if not found:
            raise ImageError(f"{path}: no image in this folder; Pillow reads {', '.join(sorted(endings)[:8])}, ...")
        yield from found
