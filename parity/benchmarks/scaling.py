"""`python -m parity.benchmarks.scaling`: the recipe `imagenet_card` on paper: hours, dollars, and what bounds it.

A calculation from rates that others published and, for the loader, one that `--measure` measures. docs/scaling.md shows
its tables.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from resnet_core.builders import get_model
from resnet_core.data import dataset_of, loaders_of
from resnet_core.recipes import RECIPES
from resnet_core.recipes.plan import saved_values, state_tensors

RECIPE = RECIPES["imagenet_card"]
EPOCHS, GLOBAL_BATCH = RECIPE.train.epochs, RECIPE.data.global_batch
TRAINING_IMAGES, TEST_IMAGES = 1_281_167, 50_000
FILE_BYTES = 138e9 / TRAINING_IMAGES
STEPS_PER_EPOCH = TRAINING_IMAGES // GLOBAL_BATCH
CARD_HOURS, CARD_GPUS = 3.83, 8
GPUS_A_MACHINE = 8
BACKWARD = 2 / 3
CHECKPOINT_SECONDS = 0.6


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that trains ResNet-50."""

    name: str
    images_per_second: float
    """At 224 pixels, with a batch that fills it."""
    memory: float
    """Bytes."""
    link: float
    """Bytes per second, each way, to the other GPUs of its machine."""
    source: str
    """Of the images per second."""


CARD_RATE = EPOCHS * TRAINING_IMAGES / (CARD_HOURS * 3600) / CARD_GPUS

# Memory and NVLink as in the makers' data sheets; the two A100 differ in the software.
GPUS = (
    Gpu(name="A100, card", images_per_second=CARD_RATE, memory=80e9, link=300e9, source="the card's 3.83 h on 8 A100"),
    Gpu(name="A100", images_per_second=2470, memory=80e9, link=300e9, source="published: PyTorch, mixed precision"),
    Gpu(name="H100", images_per_second=2790, memory=80e9, link=450e9, source="published: PyTorch, mixed precision"),
    Gpu(name="H200", images_per_second=7945, memory=141e9, link=450e9, source="published: MLPerf v4.0, fused kernels"),
    Gpu(name="H200, ours", images_per_second=6829, memory=141e9, link=450e9, source="docs/results.md, CUDA graphs"),
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """What stands around the GPUs; the defaults are assumptions."""

    cores: float = RECIPE.data.workers
    """CPU cores for each GPU, each with one worker of the loader."""
    images_per_core: float = 556.0
    """That one of them prepares in a second."""
    gigabits: float = 400.0
    """Per second, from machine to machine."""
    dollars: float = 3.0
    """For one GPU, one hour."""


@dataclass(frozen=True)
class Estimate:
    """One run of the recipe. Times are in seconds."""

    gpu: Gpu
    gpus: int
    site: Site

    def __post_init__(self) -> None:
        if self.gpus < 1 or GLOBAL_BATCH % self.gpus:
            raise ValueError(
                f"{self.gpus} GPUs do not divide the global batch of {GLOBAL_BATCH}; take a power of two up to it"
            )

    @property
    def batch(self) -> int:
        return GLOBAL_BATCH // self.gpus

    @property
    def parts(self) -> int:
        """Accumulation: parts of a batch, so that one fits into the memory."""
        parts = 1
        while weights_bytes() + math.ceil(self.batch / parts) * activation_bytes() > self.gpu.memory:
            parts *= 2
        return parts

    @property
    def compute(self) -> float:
        return self.batch / self.gpu.images_per_second

    @property
    def network(self) -> float:
        """A ring all-reduce of float32 gradients, as fast as its slowest link."""
        link = self.gpu.link if self.gpus <= GPUS_A_MACHINE else self.site.gigabits / 8 * 1e9
        return 2 * (self.gpus - 1) / self.gpus * gradient_bytes() / link

    @property
    def computed(self) -> float:
        """A step whose data are there: what the last part's backward does not hide of the network comes on top."""
        return self.compute + max(0.0, self.network - BACKWARD * self.compute / self.parts)

    @property
    def data(self) -> float:
        return self.batch / (self.site.cores * self.site.images_per_core)

    @property
    def bounds(self) -> list[str]:
        """What sets the time of a step, and what does where the data keep up."""
        fed = "network" if self.computed > self.compute else "compute"
        return ["data" if self.data > self.computed else fed, fed]

    @property
    def hours(self) -> float:
        """Training, an evaluation and a checkpoint each epoch; an evaluation is a forward, a third of a step's work."""
        loaded = self.site.cores * self.site.images_per_core
        evaluation = math.ceil(TEST_IMAGES / self.gpus) / min(3 * self.gpu.images_per_second, loaded)
        step = max(self.computed, self.data)
        return EPOCHS * (STEPS_PER_EPOCH * step + evaluation + CHECKPOINT_SECONDS) / 3600

    @property
    def dollars(self) -> float:
        return self.hours * self.gpus * self.site.dollars

    @property
    def reads(self) -> float:
        """Bytes per second of image files that one machine's GPUs take."""
        return min(self.gpus, GPUS_A_MACHINE) * self.batch / max(self.computed, self.data) * FILE_BYTES

    @property
    def enough_cores(self) -> int:
        """For each GPU, that it never waits for data."""
        return math.ceil(self.batch / self.computed / self.site.images_per_core)


@cache
def parameters() -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in get_model(RECIPE.model.name).parameters())


