"""An experiment: a recipe with its data and the network that it starts from, each loaded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_core.data import Dataset, EvalLoader, TrainLoader, dataset_of, identity, loaders_of
from resnet_core.data.decoders import PILLOW
from resnet_core.data.describe import describe
from resnet_core.data.manifest import FileRecord, content, files_of
from resnet_core.data.transforms import normalize
from resnet_core.foundation.toml import to_toml
from resnet_core.models import registry
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.freezing import freeze
from resnet_core.recipes.recipe import ModelConfig, Recipe
from resnet_core.train import Trainer, World
from resnet_core.train.averaging import WeightAverage
from resnet_core.train.forward import unchanged
from resnet_core.train.metrics import classification_sums, scores_to_hide
from resnet_core.train.optimizers import build_optimizer
from resnet_core.train.report import Report
from resnet_core.weights.download import DownloadError
from resnet_core.weights.pretrained import OpenedWeights, open_weights, skeleton


@dataclass(frozen=True)
class Experiment:
    """A recipe and its dataset; what else a run needs of them is computed once, when it is first needed."""

    recipe: Recipe
    dataset: Dataset

    @cached_property
    def data_files(self) -> tuple[FileRecord, ...]:
        """The files of the dataset; none where its images are in memory."""
        return files_of(self.dataset)

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """What distinguishes the dataset from others."""
        found = identity(self.dataset)
        return {**found, "content": content(self.data_files)} if self.data_files else found

    @property
    def data_lines(self) -> tuple[tuple[str, str], ...]:
        """What people should know of the data before they train, as label and text of each line."""
        data = self.recipe.data
        lines = describe(self.dataset, global_batch=data.global_batch, repeats=data.repeated_augmentation)
        return tuple(lines)

    @property
    def fitting_arguments(self) -> dict[str, int]:
        """The arguments of a builder that fit a network to the dataset."""
        return {"num_classes": len(self.dataset.class_names), "in_channels": self.dataset.in_channels}

    @cached_property
    def start(self) -> OpenedWeights | None:
        """The weights that the network starts from."""
        return opened(self.recipe.model)

    @cached_property
    def model_arguments(self) -> dict[str, Any]:
        """All arguments of the network's builder, of which some come from the weights that it starts from."""
        return builder_arguments(self.recipe.model, self.start, **self.fitting_arguments)

    def initial_model(self) -> nn.Module:
        """The network that the run starts from. What was read of its weights is given free."""
        model = initial_model(self.recipe.model, self.start, self.model_arguments)
        vars(self).pop("start")
        return model

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network on the meta device."""
        model = self.recipe.model
        network = skeleton(model.name, self.model_arguments, model.weights or model.name)
        freeze(network, model.freeze)
        return network


def load(recipe: Recipe) -> Experiment:
    """The experiment of a recipe, with its dataset. Raises ValueError for data that do not fit the recipe."""
    if not isinstance(recipe, Recipe):
        raise TypeError(f"a Recipe is needed, got {recipe!r}; resnet_core.recipes.get_recipe(NAME) returns one by name")
    return Experiment(recipe, dataset_of(recipe.data))


def make_loaders(
    recipe: Recipe | Experiment, world: World, *, normalized: bool = True
) -> tuple[Dataset, TrainLoader, EvalLoader]:
    """A recipe's data and this rank's batches of it; `loaders_of` explains `normalized`.

    Raises ValueError for data that do not fit the recipe.
    """
    experiment = recipe if isinstance(recipe, Experiment) else load(recipe)
    train_loader, eval_loader = loaders_of(
        experiment.recipe.data,
        experiment.dataset,
        epochs=experiment.recipe.train.epochs,
        seed=experiment.recipe.seed,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
        normalized=normalized,
    )
    return experiment.dataset, train_loader, eval_loader


def make_trainer(
    recipe: Recipe | Experiment,
    world: World | None = None,
    *,
    dataset: Dataset | None = None,
    build: Callable[..., nn.Module] | None = None,
    report: Report | None = None,
    quiet: bool = False,
    folder: str | Path | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Trainer:
    """The trainer of a recipe, ready for `fit()` or, in a loop of your own, `steps()`.

    A recipe's dataset is loaded here unless you give one of your own as `dataset`; an `Experiment` has it already.
    `build(num_classes=.., in_channels=..)` makes a network of your own in place of the recipe's; its head is `fc` if it
    has one. Without a `report`, `fit()` shows a progress bar and prints a line for each evaluation, unless `quiet`.
    Raises what `make_loaders` raises, and ValueError for weights that do not fit.
    """
    if not isinstance(recipe, Experiment):
        recipe = Experiment(recipe, dataset) if dataset else load(recipe)
    experiment, recipe = recipe, recipe.recipe
    world = world or World()

    # Where a fast decoder is chosen and normalisation comes last, batches stay uint8 until they are on the device.
    on_device = recipe.data.decoder != PILLOW and recipe.data.normalizes_last
    dataset, train_loader, eval_loader = make_loaders(experiment, world, normalized=not on_device)
    mean, std = (torch.tensor(each, device=world.device) for each in (dataset.transform.mean, dataset.transform.std))

    torch.manual_seed(recipe.seed)
    model = experiment.initial_model() if build is None else build(**experiment.fitting_arguments)
    freeze(model, recipe.model.freeze)
    optimizer = build_optimizer(model, recipe.optimizer, head=dict(model.named_children()).get("fc"))

    if report is None:
        hidden = scores_to_hide(len(dataset.class_names))
        report = Report(quiet=quiet or not world.is_main, hidden=hidden)
    about: dict[str, Any] = {}
    if folder and world.is_main:  # which alone writes checkpoints
        about = {"recipe": to_toml(recipe), "data": experiment.data_identity, "torch": torch.__version__}
    return Trainer(
        recipe.train,
        model,
        optimizer,
        world=world,
        loss_fn=recipe.loss.of,
        lr_fn=recipe.lr_fn(len(train_loader)),
        train_loader=train_loader,
        eval_loader=eval_loader,
        score_fn=classification_sums,
        prepare_inputs=partial(normalize, mean=mean, std=std) if on_device else unchanged,
        max_gradient_norm=recipe.optimizer.max_grad_norm,
        average=WeightAverage(recipe.averaging) if recipe.averaging.ema_decay else None,
        run=recipe.run,
        report=report,
        folder=Path(folder) / "checkpoints" if folder else None,
        about=about,
        stop_asked=stop_asked,
        seed=recipe.seed,
    )


def make_model(config: ModelConfig, *, num_classes: int, in_channels: int) -> nn.Module:
    """The network that a run starts from. ValueError: the weights do not fit. OSError: the download failed."""
    start = opened(config)
    arguments = builder_arguments(config, start, num_classes=num_classes, in_channels=in_channels)
    return initial_model(config, start, arguments)


def opened(config: ModelConfig) -> OpenedWeights | None:
    """The weights that a network starts from; None where they are random."""
    if not config.weights:
        return None
    return open_weights(config.weights, key=config.key or None, prefix=config.prefix or None)


def initial_model(config: ModelConfig, start: OpenedWeights | None, arguments: dict[str, Any]) -> nn.Module:
    """The same from all arguments of the builder; the head is new where the weights have other classes."""
    if start is None:
        return registry.build(config.name, **arguments)

    try:
        model = start.build(new_head=True, progress=False)
    except DownloadError as error:
        raise DownloadError(
            f"{error}; where there is no network, --model.weights none starts from random weights"
        ) from error
    assert isinstance(model, Backbone | CifarResNet)
    if model.fc.out_features != arguments["num_classes"]:
        model.reset_classifier(arguments["num_classes"])
    return model


def builder_arguments(
    config: ModelConfig, start: OpenedWeights | None, *, num_classes: int, in_channels: int
) -> dict[str, Any]:
    """All arguments of the builder of a run's network, some of which the weights decide that it starts from.

    Raises ValueError for weights of another model or with another stem, or for images with another number of channels.
    """
    fitting: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    if config.small_images:
        fitting["small_images"] = True
    if start is None:
        return fitting

    info = start.info
    if info.model != config.name:
        raise ValueError(
            f"model.weights {config.weights} belong to {info.model}, and model.name is {config.name}; set model.name "
            f"to {info.model}, or choose other weights"
        )
    small_images = info.config.get("small_images", False)
    if small_images != config.small_images:
        raise ValueError(
            f"model.weights {config.weights} belong to a network with small_images={small_images}, and "
            f"model.small_images is {config.small_images}; set model.small_images to {small_images}, or choose other "
            "weights"
        )
    weights_channels = info.config.get("in_channels", 3)
    if weights_channels != in_channels:
        raise ValueError(
            f"model.weights {config.weights} take images of {weights_channels} channels, and the data have "
            f"{in_channels}; choose other weights or other data"
        )
    return {**info.config, **fitting}
