"""The settings of the trainer: those that decide a run's result, and those that cannot change it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Epochs, precision and other settings of the training loop."""

    epochs: int = 90
    """Passes over the training images."""
    fast: bool = False
    """Before the run begins, measure some steps and turn on what makes them faster here: bf16, channels_last, compile,
    cuda_graphs, run.threads. What is on stays on. The run's recipe records the choice, with which the run continues."""
    precision: str = "float32"
    """float32, or bf16 for automatic mixed precision, in which weights, gradients and averages stay float32."""
    channels_last: bool = False
    """Use channels_last (NHWC), which is faster on many CPUs and GPUs."""
    compile: bool = False
    """Compile the network with torch.compile."""
    cuda_graphs: bool = False
    """Record a step's forward and backward as a CUDA graph and replay it: fast for small networks; needs one GPU."""
    accumulation: int = 1
    """Split each process's batch into this many parts (gradient accumulation): less memory, the same mean gradient."""
    sync_batchnorm: bool = False
    """Compute BatchNorm over the batches of all processes; needs GPUs."""
    deterministic: bool = False
    """Use only algorithms that give the same bits every time, as continuing exactly on a GPU needs; slower there."""

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
        """Samples in the smallest part of a process's batch. Raises ValueError for more parts than samples."""
        if self.accumulation > batch:
            raise ValueError(
                f"train.accumulation {self.accumulation} is more parts than the {batch} samples that each process has "
                "in a batch; lower it, use fewer processes, or raise data.global_batch"
            )
        return batch // self.accumulation

    def check_device(self, device_type: str, processes: int = 1) -> None:
        """Raises ValueError if this number of devices of this type cannot compute what is configured."""
        if self.cuda_graphs and (device_type != "cuda" or processes > 1):
            raise ValueError(
                f"train.cuda_graphs needs one process on an NVIDIA GPU, and this run has {processes} on "
                f"{device_type.upper()}; leave it out"
            )
        if self.sync_batchnorm and device_type != "cuda":
            raise ValueError(
                "train.sync_batchnorm: torch synchronizes BatchNorm only on GPUs; leave it out on the CPU, or make "
                "each process's batch large enough for statistics of its own"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run computes, and how often it reports and saves. A run may continue with other values of these."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses GPUs if there is one for each process of this machine, else the CPU. Devices round differently."""
    threads: int = 0
    """CPU threads of each training process; 0 leaves the number to torch. Another number may round differently."""
    log_every_steps: int = 10
    """Record loss, speed and learning rate every this many steps."""
    check_every_steps: int = 1
    """Check the losses every this many steps, and before a step is logged, evaluated or saved. Above 1 a GPU need not
    wait at each step, and a lost loss or a request to stop is noticed up to this many steps, less one, later."""
    eval_every_epochs: int = 1
    """Evaluate every this many epochs."""
    checkpoint_every_epochs: int = 1
    """Save a checkpoint every this many epochs."""
    checkpoint_every_steps: int = 0
    """Also save a checkpoint every this many steps within an epoch; 0 saves none."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep; the best one is always kept."""
    timeout_seconds: float = 300.0
    """Stop the run when a process has been silent for this long."""
    compare_replicas_every_steps: int = 0
    """Check every this many steps that all processes hold the same weights, to the bit; 0 never does."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard."""

    def __post_init__(self) -> None:
        at_least_1 = ("log_every_steps", "check_every_steps", "eval_every_epochs", "checkpoint_every_epochs")
        for name in (*at_least_1, "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("threads", "checkpoint_every_steps", "compare_replicas_every_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name} must be at least 0, got {getattr(self, name)}; 0 turns it off")
        if not 1 <= self.timeout_seconds < math.inf:
            raise ValueError(f"run.timeout_seconds must be at least 1 and finite, got {self.timeout_seconds}")
