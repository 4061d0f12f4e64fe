"""Commands on trained weights: use them, bring them in, bring them out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from resnet_core.commands.errors import SOME_FAILED
from resnet_core.data.images import ImageError, find_images
from resnet_core.data.transforms import ImageTransform
from resnet_core.deploy import export
from resnet_core.deploy.export import Format, find_exporter
from resnet_core.predict import predict
from resnet_core.pretrained import load_model
from resnet_core.weights.convert import convert


@dataclass(frozen=True)
class Predict:
    """Name what is on images: the likeliest classes with their probabilities."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """Folder of a run, a file of weights, or published weights: resnet50, resnet50:IMAGENET1K_V1."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE")]
    """Image files, or folders of them."""
    top: int = 5
    """How many classes of each image."""
    model: str | None = None
    """The model of a file of weights that does not say it."""
    allow_pickle: bool = False
    """Read .pth and .pt files, with torch's weights_only=True."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")

    def __call__(self) -> int:
        if not self.images:
            raise ValueError("predict needs an image or a folder of images after the weights")
        model, info = load_model(self.weights, model=self.model, allow_pickle=self.allow_pickle)
        if info.transform is None:
            raise ValueError(
                f"{self.weights} does not say how to prepare an image for {info.model}; "
                "`resnet-core convert` writes it with --resize-size and --crop-size"
            )
        print(f"{info.model}, {info.origin}", file=sys.stderr)
        records: list[dict[str, Any]] = []
        for argument in self.images:
            try:
                found = find_images(argument)
            except ImageError as error:
                records.append(failed(argument, error))
                continue
            for image in found:
                try:
                    guesses = predict(model, info.transform, image, info.class_names, self.top)
                except ImageError as error:
                    records.append(failed(image, error))
                    continue
                records.append({"image": str(image), "classes": [asdict(guess) for guess in guesses]})
                if not self.json:
                    print(image)
                    for guess in guesses:
                        print(f"  {guess.probability:7.2%}  {guess.name or guess.index}")
        if self.json:
            print(json.dumps(records, indent=2))
        return SOME_FAILED if any("error" in record for record in records) else 0


def failed(image: Path, error: ImageError) -> dict[str, Any]:
    """The record of an image that was not predicted, after telling it."""
    print(f"resnet-core: {error}", file=sys.stderr)
    return {"image": str(image), "error": str(error)}


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


@dataclass(frozen=True)
class Export:
    """Write a model for other runtimes, after comparing its outputs there with ours."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """Folder of a run, a file of weights, or published weights: resnet50, resnet50:IMAGENET1K_V1."""
    out: tyro.conf.Positional[Path]
    """The file to write: .onnx, or .pt2 for the others."""
    format: Format = "onnx"
    """onnx (for any runtime), torch-export (for Python) or aoti (compiled for this machine)."""
    image_size: int | None = None
    """Height and width in pixels; those of the weights' evaluation when left out."""
    model: str | None = None
    """The model of a file of weights that does not say it."""
    allow_pickle: bool = False
    """Read .pth and .pt files, with torch's weights_only=True."""

    def __call__(self) -> None:
        find_exporter(self.out, self.format)
        model, info = load_model(self.weights, model=self.model, allow_pickle=self.allow_pickle)
        size = self.image_size
        if size is None:
            size = info.transform.crop_size if info.transform else 224
        channels = info.config.get("in_channels", 3)
        print(export(model, self.out, format=self.format, image_size=size, channels=channels))