def gradient_bytes() -> int:
    return 4 * parameters()


def weights_bytes() -> int:
    """Weights, gradients and the optimizer's state, float32."""
    return (2 + state_tensors(RECIPE)) * 4 * parameters()


@cache
def activation_bytes() -> int:
    """Of one image, kept for the backward in bf16."""
    with torch.device("meta"):
        return 2 * saved_values(get_model(RECIPE.model.name), torch.Size((3, 224, 224)))


def inputs(gpus: Sequence[Gpu], site: Site) -> str:
    """The numbers that go in, with their sources."""
    rows = [
        ("images to train and to test on", f"{TRAINING_IMAGES:,}, {TEST_IMAGES:,}", "ImageNet-1k"),
        ("epochs, global batch", f"{EPOCHS}, {GLOBAL_BATCH:,}", "the recipe"),
        ("steps", f"{EPOCHS * STEPS_PER_EPOCH:,}: {EPOCHS} x {STEPS_PER_EPOCH}", "the two lines above"),
        ("an image file", f"{FILE_BYTES / 1e3:.0f} kB", "138 GB of training images"),
        ("gradients of a step", f"{gradient_bytes() / 1e6:.1f} MB", f"4 bytes x {parameters():,} parameters"),
        ("activations of an image", f"{activation_bytes() / 1e6:.1f} MB", "`--dry-run`'s count, bf16"),
        *((f"{gpu.name}", f"{gpu.images_per_second:,.0f} images/s", gpu.source) for gpu in gpus),
        ("our loader, one core", f"{site.images_per_core:,.0f} images/s", "docs/data.md: Pillow, on an AMD EPYC"),
        ("decoding alone, one core", "577, 712, 735 images/s", "published: Pillow, torchvision, simplejpeg"),
        ("cores for a GPU", f"{site.cores:g}", "assumed: the recipe's `data.workers`; `--cores`"),
        ("network of a machine of 8 GPUs", f"{site.gigabits:g} Gb/s", "assumed; `--gigabits`"),
        ("network inside it", "300, 450 GB/s", "data sheets: NVLink of A100, of H100 and H200, each way"),
        ("share of a step in backward", "2/3", "multiply-adds: two of three passes"),
        ("checkpoint", f"{CHECKPOINT_SECONDS} s", "measured once: 205 MB with fsync"),
        ("a GPU for an hour", f"${site.dollars:.2f}", "assumed; `--dollars`"),
    ]
    return table(["what", "value", "source"], rows)


def steps(estimates: Sequence[Estimate]) -> str:
    """Where the time of a step goes."""
    rows = [
        (
            each.gpu.name,
            each.gpus,
            f"{each.batch:,}" + (f" in {each.parts} parts" if each.parts > 1 else ""),
            *(f"{seconds * 1e3:,.1f}" for seconds in (each.compute, each.network, each.data)),
            *each.bounds,
        )
        for each in estimates
    ]
    columns = ["GPU", "GPUs", "batch of each", "compute, ms", "network, ms", "data, ms"]
    return table([*columns, "bound by", "with enough cores"], rows)


