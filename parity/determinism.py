"""`python -m parity.determinism`: batches of any workers and ranks, and after a resume, beside one process's.

docs/data.md shows its table.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from parity.benchmarks.scaling import table, write_photographs
from resnet_core.data import DataConfig, dataset_of, loaders_of
from resnet_core.data.decoders import DECODERS

WORKERS, RANKS = range(5), range(1, 5)
IMAGES, GLOBAL_BATCH, EPOCH, RESUMED_AT = 40, 12, 1, 2  # 4 images are left over


def epoch_of(folder: Path, decoder: str, *, workers: int, ranks: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """Each global batch of an epoch from `start` on: the ranks' batches, joined."""
    config = DataConfig(
        name="image_folder",
        path=str(folder),
        decoder=decoder,
        global_batch=GLOBAL_BATCH,
        random_resized_crop=0.08,
        flip=True,
        trivial_augment=True,
        train_size=32,
        workers=workers,
    )
    dataset = dataset_of(config)
    loaders = [loaders_of(config, dataset, epochs=2, seed=3, rank=rank, world_size=ranks)[0] for rank in range(ranks)]
    for parts in zip(*(loader.epoch(EPOCH, start=start) for loader in loaders), strict=True):
        yield tuple(map(torch.cat, zip(*parts, strict=True)))


def verdict(reference: Sequence[tuple[Tensor, ...]], folder: Path, decoder: str, *, workers: int, ranks: int) -> str:
    """Whether a whole epoch and the rest of one that is resumed equal the reference to the bit."""
    runs = {"": 0, "after a resume": RESUMED_AT}
    different = []
    for name, start in runs.items():
        found = list(epoch_of(folder, decoder, workers=workers, ranks=ranks, start=start))
        pairs = zip(found, reference[start:], strict=True)
        if not all(torch.equal(*values) for pair in pairs for values in zip(*pair, strict=True)):
            different.append(f"different {name}".strip())
    return ", ".join(different) or "equal, equal"


def matrix(folder: Path, decoder: str) -> list[list[str]]:
    """A row for each number of workers, a column for each number of ranks."""
    reference = list(epoch_of(folder, decoder, workers=0, ranks=1))
    return [
        [f"{workers}", *(verdict(reference, folder, decoder, workers=workers, ranks=ranks) for ranks in RANKS)]
        for workers in WORKERS
    ]


def main() -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photographs(folder, (96, 128), count=IMAGES)
        for decoder in DECODERS:
            header = [f"{decoder}: workers of a rank", *(f"{ranks} rank{'s' * (ranks > 1)}" for ranks in RANKS)]
            print(table(header, matrix(folder, decoder)), end="\n\n")


if __name__ == "__main__":
    main()
