"""Learning rates: pure functions of the step. Warm-up comes first, then one of four curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from resnet_core.foundation.suggestions import did_you_mean


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate rises to its peak and continues, step by step."""

    name: str = "cosine"
    """Shape after warm-up: cosine (half a cosine down), milestones (multiplied by gamma at given epochs), constant, or
    one_cycle (falls linearly)."""
    warmup_epochs: float = 0.0
    """Epochs of warm-up at the start."""
    warmup: Literal["linear", "constant"] = "linear"
    """linear rises from the start factor to the peak; constant stays at the start factor."""
    warmup_start_factor: float = 0.0
    """Learning rate at the start of warm-up, as a share of the peak, 0 to 1: 0.1 starts at a tenth of it."""
    final_lr: float = 0.0
    """Learning rate at the end of cosine and one_cycle."""
    t_max_epochs: float = 0.0
    """Epochs from the end of warm-up until cosine reaches the final learning rate and stays there; 0 takes the rest of
    the run."""
    milestones: tuple[float, ...] = ()
    """Multiply the learning rate by schedule.gamma at these epochs, counted from the start of the run."""
    gamma: float = 0.1
    """Factor of the learning rate at each milestone, above 0 and at most 1."""

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise ValueError(f"schedule.name: unknown schedule {self.name!r}; {did_you_mean(self.name, SHAPES)}")
        for key in ("warmup_epochs", "final_lr", "t_max_epochs"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"schedule.{key} must be at least 0, got {getattr(self, key)}")

        if self.warmup not in WARMUPS:
            raise ValueError(f"schedule.warmup: unknown {self.warmup!r}; {did_you_mean(self.warmup, WARMUPS)}")
        if not 0 <= self.warmup_start_factor <= 1:
            raise ValueError(f"schedule.warmup_start_factor must be in [0, 1], got {self.warmup_start_factor}")
        if self.warmup == "constant" and self.warmup_epochs and not self.warmup_start_factor:
            raise ValueError("a constant warm-up at 0 learns nothing; set schedule.warmup_start_factor, 0.1 is usual")

        if not 0 < self.gamma <= 1:
            raise ValueError(f"schedule.gamma must be in (0, 1], got {self.gamma}")
        if any(later <= earlier for earlier, later in zip((0.0, *self.milestones), self.milestones, strict=False)):
            raise ValueError(f"schedule.milestones must be positive and rise, got {list(self.milestones)}")

        for key, names in ONLY_OF.items():
            if getattr(self, key) and self.name not in names:
                raise ValueError(
                    f"schedule.{key} works with schedule.name {' or '.join(names)} only and would do nothing for "
                    f"{self.name}; leave it out"
                )
        if self.name == "milestones" and not self.milestones:
            raise ValueError("schedule.milestones is empty: name the epochs, or choose schedule.name constant")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Called with a step 0, 1, .., `epochs * steps_per_epoch - 1`, returns its learning rate.

    Linear warm-up (Goyal et al. 2017, arXiv:1706.02677) reaches `peak` in its last step, and the curve after it begins
    at `peak`. The curve would end one step after the last one, so that no step has a learning rate of 0.
    Raises ValueError if the schedule does not fit into the run.
    """

    config: ScheduleConfig
    peak: float
    steps_per_epoch: int
    epochs: int

    def __post_init__(self) -> None:
        warmup, milestones, final_lr = self.config.warmup_epochs, self.config.milestones, self.config.final_lr
        if warmup >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs ({warmup:g}) must be less than train.epochs ({self.epochs}); lower it "
                f"with --schedule.warmup-epochs {self.epochs / 10:g}, or train for more --epochs"
            )

        for milestone in milestones:
            if not warmup <= milestone < self.epochs:
                raise ValueError(
                    f"schedule.milestones ({milestone:g}) must lie between the end of schedule.warmup_epochs "
                    f"({warmup:g}) and train.epochs ({self.epochs})"
                )

        if final_lr >= self.peak:
            raise ValueError(f"schedule.final_lr ({final_lr:g}) must be less than optimizer.lr ({self.peak:g})")

    def __call__(self, step: int) -> float:
        config = self.config
        if step < self.warmup_steps:
            return self.peak * WARMUPS[config.warmup]((step + 1) / self.warmup_steps, config.warmup_start_factor)
        return config.final_lr + (self.peak - config.final_lr) * SHAPES[config.name](self, step - self.warmup_steps)

    @property
    def warmup_steps(self) -> int:
        return self.steps(self.config.warmup_epochs)

    @property
    def steps_down(self) -> int:
        """Steps from the end of warm-up to the end of the curve."""
        return self.steps(self.config.t_max_epochs) or self.epochs * self.steps_per_epoch - self.warmup_steps

    def steps(self, epochs: float) -> int:
        return round(epochs * self.steps_per_epoch)


def cosine(schedule: Schedule, step: int) -> float:
    """Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts."""
    return (1 + math.cos(math.pi * min(1.0, step / schedule.steps_down))) / 2


def milestones(schedule: Schedule, step: int) -> float:
    """He et al. 2015, section 3.4: multiplied by a factor at given epochs."""
    passed = sum(step + schedule.warmup_steps >= schedule.steps(epoch) for epoch in schedule.config.milestones)
    return schedule.config.gamma**passed


def constant(schedule: Schedule, step: int) -> float:
    return 1.0


def one_cycle(schedule: Schedule, step: int) -> float:
    """Smith & Topin 2018, arXiv:1708.07120: the step after warm-up is already on the way down."""
    return 1 - (step + 1) / (schedule.steps_down + 1)


# (schedule, step since the end of warm-up) -> 0 at final_lr, 1 at the peak.
SHAPES: dict[str, Callable[[Schedule, int], float]] = {
    "cosine": cosine,
    "milestones": milestones,
    "constant": constant,
    "one_cycle": one_cycle,
}

# (share of warm-up that is over, start factor) -> share of the peak. He et al. 2015, section 4.2, warm up a ResNet-110
# at a constant 0.01 of 0.1; Goyal et al. 2017, section 2.2, compare both.
WARMUPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda done, start: start + (1 - start) * done,
    "constant": lambda done, start: start,
}

ONLY_OF = {"final_lr": ("cosine", "one_cycle"), "t_max_epochs": ("cosine",), "milestones": ("milestones",)}
