"""Random numbers of a training step: a function of the seed, the step and the rank."""

from __future__ import annotations

import random

import torch


def random_layers_seed(seed: int, step: int, rank: int) -> int:
    """The seed of dropout and the like: different for each step and rank, the same whenever a step is repeated."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def seed_random_layers(seed: int, device: torch.device) -> None:
    """Seeds the generators that a step draws from, the CPU's and its own GPU's, as `torch.manual_seed` does.

    `torch.manual_seed` also looks for other kinds of accelerators, which takes as long as a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
