"""The training loop, for any network and any `(inputs, targets)`, on one process or many."""

from resnet_core.distributed.failures import PeerError
from resnet_core.distributed.launcher import launch
from resnet_core.distributed.signals import StoppedError, stop_on_signals
from resnet_core.distributed.world import ReplicaError, World, join_world
from resnet_core.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from resnet_core.train.config import RunConfig, TrainConfig
from resnet_core.train.trainer import NonFiniteLossError, Step, Trainer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "NonFiniteLossError",
    "PeerError",
    "ReplicaError",
    "RunConfig",
    "Step",
    "StoppedError",
    "TrainConfig",
    "Trainer",
    "World",
    "join_world",
    "launch",
    "load_checkpoint",
    "save_checkpoint",
    "stop_on_signals",
]
