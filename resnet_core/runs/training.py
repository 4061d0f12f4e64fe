"""Training into a run's folder, and loading what was trained there."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from resnet_core.data import ImageFiles
from resnet_core.distributed.signals import signal_received
from resnet_core.foundation.errors import shortened
from resnet_core.foundation.version import __version__
from resnet_core.recipes.experiment import Experiment, load, make_loaders, make_trainer
from resnet_core.recipes.fast import measured
from resnet_core.recipes.recipe import Recipe
from resnet_core.runs.folder import RunFolder, write_errors
from resnet_core.train import NonFiniteLossError, Trainer, World, join_world, stop_on_signals
from resnet_core.train.metrics import scores_to_hide
from resnet_core.train.report import Report
from resnet_core.weights import WeightsInfo, write_weights
from resnet_core.weights.pretrained import load_model


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    allow_changes: bool = False,
    note: str | None = None,
    signals: ExitStack | None = None,
) -> dict[str, float]:
    """Trains a recipe into the folder `out`, or continues there, and returns the result. Every rank calls it.

    A finished run is not trained again; `note` is printed before any other is. Raises what `RunFolder.claim` raises
    before any work, and then what `Trainer.fit` raises. SIGTERM and SIGINT save the run's state and raise StoppedError:
    they are handled until `run` ends, or until `signals` closes, for a caller that still has something to print.
    """
    with (
        ExitStack() as until_run_ends,
        join_world(recipe.run.device, timeout_seconds=recipe.run.timeout_seconds) as world,
        RunFolder(out) as folder,
    ):
        experiment = world.gather_or_raise(partial(load, recipe))
        world.run_on_rank_0(partial(folder.claim, experiment, world.size, allow_changes=allow_changes))
        if (result := world.run_on_rank_0(folder.read_result)) is not None:
            return result

        reported = folder.path if world.is_main else None
        hidden = scores_to_hide(len(experiment.dataset.class_names))
        report = Report(reported, quiet=not world.is_main, tensorboard=recipe.run.tensorboard, hidden=hidden)
        if recipe.train.fast:
            recipe = world.run_on_rank_0(partial(settled, folder, experiment, world, report))
            experiment = replace(experiment, recipe=recipe)
        if recipe.run.threads:
            torch.set_num_threads(recipe.run.threads)

        (signals or until_run_ends).enter_context(stop_on_signals())
        trainer = make_trainer(experiment, world, report=report, folder=folder.path, stop_asked=signal_received)
        if note:
            report.say(note)
        report.say(
            f"{recipe.model.name} on {recipe.data.name}: {trainer.num_steps} steps, "
            f"{world.size} {'process' if world.size == 1 else 'processes'} on {world.device.type}"
        )
        for label, text in experiment.data_lines:
            report.say(f"{label:<12}{text}")

        # What is recorded is known to fit the checkpoint that the run continues from.
        trainer.restore()
        world.run_on_rank_0(partial(folder.write_recipe, recipe))
        world.run_on_rank_0(partial(record_environment, folder, experiment, world, report, continues=trainer.step > 0))

        scores = fit(trainer, folder, experiment)
        result = result_of(trainer, scores)
        world.run_on_rank_0(partial(finish, folder, experiment, trainer, result))
        return result


def settled(folder: RunFolder, experiment: Experiment, world: World, report: Report) -> Recipe:
    """The recipe with what `train.fast` stands for: recorded by the folder's run or, where none has begun, measured."""
    recipe = folder.settled(experiment.recipe)
    return measured(experiment, world, report.say) if recipe.train.fast else recipe


def fit(trainer: Trainer, folder: RunFolder, experiment: Experiment) -> dict[str, float]:
    """`trainer.fit()`; where a loss is not finite, the batch's samples are recorded and the error names that file."""
    try:
        return trainer.fit()
    except NonFiniteLossError as error:
        if error.step is None:
            raise
        record = partial(record_lost_batch, folder, experiment, trainer.world, error.step)
        path = trainer.world.run_on_rank_0(record)
        raise NonFiniteLossError(f"{error}; its samples are in {path}", step=error.step) from error


