"""The processes that train together: their launch, their world, and the few things they say to each other."""

from __future__ import annotations

import hashlib
import inspect
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from secrets import token_hex
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_core.distributed.heartbeat import exit_when_parent_exits, watching
from resnet_core.distributed.launcher import exit_rank
from resnet_core.distributed.signals import INTERRUPTED, stop_asked

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
    """What all ranks can read and write, where there are several."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as one of its replicas, whose gradients are averaged over the ranks in backward."""
        if self.size == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        replica = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **KEEP_BUFFERS)
        replica._set_ddp_runtime_logging_sample_rate(1)  # otherwise it times ten steps, and then each hundredth
        return replica

    @contextmanager
    def no_sync(self, replica: nn.Module) -> Iterator[None]:
        """Within it backward adds to each rank's own gradients; the next one outside averages the sums."""
        if isinstance(replica, DistributedDataParallel):
            with replica.no_sync():
                yield
        else:
            yield

    def communication_seconds(self, replica: nn.Module) -> float:
        """Seconds of the last backward in which gradients were on their way and nothing was computed."""
        if not isinstance(replica, DistributedDataParallel):
            return 0.0
        assert replica.logger is not None
        replica.logger.set_runtime_stats_and_log()  # else done when the next step begins
        measured = replica._get_ddp_logging_data()
        nanoseconds = [measured.get(f"backward_{name}_time", 0) for name in ("comm", "compute_comm_overlap")]
        return max(0, nanoseconds[0] - nanoseconds[1]) / 1e9

    def peak_memory(self) -> int:
        """The most bytes that this process has held: of the GPU's memory where it computes there."""
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
        every_rank: list[Mapping[str, float]] = [values] * self.size
        if self.size > 1:
            dist.all_gather_object(every_rank, values)
        totals: dict[str, float] = {}
        for key, value in (item for rank_values in every_rank for item in rank_values.items()):
            totals[key] = totals.get(key, 0) + value
        return totals

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the buffers of rank 0, since each rank's BatchNorm has seen other samples.

        Rank 0's own never change here, so sharing more or less often cannot change a run, unless training reads them:
        BatchNorm's does not.
        """
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def run_on_rank_0(self, function: Callable[[], T]) -> T:
        """`function()` as rank 0 computed it, on every rank; where it raised, every rank raises."""
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
        """This rank's `function()`; where it raised on some rank, every rank raises the first one's error."""
        result, mine = None, None
        try:
            result = function()
        except Exception as error:  # carried to all ranks, so that none waits for this one
            mine = error
        errors = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(errors, mine)
        for each in errors:
            if each is not None:
                each.on_every_rank = True  # type: ignore[attr-defined]
                raise each
        return cast(T, result)

    def stop_asked(self, mine: bool) -> bool:
        """Whether this rank was asked to stop, or another one that has called this since it was."""
        if self.store is None:
            return mine
        if mine:
            self.store.set("stop", "asked")
        return mine or self.store.check(["stop"])

    def compare(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Raises ReplicaError on every rank where tensors that must be equal on all are not, to the bit."""
        if self.size == 1:
            return
        mine = {name: _sha256(tensor) for name, tensor in tensors.items()}
        every_rank = [mine] * self.size
        dist.all_gather_object(every_rank, mine)
        odd: dict[str, list[int]] = {}
        for name in mine:
            hashes = [each[name] for each in every_rank]
            usual = max(hashes, key=hashes.count)
            if hashes.count(usual) < self.size:
                # Of two ranks nobody knows which is right.
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


class ReplicaError(RuntimeError):
    """Ranks that must hold the same weights do not."""

    on_every_rank = True


class PeerError(RuntimeError):
    """Another process of the world failed before this one, or is gone."""


# What torchrun and `launch` tell each process, and what holds for a process that neither started.
RANK_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}


def rank_from_environment(name: str) -> int:
    """One of those numbers of this process. Raises ValueError where the environment holds something else."""
    value = os.environ.get(name, str(RANK_VARIABLES[name]))
    least = 1 if name.endswith("SIZE") else 0
    if not value.isdecimal() or int(value) < least:
        raise ValueError(
            f"the environment variable {name} is {value!r} and should be a number from {least} on: torchrun sets it"
        )
    return int(value)


def device_type(device: str, processes: int) -> str:
    """ "cuda" or "cpu", for that many processes of this machine. Raises ValueError for "cuda" with too few GPUs."""
    gpus = torch.cuda.device_count()
    use_cuda = gpus >= processes if device == "auto" else device == "cuda"
    if use_cuda and gpus < processes:
        raise ValueError(
            f"device cuda: each process on this machine needs a GPU of its own, and torch finds {gpus} for "
            f"{processes}; start fewer processes, or use the device cpu"
        )
    return "cuda" if use_cuda else "cpu"


