"""Commands on trained networks: predict, evaluate, export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from resnet_core.cli.errors import SOME_FAILED
from resnet_core.cli.training import describe_scores
from resnet_core.data import DataConfig
from resnet_core.data.datasets import IN_FOLDERS
from resnet_core.data.images import ImageError, find_images
from resnet_core.distributed.rendezvous import is_main_process
from resnet_core.inference.evaluate import evaluate_weights
from resnet_core.inference.export import Format, export, find_exporter
from resnet_core.inference.predict import predict
from resnet_core.recipes import Recipe
from resnet_core.runs.training import read_recipe
from resnet_core.train import TrainConfig, join_world
from resnet_core.weights.pretrained import load_model


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
class Evaluate:
    """Evaluate a finished run again on its test data, or any weights on data of yours."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """Folder of a run, a file of weights, or published weights: resnet50, resnet50:IMAGENET1K_V1."""
    data: str = ""
    """Folder to evaluate on, of images as DIR/val/CLASS/IMAGE, DIR/test/CLASS/IMAGE or DIR/CLASS/IMAGE; a run's own
    data when left out."""
    dataset: str = ""
    """What lies in that folder: image_folder when left out, cifar10, fashion_mnist; digits need no folder."""
    model: str | None = None
    """The model of a file of weights that does not say it."""
    allow_pickle: bool = False
    """Read .pth and .pt files, with torch's weights_only=True."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        is_run = (Path(self.weights) / "recipe.toml").is_file()
        recipe = read_recipe(self.weights) if is_run else None
        data = self._data(recipe)
        on_cpu = recipe is not None and recipe.run.device == "cpu"
        with join_world("cpu" if on_cpu else "auto") as world:
            model, info = load_model(
                self.weights, model=self.model, allow_pickle=self.allow_pickle, progress=world.is_main
            )
            if world.is_main:
                print(f"{info.model}, {info.origin}", file=sys.stderr)
            scores = evaluate_weights(model, info, data, recipe.train if recipe else TrainConfig(), world)
        if is_main_process():
            print(json.dumps(scores) if self.json else describe_scores(scores))

    def _data(self, recipe: Recipe | None) -> DataConfig:
        if not self.data and not self.dataset:
            if recipe is None:
                reason = "it has no recipe.toml" if Path(self.weights).exists() else "it is not there"
                raise ValueError(
                    f"{self.weights} is not a run's folder: {reason}; say on which data to evaluate other weights, "
                    "with --data DIR"
                )
            return recipe.data
        name = self.dataset or "image_folder"
        if not self.data and name in IN_FOLDERS:
            raise ValueError(f"--dataset {name} is read from a folder; say which with --data DIR")
        if recipe is None:
            return DataConfig(name=name, path=self.data, global_batch=1, eval_batch=64, workers=2)
        return replace(recipe.data, name=name, path=self.data)


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
