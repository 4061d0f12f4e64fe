"""The trainer: one loop for every network and dataset, on one process or many.

It knows `(inputs, targets)` and nothing of what they mean. Its own state is one number, the step: epoch, position,
learning rate and the seed of random layers are computed from it, so a checkpoint needs no more to continue exactly.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_core.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from resnet_core.train.distributed import World
from resnet_core.train.metrics import means
from resnet_core.train.report import Report


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in which arithmetic to train."""

    epochs: int = 90
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: automatic mixed precision; weights, gradients and their averages stay float32."""
    channels_last: bool = False
    """Memory format NHWC, which many CPUs and GPUs convolve faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every_steps: int = 10
    eval_every_epochs: int = 1
    checkpoint_every_epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "log_every_steps", "eval_every_epochs", "checkpoint_every_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, or of an evaluation, is infinite or not a number; no checkpoint of it was saved."""


class Batches(Protocol):
    """What the trainer needs of training data: see `resnet_core.data.TrainLoader`."""

    global_batch: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


class EvalBatches(Protocol):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step that was done: its number from 1, the loss (mean over the ranks) and the learning rate."""

    number: int
    epoch: float
    loss: float
    lr: float


class Trainer:
    """Trains `model` with `optimizer` on batches of `(inputs, targets)`.

    `loss_fn(outputs, targets)` is a scalar, `lr_fn(step)` the learning rate of step 0, 1, .., and
    `score_fn(outputs, targets)` gives sums over a batch with their "count" (see `train/metrics.py`).
    Every rank must hold the same model and get its own part of the batches. With a `folder`, checkpoints are kept
    there and `fit()` continues from the newest. Without a `report` it is silent.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        world: World,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        lr_fn: Callable[[int], float],
        train_loader: Batches,
        eval_loader: EvalBatches,
        score_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
        report: Report | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.optimizer, self.world = config, optimizer, world
        self.loss_fn, self.lr_fn, self.score_fn = loss_fn, lr_fn, score_fn
        self.train_loader, self.eval_loader = train_loader, eval_loader
        self.report, self.folder, self.seed = report or Report(None), folder, seed
        self.memory_format = torch.channels_last if config.channels_last else torch.preserve_format
        self.model = model.to(world.device).to(memory_format=self.memory_format)
        self.replica = world.wrap(self.model)
        self.num_steps = config.epochs * len(train_loader)
        self.step = 0  # optimizer steps done
        self.seconds = 0.0  # spent in fit() so far, also before a restart

    def fit(self) -> dict[str, float]:
        """Trains from the newest checkpoint, or from the start, to the end; the last evaluation's means.

        Raises NonFiniteLossError on all ranks at the same step, CheckpointError for a damaged checkpoint.
        """
        self.restore()
        self.report.start(self.step, self.num_steps)
        began = time.monotonic() - self.seconds
        timed_from, timed_at = self.step, time.monotonic()
        scores = None
        for step in self.steps():
            if step.number % self.config.log_every_steps == 0:
                samples = (step.number - timed_from) * self.train_loader.global_batch
                rate = samples / (time.monotonic() - timed_at)
                self.report.record(
                    "train", step=step.number, epoch=step.epoch, loss=step.loss, lr=step.lr, samples_per_second=rate
                )
                timed_from, timed_at = step.number, time.monotonic()
            if self._ends(step, self.config.eval_every_epochs):
                scores = self.evaluate()
                if not all(map(math.isfinite, scores.values())):
                    raise NonFiniteLossError(
                        f"the evaluation after step {step.number} of {self.num_steps} gives {scores}: the weights are "
                        "lost and were not saved; lower the learning rate or lengthen the warm-up"
                    )
                self.report.record("eval", step=step.number, epoch=step.epoch, **scores)
                timed_from, timed_at = step.number, time.monotonic()
            self.seconds = time.monotonic() - began
            if self._ends(step, self.config.checkpoint_every_epochs):
                self.save()
        return scores or self.evaluate()

    def steps(self) -> Iterator[Step]:
        """Does one optimizer step for each item it yields, up to the last: `fit`'s loop, for a loop of your own."""
        while self.step < self.num_steps:
            epoch, position = divmod(self.step, len(self.train_loader))
            for inputs, targets in self.train_loader.epoch(epoch, start=position):
                yield self.train_step(inputs, targets)

    def train_step(self, inputs: Tensor, targets: Tensor) -> Step:
        """Forward, backward, update, with this rank's part of the global batch."""
        self.model.train()
        torch.manual_seed(random_layers_seed(self.seed, self.step, self.world.rank))
        lr = self.lr_fn(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.loss_fn(*self._forward(self.replica, inputs, targets))
        self.optimizer.zero_grad()
        loss.backward()
        mean_loss = self.world.mean(loss.detach()).item()
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(
                f"the loss is {mean_loss} at step {self.step + 1} of {self.num_steps}: training stopped before that "
                "update; lower the learning rate, lengthen the warm-up, or look at that batch's data"
            )
        self.optimizer.step()
        self.step += 1
        return Step(number=self.step, epoch=self.step / len(self.train_loader), loss=mean_loss, lr=lr)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over all samples of the evaluation data, each counted once, with rank 0's buffers on every rank."""
        self.world.share_buffers(self.model)
        was_training = self.model.training
        self.model.eval()
        sums: dict[str, Tensor] = {}
        for inputs, targets in self.eval_loader:
            for key, value in self.score_fn(*self._forward(self.model, inputs, targets)).items():
                sums[key] = sums[key] + value if key in sums else value
        self.model.train(was_training)
        return means(self.world.sum({key: value.item() for key, value in sums.items()}))

    def save(self) -> None:
        """Writes a checkpoint of the current step, from rank 0."""
        if self.folder is None:
            return
        folder, state = self.folder, {"step": self.step, "seconds": self.seconds, "world_size": self.world.size}
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizer)}
        self.world.on_main(lambda: str(save_checkpoint(folder, self.step, tensors, state)))

    def restore(self) -> None:
        """Continues from the newest checkpoint of the folder, if there is one."""
        checkpoints = list_checkpoints(self.folder) if self.folder else []
        newest = self.world.on_main(lambda: checkpoints[-1] if checkpoints else None)
        if newest is None:
            return
        checkpoint = load_checkpoint(newest)
        self.model.load_state_dict(checkpoint.tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, checkpoint.tensors["optimizer"])
        self.step, self.seconds = checkpoint.state["step"], checkpoint.state["seconds"]
        self.report.say(f"continuing from step {self.step}/{self.num_steps}")

    def _forward(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs in float32 and targets, on the device."""
        inputs = inputs.to(self.world.device, non_blocking=True, memory_format=self.memory_format)
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = network(inputs)
        return outputs.float(), targets.to(self.world.device, non_blocking=True)

    def _ends(self, step: Step, every_epochs: int) -> bool:
        return step.number == self.num_steps or step.number % (every_epochs * len(self.train_loader)) == 0


def random_layers_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and the like: another one each step and rank, the same whenever that step is done again."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `"layer1.0.conv1.weight/momentum_buffer" -> tensor`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {names[parameter]: number for number, parameter in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter_name, key = name.rsplit("/", 1)
        state.setdefault(numbers[parameter_name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
