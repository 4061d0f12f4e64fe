"""`python -m parity.benchmarks.throughput training|inference`: images/s in several forms, beside torchvision's.

All forms take turns in one run. A form that cannot run here says why and does not end the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import resnet_core
from resnet_core.foundation.errors import first_line

Step = Callable[[], object]

ROUNDS = 7
SECONDS_PER_TURN = 0.4
# Free GPU memory in GiB -> images in a batch of 224 pixels; ResNet-50 keeps about 0.1 GiB an image in float32.
BATCHES = ((40, 256), (20, 128), (0, 64))


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way to run the network."""

    name: str
    build: Callable[[], nn.Module]
    bf16: bool = False
    """Automatic mixed precision, and channels_last with it."""
    compiled: bool = False
    graph: bool = False
    """The whole step as one CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a form reached: the median over the rounds, or why it did not run."""

    form: str
    images_per_second: float | None = None
    ratio: float | None = None
    """To torchvision's in the same rounds, the median of the pairs."""
    reason: str = ""


def forms(build: Callable[[], nn.Module], reference: Callable[[], nn.Module]) -> tuple[Form, ...]:
    """The reference comes first."""
    return (
        Form(name="torchvision, float32", build=reference),
        Form(name="ours, float32", build=build),
        Form(name="ours, bf16 channels_last", build=build, bf16=True),
        Form(name="ours, bf16 channels_last, compiled", build=build, bf16=True, compiled=True),
        Form(name="ours, bf16 channels_last, CUDA graph", build=build, bf16=True, graph=True),
    )


def make_step(form: Form, images: Tensor, labels: Tensor, *, training: bool) -> Step:
    """One training step, or one forward in evaluation, on the same batch each time."""
    if form.graph and images.device.type != "cuda":
        raise ValueError("CUDA graphs need an NVIDIA GPU")
    torch.manual_seed(0)
    model = form.build().to(images.device).train(training)
    if form.bf16:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if form.compiled:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def forward() -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=form.bf16):
            return model(images)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward().float(), labels).backward()
        optimizer.step()

    step: Step = train if training else torch.no_grad()(forward)
    return as_graph(step) if form.graph else step


def as_graph(step: Step) -> Step:
    """The step, recorded once and replayed: its kernels start without Python."""
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


def timed(step: Step, repeats: int, device: torch.device) -> float:
    """Seconds of that many steps, up to their end on the device."""
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(chosen: tuple[Form, ...], images: Tensor, labels: Tensor, *, training: bool, rounds: int) -> list[Rate]:
    """The rates of all forms, which take turns."""
    steps: dict[str, tuple[Step, int]] = {}
    reasons: dict[str, str] = {}
    for form in chosen:
        try:
            step = make_step(form, images, labels, training=training)
            timed(step, 2, images.device)  # compiles, and chooses algorithms
            once = timed(step, 1, images.device)
            steps[form.name] = step, max(1, round(SECONDS_PER_TURN / once))
        except Exception as error:  # whatever a compiler or a driver raises: the other forms still run
            reasons[form.name] = first_line(error)

    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, repeats) in steps.items():
            rates[name].append(len(images) * repeats / timed(step, repeats, images.device))

    reference = rates.get(chosen[0].name)
    return [
        Rate(form=form.name, reason=reasons[form.name])
        if form.name in reasons
        else Rate(
            form=form.name,
            images_per_second=statistics.median(rates[form.name]),
            ratio=reference
            and statistics.median(ours / theirs for ours, theirs in zip(rates[form.name], reference, strict=True)),
        )
        for form in chosen
    ]


def fitting_batch(device: str) -> int:
    free = torch.cuda.mem_get_info()[0] / 2**30 if device == "cuda" else 0
    return next(batch for gib, batch in BATCHES if free >= gib)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity.benchmarks.throughput", description=__doc__)
    parser.add_argument("what", choices=("training", "inference"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, help="images of a batch; what fits into the memory when left out")
    parser.add_argument("--image-size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args(arguments)

    batch = options.batch or fitting_batch(options.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, options.image_size, options.image_size, generator=generator).to(options.device)
    labels = (torch.arange(batch) % 1000).to(options.device)
    chosen = forms(getattr(resnet_core, options.model), getattr(torchvision.models, options.model))
    rates = measure(chosen, images, labels, training=options.what == "training", rounds=options.rounds)

    print(
        f"{options.model} {options.what}, {options.image_size} pixels, batch {batch}, {options.rounds} rounds in turn"
    )
    print(f"{'':<40}{'images/s':>10}{'ratio':>8}")
    for rate in rates:
        if rate.images_per_second is None:
            print(f"{rate.form:<40}  not run: {rate.reason}")
        else:
            print(f"{rate.form:<40}{rate.images_per_second:>10,.1f}{rate.ratio or float('nan'):>8.2f}")
    if options.out:
        record = {"model": options.model, "batch": batch, "image_size": options.image_size}
        options.out.write_text(json.dumps({**record, "rates": [asdict(rate) for rate in rates]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
