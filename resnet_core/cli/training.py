"""Commands on recipes and their runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from resnet_core.cli.errors import as_exit_status
from resnet_core.cli.options import check_at_least, unset
from resnet_core.distributed.rendezvous import RANK_VARIABLES, is_main_process, rank_from_environment
from resnet_core.foundation.toml import to_toml
from resnet_core.recipes import RECIPES, SOURCES, Recipe, get_recipe
from resnet_core.recipes.experiment import load
from resnet_core.recipes.plan import make_plan
from resnet_core.runs.curves import plot
from resnet_core.runs.folder import RunFolder
from resnet_core.runs.report import write_report
from resnet_core.runs.training import run as run_recipe
from resnet_core.train import launch
from resnet_core.train.metrics import scores_to_hide

SHORT_NAMES = {"--epochs": "--train.epochs", "--lr": "--optimizer.lr", "--batch": "--data.global-batch"}


@dataclass(frozen=True)
class Recipes:
    """List the recipes, with the accuracy that their sources published and that this project reached."""

    def __call__(self) -> None:
        for name, recipe in RECIPES.items():
            print(f"{name:<25}{recipe.model.name} on {recipe.data.name}, {recipe.train.epochs} epochs")
            for line in str(SOURCES[name]).splitlines():
                print(f"{'':<25}{line}")


@dataclass(frozen=True)
class Show:
    """Print a recipe as TOML, with its published and its reached accuracy as comments."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe; `resnet-core recipes` lists them."""

    def __call__(self) -> None:
        recipe = get_recipe(self.recipe)
        for line in str(SOURCES[self.recipe]).splitlines():
            print(f"# {line}")
        print(to_toml(recipe), end="")


def with_flags(message: str, words: Sequence[str] = ()) -> str:
    """The message with each setting, such as `optimizer.lr`, as the flag that sets it: a short name if it was typed."""
    typed = {word.partition("=")[0] for word in words}
    short_names = {full: short for short, full in SHORT_NAMES.items() if short in typed}
    for section, settings in asdict(get_recipe("digits")).items():
        for setting in settings if isinstance(settings, dict) else ():
            flag = f"--{section}.{setting.replace('_', '-')}"
            message = re.sub(rf"(?<![\w.-]){section}\.{setting}\b", short_names.get(flag, flag), message)
    return message


@contextmanager
def naming_flags() -> Iterator[None]:
    """Inside this context, or in a function with this decorator, errors name settings by their flags."""
    try:
        yield
    except ValueError as error:
        if len(error.args) == 1:
            error.args = (with_flags(str(error)),)
        raise


