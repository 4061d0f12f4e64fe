"""The trainer: one loop for every network and dataset, on one process or many.

It knows `(inputs, targets)` and nothing of what they mean. Its own state is one number, the step: epoch, position,
learning rate and the seed of random layers are computed from it, so a checkpoint needs no more to continue exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_core.distributed.signals import StoppedError
from resnet_core.distributed.world import World
from resnet_core.train.averaging import WeightAverage
from resnet_core.train.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    Tensors,
    find_newest,
    list_checkpoints,
    load_checkpoint,
    path_of,
    remove_leftovers,
    set_aside,
)
from resnet_core.train.config import RunConfig, TrainConfig
from resnet_core.train.evaluate import EvalBatches, evaluate
from resnet_core.train.forward import forward, prepare_model
from resnet_core.train.optimizers import clip_gradients, load_optimizer_tensors, optimizer_tensors
from resnet_core.train.report import Report
from resnet_core.train.seeds import random_layers_seed, seed_random_layers


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, or of an evaluation, is infinite or not a number; no checkpoint of it was saved."""

    on_every_rank = True

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        """From 0, the step that could not be done; None for an evaluation."""


class Batches(Protocol):
    """What the trainer needs of training data: see `resnet_core.data.TrainLoader`."""

    global_batch: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


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


def never() -> bool:
    return False


