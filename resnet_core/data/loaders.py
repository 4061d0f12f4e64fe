"""Batches of `(images [N, C, H, W], labels [N])` for one rank, prepared by worker processes where asked.

A worker is told the epoch and the samples of a whole batch and keeps no state, so which worker prepares what, and how
many there are, cannot change a batch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_core.data.datasets import LabelledImages
from resnet_core.data.images import ImageError
from resnet_core.data.sampler import epoch_order, rank_batches, rank_share, repeat_samples, seed_from, steps_per_epoch
from resnet_core.data.transforms import Images, Views

Batch = tuple[Tensor, Tensor]
TrainKey = tuple[int, int, Sequence[tuple[int, int]]]  # epoch, position, the batch's (sample, copy)

BATCHES_AHEAD = 4  # that each worker prepares while the network computes

# Forked workers share the dataset's memory and start at once, also in ranks that were themselves spawned. macOS's
# libraries do not survive a fork: there they are spawned, which takes seconds once.
START = "fork" if sys.platform == "linux" else "spawn"


def as_they_are(images: Images) -> Tensor:
    return images if isinstance(images, Tensor) else torch.stack(images)


class Batches(Protocol):
    """What a worker is given: the batch of a key."""

    def __getitem__(self, key: Any, /) -> Batch: ...


@dataclass(frozen=True)
class TrainBatches:
    """The augmented batch of a `TrainKey`; labels are class numbers `[N]`, after `mix` shares of classes `[N, K]`."""

    split: LabelledImages
    augment: Callable[[Images, Views], Tensor]
    mix: Callable[[Tensor, Tensor, int], Batch] | None
    repeats: int
    seed: int
    rank: int

    def __getitem__(self, key: TrainKey, /) -> Batch:
        epoch, position, samples = key
        indices = [index for index, _ in samples]
        # Each copy is a view of its own: 0 .. repeats - 1 in the first epoch, and so on.
        seeds = [seed_from(self.seed, epoch * self.repeats + copy, index) for index, copy in samples]
        images, labels = self.augment(self.split.take(indices), Views(epoch, seeds)), self.split.labels[indices]
        if self.mix is None:
            return images, labels
        return self.mix(images, labels, seed_from(self.seed, epoch, position, self.rank))


@dataclass(frozen=True)
class EvalBatches:
    """The prepared batch of a list of samples."""

    split: LabelledImages
    prepare: Callable[[Images], Tensor]

    def __getitem__(self, indices: list[int], /) -> Batch:
        images = self.split.take(indices)
        return self.prepare(images), self.split.labels[indices]


class TrainLoader:
    """`loader.epoch(3)` iterates over one rank's batches of epoch 3, `loader.epoch(3, start=7)` from its batch 7 on.

    Order and augmentation depend on (seed, epoch, sample, copy) alone: not on workers, on other ranks or on what ran
    before; `mix` draws once for each batch of a rank. Raises ValueError when `steps_per_epoch` does.
    """

    def __init__(
        self,
        split: LabelledImages,
        *,
        augment: Callable[[Images, Views], Tensor],
        global_batch: int,
        seed: int,
        mix: Callable[[Tensor, Tensor, int], Batch] | None = None,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches = TrainBatches(split, augment, mix, repeats, seed, rank)
        self.global_batch, self.world_size = global_batch, world_size
        self.steps_per_epoch = steps_per_epoch(len(split), global_batch=global_batch, repeats=repeats)
        self.loader = KeyedLoader(self.batches, workers=workers, pin_memory=pin_memory)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `start` on, one epoch at a time.

        Raises ValueError when `batch_share` does, ImageError for a damaged file.
        """
        return self.loader.of(self.keys(epoch)[start:])

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
        prepare: Callable[[Images], Tensor] = as_they_are,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        share = list(rank_share(len(split), rank=rank, world_size=world_size))
        self.keys = [share[start : start + batch] for start in range(0, len(share), batch)]
        self.loader = KeyedLoader(EvalBatches(split, prepare), workers=workers, pin_memory=pin_memory)

    def __iter__(self) -> Iterator[Batch]:
        """The batches. Raises ImageError for a damaged file."""
        return self.loader.of(self.keys)


class KeyedLoader:
    """Batches of keys in their order, by torch's DataLoader, whose workers stay from one list of keys to the next."""

    def __init__(self, batches: Batches, *, workers: int, pin_memory: bool) -> None:
        self.keys = Keys()
        self.loader: DataLoader[Any] = DataLoader(
            Carrying(batches),  # type: ignore[arg-type]
            sampler=self.keys,
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=workers,
            multiprocessing_context=START if workers else None,
            persistent_workers=workers > 0,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # a seed is drawn for the workers: not from the training's own numbers
        )

    def of(self, keys: list[Any]) -> Iterator[Batch]:
        self.keys.keys = keys
        self.loader.worker_init_fn = partial(begin_worker, os.getpid())
        for batch in self.loader:
            if self.keys.keys is not keys:
                raise RuntimeError("these batches ended when others were begun; finish an epoch before the next")
            if isinstance(batch, ImageError):
                raise batch
            yield batch


class Keys:
    """The list of keys that DataLoader goes through next."""

    def __init__(self) -> None:
        self.keys: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Carrying:
    """Batches, and ImageError as a value: raised in a worker, its one line would come with a traceback inside."""

    batches: Batches

    def __getitem__(self, key: Any) -> Batch | ImageError:
        try:
            return self.batches[key]
        except ImageError as error:
            return error


def as_it_is(batch: Any) -> Any:
    return batch


def begin_worker(parent: int, worker: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all, to the main process; on Linux SIGTERM too, and it dies with it.

    A cluster sends SIGTERM to every process of a job, and the main process needs its workers to end the step it is in.
    Without the last a worker outlives a killed rank by seconds, or for good where that was killed in the moment of the
    fork, and with it the connections it was forked with: the other ranks would wait as long to see that one is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=end_when_the_parent_says, daemon=True).start()


def end_when_the_parent_says() -> None:
    """Ends this process at a SIGTERM of its parent's, which is how DataLoader ends a worker that did not hear it."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
