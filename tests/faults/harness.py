"""Trainings of a ResNet-20 that are killed, stopped and started again, and what becomes of them. Linux only.

    pytest ── Training.start(plan) ──> the server of tests/forks.py, which has imported everything and computes nothing
                                         │ fork
                                         ▼
                                       the launcher: a process group of its own; runs the plan, then `resnet-core train`
                                         │ fork
                                         ├── rank 0 ──> loader workers      meets rank 1 in the launcher's store,
                                         └── rank 1 ──> loader workers      writes checkpoints and metrics.jsonl

A plan is a function that the launcher calls before it trains; its ranks inherit what that changes. `kill_at` replaces
the function of a phase (PHASES) by one that kills its process. With one process the launcher is rank 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.optim import SGD
from torch.utils.data import get_worker_info

from resnet_core.cli.main import main
from resnet_core.data.loaders import AugmentedBatches, Batch, PlainBatches, TrainLoader
from resnet_core.distributed import signals, world
from resnet_core.distributed.launcher import exit_rank
from resnet_core.runs import training as runs
from resnet_core.train import checkpoint, trainer
from resnet_core.train.checkpoint import list_checkpoints
from resnet_core.train.report import read_records
from tests.forks import SERVER, fork_ranks

# Phase of a training -> the function in which it is killed.
PHASES: dict[str, tuple[object, str]] = {
    "load": (AugmentedBatches, "__call__"),
    "forward": (trainer, "forward"),
    "backward": (torch.Tensor, "backward"),
    "update": (SGD, "step"),
    "evaluation": (PlainBatches, "__call__"),
    "checkpoint is written": (checkpoint, "sync"),
    "checkpoint is renamed": (Path, "rename"),
    "checkpoint is pruned": (checkpoint.shutil, "rmtree"),
}
IMAGES = 24  # of each of two classes
SETTINGS = {
    "data.name": "image_folder",
    "data.global-batch": 8,
    "data.crop-padding": 2,
    "data.flip": True,
    "data.mixup": 0.2,
    "data.train-size": 8,
    "data.eval-size": 8,
    "data.eval-resize": 8,
    "averaging.ema-decay": 0.9,
    "train.epochs": 3,
    "schedule.warmup-epochs": 1,
    "run.checkpoint-every-steps": 2,
    "run.log-every-steps": 1,
    "run.keep-checkpoints": 2,
    "run.timeout-seconds": 20,
}
STEPS = 18
SECONDS = 60  # for what takes one or two
DUMP = signal.SIGUSR1  # makes a process print what each of its threads is doing


def small_images(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for part, count in (("train", IMAGES), ("test", 8)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


@dataclass(frozen=True)
class Training:
    """`resnet-core train` on small images into `folder`."""

    folder: Path
    images: Path
    processes: int = 1
    workers: int = 0
    settings: dict[str, object] = field(default_factory=dict)

    def words(self) -> list[str]:
        settings = SETTINGS | {"data.path": self.images, "data.workers": self.workers} | self.settings
        options = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        return ["train", "digits", "--out", str(self.folder), "--processes", str(self.processes), *options]

    def start(self, plan: Callable[[], object] = bool, name: str | None = None) -> Started:
        """Starts it in a process group of its own, after `plan()` there; its output goes to a file of that name."""
        output = self.folder.with_name(f"{name or self.folder.name}.txt")
        process = SERVER.Process(target=_train, args=(self.words(), output, plan))
        process.start()
        return Started(process, output)

    def finish(self) -> str:
        """Runs it to its end; returns its output."""
        started = self.start()
        status = started.wait()
        assert status == 0, f"it ended with {status}: {started.said()}"
        return started.said()

    def digest(self) -> str:
        """SHA-256 of what the finished run ends with: the weights in use, those of the last step, the optimizer's, and
        the record of the loss of each step and of each evaluation."""
        last = list_checkpoints(self.folder / "checkpoints")[-1]
        files = [self.folder / "model.safetensors", *sorted(last.glob("*.safetensors"))]
        records = read_records(self.folder / "metrics.jsonl")
        losses = [[record[key] for key in ("event", "step", "loss")] for record in records]
        return hashlib.sha256(b"".join(map(Path.read_bytes, files)) + json.dumps(losses).encode()).hexdigest()


def _train(words: list[str], output: Path, plan: Callable[[], object]) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.register(DUMP, file=2)  # in the launcher, its ranks and their workers
    fork_ranks()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    plan()
    exit_rank(main(words))


@dataclass
class Started:
    """A training that was started."""

    process: ForkServerProcess
    output: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit status, negative for a signal. Raises TimeoutError, after killing all of it, if it does not end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill(DUMP)
            time.sleep(1)
            self.kill()
            raise TimeoutError(
                f"it did not end in {seconds} s; it said, and then where each process was: {self.said()}"
            )
        return self.process.exitcode

    def wait_for(self, text: str, seconds: float = SECONDS) -> None:
        """Returns when it has printed that text. Raises TimeoutError if it does not."""
        deadline = time.monotonic() + seconds
        while text not in self.said():
            if time.monotonic() > deadline or self.process.exitcode is not None:
                self.kill()
                raise TimeoutError(f"it did not say {text!r}; it said: {self.said()}")
            time.sleep(0.01)

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to its whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def ranks(self) -> list[int]:
        """The process ids of its ranks, as Linux lists its children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return list(map(int, children.read_text().split())) if children.exists() else []

    def gone(self, seconds: float = 5) -> bool:
        """Whether all processes of its group end within these seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False


# What `slow` slows down -> the function, what it says first, and for how long it then sleeps.
SLOW: dict[str, tuple[object, str, str, float]] = {
    "steps": (trainer, "forward", "", 0.05),
    "evaluation": (PlainBatches, "__call__", "evaluating\n", 1.0),
    "start": (runs, "join_world", "starting\n", 2.0),
}


def slow(what: str = "steps") -> None:
    """A plan: slows it down, so that there is time to do something to it."""
    owner, name, words, seconds = SLOW[what]
    whole = getattr(owner, name)

    def slowly(*arguments: object, **options: object) -> object:
        print(words, end="", flush=True)
        time.sleep(seconds)
        return whole(*arguments, **options)

    setattr(owner, name, slowly)


def kill_at(phase: str, occurrence: int, rank: int, *, before: bool, everything: bool) -> None:
    """A plan: rank `rank`, or all its group, is killed at that occurrence of the phase, before or after it is done."""
    owner, name = PHASES[phase]
    whole = getattr(owner, name)
    count = 0

    def deadly(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        now = count == occurrence and int(os.environ.get("RANK", 0)) == rank
        if now and before:
            die(everything)
        result = whole(*arguments, **options)
        if now:
            die(everything)
        return result

    setattr(owner, name, deadly)


def die(everything: bool) -> None:
    """Kills this rank, also from one of its workers, or its whole group."""
    if everything:
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getppid() if get_worker_info() else os.getpid(), signal.SIGKILL)
    time.sleep(SECONDS)  # a worker does not live on either


@dataclass
class Tally:
    """What was done to trainings, and how they ended."""

    kills: Counter[str] = field(default_factory=Counter)
    """Phase -> kills that came to pass."""
    runs: int = 0
    deviations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> str:
        record = {"kills": sum(self.kills.values()), "phases": dict(sorted(self.kills.items())), "runs": self.runs}
        return json.dumps({**record, "deviations": self.deviations, "seconds": round(self.seconds, 1)})


def tally(kills: int, seed: int, folder: Path, say: Callable[[str], None]) -> Tally:
    """Trainings on 1 and on 2 processes, each killed several times, until that many kills came to pass.

    The first kills go through the phases in order, on 1 and on 2 processes, or with few kills on either. The others are
    drawn from `seed`.
    """
    images = small_images(folder / "images")
    expected = {}
    for size in (1, 2):
        undisturbed = Training(folder / f"undisturbed-{size}", images, processes=size)
        undisturbed.finish()
        expected[size] = undisturbed.digest()
    result, draw = Tally(), random.Random(seed)
    # Number of processes -> phases in which a kill has still to come to pass.
    phases = list(PHASES)
    named = {1: phases[::2], 2: phases[1::2]} if kills < 2 * len(phases) else {1: phases[:], 2: phases[:]}
    began = time.monotonic()
    while sum(result.kills.values()) < kills:
        size = draw.choice([size for size in (1, 2) if named[size]] or [1, 2])
        training = Training(folder / f"run-{result.runs}", images, processes=size)
        steps = []
        for _ in range(draw.randint(2, 5)):
            phase = named[size][0] if named[size] else draw.choice([*PHASES, "any moment"])
            before = result.kills[phase]
            steps.append(disturb(training, phase, draw, result))
            if named[size] and result.kills[phase] > before:
                named[size].pop(0)
        last = Training(training.folder, images, processes=size, workers=draw.randint(0, 2))
        last.finish()
        result.runs += 1
        if last.digest() != expected[size]:
            result.deviations.append(f"seed {seed}, run {result.runs - 1} on {size}: {'; '.join(steps)}")
        say(f"{sum(result.kills.values())} kills, {len(result.deviations)} deviations")
    result.seconds = time.monotonic() - began
    return result


def disturb(training: Training, phase: str, draw: random.Random, result: Tally) -> str:
    """Starts the training and kills it in that phase; returns what was done."""
    training = Training(training.folder, training.images, training.processes, workers=draw.choice((0, 0, 2)))
    everything = draw.random() < 0.5
    rank = 0 if "checkpoint" in phase else draw.randrange(training.processes)
    if phase == "any moment":
        started = training.start()
        time.sleep(draw.uniform(0, 2.0))
        victims = [started.pid, *started.ranks()]
        if everything:
            started.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(victims), signal.SIGKILL)
        what = f"{'all' if everything else 'one'} at any moment"
    else:
        occurrence = draw.randint(1, 3)
        before = draw.random() < 0.5
        plan = partial(kill_at, phase, occurrence, rank, before=before, everything=everything)
        started = training.start(plan)
        what = f"{phase} {occurrence} {'before' if before else 'after'}, {'all' if everything else f'rank {rank}'}"
    status = started.wait()
    assert started.gone(), f"{what}: processes lived on"
    if status:
        assert status in (-signal.SIGKILL, 128 + signal.SIGKILL, 1), f"{what}: ended with {status}: {started.said()}"
        result.kills[phase] += 1
    return what


def by_hand(environment: dict[str, str], namespace: str | None = None) -> None:
    """A plan: a rank with this environment, on the machine that is this network namespace."""
    os.environ |= environment
    if namespace:
        with Path("/run/netns", namespace).open() as file:
            assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0


CLONE_NEWNET = 0x40000000  # of <linux/sched.h>


def limit_file_size(most: int) -> None:
    """A plan: no file may become larger, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def flip_a_bit(rank: int, step: int) -> None:
    """A plan: after that step one bit of one weight of that rank is another."""
    whole = trainer.Trainer.train_step

    def flipping(self: trainer.Trainer, *batch: torch.Tensor) -> trainer.Step:
        done = whole(self, *batch)
        if done.step == step and self.world.rank == rank:
            weight = next(self.model.parameters()).data.flatten()
            weight[:1].view(torch.int32).bitwise_xor_(1 << 12)
        return done

    trainer.Trainer.train_step = flipping  # type: ignore[method-assign]


