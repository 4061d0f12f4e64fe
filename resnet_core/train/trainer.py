"""The trainer: one loop for every network and dataset, on one process or many.

It knows `(inputs, targets)` and not what they mean. Its own state is one number, the step: epoch, position, learning
rate and the seed of random layers are computed from it, so a checkpoint needs nothing more to continue exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_core.distributed.signals import StoppedError, batches_or_stop
from resnet_core.distributed.world import World
from resnet_core.foundation.errors import ReportedError
from resnet_core.train.averaging import WeightAverage
from resnet_core.train.checkpoint import CheckpointWriter
from resnet_core.train.config import RunConfig, TrainConfig
from resnet_core.train.evaluate import EvaluationBatches, evaluate
from resnet_core.train.forward import forward, input_format, prepare_model, unchanged
from resnet_core.train.graphs import RecordedGradients
from resnet_core.train.optimizers import clip_gradients
from resnet_core.train.report import Report
from resnet_core.train.resume import Learned, renumber, resume
from resnet_core.train.seeds import random_layers_seed, seed_random_layers


class NonFiniteLossError(ArithmeticError, ReportedError):
    """The loss of a step, or of an evaluation, is infinite or not a number; no checkpoint of it was saved."""

    on_every_rank = True

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        """The step that failed, counted from 0; None where an evaluation did."""


class TrainingBatches(Protocol):
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


# What rank 0 announces where data do not come, and how long the other ranks wait for that.
SAVING, SAVED = "saving", "saved"
SECONDS_FOR_RANK_0, SECONDS_TO_SAVE = 5.0, 300.0


@dataclass(frozen=True)
class Progress:
    """How far training has come in this process, and where its time went, in seconds."""

    step: int
    time: float
    data_wait: float
    communication_wait: float


@dataclass(eq=False, repr=False)
class Trainer:
    """Trains `model` with `optimizer` on batches of `(inputs, targets)`.

    `loss_fn(outputs, targets)` returns the mean over the batch as a scalar. `lr_fn(step)` returns the learning rate of
    step 0, 1, .. `score_fn(outputs, targets)` returns sums over a batch and their "count" (see `train/metrics.py`).
    Every rank holds the same model and gets its own, equally large part of each global batch. The network gets
    `prepare_inputs(inputs)`, computed on the device: a batch may travel there in fewer bytes.

    With an `average` of the weights, the average is evaluated. With a `folder`, checkpoints are saved there, `fit()`
    continues from the newest, `about` is saved in each, and the one with the highest `score_name` is kept. With a
    `report`, progress is recorded and shown. When `stop_asked()` returns True on any rank, `fit()` saves a checkpoint
    and raises StoppedError.
    """

    config: TrainConfig
    model: nn.Module
    optimizer: Optimizer
    _: KW_ONLY
    world: World
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    lr_fn: Callable[[int], float]
    train_loader: TrainingBatches
    eval_loader: EvaluationBatches
    score_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
    prepare_inputs: Callable[[Tensor], Tensor] = unchanged
    max_gradient_norm: float = math.inf
    average: WeightAverage | None = None
    run: RunConfig = field(default_factory=RunConfig)
    report: Report = field(default_factory=partial(Report, quiet=True))
    folder: str | Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    score_name: str = "top1"
    stop_asked: Callable[[], bool] = lambda: False
    seed: int = 0

    def __post_init__(self) -> None:
        self.folder = Path(self.folder) if self.folder else None
        self.run = self.run or RunConfig()  # None asks for what is usual, as do the next two
        self.report = self.report or Report(quiet=True)
        self.about = dict(self.about or {})
        self.model = prepare_model(self.model, self.config, self.world)
        self.replica = self.world.wrap(self.model)
        self.compute_gradients: Callable[[Tensor, Tensor], Tensor] = self._compute_gradients
        if self.config.cuda_graphs:
            self.compute_gradients = RecordedGradients(
                self._compute_gradients, self.model, memory_format=input_format(self.config)
            )
        self.num_steps = self.config.epochs * len(self.train_loader)
        self.writer = CheckpointWriter(self.folder, keep=self.run.keep_checkpoints) if self.folder else None

        self.step = 0  # optimizer steps done
        self.saved_step = -1  # the step of the newest checkpoint
        self.restored = False  # whether `restore()` has looked for one
        self.scores: dict[str, float] | None = None  # of the current weights, once they are evaluated
        self.stopping = False  # whether any rank was asked to stop
        self.unchecked: list[tuple[int, Tensor]] = []  # step -> its loss and norm, which are still on the device
        self.seconds = 0.0  # spent in fit(), also before a restart
        self.data_wait = 0.0  # of these, waiting for batches, on this rank
        self.communication_wait = 0.0  # and waiting for other ranks' gradients

    def fit(self) -> dict[str, float]:
        """Trains from the newest checkpoint, or from the start, to the end; returns the last evaluation's means.

        Every rank raises at the same step: StoppedError when any was asked to stop, NonFiniteLossError, ReplicaError,
        CheckpointError when no checkpoint can be used, and OSError when one cannot be written.
        """
        if self.step == 0 and not self.restored:
            self.restore()
        self.report.start(self.step, self.num_steps, evaluated=self.scores is not None)
        try:
            with self.report:
                return self._fit()
        finally:
            if self.writer:
                self.writer.finish()

    def _fit(self) -> dict[str, float]:
        began = time.monotonic() - self.seconds
        if self.step:
            self._evaluate_if_due()  # a run that was stopped may not have come to it

        logged = self._progress()
        for step in self.steps():
            if step.step % self.run.log_every_steps == 0:
                self.report.record("train", **vars(step), **self._speed_since(logged))
                logged = self._progress()

            self.seconds = time.monotonic() - began
            if self.stopping:
                self._stop()
            evaluated = self._evaluate_if_due()
            self.seconds = time.monotonic() - began
            saved = self._save_if_due()
            if evaluated or saved:
                logged = self._progress()  # the next record's speed is that of training only
        return self.scores or self.evaluate()

    def steps(self) -> Iterator[Step]:
        """Does one optimizer step for each item it yields, up to the last one: `fit`'s loop, for a loop of your own.

        With `run.check_every_steps` above 1 it yields only the steps at which losses are checked. Raises ValueError
        when a batch has fewer samples than `accumulation` parts, and otherwise what `fit` raises.
        """
        self.config.smallest_part(self.train_loader.global_batch // self.world.size)
        while self.step < self.num_steps:
            epoch, position = divmod(self.step, len(self.train_loader))
            batches = batches_or_stop(iter(self.train_loader.epoch(epoch, start=position)))
            for _ in range(position, len(self.train_loader)):
                began = time.monotonic()
                inputs, targets = self._next(batches)
                self.data_wait += time.monotonic() - began

                step = self.train_step(inputs, targets)
                self.communication_wait += self.world.communication_seconds(self.replica)

                every = self.run.compare_replicas_every_steps
                if every and self.step % every == 0:
                    self.compare_replicas()
                if step:
                    yield step

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        try:
            return next(batches)
        except StoppedError:
            self._stop_without_data()

    def train_step(self, inputs: Tensor, targets: Tensor) -> Step | None:
        """Forward, backward and update with this rank's part of the global batch; None if its loss is checked later."""
        self.model.train()
        seed_random_layers(random_layers_seed(self.seed, self.step, self.world.rank), self.world.device)
        lr = self.lr_fn(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

        loss = self.compute_gradients(inputs, targets)
        gradient_norm = clip_gradients(self.model.parameters(), self.max_gradient_norm)

        # A request to stop travels with the loss, so that all ranks learn of it in the same step.
        stop = self.stop_asked() or (self.writer is not None and self.writer.failed())
        means = self.world.mean(torch.stack([loss, torch.full_like(loss, stop)]))
        self.unchecked.append((self.step, torch.cat([means, gradient_norm[None]])))
        checked = self._check_losses() if self._check_is_due() else None

        self.optimizer.step()
        self.step += 1
        self.scores = None
        if self.average:
            self.average.update(self.model, self.step)
        if checked is None:
            return None
        mean_loss, norm = checked
        epoch = self.step / len(self.train_loader)
        return Step(step=self.step, epoch=epoch, loss=mean_loss, lr=lr, gradient_norm=norm)

    def _check_is_due(self) -> bool:
        """Whether this step's loss is checked at once, as before all that is logged, evaluated or saved."""
        every = self.run.check_every_steps, self.run.log_every_steps, self.run.checkpoint_every_steps
        return any(steps and (self.step + 1) % steps == 0 for steps in (*every, len(self.train_loader)))

    def _check_losses(self) -> tuple[float, float]:
        """The last step's loss and gradients' norm. Raises NonFiniteLossError for the first step that has lost one."""
        measured = [(step, *values.tolist()) for step, values in self.unchecked]  # the only wait for the GPU
        self.unchecked.clear()
        self.stopping = any(stops > 0 for _, _, stops, _ in measured)

        for step, loss, _, norm in measured:
            if not (math.isfinite(loss) and math.isfinite(norm)):
                lost = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradients' norm is {norm}"
                late = self.step - step
                when = f"{late} step{'s' * (late > 1)} later, with nothing saved" if late else "before that update"
                raise NonFiniteLossError(
                    f"{lost} at step {step + 1} of {self.num_steps}: training stopped {when}; lower the learning rate, "
                    "lengthen the warm-up, or look at that batch's data",
                    step=step,
                )
        return loss, norm

    def _compute_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Accumulates this rank's gradients, averages them over the ranks, and returns this rank's mean loss."""
        self.optimizer.zero_grad()
        num_parts = self.config.accumulation
        parts = zip(inputs.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True)
        losses = []
        for number, (part, part_targets) in enumerate(parts, 1):
            # Only the last part's backward exchanges gradients with the other ranks.
            with self.world.no_sync(self.replica) if number < num_parts else nullcontext():
                outputs, part_targets = forward(
                    self.replica, part, part_targets, self.config, self.world, self.prepare_inputs
                )
                loss = self.loss_fn(outputs, part_targets) * (len(part) / len(inputs))
                loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def evaluate(self) -> dict[str, float]:
        """Means over all samples of the evaluation data, each counted once, with rank 0's buffers on every rank."""
        was_training = self.model.training
        with self.average.swapped_into(self.model) if self.average else nullcontext():
            self.world.share_buffers(self.model)
            scores = evaluate(
                self.model.eval(),
                self.eval_loader,
                self.score_fn,
                self.config,
                self.world,
                self.stop_asked,
                self.prepare_inputs,
            )
        self.model.train(was_training)
        return scores

    def _evaluate_if_due(self) -> bool:
        if self.scores is not None or not self._ends_epochs(self.run.eval_every_epochs):
            return False
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
        return True

    def _save_if_due(self) -> bool:
        every_steps = self.run.checkpoint_every_steps
        within_epoch = every_steps > 0 and self.step % every_steps == 0
        if not (within_epoch or self._ends_epochs(self.run.checkpoint_every_epochs)):
            return False
        self.save(wait=self.step == self.num_steps)
        return True

    def _ends_epochs(self, every: int) -> bool:
        return self.step == self.num_steps or self.step % (every * len(self.train_loader)) == 0

    def _stop(self) -> NoReturn:
        self.save()
        raise StoppedError(self._stopped_message())

    def _stopped_message(self) -> str:
        where = f"stopped after step {self.step} of {self.num_steps}"
        if self.writer is None:
            return f"{where}; nothing was saved because no folder was given"
        return f"{where}, saved; the same command continues the run"

    def _stop_without_data(self) -> NoReturn:
        """Ends the run on a rank that waits for data in vain, where the ranks need not be at the same place.

        Rank 0 has all that a checkpoint holds. Where it waits for data, too, it saves the last finished step. Else it
        waits inside the next step for this rank's gradients, and its buffers have seen that step's batch.
        """
        if self.world.is_main:
            if self.unchecked:
                self._check_losses()
            self.world.announce(SAVING)
            if self.writer and self.step != self.saved_step:
                self._write()
                self.writer.wait()
            self.world.announce(SAVED)
        elif self.world.announced(SAVING, within_seconds=SECONDS_FOR_RANK_0):
            self.world.announced(SAVED, within_seconds=SECONDS_TO_SAVE)
        else:
            start = f"continues from step {self.saved_step}" if self.saved_step >= 0 else "starts the run again"
            error = StoppedError(
                f"stopped in step {self.step + 1} of {self.num_steps}: its data did not come; the same command {start}"
            )
            error.on_every_rank = False
            raise error
        raise StoppedError(self._stopped_message())

    def weights(self) -> dict[str, Tensor]:
        """The weights and buffers to use: their average, where there is one."""
        if self.average and self.average.tensors:
            return self.average.tensors
        return self.model.state_dict()

    def _progress(self) -> Progress:
        return Progress(self.step, time.monotonic(), self.data_wait, self.communication_wait)

    def _speed_since(self, before: Progress) -> dict[str, float]:
        """Samples per second of all ranks, the shares of the time that rank 0 waited, and its memory."""
        now = self._progress()
        seconds = now.time - before.time
        return {
            "samples_per_second": (now.step - before.step) * self.train_loader.global_batch / seconds,
            "data_wait": (now.data_wait - before.data_wait) / seconds,
            "communication_wait": (now.communication_wait - before.communication_wait) / seconds,
            "peak_memory_gib": self.world.peak_memory() / 2**30,
        }

    def compare_replicas(self) -> None:
        """Raises ReplicaError on every rank when the ranks' weights are not equal to the bit.

        BatchNorm's statistics are not compared: each rank has its own.
        """
        self.world.compare(dict(self.model.named_parameters()), when=f"after step {self.step} of {self.num_steps}")

    def save(self, *, wait: bool = True) -> None:
        """Writes a checkpoint of the current step from rank 0, unless it is written already.

        Without `wait` it is written while training goes on, and an error in writing ends `fit()` at the next step.
        Raises OSError when it cannot be written, CheckpointError when the folder has another run's of that step.
        """
        if self.writer is None:
            return
        if self.step != self.saved_step:
            if self.run.compare_replicas_every_steps:
                self.compare_replicas()
            self.world.run_on_rank_0(self._write)
            self.saved_step = self.step
        if wait:
            self.world.run_on_rank_0(self.writer.wait)

    def _write(self) -> None:
        """Starts to write a checkpoint of the current step, on rank 0."""
        assert self.writer is not None
        self.writer.save(self.step, self._learned().tensors(), self._state())

    def _learned(self) -> Learned:
        return Learned(self.model, self.optimizer, self.average)

    def _state(self) -> dict[str, Any]:
        """A checkpoint's plain values."""
        return {
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

        `fit()` does this unless it was done before. Raises CheckpointError when all checkpoints are damaged, or when
        the newest belongs to another network or optimizer.
        """
        self.restored = True
        if self.folder is None:
            return
        folder = Path(self.folder)
        resumed = resume(
            folder,
            self._learned(),
            steps_per_epoch=len(self.train_loader),
            num_steps=self.num_steps,
            world=self.world,
            report=self.report,
        )
        if resumed is None:
            return

        self.step = self.saved_step = resumed.step
        self.scores = resumed.scores
        self.seconds = resumed.seconds
        if resumed.was_renumbered:
            self.saved_step = -1
            renumber(folder, self.step, self.save, self.world)
        self.report.say(f"continuing from step {self.step}/{self.num_steps}")
