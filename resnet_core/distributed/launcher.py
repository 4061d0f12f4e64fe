"""Starting the processes of one machine that train together, and ending them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Literal, NoReturn, cast

import torch
import torch.distributed as dist

from resnet_core.distributed.heartbeat import exit_when_parent_exits
from resnet_core.distributed.signals import INTERRUPTED, NOTHING_TO_SAVE, STOPPED, STOPS

# A fork would inherit what threads hold, torch's among them, without the threads.
START: Literal["spawn"] = "spawn"
SECONDS_TO_END = 30  # for a process that was asked to end: it may be writing a checkpoint


def launch(function: Callable[..., int], arguments: tuple[Any, ...], processes: int) -> int:
    """Runs `function(*arguments)` in `processes` new processes of this machine, which `join_world` connects.

    Returns the exit status: 0, or that of the first process that failed, after ending the others. SIGTERM and SIGINT
    are passed on to all processes, so call this in the main thread. Each process gets an equal part of the cores,
    unless OMP_NUM_THREADS is set.
    """
    # The store's own socket would listen on every network.
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    interruptible = signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # ignored in a shell's background job
    ranks = [
        multiprocessing.get_context(START).Process(
            target=_run_rank,
            args=(rank, processes, store.port, os.getpid(), interruptible, function, arguments),
            name=f"rank {rank}",
        )
        for rank in range(processes)
    ]

    stopping = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        _terminate(ranks)

    # The store has a thread. A signal that the kernel delivers to it would not wake this thread; a byte in a pipe does.
    handlers = {number: signal.getsignal(number) for number in STOPS}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    wake_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        signal.signal(signal.SIGTERM, pass_on)
        if interruptible:
            signal.signal(signal.SIGINT, pass_on)

        # Signals wait until all ranks are started, and in each rank until it is ready for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        for process in ranks:
            process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        if stopping:  # a signal came to the store's thread before all ranks were started
            _terminate(ranks)

        failed = _first_failure(ranks, woken)
        return _exit_status(failed, stopping) if failed else 0
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        _end(ranks)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wake_before)
        os.close(woken)
        os.close(wake)


def _exit_status(failed: BaseProcess, stopping: bool) -> int:
    """The exit status for the process that failed first; prints a line when a signal ended it."""
    status = cast(int, failed.exitcode)
    if stopping and status in (-signal.SIGTERM, INTERRUPTED):
        print(f"resnet-core: {NOTHING_TO_SAVE}", file=sys.stderr)
        return STOPPED
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    print(f"resnet-core: {failed.name} was ended by {name}, the others with it", file=sys.stderr)
    return 128 - status


def _first_failure(processes: Sequence[BaseProcess], woken: int) -> BaseProcess | None:
    """Waits until one process fails and returns it; None once all have succeeded.

    A byte in `woken` only wakes this thread, so that Python handles a signal.
    """
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in multiprocessing.connection.wait([*running, woken]):
            if sentinel == woken:
                os.read(woken, 1)
                continue
            process = running.pop(cast(int, sentinel))
            process.join()
            if process.exitcode:
                return process
    return None


def _terminate(processes: Sequence[BaseProcess]) -> None:
    """Asks the living ones to end; a stopped one is woken first, or it would not notice."""
    for process in processes:
        if process.is_alive():
            process.terminate()
            os.kill(cast(int, process.pid), signal.SIGCONT)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ends them all. They are asked every second, since one that was asked in a step may then wait for a dead peer."""
    for _ in range(SECONDS_TO_END):
        if not any(process.is_alive() for process in processes):
            break
        _terminate(processes)
        multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], timeout=1)
    for process in processes:
        if process.is_alive():
            process.kill()


def _run_rank(
    rank: int,
    size: int,
    port: int,
    parent: int,
    interruptible: bool,
    function: Callable[..., int],
    arguments: tuple[Any, ...],
) -> None:
    """One rank's process, from its start to its exit status."""
    exit_when_parent_exits(parent)

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher holds the store, as under torchrun
    }

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        status = function(*arguments)
    except KeyboardInterrupt:  # the launcher gets the signal, too, and reports it
        status = INTERRUPTED
    except Exception:
        traceback.print_exc()
        status = 1
    exit_rank(status)


def exit_rank(status: int) -> NoReturn:
    """Ends this process at once with an exit status, after flushing what it printed.

    Python is not shut down. Once a DistributedDataParallel has used gloo, torch keeps gloo's threads, and one that
    releases a tensor during Python's shutdown aborts the process (pytorch/pytorch pull request 179291; seen here in
    about 1 of 8 exits).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
