"""`python -m parity.benchmarks.speed`: ours beside torchvision's and torch's, alternating in one run; medians."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import resnet_core

BATCH, SIZE = 8, 224


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


class Medians(NamedTuple):
    """Seconds, and the median of the pairs' ratios."""

    ours: float
    reference: float
    ratio: float


def compare(what: str, ours: Callable[[], object], reference: Callable[[], object], *, runs: int) -> Medians:
    """Times both in turn after one warm-up each, the other first every other time; prints and returns the medians."""
    ours(), reference()
    times: dict[Callable[[], object], list[float]] = {ours: [], reference: []}
    order = [ours, reference]
    for _ in range(runs):
        for function in order:
            times[function].append(seconds(function))
        order.reverse()
    ratios = [mine / theirs for mine, theirs in zip(*times.values(), strict=True)]
    medians = Medians(*map(statistics.median, (*times.values(), ratios)))
    print(f"{what:<44}{medians.ours:>9.3f}{medians.reference:>11.3f}{medians.ratio:>8.3f}", flush=True)
    return medians


def importing(module: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    model.eval()
    return torch.no_grad()(lambda: model(images))


def training_step(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    targets = torch.arange(len(images))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def print_heading(what: str) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median seconds of runs in turn\n")
    print(f"{what:<44}{'ours':>9}{'reference':>11}{'ratio':>8}")


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m parity.benchmarks.speed", description=__doc__).parse_args(arguments)
    print_heading("")
    compare("import resnet_core : import torch", importing("resnet_core"), importing("torch"), runs=15)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    for what, work in (("inference", inference), ("training step", training_step)):
        models = [build() for build in (resnet_core.resnet50, torchvision.models.resnet50)]
        title = f"resnet50 {what}, batch {BATCH} : torchvision"
        compare(title, *(work(model, images) for model in models), runs=9)


if __name__ == "__main__":
    main()
