"""The trainer: one loop for every network and dataset, on one process or many.

It knows `(inputs, targets)` and nothing of what they mean. Its own state is one number, the step: epoch, position,
learning rate and the seed of random layers are computed from it, so a checkpoint needs no more to continue exactly.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_core.train.averaging import WeightAverage
from resnet_core.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from resnet_core.train.distributed import World
from resnet_core.train.metrics import means
from resnet_core.train.optimizers import clip_gradients
from resnet_core.train.report import Report


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in which arithmetic to train."""

    epochs: int = 90
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: automatic mixed precision; weights, gradients and their averages stay float32."""
    channels_last: bool = False
    """Memory format NHWC, which many CPUs and GPUs convolve faster."""
    compile: bool = False
    """torch.compile the network."""
    accumulation: int = 1
    """Parts in which each process computes its batch, one after the other: less memory, the same mean gradient."""
    sync_batchnorm: bool = False
    """BatchNorm over the batches of all processes; on GPUs alone."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time; slower on GPUs."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in ("float32", "bf16"):
            raise ValueError(
                f"train.precision must be float32 or bf16, got {self.precision!r}; fp16 is not offered: its gradients "
                "need a loss scale that changes the run, and bf16 has float32's range"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run computes and how often it reports: what cannot change the weights."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPUs where there is one for each process of this machine, else the CPU."""
    log_every_steps: int = 10
    eval_every_epochs: int = 1
    checkpoint_every_epochs: int = 1
    tensorboard: bool = False
    """Write the record for TensorBoard, too."""

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "eval_every_epochs", "checkpoint_every_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, or of an evaluation, is infinite or not a number; no checkpoint of it was saved."""

    on_every_rank = True


class Batches(Protocol):
    """What the trainer needs of training data: see `resnet_core.data.TrainLoader`."""

    global_batch: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


class EvalBatches(Protocol):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step that was done."""

    step: int
    """From 1."""
    epoch: float
    loss: float
    """Mean over the ranks."""
    lr: float
    gradient_norm: float
    """Over all parameters, before clipping."""


class Trainer:
    """Trains `model` with `optimizer` on batches of `(inputs, targets)`.

    `loss_fn(outputs, targets)` is a scalar, the mean over the batch; `lr_fn(step)` is the learning rate of step
    0, 1, ..; `score_fn(outputs, targets)` gives sums over a batch with their "count" (see `train/metrics.py`).
    Every rank must hold the same model and get its own, equally large part of the batches. With an `average` of the
    weights, that is what is evaluated. With a `folder`, checkpoints are kept there and `fit()` continues from the
    newest. Without a `report` it is silent.
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
        max_gradient_norm: float = math.inf,
        average: WeightAverage | None = None,
        run: RunConfig | None = None,
        report: Report | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.optimizer, self.world = config, optimizer, world
        self.loss_fn, self.lr_fn, self.score_fn = loss_fn, lr_fn, score_fn
        self.train_loader, self.eval_loader = train_loader, eval_loader
        self.max_gradient_norm, self.average, self.run = max_gradient_norm, average, run or RunConfig()
        self.report, self.folder, self.seed = report or Report(None), folder, seed
        self.model = prepare(model, config, world)
        self.replica = world.wrap(self.model)
        self.num_steps = config.epochs * len(train_loader)
        self.step = 0  # optimizer steps done
        self.seconds = 0.0  # spent in fit() so far, also before a restart
        self.waited = 0.0  # of these for data, by this rank
        self.communicated = 0.0  # and for gradients of other ranks

    def fit(self) -> dict[str, float]:
        """Trains from the newest checkpoint, or from the start, to the end; the last evaluation's means.

        Raises NonFiniteLossError on all ranks at the same step, CheckpointError for a damaged checkpoint.
        """
        self.restore()
        self.report.start(self.step, self.num_steps)
        began = time.monotonic() - self.seconds
        logged, scores = self._now(), None
        for step in self.steps():
            if step.step % self.run.log_every_steps == 0:
                self.report.record("train", **vars(step), **self._speed(logged))
                logged = self._now()
            if self._ends(step, self.run.eval_every_epochs):
                scores = self.evaluate()
                if not all(map(math.isfinite, scores.values())):
                    raise NonFiniteLossError(
                        f"the evaluation after step {step.step} of {self.num_steps} gives {scores}: the weights are "
                        "lost and were not saved; lower the learning rate or lengthen the warm-up"
                    )
                self.report.record("eval", step=step.step, epoch=step.epoch, **scores)
                logged = self._now()
            self.seconds = time.monotonic() - began
            if self._ends(step, self.run.checkpoint_every_epochs):
                self.save()
                logged = self._now()
        return scores or self.evaluate()

    def steps(self) -> Iterator[Step]:
        """Does one optimizer step for each item it yields, up to the last: `fit`'s loop, for a loop of your own."""
        while self.step < self.num_steps:
            epoch, position = divmod(self.step, len(self.train_loader))
            batches = iter(self.train_loader.epoch(epoch, start=position))
            for _ in range(position, len(self.train_loader)):
                began = time.monotonic()
                inputs, targets = next(batches)
                self.waited += time.monotonic() - began
                step = self.train_step(inputs, targets)
                self.communicated += self.world.communication_seconds(self.replica)
                yield step

    def train_step(self, inputs: Tensor, targets: Tensor) -> Step:
        """Forward, backward, update, with this rank's part of the global batch."""
        self.model.train()
        seed_random_layers(random_layers_seed(self.seed, self.step, self.world.rank), self.world.device)
        lr = self.lr_fn(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        mean_loss = self.world.mean(self._gradients(inputs, targets)).item()
        norm = clip_gradients(self.model.parameters(), self.max_gradient_norm)
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(
                f"the loss is {mean_loss} at step {self.step + 1} of {self.num_steps}: training stopped before that "
                "update; lower the learning rate, lengthen the warm-up, or look at that batch's data"
            )
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.model, self.step)
        epoch = self.step / len(self.train_loader)
        return Step(step=self.step, epoch=epoch, loss=mean_loss, lr=lr, gradient_norm=norm.item())

    def _gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Computes the gradients of the batch's mean loss, part by part, averaged over the ranks; that mean, here."""
        self.optimizer.zero_grad()
        parts = list(zip(*(each.chunk(self.config.accumulation) for each in (inputs, targets)), strict=True))
        losses = []
        for number, (part, wanted) in enumerate(parts, 1):
            with self.world.apart(self.replica) if number < len(parts) else nullcontext():
                outputs, wanted = forward(self.replica, part, wanted, self.config, self.world)
                loss = self.loss_fn(outputs, wanted) * (len(part) / len(inputs))
                loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def evaluate(self) -> dict[str, float]:
        """Means over all samples of the evaluation data, each counted once, with rank 0's buffers on every rank."""
        was_training = self.model.training
        with self.average.inside(self.model) if self.average else nullcontext():
            self.world.share_buffers(self.model)
            scores = evaluate(self.model.eval(), self.eval_loader, self.score_fn, self.config, self.world)
        self.model.train(was_training)
        return scores

    def weights(self) -> dict[str, Tensor]:
        """The weights and buffers to use: the average where there is one."""
        return (self.average and self.average.tensors) or self.model.state_dict()

    def _now(self) -> Moment:
        return Moment(self.step, time.monotonic(), self.waited, self.communicated)

    def _speed(self, since: Moment) -> dict[str, float]:
        """Samples per second of all ranks; the shares of the time that rank 0 waited, the rest it computed; memory."""
        steps, seconds, waited, communicated = (now - then for now, then in zip(self._now(), since, strict=True))
        return {
            "samples_per_second": steps * self.train_loader.global_batch / seconds,
            "data_wait": waited / seconds,
            "communication_wait": communicated / seconds,
            "peak_memory_gib": self.world.peak_memory() / 2**30,
        }

    def save(self) -> None:
        """Writes a checkpoint of the current step, from rank 0."""
        if self.folder is None:
            return
        folder, state = self.folder, {"step": self.step, "seconds": self.seconds, "world_size": self.world.size}
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizer)}
        if self.average:
            tensors["average"] = self.average.tensors
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
        if self.average:
            self.average.load(checkpoint.tensors["average"], self.model)
        self.step, self.seconds = checkpoint.state["step"], checkpoint.state["seconds"]
        self.report.say(f"continuing from step {self.step}/{self.num_steps}")

    def _ends(self, step: Step, every_epochs: int) -> bool:
        return step.step == self.num_steps or step.step % (every_epochs * len(self.train_loader)) == 0


