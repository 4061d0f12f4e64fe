"""Which sample goes where: pure functions of (seed, epoch, position), so that a resumed run needs no saved state."""

from __future__ import annotations

import hashlib

import torch


def seed_from(*numbers: int) -> int:
    """A 63-bit seed that depends on every number and on their order."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of `range(num_samples)`, another one each epoch."""
    generator = torch.Generator().manual_seed(seed_from(seed, epoch))
    return torch.randperm(num_samples, generator=generator).tolist()


def rank_batches(order: list[int], *, global_batch: int, rank: int, world_size: int) -> list[list[int]]:
    """One rank's batches: its equal part of each global batch, in order.

    The samples of `order` that do not fill a last global batch are left out: the gradient of a smaller batch would
    weigh its samples more. Raises ValueError when the global batch cannot be split equally or is never full.
    """
    if global_batch % world_size or global_batch < 1:
        fitting = [size for size in range(1, global_batch + 1) if global_batch % size == 0]
        raise ValueError(
            f"a global batch of {global_batch} cannot be split equally over {world_size} processes; "
            f"use {' or '.join(map(str, fitting)) or 1} processes, or a global batch that {world_size} divides"
        )
    if global_batch > len(order):
        raise ValueError(f"a global batch of {global_batch} is larger than the {len(order)} samples; make it smaller")
    batch = global_batch // world_size
    starts = range(rank * batch, len(order) - len(order) % global_batch, global_batch)
    return [order[start : start + batch] for start in starts]


def rank_share(num_samples: int, *, rank: int, world_size: int) -> range:
    """One rank's samples for evaluation: together the ranks see each sample exactly once."""
    return range(rank, num_samples, world_size)
