"""A network on its device, its outputs, and their scores: what training and evaluation share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from resnet_core.train.config import TrainConfig
from resnet_core.train.distributed import World
from resnet_core.train.metrics import means
from resnet_core.train.signals import StoppedError


class EvalBatches(Protocol):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def prepare(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """The model on its device in the form that the configuration asks for. Raises ValueError where that cannot be."""
    config.check_device(world.device.type)
    if config.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS demands for it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    model = model.to(world.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.compile:
        # Beyond so many shapes of batches torch would run the network without compiling it.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = sys.maxsize
        model.compile(dynamic=False)  # else a graph would depend on which shapes this process saw first
    return model


def forward(
    network: nn.Module, inputs: Tensor, targets: Tensor, config: TrainConfig, world: World
) -> tuple[Tensor, Tensor]:
    """Outputs, at least in float32, and targets, on the device."""
    memory_format = torch.channels_last if config.channels_last else torch.preserve_format
    inputs = inputs.to(world.device, non_blocking=True, memory_format=memory_format)
    with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        outputs = network(inputs)
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs, targets.to(world.device, non_blocking=True)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: EvalBatches,
    score_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    config: TrainConfig,
    world: World,
    stop_asked: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Means over the samples of all ranks' batches, each counted once; `model` is `prepare`'s, in evaluation mode.

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

    return means(world.sum(world.together(sums_of_this_rank)))
