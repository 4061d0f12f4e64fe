"""Batches of `(images [N, C, H, W], labels [N])` for one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from resnet_core.data.datasets import Split
from resnet_core.data.sampler import epoch_order, rank_batches, rank_share, seed_from

Batch = tuple[Tensor, Tensor]


class Augmented:
    """A split whose item `(epoch, index)` is augmented at random, but always in the same way."""

    def __init__(self, split: Split, augment: Callable[[Tensor, Generator], Tensor], seed: int) -> None:
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        generator = torch.Generator().manual_seed(seed_from(self.seed, epoch, index))
        return self.augment(self.split.images[index], generator), self.split.labels[index]


class TrainLoader:
    """`loader.epoch(3)` iterates over one rank's batches of epoch 3, `loader.epoch(3, start=7)` from its batch 7 on.

    Order and augmentation depend on (seed, epoch, index) alone: not on workers, on other ranks or on what ran before.
    Raises ValueError when `rank_batches` does.
    """

    def __init__(
        self,
        split: Split,
        *,
        augment: Callable[[Tensor, Generator], Tensor],
        global_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        self.samples = Augmented(split, augment, seed)
        self.global_batch, self.seed, self.rank, self.world_size, self.workers = (
            global_batch,
            seed,
            rank,
            world_size,
            workers,
        )
        self.steps_per_epoch = len(self._batches(epoch=0))

    def __len__(self) -> int:
        return self.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        keys = [[(epoch, index) for index in batch] for batch in self._batches(epoch)[start:]]
        return iter(DataLoader(self.samples, batch_sampler=keys, num_workers=self.workers))  # type: ignore[arg-type]

    def _batches(self, epoch: int) -> list[list[int]]:
        order = epoch_order(len(self.samples.split), seed=self.seed, epoch=epoch)
        return rank_batches(order, global_batch=self.global_batch, rank=self.rank, world_size=self.world_size)


class EvalLoader:
    """One rank's share of a split, in batches as they are, without padding: together each sample exactly once."""

    def __init__(self, split: Split, *, batch: int, rank: int = 0, world_size: int = 1) -> None:
        self.split, self.batch = split, batch
        self.share = list(rank_share(len(split), rank=rank, world_size=world_size))

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.share), self.batch):
            indices = self.share[start : start + self.batch]
            yield self.split.images[indices], self.split.labels[indices]
