"""Batches of `(images [N, C, H, W], labels [N])` for one rank, prepared by worker processes where asked.

A key names a batch completely: the epoch and the samples. A worker gets a key and keeps no state, so neither the
number of workers nor the choice of the worker can change a batch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_core.data.images import ImageError
from resnet_core.data.sampler import epoch_order, rank_batches, rank_share, repeat_samples, seed_from, steps_per_epoch
from resnet_core.data.splits import LabelledImages
from resnet_core.data.transforms import Images, ViewSeeds
from resnet_core.data.workers import START, WorkerError, begin_worker, remedy, signals_held

Batch = tuple[Tensor, Tensor]
TrainKey = tuple[int, int, Sequence[tuple[int, int]]]  # epoch, position, the batch's (sample, copy)

BATCHES_AHEAD = 4  # that each worker prepares while the network computes
FILES_AT_A_TIME = 16  # that a worker gets, where each is read once


def stacked(images: Images) -> Tensor:
    return images if isinstance(images, Tensor) else torch.stack(images)


@dataclass(frozen=True)
class AugmentedBatches:
    """Makes the batch of a `TrainKey`; labels are class numbers `[N]` or, after `mix`, shares of classes `[N, K]`."""

    split: LabelledImages
    augment: Callable[[Images, ViewSeeds], Tensor]
    mix: Callable[[Tensor, Tensor, int], Batch] | None
    repeats: int
    seed: int
    rank: int

    def __call__(self, key: TrainKey) -> Batch:
        epoch, position, samples = key
        indices = [index for index, _ in samples]
        # Each copy is a view of its own: 0 .. repeats - 1 in the first epoch, and so on.
        seeds = [seed_from(self.seed, epoch * self.repeats + copy, index) for index, copy in samples]
        images = self.augment(self.split.take(indices), ViewSeeds(epoch, seeds))
        labels = self.split.labels[indices]
        if self.mix is None:
            return images, labels
        return self.mix(images, labels, seed_from(self.seed, epoch, position, self.rank))


@dataclass(frozen=True)
class PlainBatches:
    """Makes the batch of a list of samples, to evaluate on."""

    split: LabelledImages
    transform: Callable[[Images], Tensor]

    def __call__(self, indices: list[int]) -> Batch:
        return self.transform(self.split.take(indices)), self.split.labels[indices]


class TrainLoader:
    """`loader.epoch(3)` iterates over one rank's batches of epoch 3, `loader.epoch(3, start=7)` from its batch 7 on.

    Order and augmentation depend only on (seed, epoch, sample, copy): not on the workers, on other ranks or on what ran
    before. `mix` draws once for each batch of a rank. Raises ValueError when `steps_per_epoch` does.
    """

    def __init__(
        self,
        split: LabelledImages,
        *,
        augment: Callable[[Images, ViewSeeds], Tensor],
        global_batch: int,
        seed: int,
        mix: Callable[[Tensor, Tensor, int], Batch] | None = None,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches = AugmentedBatches(split, augment, mix, repeats, seed, rank)
        self.global_batch, self.world_size = global_batch, world_size
        self.steps_per_epoch = steps_per_epoch(len(split), global_batch=global_batch, repeats=repeats)
        self.loader = KeyedLoader(self.batches, workers=workers, pin_memory=pin_memory)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `start` on, one epoch at a time.

        Raises ValueError when `batch_share` does, ImageError for a damaged file.
        """
        return self.loader.iterate(self.keys(epoch)[start:])

    def samples(self, epoch: int, position: int) -> list[int]:
        """The samples of all ranks in one batch of an epoch, by number."""
        start = position * self.global_batch
        return [sample for sample, _ in self._samples(epoch)[start : start + self.global_batch]]

    def _samples(self, epoch: int) -> list[tuple[int, int]]:
        batches = self.batches
        order = epoch_order(len(batches.split), seed=batches.seed, epoch=epoch)
        return repeat_samples(order, repeats=batches.repeats, global_batch=self.global_batch)

    def keys(self, epoch: int) -> list[TrainKey]:
        """What is in each of the epoch's batches."""
        mine = rank_batches(
            self._samples(epoch), global_batch=self.global_batch, rank=self.batches.rank, world_size=self.world_size
        )
        return [(epoch, position, batch) for position, batch in enumerate(mine)]


