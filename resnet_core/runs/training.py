"""A run's folder: made, trained into, continued, read again.

recipe.toml  environment.json  metrics.jsonl  checkpoints/  model.safetensors  result.json
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from resnet_core.data import TrainLoader, dataset_of, identity
from resnet_core.data.datasets import ImageFiles
from resnet_core.distributed.signals import signal_received
from resnet_core.foundation.atomic import replace_file
from resnet_core.foundation.lock import NAME as LOCK
from resnet_core.foundation.lock import owning
from resnet_core.foundation.toml import from_mapping, merged, read_toml, to_toml
from resnet_core.foundation.version import __version__
from resnet_core.recipes.experiment import builder_arguments, make_trainer, model_arguments_for
from resnet_core.recipes.plan import make_plan
from resnet_core.recipes.recipe import Recipe
from resnet_core.train import (
    CheckpointError,
    NonFiniteLossError,
    Trainer,
    World,
    join_world,
    stop_on_signals,
)
from resnet_core.train.checkpoint import RECORD, list_checkpoints, read_record
from resnet_core.train.metrics import scores_to_hide
from resnet_core.train.report import Report
from resnet_core.weights import WeightsInfo, write_weights
from resnet_core.weights.pretrained import load_model

# Settings that cannot change a run's weights: another value continues the same run. Data may lie elsewhere, not differ.
FREE = ("run", "data.workers", "data.path")


def read_recipe(folder: str | Path) -> Recipe:
    """The recipe of a run's folder. Raises ValueError where there is none or it cannot be read."""
    path = Path(folder) / "recipe.toml"
    if not path.is_file():
        reason = "it has no recipe.toml" if Path(folder).exists() else "it is not there"
        raise ValueError(f"{folder} is not a run's folder: {reason}; `resnet-core train` makes one")
    return _as_recipe(read_toml(path), str(path))


def _as_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    # A section or a setting of `run` that the folder's version did not have yet is as it was without it.
    sections = {each.name: asdict(each.default_factory()) for each in fields(Recipe) if callable(each.default_factory)}
    recipe: Recipe = from_mapping(Recipe, merged(sections, values), where)
    return recipe


@contextmanager
def claimed(recipe: Recipe, out: str | Path, world_size: int = 1, *, allow_changes: bool = False) -> Iterator[None]:
    """Makes `out` the folder of this recipe's run and, within it, keeps other jobs out of there.

    Where that run has a checkpoint or result, it stays. Raises ValueError as `make_plan` for a run that has not
    finished, and where the folder holds another recipe's run (with `allow_changes`: a finished one), or other things;
    OSError where the folder cannot be written or another job is at work there.
    """
    out = Path(out)
    if not (out / "result.json").exists():
        make_plan(recipe, world_size)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder; {ELSEWHERE}")
    checkpoints = list_checkpoints(out / "checkpoints")
    if not checkpoints and not (out / "recipe.toml").exists() and _others(out):
        raise ValueError(f"{out} holds other files and no run; {ELSEWHERE}")
    with _written(out):
        out.mkdir(parents=True, exist_ok=True)
    with owning(out):
        for cut_off in out.glob(".*.part"):
            cut_off.unlink()
        finished = (out / "result.json").exists()
        begun = finished or bool(list_checkpoints(out / "checkpoints"))
        if finished or (begun and not allow_changes):
            _refuse_changes(recipe, identity(dataset_of(recipe.data)), out)
        if not begun or not allow_changes:  # else once the checkpoint is seen to fit
            _write_recipe(recipe, out)
        yield


def _write_recipe(recipe: Recipe, out: Path) -> None:
    with _written(out):
        replace_file(out / "recipe.toml", to_toml(recipe).encode())


def prepare(recipe: Recipe, out: str | Path, world_size: int = 1, *, allow_changes: bool = False) -> None:
    """Makes `out` the folder of this recipe's run. Raises as `claimed`."""
    with claimed(recipe, out, world_size, allow_changes=allow_changes):
        pass


ELSEWHERE = "choose another folder with --out"


