"""What a run would do: steps, learning rates, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_core.data.sampler import batch_share
from resnet_core.recipes.checks import first_size
from resnet_core.recipes.experiment import Experiment, make_loaders
from resnet_core.recipes.recipe import Recipe
from resnet_core.train import World
from resnet_core.train.optimizers import build_optimizer
from resnet_core.train.schedules import Schedule

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 60


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run that has not begun would do."""

    experiment: Experiment
    parameters: int
    frozen: int
    """Of these, the ones that keep their values."""
    image_sizes: str
    """Pixels, in training and in evaluation."""
    processes: int
    batch: int
    """Samples of one process in one step."""
    lr_fn: Schedule
    weights_bytes: int
    """Of weights, gradients, optimizer state and average, in each process."""
    activation_bytes: int
    """Kept for the backward of one part of a batch, in each process."""

    def __str__(self) -> str:
        recipe = self.experiment.recipe
        model, train = recipe.model, recipe.train
        steps = train.epochs * self.lr_fn.steps_per_epoch
        rates = [self.lr_fn(step * (steps - 1) // max(COLUMNS - 1, 1)) for step in range(COLUMNS)]
        peak = max(rates)
        curve = "".join(BARS[math.ceil(rate / peak * len(BARS)) - 1 if rate > 0 else 0] for rate in rates)

        parts = f" in {train.accumulation} parts" if train.accumulation > 1 else ""
        epochs = "epoch" if train.epochs == 1 else "epochs"
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        frozen = f", {self.frozen:,} of them frozen" if self.frozen else ""
        start = f", from the weights {model.weights}" if model.weights else ""
        fast = "fast           steps are measured before the first one, and what makes them faster is turned on"
        memory = [bytes_ / 2**30 for bytes_ in (self.weights_bytes, self.activation_bytes)]

        return "\n".join(
            [
                f"model          {model.name}, {self.parameters:,} parameters{frozen}{start}",
                *(f"{label:<15}{text}" for label, text in self.experiment.data_lines),
                f"steps          {steps:,}: {train.epochs} {epochs} of {self.lr_fn.steps_per_epoch:,}",
                f"images         {self.image_sizes}",
                f"batch          {count} x {self.batch} samples{parts}",
                *[fast] * train.fast,
                f"learning rate  {curve}",
                f"               {rates[0]:.3g} first, {peak:.3g} at most, {rates[-1]:.3g} last",
                f"memory         about {sum(memory):.2f} GiB a process: {memory[0]:.2f} for weights and optimizer, "
                f"{memory[1]:.2f} for activations; torch itself and the data come on top",
            ]
        )


def make_plan(experiment: Experiment, processes: int = 1) -> Plan:
    """The plan of an experiment that `check` lets pass."""
    recipe, dataset = experiment.recipe, experiment.dataset
    _, train_loader, _ = make_loaders(experiment, World(size=processes))

    # Images.
    final_size = recipe.data.train_size or dataset.transform.crop_size
    start_size = first_size(experiment)
    sizes = f"{final_size} x {final_size}"
    if start_size != final_size:
        sizes = f"{start_size} x {start_size} growing to {sizes}"
    evaluated = f"{dataset.transform.crop_size} x {dataset.transform.crop_size}"

    # Memory.
    parameters = sum(parameter.numel() for parameter in experiment.skeleton.parameters())
    trained = sum(parameter.numel() for parameter in experiment.skeleton.parameters() if parameter.requires_grad)
    copies = 1 + bool(recipe.averaging.ema_decay)
    trained_copies = 1 + state_tensors(recipe)  # the gradients, and what the optimizer keeps
    batch = batch_share(recipe.data.global_batch, processes)
    part = math.ceil(batch / recipe.train.accumulation)
    values = saved_values(experiment.skeleton, torch.Size((dataset.in_channels, final_size, final_size)))
    bytes_each = 2 if recipe.train.precision == "bf16" else 4

    return Plan(
        experiment=experiment,
        parameters=parameters,
        frozen=parameters - trained,
        image_sizes=f"{sizes} pixels in training, {evaluated} in evaluation",
        processes=processes,
        batch=batch,
        lr_fn=recipe.lr_fn(len(train_loader)),
        weights_bytes=4 * (parameters * copies + trained * trained_copies),
        activation_bytes=part * values * bytes_each,
    )


def state_tensors(recipe: Recipe) -> int:
    """How many tensors of a parameter's size the optimizer keeps for each, tried on one small parameter."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer = build_optimizer(model, recipe.optimizer, head=model)
    optimizer.step()
    return sum(isinstance(value, Tensor) and value.dim() > 0 for value in optimizer.state[model.weight].values())


def saved_values(model: nn.Module, shape: torch.Size) -> int:
    """How many numbers autograd keeps of one sample for the backward, counted on the meta device."""
    with saved() as storages:
        model.train()(torch.empty(2, *shape, device="meta"))
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    return sum(count for storage, count in storages.items() if storage not in parameters) // 2


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Inside this context, storage -> how many numbers, for each tensor that autograd keeps; a storage counts once."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # keeps them alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
