"""`python -m parity.benchmarks.data`: how many images a core prepares for training, ours beside others'.

All go over the same files in turn, in one run. A rate is images per second of processor time, so that other programs on
the machine change it little; a ratio is the median of the ratios of pairs that ran one after the other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import simplejpeg
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from parity.benchmarks.scaling import TYPICAL, table, write_photographs
from resnet_core.data import DataConfig, Split, dataset_of, loaders_of
from resnet_core.data.datasets import CIFAR10_CLASSES, full_size
from resnet_core.data.resize import resize_images
from resnet_core.data.splits import Dataset as OwnDataset
from resnet_core.data.transforms import CIFAR10_MEAN, CIFAR10_STD, IMAGENET_MEAN, IMAGENET_STD

BATCH, SIZE, SMALLEST_SHARE = 32, 224, 0.08
LARGE = (1500, 2000)  # height and width of a photograph of 3 megapixels

Pass = Callable[[int], int]  # goes over all files in an epoch of that number, and returns how many images it prepared


@dataclass(frozen=True)
class Measured:
    """One pass over the files."""

    images: int
    seconds: float
    """Of processor time, of this process and its workers."""
    wall_seconds: float


def measured(passes: Callable[[], int]) -> Measured:
    """What `passes` takes, which returns how many images it prepared."""
    before, began = processor_seconds(), time.perf_counter()
    images = passes()
    assert not multiprocessing.active_children()  # a worker's time counts once it has ended
    return Measured(images, processor_seconds() - before, time.perf_counter() - began)


def processor_seconds() -> float:
    """Of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


# Ours.


def config_of(folder: Path, decoder: str, workers: int) -> DataConfig:
    return DataConfig(
        name="image_folder",
        path=str(folder),
        decoder=decoder,
        global_batch=BATCH,
        random_resized_crop=SMALLEST_SHARE,
        flip=True,
        workers=workers,
    )


def ours(folder: Path, workers: int, *, decoder: str, normalized: bool = True) -> Pass:
    config = config_of(folder, decoder, workers)
    dataset = dataset_of(config)

    def run(epoch: int) -> int:
        loader, _ = loaders_of(config, dataset, epochs=1, seed=0, normalized=normalized)
        return sum(len(labels) for number in range(epochs_of(workers)) for _, labels in loader.epoch(epoch + number))

    return run


def epochs_of(workers: int) -> int:
    """How often a pass goes over the files: with workers, long enough that their start matters little."""
    return 4 if workers else 1


# Others.