def _others(out: Path) -> list[Path]:
    ours = (LOCK, ".recipe.toml.")  # the latter half written
    return [path for path in out.iterdir() if not path.name.startswith(ours)] if out.exists() else []


@contextmanager
def _written(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error.strerror}); make room there, or {ELSEWHERE}") from error


def _refuse_changes(recipe: Recipe, data: Mapping[str, Any], out: Path) -> None:
    """Raises ValueError where a run would go on with another recipe or other data."""
    finished = (out / "result.json").exists()
    instead = f"{ELSEWHERE}; " + (
        f"--model.weights {out} starts another run from its weights"
        if finished
        else "--allow-changes continues this run all the same"
    )
    recipe_there, data_there = began_with(out)
    differences = [
        f"{key} is {there!r} there and {here!r} here" for key, there, here in differences_of(recipe_there, recipe)
    ]
    if differences:
        raise ValueError(f"{out} holds the run of another recipe ({'; '.join(differences)}); {instead}")
    changed = [
        f"{key}: {there} there and {data.get(key)} here" for key, there in data_there.items() if there != data.get(key)
    ]
    if changed:
        raise ValueError(f"{out} holds a run on other data ({'; '.join(changed)}); mend data.path, or {instead}")


def began_with(out: Path) -> tuple[Recipe, dict[str, Any]]:
    """A run's recipe, and what tells its data from others: of the newest checkpoint whose record is whole.

    Nobody can have edited that; where there is none, they are those of recipe.toml and environment.json.
    """
    for path in reversed(list_checkpoints(out / "checkpoints")):
        with suppress(CheckpointError, KeyError):  # the latter of a loop of somebody's own
            state = read_record(path)["state"]
            return _as_recipe(tomllib.loads(state["recipe"]), str(path / RECORD)), state["data"]
    return read_recipe(out), read_environment(out).get("data", {})


