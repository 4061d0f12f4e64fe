"""Which sample goes where: pure functions of (seed, epoch, position), so that a resumed run needs no saved state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

Sample = TypeVar("Sample")


def seed_from(*numbers: int) -> int:
    """A 63-bit seed that depends on every number and on their order."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of `range(num_samples)`, a different one in each epoch."""
    generator = torch.Generator().manual_seed(seed_from(seed, epoch))
    return torch.randperm(num_samples, generator=generator).tolist()


def repeat_samples(order: Sequence[int], *, repeats: int, global_batch: int) -> list[tuple[int, int]]:
    """`(sample, copy)` for each full global batch: copy 0 of its samples, then copy 1 of the same samples, and so on.

    Repeated augmentation (Hoffer et al. 2020, "Augment your batch"; Berman et al. 2019, "MultiGrain"): all copies of a
    sample are in one global batch. An epoch keeps its length, so it shows only the first 1/`repeats` of `order`.
    Copies lie apart in the batch, so that ranks share them out and MixUp does not mix an image with itself.
    `repeats` must divide `global_batch`.
    """
    different = global_batch // repeats
    starts = range(0, len(order) // global_batch * different, different)
    return [
        (sample, copy) for start in starts for copy in range(repeats) for sample in order[start : start + different]
    ]


def steps_per_epoch(num_samples: int, *, global_batch: int, repeats: int = 1) -> int:
    """Full global batches in an epoch. The samples that would only partly fill a last batch are skipped in that epoch.

    The gradient of a smaller batch would weigh its samples more. Raises ValueError when the global batch is larger than
    the dataset, or cannot hold each of its samples `repeats` times.
    """
    if global_batch % repeats:
        raise ValueError(
            f"a global batch of {global_batch} cannot hold each sample {repeats} times; make it a multiple of {repeats}"
        )
    if global_batch > num_samples:
        raise ValueError(
            f"a global batch of {global_batch} is larger than the {num_samples} samples; give at most as many, such as "
            f"--batch {max(1, num_samples // 4)}"
        )
    return num_samples // global_batch


def batch_share(global_batch: int, world_size: int) -> int:
    """One rank's batch. Raises ValueError when the global batch cannot be split equally, naming numbers that fit."""
    if global_batch % world_size or global_batch < 1:
        fitting = [size for size in range(1, global_batch + 1) if global_batch % size == 0]
        raise ValueError(
            f"a global batch of {global_batch} cannot be split equally over {world_size} processes; "
            f"use {' or '.join(map(str, fitting)) or 1} processes, or a global batch that {world_size} divides"
        )
    return global_batch // world_size


def rank_batches(order: Sequence[Sample], *, global_batch: int, rank: int, world_size: int) -> list[Sequence[Sample]]:
    """One rank's batches: its equal part of each full global batch, in order.

    Raises ValueError when `batch_share` or `steps_per_epoch` does.
    """
    batch = batch_share(global_batch, world_size)
    steps = steps_per_epoch(len(order), global_batch=global_batch)
    return [order[start : start + batch] for start in range(rank * batch, steps * global_batch, global_batch)]


def rank_share(num_samples: int, *, rank: int, world_size: int) -> range:
    """One rank's samples for evaluation: together the ranks see each sample exactly once."""
    return range(rank, num_samples, world_size)
