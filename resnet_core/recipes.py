"""Named experiments, and the run folder that each leaves: the one place where models, data and training meet."""

from __future__ import annotations

import json
import os
import platform
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomli_w
import torch
from torch.nn import functional as F

import resnet_core
from resnet_core.data import DataConfig, Dataset, EvalLoader, TrainLoader, dataset_of, loaders_of
from resnet_core.data.sampler import batch_share
from resnet_core.durable import replace_file
from resnet_core.models import MODELS, get_model
from resnet_core.suggestions import did_you_mean
from resnet_core.train import TrainConfig, Trainer, World, join_world
from resnet_core.train.checkpoint import list_checkpoints
from resnet_core.train.metrics import classification_sums
from resnet_core.train.optimizers import SGDConfig, build_sgd
from resnet_core.train.report import Report
from resnet_core.train.schedules import warmup_cosine
from resnet_core.weights import WeightsInfo, load_weights, write_weights


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str
    """A name of `resnet-core models`."""

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ValueError(f"model.name: unknown model {self.name!r}; {did_you_mean(self.name, MODELS)}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then cosine to 0, both by step."""

    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup_epochs >= 0:
            raise ValueError(f"schedule.warmup_epochs must be at least 0, got {self.warmup_epochs}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's result."""

    model: ModelConfig
    data: DataConfig
    optimizer: SGDConfig = field(default_factory=SGDConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    """Of the initial weights, the order of samples and their augmentation."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if self.schedule.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs ({self.schedule.warmup_epochs:g}) must be less than "
                f"train.epochs ({self.train.epochs})"
            )


RECIPES: dict[str, Recipe] = {
    # ResNet-20 on the 1,437 digits that ship with the package: at least 99.0% of the 360 test images.
    "digits": Recipe(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name="digits", global_batch=64, crop_padding=2),
        optimizer=SGDConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
        schedule=ScheduleConfig(warmup_epochs=2.0),
        train=TrainConfig(epochs=20),
    ),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ValueError for an unknown one, with the nearest."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]


def to_toml(recipe: Recipe) -> str:
    return tomli_w.dumps(asdict(recipe))


def from_mapping(config: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """A configuration from nested plain values. Raises ValueError for unknown or missing keys and bad values."""
    types = get_type_hints(config)
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{where}: unknown key {key!r}; {did_you_mean(key, types)}")
        if not _fits(value, types[key]):
            raise ValueError(f"{where}: {key} should be {_words(types[key])}, got {value!r}")
    arguments = {
        key: from_mapping(types[key], value, f"{where}: {key}") if is_dataclass(types[key]) else value
        for key, value in values.items()
    }
    missing = [each.name for each in fields(config) if each.name not in arguments]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return config(**arguments)


def _fits(value: Any, annotation: Any) -> bool:
    if is_dataclass(annotation):
        return isinstance(value, Mapping)
    if choices := get_args(annotation):
        return value in choices
    return type(value) in ((int, float) if annotation is float else (annotation,))


def _words(annotation: Any) -> str:
    choices = get_args(annotation)
    if choices:
        return " or ".join(map(repr, choices))
    return "a table" if is_dataclass(annotation) else f"of type {annotation.__name__}"


def read_recipe(folder: str | Path) -> Recipe:
    """The recipe of a run's folder. Raises ValueError where there is none or it cannot be read."""
    path = Path(folder) / "recipe.toml"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run's folder: it has no recipe.toml; `resnet-core train` makes one")
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    return from_mapping(Recipe, values, str(path))


def prepare(recipe: Recipe, out: str | Path, world_size: int = 1) -> None:
    """Makes `out` the folder of this recipe's run; where that run has a checkpoint or result, it is left as it is.

    Raises ValueError where it holds another recipe's run or other things, or where the global batch cannot be split;
    OSError where the folder cannot be written.
    """
    make_loaders(recipe, World(size=world_size))
    batch_share(recipe.data.global_batch, world_size)
    out = Path(out)
    elsewhere = "choose another folder with --out"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder; {elsewhere}")
    begun = (out / "result.json").exists() or bool(list_checkpoints(out / "checkpoints"))
    if begun:
        differences = _differences(asdict(read_recipe(out)), asdict(recipe))
        if differences:
            raise ValueError(f"{out} holds the run of another recipe ({'; '.join(differences)}); {elsewhere}")
    elif out.exists() and any(out.iterdir()) and not (out / "recipe.toml").exists():
        raise ValueError(f"{out} holds other files and no run; {elsewhere}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not begun:
            replace_file(out / "recipe.toml", to_toml(recipe).encode())
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error.strerror}); {elsewhere}") from error


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in ours.items():
        if isinstance(value, Mapping):
            found += _differences(theirs[key], value, f"{prefix}{key}.")
        elif theirs[key] != value:
            found.append(f"{prefix}{key} is {theirs[key]!r} there and {value!r} here")
    return found


def read_result(out: str | Path) -> dict[str, float] | None:
    """The result of a finished run, None where it has not finished."""
    path = Path(out) / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def make_loaders(recipe: Recipe, world: World) -> tuple[Dataset, TrainLoader, EvalLoader]:
    """A recipe's data and this rank's batches of it. Raises ValueError for data that is not as the recipe says."""
    dataset = dataset_of(recipe.data)
    train_loader, eval_loader = loaders_of(
        recipe.data,
        dataset,
        epochs=recipe.train.epochs,
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )
    return dataset, train_loader, eval_loader


def make_trainer(
    recipe: Recipe, world: World | None = None, *, report: Report | None = None, folder: str | Path | None = None
) -> Trainer:
    """The trainer of a recipe, ready for `fit()` or, in a loop of your own, `steps()`. Raises as `make_loaders`."""
    world = world or World()
    dataset, train_loader, eval_loader = make_loaders(recipe, world)
    steps_per_epoch = len(train_loader)
    lr_fn = partial(
        warmup_cosine,
        peak=recipe.optimizer.lr,
        warmup_steps=round(recipe.schedule.warmup_epochs * steps_per_epoch),
        total_steps=recipe.train.epochs * steps_per_epoch,
    )
    torch.manual_seed(recipe.seed)
    model = get_model(recipe.model.name, **head_and_stem(dataset))
    return Trainer(
        recipe.train,
        model,
        build_sgd(model, recipe.optimizer),
        world=world,
        loss_fn=F.cross_entropy,
        lr_fn=lr_fn,
        train_loader=train_loader,
        eval_loader=eval_loader,
        score_fn=classification_sums,
        report=report,
        folder=Path(folder) / "checkpoints" if folder else None,
        seed=recipe.seed,
    )


def head_and_stem(dataset: Dataset) -> dict[str, int]:
    """A builder's arguments that fit a network to a dataset."""
    return {"num_classes": len(dataset.class_names), "in_channels": dataset.in_channels}


def run(recipe: Recipe, out: str | Path) -> dict[str, float]:
    """Trains a recipe into the folder `out`, or continues there, and returns the result; every rank calls it.

    A finished run is not done again. Raises ValueError or OSError before any work for a folder or settings that
    cannot be, NonFiniteLossError when the loss is lost.
    """
    out = Path(out)
    with join_world(recipe.train.device) as world:
        world.on_main(lambda: prepare(recipe, out, world.size))
        result = world.on_main(lambda: read_result(out))
        if result is not None:
            return result
        with Report(out if world.is_main else None) as report:
            trainer = make_trainer(recipe, world, report=report, folder=out)
            report.say(
                f"{recipe.model.name} on {recipe.data.name}: {trainer.num_steps} steps, "
                f"{world.size} {'process' if world.size == 1 else 'processes'} on {world.device.type}"
            )
            world.on_main(lambda: _record_environment(out, world, report))
            scores = trainer.fit()
        result = _result(trainer, scores)
        world.on_main(lambda: _finish(recipe, out, trainer, result))
        return result


def _result(trainer: Trainer, scores: Mapping[str, float]) -> dict[str, float]:
    images = trainer.num_steps * trainer.train_loader.global_batch
    return {
        **scores,
        "steps": trainer.num_steps,
        "seconds": trainer.seconds,
        "images_per_second": images / trainer.seconds,
    }


def _finish(recipe: Recipe, out: Path, trainer: Trainer, result: Mapping[str, float]) -> None:
    dataset = dataset_of(recipe.data)
    info = WeightsInfo(
        model=recipe.model.name,
        config=head_and_stem(dataset),
        transform=dataset.transform,
        class_names=dataset.class_names,
        origin=f"resnet_core {resnet_core.__version__}, {trainer.num_steps} steps on {recipe.data.name}",
    )
    write_weights(out / "model.safetensors", trainer.model.state_dict(), info)
    replace_file(out / "result.json", json.dumps(result, indent=2).encode())


# A run that continues under other values of these cannot be bit for bit the uninterrupted one.
NUMERICS = ("torch", "device", "world_size", "threads")


def _record_environment(out: Path, world: World, report: Report) -> None:
    path = out / "environment.json"
    environment = {
        "resnet_core": resnet_core.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "command": sys.argv,
    }
    before = json.loads(path.read_text()) if path.exists() else environment
    changed = [
        f"{key} was {before.get(key)}, is {environment[key]}" for key in NUMERICS if before.get(key) != environment[key]
    ]
    if changed:
        report.say(f"continuing, but not bit for bit: {'; '.join(changed)}")
    replace_file(path, json.dumps(environment, indent=2).encode())


def load_run(out: str | Path, world: World | None = None) -> Trainer:
    """A finished run's trainer with its trained weights: `.model` to predict with, `.evaluate()` to score it again.

    Raises ValueError where there is no finished run.
    """
    recipe = read_recipe(out)
    path = Path(out) / "model.safetensors"
    if not path.exists():
        raise ValueError(f"{out} has no model.safetensors: its run is not finished; continue with `resnet-core train`")
    trainer = make_trainer(recipe, world)
    load_weights(trainer.model, path)
    trainer.model.eval()
    return trainer
