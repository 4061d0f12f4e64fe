"""`python -m parity.benchmarks.throughput training|inference`: images/s in several forms, beside torchvision's.

All forms take turns in one run. A form that cannot run here says why and does not end the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import resnet_core
from resnet_core import describe
from resnet_core.foundation.errors import first_line

Call = Callable[[], object]

ROUNDS = 7
SECONDS_PER_TURN = 0.4
# Free GPU memory in GiB -> images in a batch of 224 pixels; ResNet-50 keeps about 0.1 GiB an image in float32.
BATCHES = ((60, 256), (30, 128), (0, 64))
# ResNet-50 training at 224 pixels on one GPU, images/s: the closed division of MLPerf Training v4.0.
MLPERF = {"H100": 7157, "H200": 7945}
CEILING_SIZES = {"cuda": (8192, 2**31), "cpu": (2048, 2**28)}
"""Rows of the square matrices, and bytes to copy."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way to run the network."""

    name: str
    build: Callable[[], nn.Module]
    bf16: bool = False
    """Automatic mixed precision."""
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False
    """The whole step as one CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a form reached: the median over the rounds, or why it did not run."""

    form: str
    images_per_second: float | None = None
    spread: float | None = None
    """Slowest and fastest round apart, as a share of the median."""
    ratio: float | None = None
    """To torchvision's in the same rounds, the median of the pairs."""
    ceiling_share: float | None = None
    """Of the matrix products that the machine does in that precision."""
    reason: str = ""


def forms(build: Callable[[], nn.Module], reference: Callable[[], nn.Module]) -> tuple[Form, ...]:
    """Both in float32 and at their fastest, and ours with each part alone; the reference comes first."""
    fast = {"bf16": True, "channels_last": True, "compiled": True}
    return (
        Form(name="torchvision", build=reference),
        Form(name="torchvision, bf16 channels_last compiled", build=reference, **fast),
        Form(name="ours", build=build),
        Form(name="ours, bf16", build=build, bf16=True),
        Form(name="ours, channels_last", build=build, channels_last=True),
        Form(name="ours, compiled", build=build, compiled=True),
        Form(name="ours, CUDA graph", build=build, graph=True),
        Form(name="ours, bf16 channels_last", build=build, bf16=True, channels_last=True),
        Form(name="ours, bf16 channels_last compiled", build=build, **fast),
        Form(name="ours, all of these", build=build, graph=True, **fast),
    )


CHOICES: dict[str, Callable[[Form], bool]] = {
    "all": lambda form: True,
    "eager": lambda form: not form.compiled,
    "compiled": lambda form: form.compiled,
}
"""Which forms to time beside the reference."""


def make_step(form: Form, images: Tensor, labels: Tensor, *, training: bool) -> Call:
    """One training step, or one forward in evaluation, on the same batch each time."""
    torch.manual_seed(0)
    model = form.build().to(images.device).train(training)
    if form.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if form.compiled:
        model.compile(dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def forward() -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=form.bf16):
            return model(images)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward().float(), labels).backward()
        optimizer.step()

    return train if training else torch.no_grad()(forward)


def as_graph(step: Call) -> Call:
    """The step, recorded once and replayed: its kernels start without Python."""
    if not torch.cuda.is_available():
        raise ValueError("CUDA graphs need an NVIDIA GPU")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture must not contain what the first calls allocate
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(step: Call, repeats: int, device: torch.device) -> float:
    """Seconds of that many steps, up to their end on the device."""
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(chosen: Sequence[Form], images: Tensor, labels: Tensor, *, training: bool, rounds: int) -> list[Rate]:
    """The rates of all forms, which take turns."""
    steps: dict[str, tuple[Call, int]] = {}
    reasons: dict[str, str] = {}
    step_of = cache(partial(make_step, images=images, labels=labels, training=training))  # compiles each form once
    for form in chosen:
        began = time.perf_counter()
        try:
            step = step_of(replace(form, name="", graph=False))
            step = as_graph(step) if form.graph else step
            timed(step, 2, images.device)  # compiles, and chooses algorithms
            once = timed(step, 1, images.device)
            steps[form.name] = step, max(1, round(SECONDS_PER_TURN / once))
        except Exception as error:  # whatever a compiler or a driver raises: the other forms still run
            reasons[form.name] = first_line(error)
        print(f"{form.name}: ready after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)

    rounds_of: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, repeats) in steps.items():
            rounds_of[name].append(len(images) * repeats / timed(step, repeats, images.device))

    reference = rounds_of.get(chosen[0].name)
    return [
        rate_of(form.name, rounds_of[form.name], reference)
        if form.name in rounds_of
        else Rate(form=form.name, reason=reasons[form.name])
        for form in chosen
    ]


def rate_of(name: str, rates: Sequence[float], reference: Sequence[float] | None) -> Rate:
    median = statistics.median(rates)
    pairs = zip(rates, reference, strict=True) if reference else ()
    ratio = statistics.median(ours / theirs for ours, theirs in pairs) if reference else None
    return Rate(form=name, images_per_second=median, spread=(max(rates) - min(rates)) / median, ratio=ratio)