def record_lost_batch(folder: RunFolder, experiment: Experiment, world: World, step: int) -> Path:
    """Records the samples, of all ranks, in the batch of a step that could not be done."""
    _, train_loader, _ = make_loaders(experiment, world)
    epoch, position = divmod(step, len(train_loader))
    samples = train_loader.samples(epoch, position)
    record: dict[str, Any] = {"step": step + 1, "epoch": epoch, "position": position, "samples": samples}

    images = experiment.dataset.train
    if isinstance(images, ImageFiles):
        record["files"] = [str(images.path(sample)) for sample in samples]
    return folder.write_lost_batch(record)


# A run that continues with other values of these cannot be bit for bit the uninterrupted one.
NUMERICS = ("torch", "device", "cpu_capability", "world_size", "threads")


def record_environment(
    folder: RunFolder, experiment: Experiment, world: World, report: Report, *, continues: bool
) -> None:
    """Records what a run computes on, and reports where a continued run computes on something else than before."""
    environment = {
        "resnet_core": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "command": sys.argv,
        "data": experiment.data_identity,
    }

    before = folder.read_environment() or environment
    changed = [
        f"{key} was {before.get(key)}, is {environment[key]}" for key in NUMERICS if before.get(key) != environment[key]
    ]
    if continues and changed:
        report.say(f"continuing, but not bit for bit: {'; '.join(changed)}")
    folder.write_environment(environment)
    folder.write_files(experiment.data_files)


def result_of(trainer: Trainer, scores: Mapping[str, float]) -> dict[str, float]:
    """What `result.json` holds."""
    images = trainer.num_steps * trainer.train_loader.global_batch
    return {
        **scores,
        "steps": trainer.num_steps,
        "seconds": trainer.seconds,
        "images_per_second": images / trainer.seconds,
    }


def finish(folder: RunFolder, experiment: Experiment, trainer: Trainer, result: Mapping[str, float]) -> None:
    """Writes the final weights and then the result, with which a run is finished."""
    info = WeightsInfo(
        model=experiment.recipe.model.name,
        config=experiment.model_arguments,
        transform=experiment.dataset.transform,
        class_names=experiment.dataset.class_names,
        origin=f"resnet_core {__version__}, trained on {experiment.recipe.data.name}",
    )
    with write_errors(folder.path):
        write_weights(folder.weights, trainer.weights(), info)
    folder.write_result(result)


def load_run(out: str | Path, world: World | None = None) -> Trainer:
    """A finished run's trainer with its trained weights: `.model` to predict with, `.evaluate()` to score it again.

    Raises ValueError for a run that is not finished, and for data that have changed so that they do not fit.
    """
    folder = RunFolder(out)
    return trained(folder, experiment_of(folder), world)


def experiment_of(folder: RunFolder) -> Experiment:
    """The experiment of a run, with the data as they are now."""
    recipe = folder.read_recipe()
    try:
        return load(recipe)
    except ValueError as error:
        error.add_note(
            f"(a run's settings are in {folder.path}/recipe.toml: correct data.path there if the data moved)"
        )
        raise


def trained(folder: RunFolder, experiment: Experiment, world: World | None = None) -> Trainer:
    """The same from the run's folder and its experiment."""
    recipe = experiment.recipe
    if not folder.weights.exists():
        raise ValueError(
            f"{folder.path} has no model.safetensors: its run is not finished; continue it with `resnet-core train`"
        )
    model, info = load_model(folder.weights)

    wanted = {"model": recipe.model.name, **experiment.fitting_arguments}
    found = {"model": info.model, **info.config}
    unfit = [
        f"{key} {found.get(key)} there and {value} here" for key, value in wanted.items() if found.get(key) != value
    ]
    if info.class_names and info.class_names != experiment.dataset.class_names:
        names = [shortened(each) for each in (info.class_names, experiment.dataset.class_names)]
        unfit.append(f"classes {names[0]} there and {names[1]} here")
    if unfit:
        raise ValueError(
            f"{folder.weights} does not fit the run's recipe and data ({'; '.join(unfit)}); correct data.path"
        )

    trainer = make_trainer(experiment, world, build=lambda **_: model)
    trainer.model.eval()
    return trainer
