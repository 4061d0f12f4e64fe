"""SIGTERM and Ctrl-C as a request to stop after the current step, rather than in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

STOPS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # exit status after Ctrl-C, of a command that cannot be continued
STOPPED = 75  # exit status of a training that was stopped and can be continued: EX_TEMPFAIL of <sysexits.h>
NOTHING_TO_SAVE = "stopped before there was anything to save"


class StoppedError(Exception):
    """The run was asked to stop, and its state is saved."""

    on_every_rank = True
    """False where only this rank knows of it."""


SECONDS_FOR_DATA = 10  # that a request to stop waits for the batch of the current step

_received: list[int] = []  # a signal comes to the process as a whole, so this is the process's, too
_waiting = False  # whether the main thread waits for a batch


def signal_received() -> bool:
    """Whether a signal came inside `stop_on_signals`."""
    return bool(_received)


def num_signals() -> int:
    """How many came."""
    return len(_received)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside this context SIGTERM and SIGINT only make `signal_received` return True; a second one changes nothing.

    Where a batch is waited for in vain, `batches_or_stop` then ends the wait. A signal that is ignored stays ignored,
    as Ctrl-C is in a shell's background job. Outside the main thread this does nothing, since Python handles signals
    only there.
    """
    _received.clear()
    is_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGALRM) if is_main_thread}
    replaced = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, _end_wait if number == signal.SIGALRM else _receive)
    try:
        yield
    finally:
        if is_main_thread:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _receive(number: int, frame: FrameType | None) -> None:
    if not _received:
        signal.setitimer(signal.ITIMER_REAL, SECONDS_FOR_DATA, SECONDS_FOR_DATA)
    _received.append(number)


class _WaitEndedError(BaseException):
    """Ends a wait for data. It is not an Exception: nothing on the way takes it for an error of the data."""


def _end_wait(number: int, frame: FrameType | None) -> None:
    if _waiting:
        raise _WaitEndedError


def batches_or_stop(batches: Iterator[T]) -> Iterator[T]:
    """The same batches. Raises StoppedError where one does not come within SECONDS_FOR_DATA of a request to stop."""
    global _waiting
    while True:
        _waiting = True
        try:
            batch = next(batches)
        except StopIteration:
            return
        except _WaitEndedError:
            raise StoppedError(
                "stopped while it waited for data that did not come; the same command continues a run from its last "
                "checkpoint"
            ) from None
        finally:
            _waiting = False
        yield batch
