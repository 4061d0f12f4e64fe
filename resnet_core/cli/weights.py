"""Commands on files of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resnet_core.data.transforms import ImageTransform
from resnet_core.weights.convert import convert


@dataclass(frozen=True)
class Convert:
    """Convert another library's weights to ours, after comparing the outputs of both models."""

    src: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """The file that holds the weights, or a transformers folder."""
    dst: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The .safetensors file to write."""
    source: str
    """The library that the weights come from: timm, transformers, keras, composer or torchvision."""
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The model that the weights must be of. By default it is found from the shapes."""
    resize_size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Size to which `predict` resizes an image's shorter side. Recorded in the file."""
    crop_size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Height and width of the crop that `predict` then takes. Recorded in the file."""
    allow_pickle: bool = False
    """Accepted for older scripts; has no effect. Nothing in a pickle is executed."""

    def __post_init__(self) -> None:
        if (self.resize_size is None) != (self.crop_size is None):
            raise ValueError("--resize-size and --crop-size go together: give both or neither")

    def __call__(self) -> None:
        transform = None
        if self.resize_size is not None and self.crop_size is not None:
            transform = ImageTransform(resize_size=self.resize_size, crop_size=self.crop_size)
        convert(
            self.src,
            self.dst,
            source=self.source,
            model=self.model,
            transform=transform,
            allow_pickle=self.allow_pickle,
            report=print,
        )
