"""What would stop a run at once, found before it begins: rules that need the data, the weights or this machine.

What concerns a single configuration is checked where that is made.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from resnet_core.data.check import check_headers
from resnet_core.data.sampler import batch_share
from resnet_core.distributed.rendezvous import rank_from_environment
from resnet_core.distributed.world import device_type
from resnet_core.recipes.experiment import Experiment, make_loaders
from resnet_core.train import World
from resnet_core.train.report import check_tensorboard


def check(experiment: Experiment, processes: int = 1) -> None:
    """Raises ValueError if the experiment cannot be trained by that many processes."""
    recipe = experiment.recipe

    # This machine.
    if recipe.run.tensorboard:
        check_tensorboard()
    here = rank_from_environment("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else processes
    recipe.train.check_device(device_type(recipe.run.device, here), processes)

    # The data.
    check_headers(experiment.dataset)
    _, train_loader, _ = make_loaders(experiment, World(size=processes))
    batch = batch_share(recipe.data.global_batch, processes)
    smallest_part = recipe.train.smallest_part(batch)
    steps = recipe.train.epochs * len(train_loader)
    if recipe.averaging.ema_decay and recipe.averaging.ema_every_steps > steps:
        raise ValueError(
            f"averaging.ema_every_steps {recipe.averaging.ema_every_steps} is more than the run's {steps} steps, so "
            "the weights would never be averaged; lower it, or set averaging.ema_decay to 0"
        )

    # The network, and the weights that it starts from.
    model = experiment.skeleton
    if smallest_part == 1 and not (recipe.train.sync_batchnorm and processes > 1):
        _check_one_image(model, first_size(experiment), experiment.dataset.in_channels)


def first_size(experiment: Experiment) -> int:
    """Height and width of the training images of the first epoch."""
    data = experiment.recipe.data
    return data.train_size_start or data.train_size or experiment.dataset.transform.crop_size


def _check_one_image(model: nn.Module, size: int, in_channels: int) -> None:
    """Raises ValueError if the model cannot train on a single image of that size: BatchNorm needs two values."""
    try:
        model.train()(torch.empty(1, in_channels, size, size, device="meta"))
    except ValueError as error:
        raise ValueError(
            f"each process would compute one image of {size} pixels at a time; the last stages reduce it to one value "
            "per channel, and BatchNorm needs at least two; lower train.accumulation, use fewer processes, or raise "
            "data.global_batch"
        ) from error