def differences_of(one: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """`("optimizer.lr", 0.1, 0.2)` for each setting that differs, but for the `FREE` ones."""

    def between(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
        for key, value in first.items():
            if prefix + key in FREE:
                continue
            if isinstance(value, Mapping):
                yield from between(value, second[key], f"{prefix}{key}.")
            elif value != second[key]:
                yield prefix + key, value, second[key]

    return list(between(asdict(one), asdict(other), ""))


def read_result(out: str | Path) -> dict[str, float] | None:
    """The result of a finished run, None where it has not finished."""
    path = Path(out) / "result.json"
    try:
        return json.loads(path.read_bytes()) if path.exists() else None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it, and the run ends again") from error


def run(
    recipe: Recipe, out: str | Path, *, allow_changes: bool = False, signals: ExitStack | None = None
) -> dict[str, float]:
    """Trains a recipe into the folder `out`, or continues there, and returns the result; every rank calls it.

    A finished run is not done again. Raises as `claimed` before any work, and then as `Trainer.fit`; SIGTERM and
    SIGINT end it with StoppedError, its state saved. They are taken until the end, or until `signals` closes.
    """
    out = Path(out)
    with ExitStack() as stack:
        world = stack.enter_context(join_world(recipe.run.device, timeout_seconds=recipe.run.timeout_seconds))
        claim = claimed(recipe, out, world.size, allow_changes=allow_changes)
        world.run_on_rank_0(lambda: stack.enter_context(claim))
        result = world.run_on_rank_0(lambda: read_result(out))
        if result is not None:
            return result
        report = stack.enter_context(Report(out if world.is_main else None, tensorboard=recipe.run.tensorboard))
        (signals or stack).enter_context(stop_on_signals())
        dataset = dataset_of(recipe.data)
        report.hidden = scores_to_hide(len(dataset.class_names))
        info = WeightsInfo(
            model=recipe.model.name,
            config=builder_arguments(recipe.model, **model_arguments_for(dataset)),
            transform=dataset.transform,
            class_names=dataset.class_names,
            origin=f"resnet_core {__version__}, trained on {recipe.data.name}",
        )
        trainer = make_trainer(recipe, world, report=report, folder=out, stop_asked=signal_received)
        report.say(
            f"{recipe.model.name} on {recipe.data.name}: {trainer.num_steps} steps, "
            f"{world.size} {'process' if world.size == 1 else 'processes'} on {world.device.type}"
        )
        trainer.restore()

        def record() -> None:
            _write_recipe(recipe, out)
            record_environment(recipe, out, world, report, continues=trainer.step > 0)

        world.run_on_rank_0(record)
        try:
            scores = trainer.fit()
        except NonFiniteLossError as error:
            if error.step is not None:
                path = world.run_on_rank_0(partial(_record_lost_batch, out, trainer, error.step))
                error.args = (f"{error}; its samples are in {path}",)
            raise
        result = result_of(trainer, scores)
        world.run_on_rank_0(lambda: _finish(out, trainer, info, result))
        return result


def _record_lost_batch(out: Path, trainer: Trainer, step: int) -> Path:
    """Writes which samples were in the batch of the step that could not be done, of all ranks."""
    assert isinstance(trainer.train_loader, TrainLoader)
    epoch, position = divmod(step, len(trainer.train_loader))
    samples = trainer.train_loader.samples(epoch, position)
    images = trainer.train_loader.batches.split
    files = {"files": [str(images.path(sample)) for sample in samples]} if isinstance(images, ImageFiles) else {}
    path = out / "lost_batch.json"
    record = {"step": step + 1, "epoch": epoch, "position": position, "samples": samples, **files}
    replace_file(path, json.dumps(record, indent=2).encode())
    return path


def result_of(trainer: Trainer, scores: Mapping[str, float]) -> dict[str, float]:
    """What `result.json` holds."""
    images = trainer.num_steps * trainer.train_loader.global_batch
    return {
        **scores,
        "steps": trainer.num_steps,
        "seconds": trainer.seconds,
        "images_per_second": images / trainer.seconds,
    }


def _finish(out: Path, trainer: Trainer, info: WeightsInfo, result: Mapping[str, float]) -> None:
    with _written(out):
        write_weights(out / "model.safetensors", trainer.weights(), info)
        replace_file(out / "result.json", json.dumps(result, indent=2).encode())


# A run that continues under other values of these cannot be bit for bit the uninterrupted one.
NUMERICS = ("torch", "device", "cpu_capability", "world_size", "threads")


def read_environment(out: Path) -> dict[str, Any]:
    """What a run was computed on; empty before it is known. Raises ValueError naming a file that is damaged."""
    path = out / "environment.json"
    try:
        return json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it to continue") from error


def record_environment(recipe: Recipe, out: Path, world: World, report: Report, *, continues: bool) -> None:
    """Writes what a run computes on; says where a run that continues does so on something else than before."""
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
        "data": identity(dataset_of(recipe.data)),
    }
    before = read_environment(out) or environment
    changed = [
        f"{key} was {before.get(key)}, is {environment[key]}" for key in NUMERICS if before.get(key) != environment[key]
    ]
    if continues and changed:
        report.say(f"continuing, but not bit for bit: {'; '.join(changed)}")
    with _written(out):
        replace_file(out / "environment.json", json.dumps(environment, indent=2).encode())


def load_run(out: str | Path, world: World | None = None) -> Trainer:
    """A finished run's trainer with its trained weights: `.model` to predict with, `.evaluate()` to score it again.

    Raises ValueError where there is no finished run, or where its data have changed so that they do not fit.
    """
    recipe = read_recipe(out)
    path = Path(out) / "model.safetensors"
    if not path.exists():
        raise ValueError(f"{out} has no model.safetensors: its run is not finished; continue with `resnet-core train`")
    model, info = load_model(path)
    wanted = {"model": recipe.model.name, **model_arguments_for(dataset_of(recipe.data))}
    found = {"model": info.model, **info.config}
    unfit = [
        f"{key} {found.get(key)} there and {value} here" for key, value in wanted.items() if found.get(key) != value
    ]
    if unfit:
        raise ValueError(f"{path} does not fit the run's recipe and data ({'; '.join(unfit)}); mend data.path")
    trainer = make_trainer(recipe, world, build=lambda **_: model)
    trainer.model.eval()
    return trainer