def runs(estimates: Sequence[Estimate]) -> str:
    """Hours and dollars, with the site's cores and with as many as it takes."""
    rows = []
    for each in estimates:
        served = replace(each, site=replace(each.site, cores=each.enough_cores))
        booked = [(f"{one.hours:,.2f}", f"{one.dollars:,.0f}") for one in (each, served)]
        rows.append((each.gpu.name, each.gpus, *booked[0], served.site.cores, *booked[1], f"{served.reads / 1e9:.1f}"))
    columns = ["GPU", "GPUs", "hours", "dollars", "cores a GPU to keep up", "hours then", "dollars then"]
    return table([*columns, "GB/s a machine reads then"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown, aligned for people too."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)


def tables(gpus: Sequence[Gpu], site: Site, counts: Sequence[int]) -> tuple[str, str, str]:
    """Inputs, steps and runs. Raises ValueError for numbers of GPUs that do not divide the batch."""
    estimates = [Estimate(gpu, count, site) for gpu in gpus for count in counts]
    return inputs(gpus, site), steps(estimates), runs(estimates)


TYPICAL, SMALLER = (375, 500), (256, 341)  # ImageNet's most frequent height and width; with a shorter side of 256
QUALITY, GRAIN = 90, 0.09  # which give about ImageNet's bytes a file
BATCH, MEASURED_EPOCHS = 16, 3


def write_photographs(folder: Path, shape: tuple[int, int], count: int = 256) -> float:
    """JPEG files of smooth shapes with grain, in two classes of two parts; bytes of a file, on average."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        shapes = F.interpolate(torch.rand(1, 3, 12, 16, generator=generator), shape, mode="bicubic")[0]
        grainy = shapes + GRAIN * torch.randn(shapes.shape, generator=generator)
        for part in ("train", "val"):
            path = folder / part / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(grainy.clamp(0, 1)).save(path, quality=QUALITY)
    return statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg"))


def batch_seconds(folder: Path) -> Iterator[float]:
    """Seconds of each batch that the recipe's loader prepares in this process."""
    config = replace(RECIPE.data, path=str(folder), global_batch=BATCH, workers=0)
    loader, _ = loaders_of(config, dataset_of(config), epochs=MEASURED_EPOCHS, seed=0)
    for epoch in range(MEASURED_EPOCHS):
        batches = loader.epoch(epoch)
        for _ in range(len(loader)):
            began = time.perf_counter()
            next(batches)
            yield time.perf_counter() - began


def measure() -> None:
    """Prints how many images one core prepares: read, decode, random crop to 224 pixels, flip, normalise."""
    torch.set_num_threads(1)
    for shape in (TYPICAL, SMALLER):
        with tempfile.TemporaryDirectory() as folder:
            size = write_photographs(Path(folder), shape)
            rate = BATCH / statistics.median(batch_seconds(Path(folder)))
        print(f"JPEG files of {shape[1]}x{shape[0]} pixels, {size / 1e3:.0f} kB: {rate:,.0f} images/s on one core")


def above_0(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    site = Site()
    parser = argparse.ArgumentParser(prog="python -m parity.benchmarks.scaling", description="imagenet_card on paper.")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="how many, of each kind")
    parser.add_argument("--images-per-second", type=above_0, metavar="N", help="of a GPU of yours, for an H100's")
    parser.add_argument("--cores", type=above_0, default=site.cores, help="CPU cores for each GPU (%(default)s)")
    parser.add_argument(
        "--images-per-core", type=above_0, metavar="N", default=site.images_per_core, help="as --measure says"
    )
    parser.add_argument("--gigabits", type=above_0, default=site.gigabits, help="from machine to machine (%(default)s)")
    parser.add_argument("--dollars", type=above_0, default=site.dollars, help="a GPU for an hour (%(default)s)")
    parser.add_argument("--measure", action="store_true", help="measure what one core of this machine loads, and stop")

    given = parser.parse_args(arguments)
    if given.measure:
        return measure()

    gpus = GPUS
    if given.images_per_second:
        gpus = (replace(GPUS[2], name="yours", images_per_second=given.images_per_second, source="your run"),)
    site = Site(
        cores=given.cores, images_per_core=given.images_per_core, gigabits=given.gigabits, dollars=given.dollars
    )

    try:
        print(*tables(gpus, site, given.gpus), sep="\n\n")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