def augmentation(*decoding: Callable[..., Any]) -> Callable[[str], Tensor]:
    """What torchvision's references do in training, after `decoding`."""
    return v2.Compose(
        [
            *decoding,
            v2.RandomResizedCrop(SIZE, scale=(SMALLEST_SHARE, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            v2.ToPureTensor(),
        ]
    )


def by_pillow(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def by_torchvision(path: str) -> Tensor:
    return torchvision.io.decode_image(path, mode="RGB")


def by_torchcodec(path: str) -> Tensor:
    from torchcodec.decoders import decode_image

    return decode_image(path, mode="RGB")


def by_simplejpeg(path: str) -> Any:
    return simplejpeg.decode_jpeg(Path(path).read_bytes())


@dataclass(frozen=True)
class Files(Dataset[Any]):
    paths: Sequence[str]
    prepare: Callable[[str], Any]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.prepare(self.paths[index])


def paths_in(folder: Path) -> list[str]:
    return sorted(map(str, (folder / "train").rglob("*.jpg")))


def theirs(folder: Path, workers: int, *, prepare: Callable[[str], Tensor]) -> Pass:
    files = Files(paths_in(folder), prepare)

    def run(epoch: int) -> int:
        loader = DataLoader(
            files,
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        return sum(len(images) for _ in range(epochs_of(workers)) for images in loader)

    return run


def decoding(folder: Path, workers: int, *, decode: Callable[[str], Any]) -> Pass:
    paths = paths_in(folder)
    return lambda epoch: len([decode(path) is None for path in paths])


OURS = "ours, simplejpeg"
CONTENDERS: dict[str, Callable[[Path, int], Pass]] = {
    OURS: partial(ours, decoder="simplejpeg"),
    "ours, simplejpeg, uint8 for the device": partial(ours, decoder="simplejpeg", normalized=False),
    "ours, pillow": partial(ours, decoder="pillow"),
    "torchvision's reference, PIL": partial(theirs, prepare=augmentation(by_pillow)),
    "torchvision decode_image, v2 on uint8": partial(theirs, prepare=augmentation(by_torchvision)),
}
if find_spec("torchcodec"):
    CONTENDERS["TorchCodec decode_image, v2 on uint8"] = partial(theirs, prepare=augmentation(by_torchcodec))
DECODING = {
    f"decoding only, {name}": partial(decoding, decode=decode)
    for name, decode in {"simplejpeg": by_simplejpeg, "Pillow": by_pillow, "torchvision": by_torchvision}.items()
}


# Small images in memory.


def small_images() -> OwnDataset:
    """As many images as CIFAR-10's batch files hold in one of their six, of the same shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(10_000) % 10)
    transform = full_size(32, mean=CIFAR10_MEAN, std=CIFAR10_STD)
    return OwnDataset(train=split, test=split, class_names=CIFAR10_CLASSES, transform=transform)


def ours_in_memory(dataset: OwnDataset, epoch: int) -> int:
    config = DataConfig(name="digits", global_batch=128, crop_padding=4, flip=True)
    loader, _ = loaders_of(config, dataset, epochs=1, seed=0)
    return sum(len(labels) for _, labels in loader.epoch(epoch))


class ArrayImages(Dataset[Any]):
    """What torchvision's CIFAR10 does with its arrays, with the augmentation of the paper's section 4.2."""

    def __init__(self, split: Split) -> None:
        self.arrays, self.labels = split.images.permute(0, 2, 3, 1).numpy(), split.labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float, scale=True),
                v2.Normalize(CIFAR10_MEAN, CIFAR10_STD),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def theirs_in_memory(split: Split, epoch: int) -> int:
    loader = DataLoader(ArrayImages(split), batch_size=128, shuffle=True, drop_last=True)
    return sum(len(labels) for _, labels in loader)


# Measuring.


def in_turn(contenders: dict[str, Callable[[int], int]], rounds: int) -> dict[str, list[Measured]]:
    """Each contender once a round, after one round to warm up; the order turns from round to round."""
    times: dict[str, list[Measured]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name in sorted(contenders, reverse=number % 2 == 1):
            found = measured(partial(contenders[name], max(number, 0)))
            if number >= 0:
                times[name].append(found)
    return times


@dataclass(frozen=True)
class Row:
    """A contender's medians on one set of files."""

    images_per_core_second: float
    images_per_second: float
    ours_is_faster: float
    """How many times, in processor time."""


def rows_of(times: dict[str, list[Measured]], first: str) -> dict[str, Row]:
    return {
        name: Row(
            statistics.median(each.images / each.seconds for each in found),
            statistics.median(each.images / each.wall_seconds for each in found),
            statistics.median(
                (mine.images / mine.seconds) / (each.images / each.seconds)
                for mine, each in zip(times[first], found, strict=True)
            ),
        )
        for name, found in times.items()
    }


def differences(folder: Path) -> dict[str, float]:
    """How far simplejpeg's views of the files are from Pillow's with the same random numbers, of 0..255."""
    views = []
    for decoder in ("simplejpeg", "pillow"):
        config = config_of(folder, decoder, workers=0)
        dataset = dataset_of(config)
        loader, _ = loaders_of(config, dataset, epochs=1, seed=0, normalized=False)
        views.append(torch.cat([images.int() for images, _ in loader.epoch(0)]))
    apart = (views[0] - views[1]).abs()
    return {
        "mean": apart.float().mean().item(),
        "largest": apart.max().item(),
        "equal": (apart == 0).float().mean().item(),
    }


# Files.


def real_photographs() -> Iterator[Image.Image]:
    """The photographs that scikit-image and scikit-learn ship, where they are installed."""
    places = {
        "skimage": ("data", "astronaut.png chelsea.png coffee.png motorcycle_left.png rocket.jpg retina.jpg"),
        "sklearn": ("datasets/images", "china.jpg flower.jpg"),
    }
    for package, (folder, names) in places.items():
        found = find_spec(package)
        for name in names.split() if found and found.origin else ():
            path = Path(found.origin).parent / folder / name
            if path.exists():
                yield Image.open(path).convert("RGB")


def write_real(folder: Path) -> None:
    """Each of them several times, as JPEG, in two classes of two parts."""
    for number, image in enumerate(list(real_photographs()) * 8):
        for part in ("train", "val"):
            path = folder / part / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)


def folders_in(place: Path) -> dict[str, Path]:
    """Names of sets of files -> their folders."""
    typical, small, large, real = (place / name for name in ("typical", "small", "large", "real"))
    write_photographs(typical, TYPICAL)
    resize_images(typical, small, shorter_side=256)
    write_photographs(large, LARGE, count=32)
    write_real(real)
    found = {"500x375": typical, "these, resized to 256": small, "2000x1500": large}
    return found | ({"real photographs": real} if real.exists() else {})


def kilobytes(folder: Path) -> float:
    return statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg")) / 1e3


def processor() -> str:
    """Its name, and the vector instructions that decoders and torch use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = {"avx", "avx2", "avx512f", "avx512bw", "sse4_2"} & set(known.get("flags", "").split())
    return f"{known.get('model name', platform.processor())}, {os.cpu_count()} cores, {' '.join(sorted(flags))}"


def cell(row: Row) -> str:
    return f"{row.images_per_core_second:,.0f} ({row.ours_is_faster:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m parity.benchmarks.data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each goes over the files (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the second table (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*deprecated.*")

    print(f"{processor()}; torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as place:
        folders = folders_in(Path(place))
        one_thread, with_workers, pixels = {}, {}, {}
        for name, folder in folders.items():
            bound = {what: contender(folder, 0) for what, contender in (CONTENDERS | DECODING).items()}
            one_thread[name] = rows_of(in_turn(bound, given.rounds), OURS)
            bound = {what: contender(folder, given.workers) for what, contender in CONTENDERS.items()}
            with_workers[name] = rows_of(in_turn(bound, given.rounds), OURS)
            pixels[name] = differences(folder)
        sizes = {name: f"{name}, {kilobytes(folder):.0f} kB" for name, folder in folders.items()}

    dataset = small_images()
    small = rows_of(
        in_turn(
            {
                "ours": partial(ours_in_memory, dataset),
                "torchvision's CIFAR10 and DataLoader": partial(theirs_in_memory, dataset.train),
            },
            given.rounds,
        ),
        "ours",
    )

    found = {"one thread": one_thread, f"{given.workers} workers": with_workers}
    for what, by_folder in found.items():
        names = list(next(iter(by_folder.values())))
        print(f"\n{what}: images/s a core (how many times as fast {OURS} is)\n")
        print(
            table(
                [what, *sizes.values()], [[each, *(cell(rows[each]) for rows in by_folder.values())] for each in names]
            )
        )
    print("\nimages in memory, 32x32, shifted and mirrored: images/s a core\n")
    print(table(["one thread", "32x32"], [[name, cell(row)] for name, row in small.items()]))
    print("\nsimplejpeg's views beside Pillow's, of 0..255\n")
    print(
        table(
            ["files", "mean difference", "largest", "equal values"],
            [
                [name, f"{each['mean']:.4f}", f"{each['largest']:.0f}", f"{each['equal']:.2%}"]
                for name, each in pixels.items()
            ],
        )
    )

    if given.json:
        numbers = {
            what: {name: {each: vars(row) for each, row in rows.items()} for name, rows in by_folder.items()}
            for what, by_folder in (found | {"in memory": {"32x32": small}}).items()
        }
        given.json.write_text(json.dumps({"processor": processor(), **numbers, "pixels": pixels}, indent=2))


if __name__ == "__main__":
    main()
