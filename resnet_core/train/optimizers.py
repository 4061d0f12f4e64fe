"""Optimizers and their settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD


@dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """Stochastic gradient descent with momentum (torch's: weight decay is added to the gradient)."""

    lr: float = 0.1
    """Peak learning rate, after warm-up."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optimizer.lr must be positive and finite, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs a positive optimizer.momentum, got 0")


def build_sgd(model: nn.Module, config: SGDConfig) -> SGD:
    """SGD over all parameters of the model, decayed alike, as in the paper."""
    return SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )
