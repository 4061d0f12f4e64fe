"""Processes forked by a server that has imported all that a training needs: a start takes milliseconds, not seconds."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from resnet_core.distributed import launcher
from resnet_core.distributed.launcher import exit_rank

SERVER = multiprocessing.get_context("forkserver")
# A process's first optimizer would import torch._dynamo, which takes two seconds.
SERVER.set_forkserver_preload(["resnet_core.cli.main", "torch._dynamo", "torch.utils.data"])


def fork_ranks() -> None:
    """Lets the launcher fork its ranks, in a process of the server, which has no threads to lose."""
    launcher.START = "fork"  # type: ignore[assignment]
    # More threads, in several processes, would wait for each other spinning. Torch makes its pool of threads anew in a
    # forked process when this is first set there. Two threads that did so at once would abort it, so it is set here.
    torch.set_num_threads(1)
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def _launch(function: Callable[..., int], arguments: tuple[Any, ...], processes: int) -> None:
    fork_ranks()
    exit_rank(launcher.launch(function, arguments, processes))


def launch(function: Callable[..., int], arguments: tuple[Any, ...], processes: int) -> int | None:
    """Does what `resnet_core.train.launch` does; on Linux from forks."""
    if sys.platform != "linux":
        return launcher.launch(function, arguments, processes)
    process = SERVER.Process(target=_launch, args=(function, arguments, processes))
    process.start()
    process.join()
    return process.exitcode
