"""Moving averages of the weights, which often score better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class AveragingConfig:
    """Exponential moving average of the weights (Tarvainen & Valpola 2017, arXiv:1703.01780)."""

    ema_decay: float = 0.0
    """Share of the old average that an update keeps, below 1; 0 turns averaging off."""
    ema_every_steps: int = 1
    """Optimizer steps between updates. The average remembers about 1 / (1 - averaging.ema_decay) updates."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"averaging.ema_decay must be at least 0 and less than 1, got {self.ema_decay}; 0 turns averaging off"
            )
        if self.ema_every_steps < 1:
            raise ValueError(f"averaging.ema_every_steps must be at least 1, got {self.ema_every_steps}")


class WeightAverage:
    """The average of a model's weights over its steps, as named tensors like those of its `state_dict()`.

    The first update copies the weights, so that initial weights leave no trace. Each later one is
    `average <- ema_decay * average + (1 - ema_decay) * weight`. Buffers are copied, not averaged: BatchNorm's running
    statistics are moving averages already, and counters have no mean. Every rank keeps its own average; all are equal,
    because the weights are. Only their buffers differ, as the model's do.
    """

    def __init__(self, config: AveragingConfig) -> None:
        self.config = config
        self.tensors: dict[str, Tensor] = {}
        """Empty before the first update."""

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Includes the weights after `step` optimizer steps, if an update is due at that step."""
        if not self.config.ema_decay or step % self.config.ema_every_steps:
            return
        current = {name: value.detach() for name, value in model.state_dict().items()}
        if not self.tensors:
            self.tensors = {name: value.clone() for name, value in current.items()}
            return
        weights = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        averages, latest = ([tensors[name] for name in weights] for tensors in (self.tensors, current))
        torch._foreach_lerp_(averages, latest, 1 - self.config.ema_decay)
        for name in current.keys() - set(weights):
            self.tensors[name].copy_(current[name])

    def load(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        """Restores saved `tensors`, on the model's device and in its memory format."""
        current = model.state_dict()
        self.tensors = {name: torch.empty_like(current[name]).copy_(value) for name, value in tensors.items()}

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Inside this context the model has the averaged weights, if there is an average; afterwards its own again."""
        if not self.tensors:
            yield
            return
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)
