"""The settings of the trainer: what decides a run's result, and what does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in which arithmetic to train."""

    epochs: int = 90
    precision: str = "float32"
    """float32, or bf16: automatic mixed precision; weights, gradients and their averages stay float32."""
    channels_last: bool = False
    """Memory format NHWC, which many CPUs and GPUs convolve faster."""
    compile: bool = False
    """torch.compile the network."""
    accumulation: int = 1
    """Parts in which each process computes its batch, one after the other: less memory, the same mean gradient. As
    many as it has samples at most."""
    sync_batchnorm: bool = False
    """BatchNorm over the batches of all processes; on GPUs alone."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time; slower on GPUs."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in ("float32", "bf16"):
            raise ValueError(
                f"train.precision must be float32 or bf16, got {self.precision!r}; fp16 is not offered: its gradients "
                "need a loss scale that changes the run, and bf16 has float32's range"
            )

    def smallest_part(self, batch: int) -> int:
        """Samples in the smallest part of a process's batch. Raises ValueError where there are more parts."""
        if self.accumulation > batch:
            raise ValueError(
                f"train.accumulation {self.accumulation} is more parts than the {batch} samples that each process has "
                "in a batch; lower it, use fewer processes, or raise data.global_batch"
            )
        return batch // self.accumulation

    def check_device(self, device_type: str) -> None:
        """Raises ValueError where this cannot be computed there."""
        if self.sync_batchnorm and device_type != "cuda":
            raise ValueError(
                "train.sync_batchnorm: torch synchronises BatchNorm on GPUs alone; leave it out on the CPU, or make "
                "each process's batch large enough for statistics of its own"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run computes and how often it reports: what cannot change the weights."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPUs where there is one for each process of this machine, else the CPU."""
    log_every_steps: int = 10
    eval_every_epochs: int = 1
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int = 0
    """Checkpoints within an epoch as well, every so many steps; 0: none."""
    keep_checkpoints: int = 3
    """The newest that are kept, besides the best."""
    timeout_seconds: float = 300.0
    """How long a process may give no sign of life before the others end."""
    compare_replicas_every_steps: int = 0
    """How often the processes compare their weights, which must be equal to the bit; 0: never."""
    tensorboard: bool = False
    """Write the record for TensorBoard, too."""

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "eval_every_epochs", "checkpoint_every_epochs", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("checkpoint_every_steps", "compare_replicas_every_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name} must be at least 0, got {getattr(self, name)}; 0 turns it off")
        if not 1 <= self.timeout_seconds < math.inf:
            raise ValueError(f"run.timeout_seconds must be at least 1 and finite, got {self.timeout_seconds}")