def lose_the_loss(rank: int, step: int) -> None:
    """A plan: in that step the loss of that rank is not a number."""
    whole = trainer.Trainer._compute_gradients

    def losing(self: trainer.Trainer, *batch: torch.Tensor) -> torch.Tensor:
        loss = whole(self, *batch)
        return loss * float("nan") if self.step + 1 == step and self.world.rank == rank else loss

    trainer.Trainer._compute_gradients = losing  # type: ignore[method-assign]


def hold_data_back(step: int, ranks: Collection[int]) -> None:
    """A plan: on these ranks the batch of that step does not come."""
    signals.SECONDS_FOR_DATA, trainer.SECONDS_FOR_RANK_0 = 1, 2
    whole = TrainLoader.epoch

    def epoch(self: TrainLoader, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(whole(self, epoch, start), epoch * len(self) + start + 1):
            if number == step and int(os.environ.get("RANK", 0)) in ranks:
                print("waiting for data", flush=True)
                time.sleep(SECONDS)
            yield batch

    TrainLoader.epoch = epoch  # type: ignore[method-assign]


def signal_while_starting() -> None:
    """A plan: the launcher is asked to stop after it has started its first rank."""
    process = multiprocessing.get_context("fork").Process
    whole = process.start

    def start(self: multiprocessing.Process) -> None:
        if self.name == "rank 1":
            os.kill(os.getpid(), signal.SIGTERM)
        whole(self)

    process.start = start  # type: ignore[method-assign]


def stop_when_met() -> None:
    """A plan: rank 1 is stopped as soon as it has met the others."""
    whole = world.rendezvous

    def meet(backend: str) -> object:
        store = whole(backend)
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        return store

    world.rendezvous = meet  # type: ignore[assignment]
