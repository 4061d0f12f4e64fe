"""The shared trainer: any network, any `(inputs, targets)`, one process or many."""

from resnet_core.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from resnet_core.train.distributed import PeerError, World, join_world, launch
from resnet_core.train.trainer import NonFiniteLossError, RunConfig, Step, TrainConfig, Trainer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "NonFiniteLossError",
    "PeerError",
    "RunConfig",
    "Step",
    "TrainConfig",
    "Trainer",
    "World",
    "join_world",
    "launch",
    "load_checkpoint",
    "save_checkpoint",
]