@dataclass(frozen=True)
class Train:
    """Train a recipe, or continue its run. Give a folder of images instead of a recipe to fine-tune on it.

    Short names: --epochs (--train.epochs), --lr (--optimizer.lr) and --batch (--data.global-batch: of all processes).

    Example: `resnet-core train digits --processes 2 --out runs/digits`
    """

    # True and False are spelled out: a switch could only turn on what a recipe has off, or the other way round.
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    out: Path
    """Folder of the run. The same command on the same folder continues an interrupted run."""
    processes: int = 1
    """Number of processes on this machine that train together."""
    config: Annotated[Path | None, unset("FILE")] = None
    """A TOML file with settings that replace the recipe's, as `resnet-core show` prints them. Flags override it."""
    dry_run: bool = False
    """Print what would run (model, steps, learning rates, memory), and stop."""
    allow_changes: bool = False
    """Continue the folder's run with a changed recipe or changed data. It then differs from an uninterrupted run."""
    advice: tyro.conf.Suppress[str | None] = None
    """A note to print before training starts."""

    def __post_init__(self) -> None:
        check_at_least(1, processes=self.processes)

    @naming_flags()
    def __call__(self) -> int:
        under_torchrun = "RANK" in os.environ or "WORLD_SIZE" in os.environ
        if under_torchrun and self.processes > 1:
            raise ValueError("--processes starts processes; under torchrun use its --nproc-per-node instead")
        numbers = {name: rank_from_environment(name) for name in RANK_VARIABLES}
        processes = numbers["WORLD_SIZE"] if under_torchrun else self.processes
        recipe = with_absolute_paths(self.recipe)
        note = f"note: {self.advice}" if self.advice else None

        if self.dry_run:
            folder = RunFolder(self.out)
            experiment = load(folder.settled(recipe))
            folder.check_before(experiment, processes)
            folder.check_same_run(experiment, allow_changes=self.allow_changes)
            if is_main_process():
                print(make_plan(experiment, processes), *[note] if note else [], sep="\n")
            return 0

        # The launcher refuses what is wrong before it starts any process.
        arguments = (recipe, self.out, self.allow_changes, note)
        if under_torchrun or processes == 1:
            return train_here(*arguments)
        with RunFolder(self.out) as folder:
            folder.claim(load(recipe), processes, allow_changes=self.allow_changes)
            if folder.is_finished:
                print_ending(folder, was_finished=True)
                return 0
        return launch(train_here, arguments, processes)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe, which finds its data from any folder: its run will be evaluated from others, too."""
    path, exclude = (each and str(Path(each).absolute()) for each in (recipe.data.path, recipe.data.exclude))
    return replace(recipe, data=replace(recipe.data, path=path, exclude=exclude))


def train_here(recipe: Recipe, out: Path, allow_changes: bool, note: str | None) -> int:
    """Trains as one process of the world; rank 0 prints how it ended. Returns the exit status."""
    with ExitStack() as signals:  # handled until the last line is printed
        return _train(recipe, out, allow_changes, note, signals)


@as_exit_status
@naming_flags()
def _train(recipe: Recipe, out: Path, allow_changes: bool, note: str | None, signals: ExitStack) -> int:
    was_finished = RunFolder(out).is_finished
    run_recipe(recipe, out, allow_changes=allow_changes, note=note, signals=signals)
    if is_main_process():
        print_ending(RunFolder(out), was_finished)
    return 0


def print_ending(folder: RunFolder, was_finished: bool) -> None:
    """Prints what a finished run has reached."""
    result = folder.read_result() or {}
    classes = folder.read_environment().get("data", {}).get("classes", 1000)  # if unknown, all scores are shown
    ending = "was finished before" if was_finished else "is finished"
    print(f"{folder.path} {ending}: {describe_scores(result, classes)}")
    print(f"{result['steps']:,} steps in {result['seconds']:.1f} s, {result['images_per_second']:,.0f} images/s")


@dataclass(frozen=True)
class Plot:
    """Draw loss, accuracy and learning rate of one run, or of several in one picture.

    Example: `resnet-core plot runs/digits`
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], unset("RUN ...")]
    """Folders of runs."""
    out: Annotated[Path | None, unset("FILE")] = None
    """The .png, .pdf or .svg file to write. The default is curves.png: in the run's folder for one run, in the current
    folder for several."""

    def __call__(self) -> None:
        if not self.runs:
            raise ValueError("plot needs the folder of at least one run: resnet-core plot RUN ...")
        print(plot(self.runs, self.out))


@dataclass(frozen=True)
class WriteReport:
    """Write an HTML report of a finished run: curves, time, confusions, classes, mistakes with heat maps.

    Example: `resnet-core report runs/digits`
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run. Its network is evaluated again on its data."""
    out: Annotated[Path | None, unset("FILE.html")] = None
    """The page to write. The default is report.html in the run's folder."""

    def __call__(self) -> None:
        print(write_report(self.run, self.out))


def describe_scores(scores: Mapping[str, float], num_classes: int) -> str:
    """Top-1 and, if there are enough classes, top-5 for people."""
    count = int(scores["count"])
    labels = {key: label for key, label in LABELS.items() if key not in scores_to_hide(num_classes)}
    correct = {label: round(scores[key] * count) for key, label in labels.items()}
    return ", ".join(f"{label} {right / count:.2%} ({right} of {count})" for label, right in correct.items())


LABELS = {"top1": "top-1", "top5": "top-5"}