class Trainer:
    """Trains `model` with `optimizer` on batches of `(inputs, targets)`.

    `loss_fn(outputs, targets)` is a scalar, the mean over the batch; `lr_fn(step)` is the learning rate of step
    0, 1, ..; `score_fn(outputs, targets)` gives sums over a batch with their "count" (see `train/metrics.py`).
    Every rank must hold the same model and get its own, equally large part of the batches. With an `average` of the
    weights, that is what is evaluated. With a `folder`, checkpoints are kept there and `fit()` continues from the
    newest; `about` is kept with them, and the one whose evaluation has the highest `score_name` is kept longest.
    Without a `report` it is silent. Where `stop_asked()` gets true on some rank, `fit()` saves and raises StoppedError.
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
        about: Mapping[str, Any] | None = None,
        score_name: str = "top1",
        stop_asked: Callable[[], bool] = never,
        seed: int = 0,
    ) -> None:
        self.config, self.optimizer, self.world = config, optimizer, world
        self.loss_fn, self.lr_fn, self.score_fn = loss_fn, lr_fn, score_fn
        self.train_loader, self.eval_loader = train_loader, eval_loader
        self.max_gradient_norm, self.average, self.run = max_gradient_norm, average, run or RunConfig()
        self.report, self.folder, self.seed = report or Report(None), folder, seed
        self.about, self.score_name, self.stop_asked = dict(about or {}), score_name, stop_asked
        self.writer = CheckpointWriter(folder, keep=self.run.keep_checkpoints) if folder else None
        self.model = prepare_model(model, config, world)
        self.replica = world.wrap(self.model)
        self.num_steps = config.epochs * len(train_loader)
        self.step = 0  # optimizer steps done
        self.saved_step = -1  # and of these in the newest checkpoint
        self.scores: dict[str, float] | None = None  # of the weights as they are, where they were evaluated
        self.stopping = False  # whether some rank was asked to stop
        self.seconds = 0.0  # spent in fit() so far, also before a restart
        self.waited = 0.0  # of these for data, by this rank
        self.communicated = 0.0  # and for gradients of other ranks

    def fit(self) -> dict[str, float]:
        """Trains from the newest checkpoint, or from the start, to the end; the last evaluation's means.

        Every rank raises, at the same step, StoppedError where one was asked to stop, NonFiniteLossError, ReplicaError,
        CheckpointError where no checkpoint can be used, and OSError where one cannot be written.
        """
        if self.step == 0:
            self.restore()
        self.report.start(self.step, self.num_steps, evaluated=self.scores is not None)
        try:
            return self._fit()
        finally:
            if self.writer:
                self.writer.finish()

    def _fit(self) -> dict[str, float]:
        began = time.monotonic() - self.seconds
        if self.step:
            self._evaluate_if_due()  # what a run that stopped had not come to
        logged = self._now()
        for step in self.steps():
            if step.step % self.run.log_every_steps == 0:
                self.report.record("train", **vars(step), **self._speed(logged))
                logged = self._now()
            self.seconds = time.monotonic() - began
            if self.stopping:
                self._stop()
            evaluated = self._evaluate_if_due()
            self.seconds = time.monotonic() - began
            if self._save_if_due() or evaluated:
                logged = self._now()
        return self.scores or self.evaluate()

    def _evaluate_if_due(self) -> bool:
        due = self._ends_epochs(self.run.eval_every_epochs) and self.scores is None
        if due:
            try:
                scores = self.evaluate()
            except StoppedError:
                self._stop()
            if not all(map(math.isfinite, scores.values())):
                raise NonFiniteLossError(
                    f"the evaluation after step {self.step} of {self.num_steps} gives {scores}: the weights are lost "
                    "and were not saved; lower the learning rate or lengthen the warm-up"
                )
            self.report.record("eval", step=self.step, epoch=self.step / len(self.train_loader), **scores)
            self.scores = scores
        return due

    def _save_if_due(self) -> bool:
        every_steps = self.run.checkpoint_every_steps
        within = every_steps > 0 and self.step % every_steps == 0
        due = within or self._ends_epochs(self.run.checkpoint_every_epochs)
        if due:
            self.save(wait=self.step == self.num_steps)
        return due

    def _stop(self) -> NoReturn:
        self.save()
        saved = "saved" if self.writer else "not saved, for want of a folder"
        raise StoppedError(f"stopped after step {self.step} of {self.num_steps}, {saved}")

    def steps(self) -> Iterator[Step]:
        """Does one optimizer step for each item it yields, up to the last: `fit`'s loop, for a loop of your own.

        Raises ValueError where a batch cannot be computed in so many parts, and otherwise as `fit`.
        """
        self.config.smallest_part(self.train_loader.global_batch // self.world.size)
        while self.step < self.num_steps:
            epoch, position = divmod(self.step, len(self.train_loader))
            batches = iter(self.train_loader.epoch(epoch, start=position))
            for _ in range(position, len(self.train_loader)):
                began = time.monotonic()
                inputs, targets = next(batches)
                self.waited += time.monotonic() - began
                step = self.train_step(inputs, targets)
                self.communicated += self.world.communication_seconds(self.replica)
                every = self.run.compare_replicas_every_steps
                if every and self.step % every == 0:
                    self.compare_replicas()
                yield step

    def train_step(self, inputs: Tensor, targets: Tensor) -> Step:
        """Forward, backward, update, with this rank's part of the global batch."""
        self.model.train()
        seed_random_layers(random_layers_seed(self.seed, self.step, self.world.rank), self.world.device)
        lr = self.lr_fn(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        loss = self._gradients(inputs, targets)
        norms = clip_gradients(self.model.parameters(), self.max_gradient_norm)[None]
        stop = self.stop_asked() or (self.writer is not None and self.writer.failed())
        # The request travels with the loss: so all ranks know of it in the same step.
        means = self.world.mean(torch.stack([loss, loss.new_tensor(stop)]))
        mean_loss, asked, norm = torch.cat([means, norms]).tolist()  # the one wait for the GPU
        self.stopping = asked > 0
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            lost = f"the loss is {mean_loss}" if not math.isfinite(mean_loss) else f"the gradients' norm is {norm}"
            raise NonFiniteLossError(
                f"{lost} at step {self.step + 1} of {self.num_steps}: training stopped before that "
                "update; lower the learning rate, lengthen the warm-up, or look at that batch's data",
                step=self.step,
            )
        self.optimizer.step()
        self.step, self.scores = self.step + 1, None
        if self.average:
            self.average.update(self.model, self.step)
        epoch = self.step / len(self.train_loader)
        return Step(step=self.step, epoch=epoch, loss=mean_loss, lr=lr, gradient_norm=norm)

    def _gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Computes the gradients of the batch's mean loss, part by part, averaged over the ranks; that mean, here."""
        self.optimizer.zero_grad()
        parts = list(zip(*(each.tensor_split(self.config.accumulation) for each in (inputs, targets)), strict=True))
        losses = []
        for number, (part, wanted) in enumerate(parts, 1):
            with self.world.no_sync(self.replica) if number < len(parts) else nullcontext():
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
            scores = evaluate(
                self.model.eval(), self.eval_loader, self.score_fn, self.config, self.world, self.stop_asked
            )
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

    def compare_replicas(self) -> None:
        """Raises ReplicaError on every rank where the ranks' weights are not equal to the bit.

        BatchNorm's statistics are not compared: each rank has its own.
        """
        self.world.compare(dict(self.model.named_parameters()), when=f"after step {self.step} of {self.num_steps}")

    def save(self, *, wait: bool = True) -> None:
        """Writes a checkpoint of the current step, from rank 0, unless there is one.

        Without `wait` it is written while training goes on, and what fails then ends `fit()` at the next step. Raises
        OSError where it cannot be written, CheckpointError where another run's of that step is in the folder.
        """
        if self.writer is None:
            return
        if self.step != self.saved_step:
            if self.run.compare_replicas_every_steps:
                self.compare_replicas()
            self.world.run_on_rank_0(partial(self.writer.save, self.step, *self._state()))
            self.saved_step = self.step
        if wait:
            self.world.run_on_rank_0(self.writer.wait)

    def _state(self) -> tuple[Tensors, dict[str, Any]]:
        """A checkpoint's tensors and plain values."""
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizer)}
        if self.average:
            tensors["average"] = self.average.tensors
        return tensors, {
            **self.about,
            "step": self.step,
            "steps_per_epoch": len(self.train_loader),
            "seconds": self.seconds,
            "world_size": self.world.size,
            "scores": self.scores,
            "score": (self.scores or {}).get(self.score_name),
            "optimizer": type(self.optimizer).__name__,
        }

    def restore(self) -> None:
        """Continues from the newest whole checkpoint of the folder, if there is one; damaged ones are set aside.

        Raises CheckpointError where all are damaged, or where it is of another network or optimizer.
        """
        if self.folder is None:
            return
        folder = self.folder

        def choose() -> tuple[Path | None, list[str]]:
            remove_leftovers(Path(folder))
            newest, damaged = find_newest(folder)
            set_aside(damaged, "damaged")
            return newest, [str(error).split(";")[0] for error in damaged.values()]

        newest, damaged = self.world.run_on_rank_0(choose)
        for reason in damaged:
            self.report.say(f"{reason}; it was set aside, and the checkpoint before it is used")
        if newest is None:
            return
        checkpoint = self.world.gather_or_raise(lambda: load_checkpoint(newest))
        state = checkpoint.state
        if state["optimizer"] != type(self.optimizer).__name__:
            raise CheckpointError(
                f"{newest} is of the optimizer {state['optimizer']}, and this is {type(self.optimizer).__name__}; "
                f"{OTHERWISE}"
            )
        try:
            self._load(checkpoint.tensors)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{newest} is of another network ({str(error).splitlines()[-1].strip()}); {OTHERWISE}"
            ) from error
        self.step = round(state["step"] / state["steps_per_epoch"] * len(self.train_loader))
        if self.step > self.num_steps:
            raise CheckpointError(
                f"{newest} has done {self.step} steps, and training now ends after {self.num_steps}; {OTHERWISE}"
            )
        same_epochs = state["steps_per_epoch"] == len(self.train_loader)
        self.scores = state["scores"] if same_epochs else None
        self.seconds, self.saved_step = state["seconds"], self.step
        if self.step != state["step"]:
            self._renumber()
        self.report.say(f"continuing from step {self.step}/{self.num_steps}")

    def _renumber(self) -> None:
        """Saves under the number that the step has in epochs of another length; other checkpoints are set aside.

        Whatever ends the process, the newest checkpoint is the one that was continued from, or the same renumbered.
        """
        assert self.folder is not None
        self.saved_step = -1
        here = path_of(self.folder, self.step)
        others = [path for path in list_checkpoints(self.folder) if path != here]
        self.world.run_on_rank_0(lambda: set_aside([here] if here.exists() else [], "earlier"))
        self.save()
        self.world.run_on_rank_0(lambda: set_aside(others, "earlier"))

    def _load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, tensors["optimizer"])
        if self.average:
            self.average.load(tensors.get("average", {}), self.model)

    def _ends_epochs(self, every: int) -> bool:
        return self.step == self.num_steps or self.step % (every * len(self.train_loader)) == 0


OTHERWISE = "continue as it began, or start in another folder"


class Moment(NamedTuple):
    """A moment of a run; the difference of two is a speed."""

    step: int
    seconds: float
    waited: float
    communicated: float
