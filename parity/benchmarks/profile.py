"""`python -m parity.benchmarks.profile`: what a training step's time goes to, by kind of operation."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from parity.benchmarks.contenders import TRAINING
from parity.benchmarks.speed import case_of, markdown_table

# What the names of torch's operations contain -> what they are; the first that fits counts.
KINDS = {
    "batch_norm": "BatchNorm",
    "convolution": "convolutions",
    "clamp_min": "ReLU",
    "threshold": "ReLU",
    "copy": "casts and copies",
    "add": "additions and the update",
    "mul": "additions and the update",
}
CASES = {"resnet50": (16, 224), "cifar_resnet20": (128, 32)}
STEPS = 3


def shares(step: Callable[[], object], device: str) -> dict[str, float]:
    """Kind -> its share of the time of some steps, the largest first."""
    step()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    with profile(activities=activities) as profiled:
        for _ in range(STEPS):
            step()

    times: Counter[str] = Counter()
    for operation in profiled.key_averages():
        kind = next((kind for part, kind in KINDS.items() if part in operation.key), "all else")
        times[kind] += operation.self_device_time_total if device == "cuda" else operation.self_cpu_time_total
    return {kind: time / times.total() for kind, time in times.most_common()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m parity.benchmarks.profile", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--form", default="ours, bf16 channels_last", choices=[each.name for each in TRAINING])
    options = parser.parse_args(arguments)
    (contender,) = [each for each in TRAINING if each.name == options.form]

    found = {}
    with TemporaryDirectory() as folder:
        for model in options.models:
            batch, size = CASES[model]
            step = contender.make(case_of(model, batch, size, options.device, folder))
            found[f"{model}, batch {batch}, {size} pixels"] = shares(step, options.device)
    kinds = dict.fromkeys(kind for each in found.values() for kind in each)
    rows = [(kind, *(f"{each.get(kind, 0):.0%}" for each in found.values())) for kind in kinds]
    print(f"{options.form}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(markdown_table(("", *found), rows))


if __name__ == "__main__":
    main()