class EvalLoader:
    """One rank's share of a split, in batches, without padding: together each sample exactly once."""

    def __init__(
        self,
        split: LabelledImages,
        *,
        batch: int,
        transform: Callable[[Images], Tensor] = stacked,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        share = list(rank_share(len(split), rank=rank, world_size=world_size))
        self.keys = [share[start : start + batch] for start in range(0, len(share), batch)]
        self.loader = KeyedLoader(PlainBatches(split, transform), workers=workers, pin_memory=pin_memory)

    def __iter__(self) -> Iterator[Batch]:
        """The batches. Raises ImageError for a damaged file."""
        return self.loader.iterate(self.keys)


class KeyedLoader:
    """Makes the batches of keys, in their order, with torch's DataLoader. Its workers live on from list to list.

    `make(key)` makes a batch, in any process.
    """

    def __init__(self, make: Callable[[Any], Any], *, workers: int, pin_memory: bool = False) -> None:
        self.keys: list[Any] = []  # which DataLoader goes through next
        self.lists = 0
        with any_number_of_workers():
            self.loader: DataLoader[Any] = DataLoader(
                ErrorsAsValues(make),  # type: ignore[arg-type]
                sampler=self.keys,
                batch_size=None,
                collate_fn=unchanged,
                num_workers=workers,
                multiprocessing_context=START if workers else None,
                persistent_workers=workers > 0,
                prefetch_factor=BATCHES_AHEAD if workers else None,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # DataLoader draws its workers' seed: not from training's random numbers
            )

    def iterate(self, keys: list[Any]) -> Iterator[Any]:
        """The batches of the keys. Raises ImageError for a damaged file, WorkerError for a batch that got lost."""
        self.keys[:] = keys
        self.lists = mine = self.lists + 1
        self.loader.worker_init_fn = partial(begin_worker, os.getpid())
        try:
            with any_number_of_workers(), signals_held():
                batches = iter(self.loader)
        except OSError as error:
            raise WorkerError(f"loader workers could not be started ({error.strerror}); {remedy(error)}") from error

        for batch in batches:
            if self.lists != mine:
                raise RuntimeError(
                    "Another epoch was started before this one was finished; iterate one epoch at a time."
                )
            if isinstance(batch, ImageError):
                raise ImageError(f"{batch}; `resnet-core data check` finds all such files at once")
            if isinstance(batch, WorkerError):
                raise batch
            yield batch


def in_groups(
    make: Callable[[Sequence[Any]], list[Any]],
    items: Sequence[Any],
    *,
    workers: int,
    advance: Callable[[int, int], object],
) -> Iterator[Any]:
    """What `make(group)` makes of each item, in order, where workers get groups of files.

    `advance(done, total)` is called as items are done.
    """
    groups = [items[start : start + FILES_AT_A_TIME] for start in range(0, len(items), FILES_AT_A_TIME)]
    done = 0
    for results in KeyedLoader(make, workers=min(workers, len(groups))).iterate(groups):
        yield from results
        done += len(results)
        advance(done, len(items))


@contextmanager
def any_number_of_workers() -> Iterator[None]:
    """Inside this context torch does not warn of more workers than cores: those that wait for a disk may be more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


@dataclass(frozen=True)
class ErrorsAsValues:
    """Returns ImageError instead of raising it: DataLoader would put a worker's traceback into its one line."""

    make: Callable[[Any], Any]

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.make(key)
        except ImageError as error:
            return error


def unchanged(value: Any) -> Any:
    return value
