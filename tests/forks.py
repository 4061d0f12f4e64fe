"""Processes forked by a server that has imported all that a training needs: a start takes milliseconds, not seconds."""

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import torch

from resnet_core.distributed import launcher
from resnet_core.distributed.launcher import exit_rank

# The second is what the first optimizer of a process imports, in two seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["resnet_core.cli.main", "torch._dynamo", "torch.utils.data"])


def fork_ranks() -> None:
    """For a process of the server: it has no threads to lose, so the ranks that it launches can be forked, too."""
    launcher.START = "fork"  # type: ignore[assignment]
    torch.set_num_threads(1)  # several threads of several processes would wait for each other, spinning


def _launch(function: Callable[..., int], arguments: tuple[Any, ...], processes: int) -> None:
    fork_ranks()
    exit_rank(launcher.launch(function, arguments, processes))


def launch(function: Callable[..., int], arguments: tuple[Any, ...], processes: int) -> int | None:
    """As `resnet_core.train.launch`, on Linux from forks."""
    if sys.platform != "linux":
        return launcher.launch(function, arguments, processes)
    process = SERVER.Process(target=_launch, args=(function, arguments, processes))
    process.start()
    process.join()
    return process.exitcode
