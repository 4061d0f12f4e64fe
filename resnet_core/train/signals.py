"""SIGTERM and Ctrl-C as a request to stop at the next step, rather than in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # exit status where Ctrl-C came before there was anything to save
STOPPED = 75  # exit status of a run that was asked to stop and can go on: EX_TEMPFAIL of <sysexits.h>


class StoppedError(Exception):
    """The run was asked to stop, and its state is saved."""

    on_every_rank = True


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM and SIGINT only ask to stop: yields the function that says whether one came. More do no harm.

    One that is ignored stays so, as Ctrl-C is in a shell's background job. In the main thread, that is: Python takes
    signals there alone.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOPS if main}
    taken = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
