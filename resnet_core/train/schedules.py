"""Learning rates: pure functions of the step. Warm-up first, then one of four ways on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from resnet_core.foundation.suggestions import did_you_mean


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate comes up to its peak and goes on from there, by step and not by epoch."""

    name: str = "cosine"
    """cosine (half a cosine down), milestones (down by a factor at given epochs), constant, one_cycle (a line down)."""
    warmup_epochs: float = 0.0
    warmup: Literal["linear", "constant"] = "linear"
    """linear: a line from warmup_start_factor up to the peak; constant: at warmup_start_factor until it is over."""
    warmup_start_factor: float = 0.0
    """Learning rate before the first step over the peak."""
    final_lr: float = 0.0
    """Where cosine and one_cycle end."""
    t_max_epochs: float = 0.0
    """Epochs from the end of warm-up until cosine is at final_lr and stays; 0: the rest of the run."""
    milestones: tuple[float, ...] = ()
    """Epochs of the run, counted from its start, at which the learning rate is multiplied by gamma."""
    gamma: float = 0.1

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
                    f"schedule.{key} is of schedule.name {' and '.join(names)} and would do nothing for {self.name}; "
                    "leave it out"
                )
        if self.name == "milestones" and not self.milestones:
            raise ValueError("schedule.milestones is empty: name the epochs, or choose schedule.name constant")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of step 0, 1, .., `epochs * steps_per_epoch - 1`, when called with it.

    Linear warm-up (Goyal et al. 2017, arXiv:1706.02677) is at `peak` in its last step; what follows begins at `peak`,
    and would be at its end one step after the last, so that no step is lost to a learning rate of 0.
    Raises ValueError where the schedule does not fit in the run.
    """

    config: ScheduleConfig
    peak: float
    steps_per_epoch: int
    epochs: int

    def __post_init__(self) -> None:
        warmup, milestones, final_lr = self.config.warmup_epochs, self.config.milestones, self.config.final_lr
        if warmup >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs ({warmup:g}) must be less than train.epochs ({self.epochs}); lower it"
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
        """Steps from the end of warm-up to the end of the way down."""
        return self.steps(self.config.t_max_epochs) or self.epochs * self.steps_per_epoch - self.warmup_steps

    def steps(self, epochs: float) -> int:
        return round(epochs * self.steps_per_epoch)


def cosine(schedule: Schedule, step: int) -> float:
    """Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts."""
    return (1 + math.cos(math.pi * min(1.0, step / schedule.steps_down))) / 2


def milestones(schedule: Schedule, step: int) -> float:
    """He et al. 2015, section 3.4: a fraction at given moments."""
    passed = sum(step + schedule.warmup_steps >= schedule.steps(epoch) for epoch in schedule.config.milestones)
    return schedule.config.gamma**passed


def constant(schedule: Schedule, step: int) -> float:
    return 1.0


def one_cycle(schedule: Schedule, step: int) -> float:
    """Smith & Topin 2018, arXiv:1708.07120: the step after warm-up is already on the way down."""
    return 1 - (step + 1) / (schedule.steps_down + 1)


# Step since the end of warm-up -> share of the way from final_lr to the peak.
SHAPES: dict[str, Callable[[Schedule, int], float]] = {
    "cosine": cosine,
    "milestones": milestones,
    "constant": constant,
    "one_cycle": one_cycle,
}

# Share of warm-up that is over, start factor -> share of the peak. He et al. 2015, section 4.2, warm up a ResNet-110 at
# a constant 0.01 of 0.1; Goyal et al. 2017, section 2.2, compare both.
WARMUPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda done, start: start + (1 - start) * done,
    "constant": lambda done, start: start,
}

ONLY_OF = {"final_lr": ("cosine", "one_cycle"), "t_max_epochs": ("cosine",), "milestones": ("milestones",)}