def at_largest_batch(form: Form, images: Tensor, labels: Tensor) -> tuple[int, float]:
    """Images in the largest batch to train with, and images/s; a step on `images` shows how much memory one takes."""
    timed(make_step(replace(form, compiled=False), images, labels, training=True), 1, images.device)
    _, total = torch.cuda.mem_get_info()
    times = int(0.9 * total / torch.cuda.max_memory_reserved())
    torch.cuda.empty_cache()

    images, labels = images.repeat(times, 1, 1, 1), labels.repeat(times)
    step = as_graph(make_step(form, images, labels, training=True))
    return len(images), len(images) / median_seconds(step, images.device)


def ceilings(device: torch.device) -> dict[str, float]:
    """Operations/s of a matrix product in each precision, and bytes/s of a copy (read and written)."""
    rows, size = CEILING_SIZES[device.type]
    found = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(2, rows, rows, device=device, dtype=dtype)
        found[name] = 2 * rows**3 / median_seconds(partial(torch.mm, left, right), device)
    source = torch.randn(size // 4, device=device)
    found["copy"] = 2 * size / median_seconds(partial(torch.empty_like(source).copy_, source), device)
    return found


def median_seconds(step: Call, device: torch.device) -> float:
    timed(step, 3, device)
    return statistics.median(timed(step, 3, device) / 3 for _ in range(ROUNDS))


def operations(model: str, image_size: int, *, training: bool) -> float:
    """Of one image: two for each multiply-add, and in training twice as many again for the backward."""
    multiply_adds = describe(getattr(resnet_core, model)(), image_size).multiply_adds
    return 2 * multiply_adds * (3 if training else 1)


def fitting_batch(device: str) -> int:
    free = torch.cuda.mem_get_info()[0] / 2**30 if device == "cuda" else 0
    return next(batch for gib, batch in BATCHES if free >= gib)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity.benchmarks.throughput", description=__doc__)
    parser.add_argument("what", choices=("training", "inference", "largest"), help="largest: batch to train with")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, help="images of a batch; what fits into the memory when left out")
    parser.add_argument("--image-size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--forms", default="all", choices=tuple(CHOICES), help="compiling takes minutes")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")  # the precision that torch's convolutions have on a GPU
    limits = ceilings(device)
    batch = options.batch or fitting_batch(options.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, options.image_size, options.image_size, generator=generator).to(device)
    labels = (torch.arange(batch) % 1000).to(device)
    every = forms(getattr(resnet_core, options.model), getattr(torchvision.models, options.model))
    chosen = [every[0], *filter(CHOICES[options.forms], every[1:])]
    training = options.what != "inference"
    work = operations(options.model, options.image_size, training=training)

    if options.what == "largest" and device.type == "cpu":
        rates = [Rate(form=chosen[-1].name, reason="the largest batch is what fits into a GPU's memory")]
    elif options.what == "largest":
        batch, rate = at_largest_batch(chosen[-1], images, labels)
        rates = [Rate(form=chosen[-1].name, images_per_second=rate, ceiling_share=rate * work / limits["bf16"])]
    else:
        rates = [
            with_share(rate, work, limits["bf16" if form.bf16 else "float32"])
            for form, rate in zip(
                chosen, measure(chosen, images, labels, training=training, rounds=options.rounds), strict=True
            )
        ]

    print(
        f"{options.model} {options.what}, {options.image_size} pixels, batch {batch}, {options.rounds} rounds in turn"
    )
    print(
        f"ceilings: matrix product {limits['float32'] / 1e12:.3g} TFLOP/s float32, {limits['bf16'] / 1e12:.3g} bf16; "
        f"copy {limits['copy'] / 1e9:,.0f} GB/s"
    )
    print(f"{'':<42}{'images/s':>10}{'spread':>8}{'ratio':>7}{'of ceiling':>12}")
    for rate in rates:
        print(row(rate))
    record = {"model": options.model, "what": options.what, "batch": batch, "image_size": options.image_size}
    record |= {"ceilings": limits, "rates": [asdict(rate) for rate in rates]}
    if device.type == "cuda" and training:
        record["mlperf_v4"] = mlperf(max(rate.images_per_second or 0 for rate in rates))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2))
    return 0


def with_share(rate: Rate, work: float, limit: float) -> Rate:
    if rate.images_per_second is None:
        return rate
    return replace(rate, ceiling_share=rate.images_per_second * work / limit)


def row(rate: Rate) -> str:
    if rate.images_per_second is None:
        return f"{rate.form:<42}  not run: {rate.reason}"
    ratio = f"{rate.ratio:.2f}" if rate.ratio else ""
    return f"{rate.form:<42}{rate.images_per_second:>10,.1f}{rate.spread:>8.1%}{ratio:>7}{rate.ceiling_share:>12.1%}"


def mlperf(best: float) -> int | None:
    """The published record of this card, which it prints the best rate's share of."""
    card = torch.cuda.get_device_name()
    published = next((figure for name, figure in MLPERF.items() if name in card), None)
    if published:
        print(f"the best is {best / published:.1%} of MLPerf v4.0's {published:,} images/s on this card")
    return published


if __name__ == "__main__":
    sys.exit(main())
