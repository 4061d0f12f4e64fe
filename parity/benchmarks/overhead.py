"""`python -m parity.benchmarks.overhead`: the trainer beside a loop by hand; two processes beside two threads."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resnet_core
from docs.by_hand import train
from parity.benchmarks.turns import Medians, compare, print_heading, seconds
from resnet_core.train import TrainConfig, Trainer, World, join_world, launch
from resnet_core.train.metrics import classification_sums
from resnet_core.train.schedules import Schedule, ScheduleConfig

BOUND = 1.03  # of the trainer's step over the loop's
CLASSES, LR = 10, 0.05
STEPS_PER_EPOCH, EPOCHS = 100, 1000
ROUNDS, STEPS, BATCH = 5, 8, 64  # of the comparison of processes


@dataclass(frozen=True)
class InMemory:
    """The same `(images [N, 3, H, W], labels [N])` at every step, so that only the step takes time."""

    images: Tensor
    labels: Tensor
    global_batch: int

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(self.images, self.labels)] * (STEPS_PER_EPOCH - start))


def in_memory(batch: int, size: int, processes: int = 1) -> InMemory:
    """This process's part of a global batch of noise."""
    own = batch // processes
    return InMemory(torch.randn(own, 3, size, size), torch.arange(own) % CLASSES, global_batch=batch)


def lr_fn() -> Schedule:
    config = ScheduleConfig(warmup_epochs=1.0)
    return Schedule(config=config, peak=LR, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)


def by_trainer(model: nn.Module, batches: InMemory, world: World | None = None) -> Iterator[float]:
    """The loss of each step of the trainer."""
    trainer = Trainer(
        TrainConfig(epochs=EPOCHS),
        model,
        sgd(model),
        world=world or World(),
        loss_fn=F.cross_entropy,
        lr_fn=lr_fn(),
        train_loader=batches,
        eval_loader=(),
        score_fn=classification_sums,
    )
    return (step.loss for step in trainer.steps())


def by_hand(model: nn.Module, batches: InMemory) -> Iterator[float]:
    """The loss of each step of the loop in docs/by_hand.py."""
    every_batch = (batch for epoch in range(EPOCHS) for batch in batches.epoch(epoch))
    return train(model, sgd(model), every_batch, lr_fn())


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )


def resnet50() -> nn.Module:
    return resnet_core.resnet50(num_classes=CLASSES)


def several(steps: Iterator[float], number: int) -> Callable[[], object]:
    return lambda: list(islice(steps, number))


def overhead(what: str, build: Callable[[], nn.Module], *, batch: int, size: int, steps: int, runs: int) -> Medians:
    """Times `steps` steps of each in turn and prints them."""
    batches = in_memory(batch, size)
    sides = (several(make(build(), batches), steps) for make in (by_trainer, by_hand))
    unit = "a step" if steps == 1 else f"{steps} steps"
    return compare(f"{what}, batch {batch}, {size} px, {unit}", *sides, runs=runs)


def rank(path: Path, threads: int) -> int:
    """One of the processes that train together; rank 0 writes the seconds of STEPS steps to `path`."""
    torch.set_num_threads(threads)  # OMP_NUM_THREADS does not count here
    with join_world("cpu") as world:
        torch.manual_seed(0)
        steps = by_trainer(resnet_core.cifar_resnet20(), in_memory(BATCH, 32, world.size), world)
        several(steps, 2)()
        elapsed = seconds(several(steps, STEPS))
        if world.is_main:
            path.write_text(str(elapsed))
    return 0


def images_per_second(processes: int, threads: int) -> float:
    """Of `processes` new processes together, with this many threads each. Raises RuntimeError if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds"
        status = launch(rank, (path, threads), processes)
        if status != 0:
            raise RuntimeError(f"training in {processes} processes ended with status {status}")
        return STEPS * BATCH / float(path.read_text())


def processes_and_threads() -> None:
    """Prints images per second of two processes with one thread each and of one process with two, in turn."""
    print(f"\ncifar_resnet20, global batch {BATCH}, 32 px: images/s, {STEPS} steps a round\n")
    print(f"{'':<9}{'2 processes x 1 thread':>24}{'1 process x 2 threads':>24}{'ratio':>8}")
    rounds = []
    for number in range(1, ROUNDS + 1):
        two, one = images_per_second(2, 1), images_per_second(1, 2)
        rounds.append((two, one, two / one))
        print(f"round {number:<3}{two:>24,.0f}{one:>24,.0f}{two / one:>8.2f}", flush=True)
    two, one, ratio = map(statistics.median, zip(*rounds, strict=True))
    print(f"{'median':<9}{two:>24,.0f}{one:>24,.0f}{ratio:>8.2f}")


def main() -> int:
    argparse.ArgumentParser(prog="python -m parity.benchmarks.overhead", description=__doc__).parse_args()
    torch.set_num_threads(1)  # waiting for threads is not the loop's time
    print_heading("the trainer : a loop by hand")
    bounded = [
        overhead("cifar_resnet20", resnet_core.cifar_resnet20, batch=128, size=32, steps=1, runs=60),
        overhead("resnet50", resnet50, batch=8, size=64, steps=1, runs=40),
    ]
    smallest = overhead("one convolution", tiny, batch=8, size=8, steps=200, runs=20)
    added = (smallest.ours - smallest.reference) / 200
    highest = max(medians.ratio for medians in bounded)
    print(f"\nthe trainer adds {added * 1e6:,.0f} microseconds to a step of one convolution")
    print(f"with a network its step takes up to {highest:.3f} of the loop's; {BOUND} is allowed")
    processes_and_threads()
    return 0 if highest <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