@contextmanager
def join_world(device: str = "auto", *, timeout_seconds: float = 300.0) -> Iterator[World]:
    """Joins the processes that `launch` or torchrun started, if any: gloo on CPU, NCCL on GPU.

    `device` is "cpu", "cuda", or "auto": the GPUs where there is one for each process of this machine, else the CPU.
    Raises ValueError for "cuda" where there are too few, and where the processes cannot meet. An error inside is noted
    with its rank; where another process failed first, or is gone, this one raises PeerError. A process that gives no
    sign of life for `timeout_seconds` ends the others, and so does the end of the one that started them.
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
    store = _meet("nccl" if use_cuda else "gloo")
    try:
        with watching(store.clone(), rank, size, timeout_seconds):
            yield World(rank, size, chosen, store)
    except Exception as error:
        _attribute(error, rank, store)
        raise
    finally:
        dist.destroy_process_group()


FAILED = "failed"  # key in the store: how many ranks have failed


def _meet(backend: str) -> dist.Store:
    """Joins the other processes; the store through which they met. Raises ValueError where they cannot meet."""
    try:
        shared, rank, size = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(_name_of_start(shared, rank, size), shared)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:  # the latter where the environment does not say
        address, port = (os.environ.get(key) for key in ("MASTER_ADDR", "MASTER_PORT"))
        raise ValueError(
            f"the processes cannot meet at {address}:{port} ({str(error).splitlines()[0]}); MASTER_ADDR must be rank "
            "0's machine and MASTER_PORT a free port of it, the same for every process: torchrun --standalone finds "
            "one, on several machines torchrun --rdzv-backend c10d does"
        ) from error
    return store


def _name_of_start(store: dist.Store, rank: int, size: int) -> str:
    """A name that the processes agree on and that none before them had.

    torchrun's store outlives the processes that it starts again, and with it the addresses of the dead, at which the
    next ones would look for each other (pytorch/pytorch issue 135712; torch 2.15 still does). Its count of restarts is
    not the same on every machine. So rank 0 draws a name, and answers each rank that greets it under that name; who
    gets no answer has read the name of an earlier start.
    """
    mine = token_hex(8)
    if rank == 0:
        store.set("start", mine)
        for other in range(1, size):
            greeting = store.get(f"{mine}/{other}").decode()
            store.set(f"{mine}/{other}/{greeting}", "answer")
        return mine
    while True:
        name = store.get("start").decode()
        store.set(f"{name}/{rank}", mine)
        with suppress(dist.DistStoreError):  # after a second
            store.wait([f"{name}/{rank}/{mine}"], timedelta(seconds=1))
            return name


# A process that only follows another one's failure waits so long for its end: whatever started both, `launch` or
# torchrun, ends it as soon as it has seen the failure, and then names the one that failed first.
SECONDS_TO_BE_ENDED = 5


def _attribute(error: Exception, rank: int, store: dist.Store) -> None:
    """Notes the rank of an error that is not every rank's. Raises PeerError where it is not the world's first one."""
    if getattr(error, "on_every_rank", False):
        return
    try:
        first = not _lost_peer(error) and store.add(FAILED, 1) == 1
    except RuntimeError:  # rank 0 held the store, and is gone
        first = False
    if not first:
        deadline = time.monotonic() + SECONDS_TO_BE_ENDED
        while time.monotonic() < deadline:
            if stop_asked():
                exit_rank(INTERRUPTED)
            time.sleep(0.05)
        raise PeerError(
            "another process has failed or is gone, which is told where it ran; the same command continues a run from "
            "its last checkpoint"
        ) from error
    if rank > 0:
        error.add_note(f"(rank {rank})")


def _lost_peer(error: Exception) -> bool:
    """Whether it comes from the connection to another process: gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def is_main_process() -> bool:
    """Whether this process may speak, also before it has joined the world."""
    return _is_first("RANK")


def may_tell(error: Exception) -> bool:
    """Whether this process may say what ended it: the rank that had the error, else the first of each machine."""
    return bool(getattr(error, "__notes__", ())) or _is_first("LOCAL_RANK")


def _is_first(name: str) -> bool:
    """Also where the variable holds no number, which somebody has to say."""
    value = os.environ.get(name, "0")
    return not value.isdecimal() or int(value) == 0