class Moment(NamedTuple):
    """A moment of a run; the difference of two is a speed."""

    step: int
    seconds: float
    waited: float
    communicated: float


def prepare(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """The model on its device in the form that the configuration asks for. Raises ValueError where that cannot be."""
    if config.sync_batchnorm:
        if world.device.type != "cuda":
            raise ValueError(
                "train.sync_batchnorm: torch synchronises BatchNorm on GPUs alone; leave it out on the CPU, or make "
                "each process's batch large enough for statistics of its own"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS demands for it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    model = model.to(world.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.compile:
        model.compile()
    return model


def forward(
    network: nn.Module, inputs: Tensor, targets: Tensor, config: TrainConfig, world: World
) -> tuple[Tensor, Tensor]:
    """Outputs, at least in float32, and targets, on the device."""
    memory_format = torch.channels_last if config.channels_last else torch.preserve_format
    inputs = inputs.to(world.device, non_blocking=True, memory_format=memory_format)
    with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        outputs = network(inputs)
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs, targets.to(world.device, non_blocking=True)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: EvalBatches,
    score_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    config: TrainConfig,
    world: World,
) -> dict[str, float]:
    """Means over the samples of all ranks' batches, each counted once; `model` is `prepare`'s, in evaluation mode."""

    def sums_of_this_rank() -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        for inputs, targets in loader:
            for key, value in score_fn(*forward(model, inputs, targets, config, world)).items():
                sums[key] = sums[key] + value if key in sums else value
        return {key: value.item() for key, value in sums.items()}

    return means(world.sum(world.together(sums_of_this_rank)))


def random_layers_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and the like: another one each step and rank, the same whenever that step is done again."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def seed_random_layers(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does for the generators that a step draws from: the CPU's and its own GPU's.

    Torch's also looks for kinds of accelerators that are not there, which takes as long as a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


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
