"""Exact scores: each sample of all ranks is counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from resnet_core.distributed.signals import StoppedError, batches_or_stop
from resnet_core.distributed.world import World
from resnet_core.train.config import TrainConfig
from resnet_core.train.forward import forward, unchanged
from resnet_core.train.metrics import means


class EvaluationBatches(Protocol):
    """What an evaluation needs of its data: see `resnet_core.data.EvalLoader`."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: EvaluationBatches,
    score_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    config: TrainConfig,
    world: World,
    stop_asked: Callable[[], bool] = lambda: False,
    prepare_inputs: Callable[[Tensor], Tensor] = unchanged,
) -> dict[str, float]:
    """Means over the samples of all ranks' batches, each counted once.

    `model` comes from `prepare_model` and is in eval mode. When `stop_asked()` returns True on any rank, every rank
    raises StoppedError.
    """

    def sums_of_this_rank() -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        for inputs, targets in batches_or_stop(iter(loader)):
            if world.any_rank_stops(stop_asked()):
                raise StoppedError("the evaluation was stopped before its end")
            for key, value in score_fn(*forward(model, inputs, targets, config, world, prepare_inputs)).items():
                sums[key] = sums[key] + value if key in sums else value
        return {key: value.item() for key, value in sums.items()}

    return means(world.sum(world.gather_or_raise(sums_of_this_rank)))
