"""Random numbers of a training step: a function of the seed, the step and the rank."""

from __future__ import annotations

import random

import torch


def random_layers_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and the like: another one each step and rank, the same whenever that step is done again."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def seed_random_layers(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does for the generators that a step draws from: the CPU's and its own GPU's.

    Torch's also looks for kinds of accelerators that are not there, which takes as long as a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
