"""Signs of life: a process that is gone, stopped or cut off ends the others within a time limit, and is named.

Without them the others would wait in a collective operation: gloo sees at once that a process was killed, but of one
that is stopped, or behind a cut cable, nothing for half an hour.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch.distributed as dist

SECONDS_BETWEEN_SIGNS = 0.5
GONE = 1  # exit status


def exit_when_parent_exits(parent: int) -> None:
    """Ends this process as soon as `parent`, which started it, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(SECONDS_BETWEEN_SIGNS)
        os._exit(GONE)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def watching(store: dist.Store, rank: int, size: int, seconds: float) -> Iterator[None]:
    """Within it rank 0 watches every other rank, and these rank 0; who is silent so long ends the process.

    Each rank counts up a number in the store while it lives. How long a number stands still is counted in looks at it,
    not by a clock: a machine that slept, or a job that was stopped as a whole and goes on, has not been silent.
    """
    peers = range(1, size) if rank == 0 else range(1)
    seen: dict[str, str | int] = {STORE: 0, **{f"rank {peer}": 0 for peer in peers}}
    over = threading.Event()

    def exchange() -> None:
        """In a thread of its own, since a store behind a cut cable does not answer."""
        count = 0
        while not over.wait(SECONDS_BETWEEN_SIGNS):
            with suppress(RuntimeError):  # the store is gone, and its silence counts
                count += 1
                store.set(f"alive/{rank}", str(count))
                for peer in peers:
                    if store.check([f"alive/{peer}"]):
                        seen[f"rank {peer}"] = store.get(f"alive/{peer}").decode()
                seen[STORE] = count

    def judge() -> None:
        before: dict[str, str | int] = {}
        silent: dict[str, float] = {}
        while not over.wait(SECONDS_BETWEEN_SIGNS):
            for name, value in list(seen.items()):
                silent[name] = silent.get(name, 0.0) + SECONDS_BETWEEN_SIGNS if before.get(name) == value else 0.0
                before[name] = value
            overdue = [name for name, lasted in silent.items() if lasted >= seconds]
            if overdue:
                end(STORE if STORE in overdue else " and ".join(overdue), seconds, speaks=rank <= 1)

    threads = [threading.Thread(target=loop, daemon=True) for loop in (exchange, judge)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()


STORE = "the process through which all met"


def end(silent: str, seconds: float, *, speaks: bool) -> NoReturn:
    """Ends this process, whatever it waits for."""
    if speaks or os.environ.get("LOCAL_RANK", "0") == "0":
        message = (
            f"resnet-core: {silent} gave no sign of life for {seconds:g} s: stopped, gone or cut off; the same command "
            "continues the run from its last checkpoint"
        )
        print(message, file=sys.stderr, flush=True)
    os._exit(GONE)
