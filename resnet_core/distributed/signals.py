"""SIGTERM and Ctrl-C as a request to stop at the next step, rather than in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # exit status after Ctrl-C, of what cannot go on
STOPPED = 75  # exit status of a training that was asked to stop and can go on: EX_TEMPFAIL of <sysexits.h>
NOTHING_TO_SAVE = "stopped before there was anything to save"


class StoppedError(Exception):
    """The run was asked to stop, and its state is saved."""

    on_every_rank = True


_came: list[int] = []  # signals come to a process as a whole


def stop_asked() -> bool:
    """Whether a signal came within `stop_on_signals`."""
    return bool(_came)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGINT only ask to stop, which `stop_asked` tells; a second one changes nothing.

    One that is ignored stays so, as Ctrl-C is in a shell's background job. In the main thread, that is: Python takes
    signals there alone.
    """
    _came.clear()
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOPS if main}
    taken = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, lambda number, frame: _came.append(number))
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
