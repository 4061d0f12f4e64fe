"""`python -m parity.speed`: ours beside torchvision's and torch's, in turn in one run; medians and their ratio."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

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


def compare(what: str, ours: Callable[[], object], reference: Callable[[], object], *, runs: int) -> float:
    """Times both in turn after one warm-up each, prints the medians in seconds, and returns ours / reference."""
    ours(), reference()
    pairs = [(seconds(ours), seconds(reference)) for _ in range(runs)]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    print(f"{what:<44}{medians[0]:>9.3f}{medians[1]:>11.3f}{ratio:>8.3f}", flush=True)
    return ratio


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


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median seconds of runs in turn\n")
    print(f"{'':<44}{'ours':>9}{'reference':>11}{'ratio':>8}")
    compare("import resnet_core : import torch", importing("resnet_core"), importing("torch"), runs=15)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    for what, work in (("inference", inference), ("training step", training_step)):
        models = [build() for build in (resnet_core.resnet50, torchvision.models.resnet50)]
        title = f"resnet50 {what}, batch {BATCH} : torchvision"
        compare(title, *(work(model, images) for model in models), runs=9)


if __name__ == "__main__":
    main()
