"""Commands on trained networks: evaluate, quantize and export."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from resnet_core.cli.images import check_new_file
from resnet_core.cli.options import check_at_least, unset
from resnet_core.cli.training import describe_scores
from resnet_core.cli.weights import FromFile
from resnet_core.data import DataConfig
from resnet_core.data.datasets import DATASETS, IN_FOLDERS, load_evaluation
from resnet_core.distributed.rendezvous import is_main_process
from resnet_core.foundation.errors import printable
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.inference.evaluate import evaluate_weights
from resnet_core.inference.export import export, find_exporter
from resnet_core.inference.formats import Format, Precision
from resnet_core.inference.networks import load_network, num_classes_of, only_predicts
from resnet_core.inference.optimize import (
    head_of,
    optimize_for_inference,
    write_quantized,
)
from resnet_core.inference.predictions import ClassScore, PredictionRecord, class_scores
from resnet_core.recipes import Recipe
from resnet_core.runs.folder import RunFolder, read_recipe
from resnet_core.runs.training import experiment_of
from resnet_core.train import TrainConfig, World, join_world
from resnet_core.weights import WeightsInfo
from resnet_core.weights.pretrained import load_model, locate


@dataclass(frozen=True, kw_only=True)
class OnLabels(FromFile):
    """What the commands that score weights on labelled images have in common."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """A run's folder, a weights file or folder, or published weights such as resnet50 or resnet50:IMAGENET1K_V1."""
    data: Annotated[str, unset("DIR")] = ""
    """Folder of DIR/val/CLASS/IMAGE, DIR/test/CLASS/IMAGE or DIR/CLASS/IMAGE, or a CSV list. A run needs none: it has
    its own data."""
    dataset: Annotated[str, unset("NAME")] = ""
    """The dataset in that folder: image_folder (the default), cifar10 or fashion_mnist. digits needs no folder."""

    def recipe(self) -> Recipe | None:
        """That of the run, where the weights are a run's."""
        return read_recipe(self.weights) if (Path(self.weights) / "recipe.toml").is_file() else None

    def data_config(self, recipe: Recipe | None) -> DataConfig:
        """Where the labelled images are."""
        if not self.data and not self.dataset:
            if recipe is None:
                locate(self.weights)  # what does not exist, or is a checkpoint, is named as such
                raise ValueError(
                    f"{self.weights} does not record its test data, as a run's folder does; name it with --data DIR"
                )
            return recipe.data
        name = self.dataset or "image_folder"
        if name not in DATASETS:
            raise ValueError(f"--dataset: unknown dataset {name!r}; {did_you_mean(name, DATASETS)}")
        if not self.data and name in IN_FOLDERS:
            raise ValueError(f"--dataset {name} is read from a folder; name it with --data DIR")
        if recipe is None:
            return DataConfig(name=name, path=self.data, global_batch=1, eval_batch=64, workers=2)
        # What chooses among the run's own images does not concern others.
        return replace(recipe.data, name=name, path=self.data, val_share=0.0, val_seed=0, exclude="", bits=0)


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnLabels):
    """Evaluate a finished run again on its test data, or any weights on your own data.

    Example: `resnet-core evaluate resnet50:IMAGENET1K_V2 --data photos --per-class`
    """

    split: Annotated[str, unset("NAME")] = ""
    """The part of the data: train, val or test. By default the one that training evaluates."""
    per_class: bool = False
    """Add recall, precision and the most frequent confusion of each class, sorted by recall, lowest first."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        recipe = self.recipe()
        data = self.data_config(recipe)
        on_cpu = (recipe is not None and recipe.run.device == "cpu") or only_predicts(self.weights)
        with join_world("cpu" if on_cpu else "auto") as world:
            model, info = load_network(self.weights, **self.file.arguments(), progress=world.is_main)
            if world.is_main:
                print(f"{info.model}, {info.origin}", file=sys.stderr)
            record = PredictionRecord() if self.per_class else None
            scores = evaluate_weights(
                model,
                info,
                data,
                recipe.train if recipe else TrainConfig(),
                world,
                record,
                split=self.split,
                say=partial(print, file=sys.stderr),
            )
            predictions = record.gathered(world) if record else None
        if not is_main_process():
            return

        if recipe is not None and data is recipe.data:
            print_data_changes(RunFolder(self.weights))
        num_classes = num_classes_of(model)
        classes: list[ClassScore] = []
        if predictions:
            names = info.class_names or list(map(str, range(num_classes)))
            classes = [score for score in class_scores(predictions.confusion(num_classes), names) if score.count]
        if self.json:
            print(json.dumps(scores | {"classes": list(map(asdict, classes))} if self.per_class else scores))
        else:
            print(describe_scores(scores, num_classes), *class_lines(classes), sep="\n")


def print_data_changes(folder: RunFolder) -> None:
    """Prints which files of a run's data have changed since it was trained, or why that is unknown."""
    try:
        changes = folder.data_changes(experiment_of(folder))
    except ValueError as error:  # its training images may be gone, which are not evaluated
        changes = [("changed", f"unknown, since the run's data cannot be loaded: {error}")]
    for label, text in changes:
        print(f"{label:<12}{text}", file=sys.stderr)


