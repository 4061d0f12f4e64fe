"""A recipe with its data, its model and its trainer: the one place where the three meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_core.data import Dataset, EvalLoader, TrainLoader, dataset_of, identity, loaders_of
from resnet_core.foundation.toml import to_toml
from resnet_core.models.backbone import Backbone
from resnet_core.models.registry import build
from resnet_core.recipes.recipe import ModelConfig, Recipe
from resnet_core.train import Trainer, World
from resnet_core.train.averaging import WeightAverage
from resnet_core.train.metrics import classification_sums
from resnet_core.train.optimizers import build_optimizer
from resnet_core.train.report import Report
from resnet_core.weights.pretrained import check_config, info_of, load_model


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
    recipe: Recipe,
    world: World | None = None,
    *,
    build: Callable[..., nn.Module] | None = None,
    report: Report | None = None,
    folder: str | Path | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Trainer:
    """The trainer of a recipe, ready for `fit()` or, in a loop of your own, `steps()`.

    `build(num_classes=.., in_channels=..)` makes a network of your own, whose head is `fc` where it has one, in place
    of the recipe's. Raises as `make_loaders`.
    """
    world = world or World()
    dataset, train_loader, eval_loader = make_loaders(recipe, world)
    torch.manual_seed(recipe.seed)
    model = (build or partial(make_model, recipe.model))(**model_arguments_for(dataset))
    return Trainer(
        recipe.train,
        model,
        build_optimizer(model, recipe.optimizer, head=dict(model.named_children()).get("fc")),
        world=world,
        loss_fn=recipe.loss.of,
        lr_fn=recipe.lr_fn(len(train_loader)),
        train_loader=train_loader,
        eval_loader=eval_loader,
        score_fn=classification_sums,
        max_gradient_norm=recipe.optimizer.max_grad_norm,
        average=WeightAverage(recipe.averaging) if recipe.averaging.ema_decay else None,
        run=recipe.run,
        report=report,
        folder=Path(folder) / "checkpoints" if folder else None,
        about={"recipe": to_toml(recipe), "data": identity(dataset), "torch": torch.__version__} if folder else None,
        stop_asked=stop_asked,
        seed=recipe.seed,
    )


def make_model(config: ModelConfig, *, num_classes: int, in_channels: int) -> nn.Module:
    """The network that a run starts from. Raises as `builder_arguments`, and where the weights cannot be had."""
    arguments = builder_arguments(config, num_classes=num_classes, in_channels=in_channels)
    if not config.weights:
        return build(config.name, **arguments)
    model, _ = load_model(config.weights, progress=False)
    outputs, features = model.get_parameter("fc.weight").shape
    if outputs != num_classes:
        if isinstance(model, Backbone):
            model.reset_classifier(num_classes)
        else:
            model.register_module("fc", nn.Linear(features, num_classes))
    return model.train()


def builder_arguments(config: ModelConfig, *, num_classes: int, in_channels: int) -> dict[str, Any]:
    """With what `build` makes a run's network. Of the weights that it starts from only the header is read.

    Raises ValueError where these are another model's or for other images.
    """
    fitting = {"num_classes": num_classes, "in_channels": in_channels}
    if not config.weights:
        return fitting
    info = info_of(config.weights)
    if info.model != config.name:
        raise ValueError(f"model.weights {config.weights} are a {info.model}'s, and model.name is {config.name}")
    if info.config.get("in_channels", 3) != in_channels:
        raise ValueError(f"model.weights {config.weights} are not for images of {in_channels} channels")
    return {**check_config(info.config, config.weights), **fitting}


def model_arguments_for(dataset: Dataset) -> dict[str, int]:
    """A builder's arguments that fit a network to a dataset."""
    return {"num_classes": len(dataset.class_names), "in_channels": dataset.in_channels}
