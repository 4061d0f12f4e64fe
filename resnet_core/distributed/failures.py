"""Which process failed first, and which one reports it: one failure of many processes is one line."""

from __future__ import annotations

import time

import torch.distributed as dist

from resnet_core.distributed.launcher import exit_rank
from resnet_core.distributed.rendezvous import is_first
from resnet_core.distributed.signals import INTERRUPTED, num_signals
from resnet_core.foundation.errors import ReportedError

FAILED = "failed"  # key in the store: how many ranks have failed

# How long a process that lost its peers waits to be ended. `launch` and torchrun end it once they see the first
# failure, and report the process that failed first.
SECONDS_TO_BE_ENDED = 5


class PeerError(RuntimeError, ReportedError):
    """Another process of the world failed before this one, or is gone."""


def blame_first_failure(error: Exception, rank: int, store: dist.Store) -> None:
    """Notes the rank on an error that only this rank had.

    Raises PeerError where another rank failed first, so that this error is only a consequence.
    """
    if getattr(error, "on_every_rank", False):
        return
    try:
        is_first_failure = not _lost_peer(error) and store.add(FAILED, 1) == 1
    except RuntimeError:  # rank 0 held the store, and is gone
        is_first_failure = False

    if not is_first_failure:
        deadline = time.monotonic() + SECONDS_TO_BE_ENDED
        received = num_signals()  # before: from the person who stops the run
        while num_signals() == received and time.monotonic() < deadline:
            time.sleep(0.05)
        if num_signals():
            exit_rank(INTERRUPTED)
        raise PeerError(
            "another process has failed or is gone; its own output says why. The same command continues a run from "
            "its last checkpoint"
        ) from error
    if rank > 0:
        error.add_note(f"(rank {rank})")


def _lost_peer(error: Exception) -> bool:
    """Whether it comes from the connection to another process: gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def may_report(error: Exception) -> bool:
    """Whether this process reports the error: the only rank that had it, or the first process of each machine."""
    return bool(getattr(error, "__notes__", ())) or is_first("LOCAL_RANK")