def class_lines(classes: Sequence[ClassScore]) -> list[str]:
    """A table of the classes, with a header."""
    if not classes:
        return []
    classes = [replace(score, name=printable(score.name)) for score in classes]
    width = max(len("class"), *(len(score.name) for score in classes))
    lines = [f"{'class':<{width}}  images   recall  precision  most often taken for"]
    for score in classes:
        precision = f"{score.precision:.2%}" if score.precision is not None else "none"
        other = printable(f"{score.taken_for} ({score.times})") if score.times else ""
        lines.append(
            f"{score.name:<{width}}  {score.count:>6,}  {score.recall:>7.2%}  {precision:>9}  {other}".rstrip()
        )
    return lines


@dataclass(frozen=True, kw_only=True)
class Quantize(OnLabels):
    """Write a network in int8, a quarter of the size and fast on a CPU, if it stays as accurate on your labels.

    Example: `resnet-core quantize runs/digits digits-int8.safetensors`
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The file to write, which ends in .safetensors. predict, evaluate and embed take it."""
    calibration: int = 256
    """Number of training images from which the ranges of the network's values are taken."""
    max_loss: float = 0.5
    """The most that top-1 may lose, in percentage points; if it loses more, nothing is written."""

    def __post_init__(self) -> None:
        check_new_file(self.out, ".safetensors")
        check_at_least(1, calibration=self.calibration)
        check_at_least(0, max_loss=self.max_loss)

    def __call__(self) -> None:
        recipe = self.recipe()
        data = self.data_config(recipe)
        model, info = load_model(self.weights, **self.file.arguments())
        print(f"{info.model}, {info.origin}", file=sys.stderr)

        num_classes = head_of(model).out_features

        def top1_of(name: str, network: nn.Module, train: TrainConfig, say: Callable[[str], object]) -> float:
            scores = evaluate_weights(network, info, data, train, World(), say=say)
            print(f"{name:<10}{describe_scores(scores, num_classes)}", flush=True)
            return scores["top1"]

        train = recipe.train if recipe else TrainConfig()
        before = top1_of("before", model, train, partial(print, file=sys.stderr))
        batches = calibration_batches(data, info, self.calibration)
        half = optimize_for_inference(model, batches[0], "bfloat16")
        network = optimize_for_inference(model, batches[0], "int8", batches)
        top1_of("bfloat16", half, TrainConfig(), str)
        lost = 100 * (before - top1_of("int8", network, TrainConfig(), str))
        if lost > self.max_loss:
            raise ValueError(
                f"int8 loses {lost:.2f} points of top-1, and --max-loss is {self.max_loss:g}; {self.out} was not "
                "written: give more --calibration images, or allow more loss"
            )
        write_quantized(self.out, network, info)
        print(f"{self.out}: {self.out.stat().st_size / 1e6:.1f} MB")


def calibration_batches(data: DataConfig, info: WeightsInfo, count: int, batch: int = 32) -> list[Tensor]:
    """Training images, evenly spread over the data, prepared as `info.transform` says."""
    assert info.transform is not None  # or they could not be evaluated
    try:
        images, _, _ = load_evaluation(data.name, data.path, data.folder_options, "train")
    except ValueError as error:
        error.add_note("(int8 takes the ranges of the network's values from training images)")
        raise
    numbers = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long().tolist()
    parts = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]
    return [info.transform.of_images(images.take(part)) for part in parts]


@dataclass(frozen=True, kw_only=True)
class Export(OnLabels):
    """Export a model to run without this package, after comparing the file's outputs with the model's.

    Example: `resnet-core export runs/digits digits.onnx`
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The file to write: .onnx for the format onnx, .xml for openvino, .pt2 for the other formats."""
    format: Format = "onnx"
    """onnx (for any runtime), openvino (the fastest on a CPU), torch-export (for Python) or aoti (compiled for this
    machine)."""
    precision: Precision = "float32"
    """float32, bfloat16 (openvino and aoti), or int8 (onnx and openvino), which takes its ranges from the run's
    training images or from those of --data DIR."""
    calibration: int = 256
    """Number of training images from which int8 takes the ranges of the network's values."""
    image_size: Annotated[int | None, unset("PIXELS")] = None
    """Height and width of the input. By default the size at which the weights were evaluated, or else 224, or 32 for
    networks for small images."""
    dynamic_size: bool = False
    """Accept images of any height and width from 33 pixels (from 9 with small_images, from 5 for CIFAR networks), and
    check the file at two more sizes."""
    opset: Annotated[int | None, unset("11..17")] = None
    """Version of ONNX's operators, for runtimes that lack the one that torch writes by default."""

    def __call__(self) -> None:
        find_exporter(self.out, self.format, self.opset, self.precision)
        int8 = self.precision == "int8"
        data = self.data_config(self.recipe()) if int8 else None
        model, info = load_model(self.weights, **self.file.arguments())
        channels = info.config.get("in_channels", 3)
        result = export(
            model,
            self.out,
            format=self.format,
            precision=self.precision,
            calibration=calibration_batches(data, info, self.calibration) if data else None,
            image_size=info.image_size if self.image_size is None else self.image_size,
            channels=channels,
            opset=self.opset,
            dynamic_size=self.dynamic_size,
            info=info,
        )
        print(result)
