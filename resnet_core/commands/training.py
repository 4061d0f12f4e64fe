"""Commands on recipes and their runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from resnet_core.commands.errors import reported
from resnet_core.curves import plot
from resnet_core.data import DataConfig
from resnet_core.data.datasets import IN_FOLDERS
from resnet_core.evaluation import evaluate_weights
from resnet_core.plan import make_plan
from resnet_core.pretrained import load_model
from resnet_core.recipes import RECIPES, SOURCES, Recipe, get_recipe
from resnet_core.runs import prepare, read_recipe, read_result
from resnet_core.runs import run as run_recipe
from resnet_core.settings import to_toml
from resnet_core.train import TrainConfig, join_world, launch
from resnet_core.train.distributed import LAUNCHED, is_main_process, launched


@dataclass(frozen=True)
class Recipes:
    """List the recipes."""

    def __call__(self) -> None:
        for name, recipe in RECIPES.items():
            what = f"{recipe.model.name} on {recipe.data.name}, {recipe.train.epochs} epochs"
            print(f"{name:<25}{what}\n{'':<25}{SOURCES[name]}")


@dataclass(frozen=True)
class Show:
    """Print a recipe as TOML."""

    recipe: tyro.conf.Positional[str]
    """A name of `resnet-core recipes`."""

    def __call__(self) -> None:
        print(to_toml(get_recipe(self.recipe)), end="")


@dataclass(frozen=True)
class Train:
    """Train a recipe, or continue its run where it stopped."""

    # True and False are spelled out: a switch could only turn on what a recipe has off, or the other way round.
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    out: Path
    """Folder of the run."""
    processes: int = 1
    """Processes on this machine that train together."""
    config: Path | None = None
    """A TOML file with the values that differ from the recipe's, as `resnet-core show RECIPE` prints them."""
    dry_run: bool = False
    """Print what would run: model, steps, learning rates, memory."""
    allow_changes: bool = False
    """Continue the run of the folder though its recipe or data were others: not bit for bit any more."""
    advice: tyro.conf.Suppress[str | None] = None
    """What to say before it begins."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"--processes must be at least 1, got {self.processes}")

    def __call__(self) -> int:
        under_torchrun = "RANK" in os.environ or "WORLD_SIZE" in os.environ
        if under_torchrun and self.processes > 1:
            raise ValueError("--processes starts processes; under torchrun leave it to --nproc-per-node")
        numbers = {name: launched(name) for name in LAUNCHED}
        processes = numbers["WORLD_SIZE"] if under_torchrun else self.processes
        recipe = from_anywhere(self.recipe)
        plan = make_plan(recipe, processes) if self.dry_run else None
        if plan is None and not under_torchrun:
            prepare(recipe, self.out, processes, allow_changes=self.allow_changes)
        if self.advice and is_main_process():
            print(f"resnet-core: note: {self.advice}", file=sys.stderr)
        if plan:
            if is_main_process():
                print(plan)
            return 0
        if under_torchrun:
            return train_here(recipe, self.out, self.allow_changes)
        if self.processes == 1 or read_result(self.out):
            return train_here(recipe, self.out, self.allow_changes)
        return launch(train_here, (recipe, self.out, self.allow_changes), self.processes)


def from_anywhere(recipe: Recipe) -> Recipe:
    """The recipe with the absolute path of its data: its run is evaluated from other folders, too."""
    path = recipe.data.path and str(Path(recipe.data.path).absolute())
    return replace(recipe, data=replace(recipe.data, path=path))


def train_here(recipe: Recipe, out: Path, allow_changes: bool) -> int:
    """Trains as one process of the world; rank 0 says how it ended."""
    with ExitStack() as signals:  # taken until the last word is said
        return _train(recipe, out, allow_changes, signals)


@reported
def _train(recipe: Recipe, out: Path, allow_changes: bool, signals: ExitStack) -> int:
    was_finished = read_result(out) is not None
    result = run_recipe(recipe, out, allow_changes=allow_changes, signals=signals)
    if is_main_process():
        print(f"{out} {'was finished before' if was_finished else 'is finished'}: {describe_scores(result)}")
        steps, seconds, rate = result["steps"], result["seconds"], result["images_per_second"]
        print(f"{steps:,} steps in {seconds:.1f} s, {rate:,.0f} images/s")
    return 0


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
class Plot:
    """Draw loss, accuracy and learning rate of a run, or of several in one picture."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Folders of runs."""
    out: Path | None = None
    """The .png, .pdf or .svg file to draw; when left out curves.png, in the run's folder or, of several runs, here."""

    def __call__(self) -> None:
        if not self.runs:
            raise ValueError("plot needs the folder of a run, or of several")
        print(plot(self.runs, self.out))


def describe_scores(scores: Mapping[str, float]) -> str:
    count = int(scores["count"])
    correct = {label: round(scores[key] * count) for label, key in (("top-1", "top1"), ("top-5", "top5"))}
    return ", ".join(f"{label} {right / count:.2%} ({right} of {count})" for label, right in correct.items())
