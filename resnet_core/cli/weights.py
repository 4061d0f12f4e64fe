"""Commands on files of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from resnet_core.data.transforms import ImageTransform
from resnet_core.weights.convert import convert


@dataclass(frozen=True)
class Convert:
    """Bring another library's weights into a file of ours, after comparing both models' outputs."""

    src: tyro.conf.Positional[Path]
    """File (or transformers folder) that holds the weights."""
    dst: tyro.conf.Positional[Path]
    """The .safetensors file to write."""
    source: str
    """Whose weights they are: timm, transformers, keras, composer or torchvision."""
    model: str | None = None
    """The model, where the shapes alone do not tell."""
    resize_size: int | None = None
    """Of the images in their evaluation, the shorter side's pixels; recorded in the file for `predict`."""
    crop_size: int | None = None
    """Of the images in their evaluation, height and width in pixels."""
    allow_pickle: bool = False
    """Read .pth, .pt and .bin files, with torch's weights_only=True."""

    def __post_init__(self) -> None:
        if (self.resize_size is None) != (self.crop_size is None):
            raise ValueError("--resize-size and --crop-size go together")

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
