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

# A fork would inherit the memory of threads, torch's among them, without the threads.
START: Literal["spawn"] = "spawn"
SECONDS_TO_END = 30  # for a process that was asked to: it may be writing a checkpoint


def launch(function: Callable[..., int], arguments: tuple[Any, ...], processes: int) -> int:
    """Runs `function(*arguments)` in `processes` new processes of this machine that can `join_world`; the exit status.

    The status is 0, or that of the first process that failed; the others are then ended. SIGTERM and SIGINT are passed
    on to all; this is for the main thread, which has them. Each process gets its equal part of the cores, unless
    OMP_NUM_THREADS says otherwise.
    """
    listener = socket.create_server(("127.0.0.1", 0))  # by itself the store would listen to every network
    port = listener.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    interruptible = signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # as it is for a shell's background job
    started = [
        multiprocessing.get_context(START).Process(
            target=_run_rank,
            args=(rank, processes, store.port, os.getpid(), interruptible, function, arguments),
            name=f"rank {rank}",
        )
        for rank in range(processes)
    ]

    asked = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        _terminate(started)

    before = {number: signal.getsignal(number) for number in STOPS}
    # The store has a thread of its own. A signal that came to that one would not end this one's wait, a byte here does.
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    wake_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        signal.signal(signal.SIGTERM, pass_on)
        if interruptible:
            signal.signal(signal.SIGINT, pass_on)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until all are started, and in each of them until it begins
        for process in started:
            process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        if asked:  # in the store's thread, when not all were there to pass it on to
            _terminate(started)
        failed = _first_failure(started, woken)
        return _told(failed, asked) if failed else 0
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        _end(started)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wake_before)
        os.close(woken)
        os.close(wake)


def _told(failed: BaseProcess, asked: bool) -> int:
    """The exit status that tells of the process that failed first, and a line where a signal ended it."""
    status = cast(int, failed.exitcode)
    if asked and status in (-signal.SIGTERM, INTERRUPTED):
        print(f"resnet-core: {NOTHING_TO_SAVE}", file=sys.stderr)
        return STOPPED
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    print(f"resnet-core: {failed.name} was ended by {name}, the others with it", file=sys.stderr)
    return 128 - status


def _first_failure(processes: Sequence[BaseProcess], woken: int) -> BaseProcess | None:
    """Waits until one process fails, which it returns, or all are done; a byte in `woken` lets signals be handled."""
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
    """Asks those that live to end; one that is stopped is woken to hear it."""
    for process in processes:
        if process.is_alive():
            process.terminate()
            os.kill(cast(int, process.pid), signal.SIGCONT)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ends them: asked each second, since one that was in a step only noted it and has then met its peer's failure."""
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
    except KeyboardInterrupt:  # the launcher, which has it too, tells; or it is gone, and this is how it says so
        status = INTERRUPTED
    except Exception:
        traceback.print_exc()
        status = 1
    exit_rank(status)


def exit_rank(status: int) -> NoReturn:
    """Ends this process at once with an exit status, after flushing what it printed.

    Torch keeps the threads of gloo's process group once a DistributedDataParallel has used it, and a thread that still
    lets go of a tensor while Python shuts down aborts the process (pytorch/pytorch pull request 179291; seen here in
    about 1 of 8 exits): so Python does not shut down here, it stops.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
