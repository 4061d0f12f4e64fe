"""A network on its device and its outputs: the one forward of training and evaluation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from resnet_core.distributed.world import World
from resnet_core.train.config import TrainConfig


def prepare_model(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """The model on its device, in the form that the configuration asks for.

    Raises ValueError where the device cannot compute that, and for `fast`, which stands for settings to be measured.
    """
    if config.fast:
        raise ValueError(
            "train.fast is replaced by what `resnet-core train` measures before it makes a trainer; set "
            "train.precision, channels_last and compile yourself"
        )
    config.check_device(world.device.type, world.size)
    if config.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)

    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False

    model = model.to(world.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)

    if config.compile:
        # Past its limit of batch shapes torch would run the network uncompiled, so the limit goes.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = sys.maxsize
        # Dynamic shapes would make a graph depend on which shapes this process happened to see first.
        model.compile(dynamic=False)
    return model


def input_format(config: TrainConfig) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.preserve_format


def unchanged(inputs: Tensor) -> Tensor:
    return inputs


def forward(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    config: TrainConfig,
    world: World,
    prepare_inputs: Callable[[Tensor], Tensor] = unchanged,
) -> tuple[Tensor, Tensor]:
    """Outputs in at least float32, and targets, both on the device, where `prepare_inputs` is called first."""
    inputs = prepare_inputs(inputs.to(world.device, non_blocking=True, memory_format=input_format(config)))
    with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        outputs = network(inputs)
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs, targets.to(world.device, non_blocking=True)
