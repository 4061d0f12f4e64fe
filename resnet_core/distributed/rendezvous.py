"""Who this process is among those that train together, by its environment, and how they meet."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from secrets import token_hex

import torch.distributed as dist

from resnet_core.foundation.errors import first_line

# The variables that torchrun and `launch` set for each process, and their values for a process that neither started.
RANK_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}


def rank_from_environment(name: str) -> int:
    """The value of one of these variables. Raises ValueError where it is not such a number."""
    value = os.environ.get(name, str(RANK_VARIABLES[name]))
    least = 1 if name.endswith("SIZE") else 0
    if not value.isdecimal() or int(value) < least:
        raise ValueError(
            f"the environment variable {name} is {value!r} and should be a number from {least} on: torchrun sets it"
        )
    return int(value)


def is_main_process() -> bool:
    """Whether this is rank 0, also before it has joined the world."""
    return is_first("RANK")


def is_first(name: str) -> bool:
    """Whether the variable is 0. One that holds no number counts as 0, since some process has to report that."""
    value = os.environ.get(name, "0")
    return not value.isdecimal() or int(value) == 0


def rendezvous(backend: str) -> dist.Store:
    """Joins the other processes; returns the store through which they met.

    Raises ValueError where they cannot meet.
    """
    try:
        shared, rank, size = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(agree_on_start_name(shared, rank, size), shared)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:  # ValueError: a variable is missing
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        raise ValueError(
            f"the processes cannot meet at {address}:{port} ({first_line(error)}); MASTER_ADDR must be rank "
            "0's machine and MASTER_PORT a free port of it, the same for every process: torchrun --standalone finds "
            "one, on several machines torchrun --rdzv-backend c10d does"
        ) from error
    return store


def agree_on_start_name(store: dist.Store, rank: int, size: int) -> str:
    """A name that the processes agree on, and that no processes before them had.

    torchrun's store outlives the processes that it restarts. It keeps the addresses of the dead, and new processes
    would look for each other there (pytorch/pytorch issue 135712; torch 2.15 still does). torchrun's count of restarts
    differs between machines, so it cannot serve as a name. Instead rank 0 draws a name and answers every rank that
    greets it under that name. A rank that gets no answer has read the name of an earlier start, and reads again.
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
        with suppress(dist.DistStoreError):  # no answer within a second
            store.wait([f"{name}/{rank}/{mine}"], timedelta(seconds=1))
            return name
