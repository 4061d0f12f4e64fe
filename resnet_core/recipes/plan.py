"""What a recipe would do, before it does it: steps, learning rates, memory, and what would stop it at once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_core.data.sampler import batch_share
from resnet_core.distributed.rendezvous import rank_from_environment
from resnet_core.distributed.world import device_type
from resnet_core.recipes.experiment import builder_arguments, make_loaders, model_arguments_for
from resnet_core.recipes.recipe import Recipe
from resnet_core.train import World
from resnet_core.train.optimizers import build_optimizer
from resnet_core.train.report import check_tensorboard
from resnet_core.train.schedules import Schedule
from resnet_core.weights.pretrained import skeleton

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 60


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has not begun."""

    model: str
    weights: str
    """What it starts from; none: random."""
    parameters: int
    training_samples: int
    test_samples: int
    image_sizes: str
    """Pixels, in training and in evaluation."""
    epochs: int
    steps_per_epoch: int
    processes: int
    batch: int
    """Samples of one process in one step."""
    accumulation: int
    lr_fn: Schedule
    weights_bytes: int
    """Of weights, gradients, optimizer state and average, in each process."""
    activation_bytes: int
    """Kept for the backward of one part of a batch, in each process."""

    def __str__(self) -> str:
        steps = self.epochs * self.steps_per_epoch
        rates = [self.lr_fn(step * (steps - 1) // max(COLUMNS - 1, 1)) for step in range(COLUMNS)]
        peak = max(rates)
        curve = "".join(BARS[math.ceil(rate / peak * len(BARS)) - 1 if rate > 0 else 0] for rate in rates)
        parts = f" in {self.accumulation} parts" if self.accumulation > 1 else ""
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        start = f", from the weights {self.weights}" if self.weights else ""
        return "\n".join(
            [
                f"model          {self.model}, {self.parameters:,} parameters{start}",
                f"data           {self.training_samples:,} samples to train on, {self.test_samples:,} to test on",
                f"steps          {steps:,}: {self.epochs} epochs of {self.steps_per_epoch:,}",
                f"images         {self.image_sizes}",
                f"batch          {count} x {self.batch} samples{parts}",
                f"learning rate  {curve}",
                f"               {rates[0]:.3g} first, {peak:.3g} at most, {rates[-1]:.3g} last",
                f"memory         about {(self.weights_bytes + self.activation_bytes) / 2**30:.2f} GiB a process: "
                f"{self.weights_bytes / 2**30:.2f} for weights and optimizer, {self.activation_bytes / 2**30:.2f} for "
                "activations; torch itself and the data come on top",
            ]
        )


def make_plan(recipe: Recipe, processes: int = 1) -> Plan:
    """The plan of a recipe.

    Raises ValueError where it could not be trained: data that cannot be had, weights whose header does not fit, a batch
    that cannot be split, a device that is not there or cannot do it, an average that would never be taken, images that
    would never grow, TensorBoard that is asked for and missing.
    """
    if recipe.run.tensorboard:
        check_tensorboard()
    growing = recipe.data.train_size_epochs
    if growing == 1 or (growing and not recipe.data.train_size_start):
        raise ValueError(
            f"data.train_size_epochs {growing} changes nothing: images grow from data.train_size_start, which must be "
            "set, over at least 2 epochs; set it to 0"
        )
    if growing > recipe.train.epochs:
        raise ValueError(
            f"data.train_size_epochs {growing} is more than train.epochs {recipe.train.epochs}: images would never "
            "reach data.train_size; set it to at most that, or to 0, all epochs"
        )
    here = rank_from_environment("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else processes
    recipe.train.check_device(device_type(recipe.run.device, here))
    dataset, train_loader, _ = make_loaders(recipe, World(size=processes))
    steps = recipe.train.epochs * len(train_loader)
    if recipe.averaging.ema_decay and recipe.averaging.ema_every_steps > steps:
        raise ValueError(
            f"averaging.ema_every_steps {recipe.averaging.ema_every_steps} is more than the run's {steps} steps: the "
            "weights would never be averaged; lower it, or set averaging.ema_decay to 0"
        )
    batch = batch_share(recipe.data.global_batch, processes)
    arguments = builder_arguments(recipe.model, **model_arguments_for(dataset))
    model = skeleton(recipe.model.name, arguments, recipe.model.weights or recipe.model.name)
    evaluation = dataset.transform
    size = recipe.data.train_size or evaluation.crop_size
    first = recipe.data.train_size_start or size
    grown = f"{size} x {size}" if first == size else f"{first} x {first} growing to {size} x {size}"
    shape = torch.Size((dataset.in_channels, size, size))
    alone = not recipe.train.sync_batchnorm or processes == 1
    if recipe.train.smallest_part(batch) == 1 and alone:
        _check_one_sample(model, first, dataset.in_channels)
    part = math.ceil(batch / recipe.train.accumulation)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    copies = 2 + state_tensors(recipe) + bool(recipe.averaging.ema_decay)
    bytes_each = 2 if recipe.train.precision == "bf16" else 4
    return Plan(
        model=recipe.model.name,
        weights=recipe.model.weights,
        parameters=parameters,
        training_samples=len(dataset.train),
        test_samples=len(dataset.test),
        image_sizes=f"{grown} pixels in training, {evaluation.crop_size} x {evaluation.crop_size} in evaluation",
        epochs=recipe.train.epochs,
        steps_per_epoch=len(train_loader),
        processes=processes,
        batch=batch,
        accumulation=recipe.train.accumulation,
        lr_fn=recipe.lr_fn(len(train_loader)),
        weights_bytes=parameters * 4 * copies,
        activation_bytes=part * saved_values(model, shape) * bytes_each,
    )


def _check_one_sample(model: nn.Module, size: int, in_channels: int) -> None:
    """Raises ValueError where the model cannot train on one image of that size: BatchNorm needs two values."""
    try:
        model.train()(torch.empty(1, in_channels, size, size, device="meta"))
    except ValueError as error:
        raise ValueError(
            f"each process would compute one image of {size} pixels at a time, of which the last stages leave one "
            "value a channel, and BatchNorm needs more; lower train.accumulation, use fewer processes, or raise "
            "data.global_batch"
        ) from error


def state_tensors(recipe: Recipe) -> int:
    """How many tensors of a parameter's size the optimizer keeps for it, seen on one small parameter."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer = build_optimizer(model, recipe.optimizer, head=model)
    optimizer.step()
    return sum(isinstance(value, Tensor) and value.dim() > 0 for value in optimizer.state[model.weight].values())


def saved_values(model: nn.Module, shape: torch.Size) -> int:
    """Numbers that autograd keeps of one sample for the backward, counted on the meta device."""
    with saved() as storages:
        model.train()(torch.empty(2, *shape, device="meta", requires_grad=True))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return max(0, sum(storages.values()) - parameters) // 2


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Within it, storage -> numbers, of each tensor that autograd keeps; a storage counts once."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # as long as they live, no two have one address

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
