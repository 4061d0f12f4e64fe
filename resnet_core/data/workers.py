"""How a loader's worker process begins and ends, and what becomes of a batch that it cannot send."""

from __future__ import annotations

import ctypes
import multiprocessing.queues
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resnet_core.foundation.errors import ReportedError, first_line

# Forked workers share the dataset's memory and start at once, also in ranks that were themselves spawned. macOS's
# libraries do not survive a fork: there they are spawned, which takes seconds once.
START = "fork" if sys.platform == "linux" else "spawn"
SHARED_MEMORY = "/dev/shm"
FEWER_WORKERS = "use fewer workers or none (--data.workers 0 in training, --workers 0 in other commands)"
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class WorkerError(RuntimeError, ReportedError):
    """A loader's worker could not hand over a batch."""


@contextmanager
def signals_held() -> Iterator[None]:
    """Inside this context SIGTERM and Ctrl-C wait, also in the processes that start in it.

    A worker would die of one that comes before `begin_worker` has run there.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(parent: int, worker: int) -> None:
    """Leaves signals to the main process, ends this worker when its parent ends, and lets it report a lost batch.

    Ignore Ctrl-C in workers, which the terminal sends to every process: the main process handles it. On Linux, ignore
    SIGTERM as well, unless it comes from the parent: a cluster sends it to every process of a job, and the main process
    needs its workers to finish its step. Die with the parent: a worker that outlives a killed rank would keep its
    sockets open, and the other ranks could not see that it is gone.
    """
    multiprocessing.queues.Queue._on_queue_feeder_error = send_error  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # killed before the line above
            os._exit(1)

        threading.Thread(target=exit_when_parent_says, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def exit_when_parent_says() -> None:
    """Exits at a SIGTERM from the parent: DataLoader sends it to a worker that did not end by itself."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def send_error(queue: multiprocessing.queues.Queue[Any], error: Exception, sent: tuple[int, Any]) -> None:
    """Sends the error in place of the numbered batch that the queue's thread could not send.

    Python's own way is to print a traceback and go on: the main process would wait for that batch for ever.
    """
    number, _ = sent
    queue.put(
        (number, WorkerError(f"a loader worker could not hand over its batch ({first_line(error)}); {remedy(error)}"))
    )


def remedy(error: Exception) -> str:
    """What to do where a worker could not send its batch."""
    if "open files" in str(error):
        return f"raise the limit with `ulimit -n`, or {FEWER_WORKERS}"
    try:
        size = f", which holds {shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.0f} MiB"
    except OSError:
        size = ""
    return f"batches travel through {SHARED_MEMORY}{size}: enlarge it (docker run --shm-size 8g), or {FEWER_WORKERS}"
