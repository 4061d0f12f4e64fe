"""Commands on recipes and their runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from resnet_core.cli.errors import as_exit_status
from resnet_core.distributed.rendezvous import RANK_VARIABLES, is_main_process, rank_from_environment
from resnet_core.foundation.toml import to_toml
from resnet_core.recipes import RECIPES, SOURCES, Recipe, get_recipe
from resnet_core.recipes.plan import make_plan
from resnet_core.runs.curves import plot
from resnet_core.runs.training import prepare, read_result
from resnet_core.runs.training import run as run_recipe
from resnet_core.train import launch


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
        numbers = {name: rank_from_environment(name) for name in RANK_VARIABLES}
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


@as_exit_status
def _train(recipe: Recipe, out: Path, allow_changes: bool, signals: ExitStack) -> int:
    was_finished = read_result(out) is not None
    result = run_recipe(recipe, out, allow_changes=allow_changes, signals=signals)
    if is_main_process():
        print(f"{out} {'was finished before' if was_finished else 'is finished'}: {describe_scores(result)}")
        steps, seconds, rate = result["steps"], result["seconds"], result["images_per_second"]
        print(f"{steps:,} steps in {seconds:.1f} s, {rate:,.0f} images/s")
    return 0


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
