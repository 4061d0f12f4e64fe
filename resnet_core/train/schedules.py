"""Learning rates: pure functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of step 0, 1, ..: linear up to `peak` at the last warm-up step, then half a cosine down to 0.

    Goyal et al. 2017 (warm-up, arXiv:1706.02677), Loshchilov & Hutter 2017 (cosine, arXiv:1608.03983). The cosine
    starts at `peak` and would reach 0 at `total_steps`, one past the last step.
    """
    if step < warmup_steps:
        return peak * ((step + 1) / warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2
