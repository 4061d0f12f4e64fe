"""SIGTERM and Ctrl-C as a request to stop after the current step, rather than in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # exit status after Ctrl-C, of a command that cannot be continued
STOPPED = 75  # exit status of a training that was stopped and can be continued: EX_TEMPFAIL of <sysexits.h>
NOTHING_TO_SAVE = "stopped before there was anything to save"


class StoppedError(Exception):
    """The run was asked to stop, and its state is saved."""

    on_every_rank = True


_received: list[int] = []  # a signal comes to the process as a whole, so this is the process's, too


def signal_received() -> bool:
    """Whether a signal came inside `stop_on_signals`."""
    return bool(_received)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside this context SIGTERM and SIGINT only make `signal_received` return True; a second one changes nothing.

    A signal that is ignored stays ignored, as Ctrl-C is in a shell's background job. Outside the main thread this does
    nothing, since Python handles signals only there.
    """
    _received.clear()
    is_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOPS if is_main_thread}
    replaced = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, lambda number, frame: _received.append(number))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
