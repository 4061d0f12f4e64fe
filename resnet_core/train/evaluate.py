"""Exact scores: each sample of all ranks is counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from resnet_core.distributed.signals import StoppedError
from resnet_core.distributed.world import World
from resnet_core.train.config import TrainConfig
from resnet_core.train.forward import forward
from resnet_core.train.metrics import means


class EvalBatches(Protocol):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: EvalBatches,
    score_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    config: TrainConfig,
    world: World,
    stop_asked: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Means over the samples of all ranks' batches, each counted once; `model` is `prepare_model`'s, in evaluation mode.

    Where `stop_asked()` gets true on one rank, every rank raises StoppedError.
    """

    def sums_of_this_rank() -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        for inputs, targets in loader:
            if world.stop_asked(stop_asked()):
                raise StoppedError("stopped in an evaluation")
            for key, value in score_fn(*forward(model, inputs, targets, config, world)).items():
                sums[key] = sums[key] + value if key in sums else value
        return {key: value.item() for key, value in sums.items()}

    return means(world.sum(world.gather_or_raise(sums_of_this_rank)))
