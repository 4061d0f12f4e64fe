"""The world of processes that train together, and what they exchange."""

from __future__ import annotations

import hashlib
import inspect
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_core.distributed.failures import blame_first_failure
from resnet_core.distributed.heartbeat import exit_when_parent_exits, heartbeat
from resnet_core.distributed.rendezvous import RANK_VARIABLES, rank_from_environment, rendezvous
from resnet_core.foundation.errors import ReportedError

T = TypeVar("T")

# Leaves each rank its own BatchNorm buffers in forward; torch 2.15 renamed the argument.
_renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _renamed else "broadcast_buffers": False}


@dataclass(frozen=True)
class World:
    """This process among its peers: rank 0 of 1 unless `join_world` found others."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: dist.Store | None = field(default=None, repr=False, compare=False)
    """Read and written by all ranks; None for a single process."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """This rank's replica of the model; backward averages the gradients over the ranks."""
        if self.size == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        replica = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **KEEP_BUFFERS)
        replica._set_ddp_runtime_logging_sample_rate(1)  # the default times ten steps and then every hundredth
        return replica

    @contextmanager
    def no_sync(self, replica: nn.Module) -> Iterator[None]:
        """Inside this context backward only adds to this rank's gradients; the next one outside averages the sums."""
        if isinstance(replica, DistributedDataParallel):
            with replica.no_sync():
                yield
        else:
            yield

    def communication_seconds(self, replica: nn.Module) -> float:
        """Seconds of the last backward in which gradients were in transit and nothing was computed."""
        if not isinstance(replica, DistributedDataParallel):
            return 0.0
        assert replica.logger is not None
        replica.logger.set_runtime_stats_and_log()  # which torch would do when the next step begins
        measured = replica._get_ddp_logging_data()
        nanoseconds = [measured.get(f"backward_{name}_time", 0) for name in ("comm", "compute_comm_overlap")]
        return max(0, nanoseconds[0] - nanoseconds[1]) / 1e9

    def peak_memory(self) -> int:
        """The most bytes that this process has held: of GPU memory if it computes on a GPU, else of main memory."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the ranks."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value / self.size

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each number summed over the ranks, integers exactly; a rank with nothing to add gives an empty mapping."""
        totals: dict[str, float] = {}
        for key, value in (item for rank_values in self.gather(values) for item in rank_values.items()):
            totals[key] = totals.get(key, 0) + value
        return totals

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks; on every rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the buffers of rank 0, since each rank's BatchNorm has seen different samples.

        Rank 0's own never change here. How often they are shared changes a run only if training reads buffers, which
        BatchNorm does not.
        """
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def run_on_rank_0(self, function: Callable[[], T]) -> T:
        """Runs `function()` on rank 0 only; every rank returns its result, or raises its error."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:  # carried to all ranks, so that none waits for this one
                outcome[1] = error
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            outcome[1].on_every_rank = True
            raise outcome[1]
        return outcome[0]

    def gather_or_raise(self, function: Callable[[], T]) -> T:
        """Runs `function()` on every rank, and returns this rank's result.

        When it raised on any rank, every rank raises the error of the first one.
        """
        result, mine = None, None
        try:
            result = function()
        except Exception as error:  # carried to all ranks, so that none waits for this one
            mine = error
        for each in self.gather(mine):
            if each is not None:
                each.on_every_rank = True  # type: ignore[attr-defined]
                raise each
        return cast(T, result)

    def any_rank_stops(self, mine: bool) -> bool:
        """Whether this rank was asked to stop, or any other that has passed True here."""
        if mine:
            self.announce("stop")
        return mine or self.announced("stop")

    def announce(self, word: str) -> None:
        """Makes `announced(word)` True on every rank."""
        if self.store is not None:
            self.store.set(word, "")

    def announced(self, word: str, *, within_seconds: float = 0.0) -> bool:
        """Whether any rank has announced this word, or does so within this time. It is no collective operation."""
        if self.store is None:
            return False
        deadline = time.monotonic() + within_seconds
        while not self.store.check([word]):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def compare(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Raises ReplicaError on every rank when the ranks' tensors are not equal to the bit."""
        if self.size == 1:
            return
        mine = {name: _sha256(tensor) for name, tensor in tensors.items()}
        every_rank = self.gather(mine)

        # Tensor name -> the ranks that differ from the majority.
        odd: dict[str, list[int]] = {}
        for name in mine:
            hashes = [each[name] for each in every_rank]
            usual = max(hashes, key=hashes.count)
            if hashes.count(usual) < self.size:
                # Without a majority, as of two ranks, nobody knows which is right.
                undecided = 2 * hashes.count(usual) <= self.size
                odd[name] = [rank for rank, each in enumerate(hashes) if undecided or each != usual]

        if odd:
            ranks = sorted({rank for each in odd.values() for rank in each})
            which = f"{'ranks' if len(ranks) > 1 else 'rank'} {' and '.join(map(str, ranks))} of {self.size}"
            where = next(iter(odd)) + (f" and {len(odd) - 1} more" if len(odd) > 1 else "")
            raise ReplicaError(
                f"{when} the replicas differ: {which} in {where}, where all must be equal to the bit: memory or "
                "arithmetic has failed on a machine; the same command continues from the last checkpoint"
            )


def _sha256(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).digest()


class ReplicaError(RuntimeError, ReportedError):
    """Ranks that must hold the same weights do not."""

    on_every_rank = True


def device_type(device: str, processes: int) -> str:
    """The device type for this many processes of a machine. Raises ValueError for "cuda" with too few GPUs."""
    gpus = torch.cuda.device_count()
    use_cuda = gpus >= processes if device == "auto" else device == "cuda"
    if use_cuda and not gpus:
        raise ValueError("device cuda: torch finds no GPU on this machine; use the device cpu")
    if use_cuda and gpus < processes:
        raise ValueError(
            f"device cuda: each process on this machine needs a GPU of its own, and torch finds {gpus} for "
            f"{processes}; start fewer processes, or use the device cpu"
        )
    return "cuda" if use_cuda else "cpu"


@contextmanager
def join_world(device: str = "auto", *, timeout_seconds: float = 300.0) -> Iterator[World]:
    """Joins the processes that `launch` or torchrun started, if any: gloo on CPU, NCCL on GPU.

    `device` is "cpu", "cuda" or "auto", which takes GPUs if there is one for each process of this machine. Raises
    ValueError for "cuda" with too few GPUs, and when the processes cannot meet.

    An error inside this context is noted with its rank. When another process failed first, or is gone, this one raises
    PeerError. A process that is silent for `timeout_seconds` ends the others, and so does the end of the launcher.
    """
    rank, size, local_rank, local_size = map(rank_from_environment, RANK_VARIABLES)
    use_cuda = device_type(device, local_size) == "cuda"
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(device=chosen)
        return

    if "TORCHELASTIC_RUN_ID" in os.environ:
        exit_when_parent_exits(os.getppid())
    store = rendezvous("nccl" if use_cuda else "gloo")
    try:
        with heartbeat(store.clone(), rank, size, timeout_seconds):
            yield World(rank, size, chosen, store)
    except Exception as error:
        blame_first_failure(error, rank, store)
        raise
    finally:
        dist.destroy_process_group()
