"""Heartbeats: when a process is killed, stopped or cut off, the others end within a time limit and name it.

Without heartbeats the others would wait in a collective operation. gloo notices at once that a process was killed, but
not for half an hour that one is stopped or behind a cut cable.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch.distributed as dist

SECONDS_BETWEEN_BEATS = 0.5
GONE = 1  # exit status
STORE = "the process through which all met"  # the name of the store in messages


def exit_when_parent_exits(parent: int) -> None:
    """Ends this process as soon as `parent`, which started it, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(SECONDS_BETWEEN_BEATS)
        os._exit(GONE)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def heartbeat(store: dist.Store, rank: int, size: int, seconds: float) -> Iterator[None]:
    """Inside this context rank 0 watches every other rank, and they watch rank 0.

    Each rank keeps incrementing a counter in the store. When a counter stands still for this many seconds, the rank
    that watches it ends its own process. Silence is measured in polls, not in wall-clock time: a laptop that slept, or
    a job that was stopped as a whole and resumed, has not been silent.
    """
    peers = range(1, size) if rank == 0 else range(1)
    counters: dict[str, str | int] = {STORE: 0, **{f"rank {peer}": 0 for peer in peers}}
    over = threading.Event()

    def exchange() -> None:
        """In a thread of its own, since a store behind a cut cable does not answer."""
        count = 0
        while not over.wait(SECONDS_BETWEEN_BEATS):
            with suppress(RuntimeError):  # the store is gone: its counter stands still
                count += 1
                store.set(f"alive/{rank}", str(count))
                for peer in peers:
                    if store.check([f"alive/{peer}"]):
                        counters[f"rank {peer}"] = store.get(f"alive/{peer}").decode()
                counters[STORE] = count

    def watch() -> None:
        before: dict[str, str | int] = {}
        silent: dict[str, float] = {}
        while not over.wait(SECONDS_BETWEEN_BEATS):
            for name, value in list(counters.items()):
                silent[name] = silent.get(name, 0.0) + SECONDS_BETWEEN_BEATS if before.get(name) == value else 0.0
                before[name] = value

            overdue = [name for name, lasted in silent.items() if lasted >= seconds]
            if overdue:
                end(STORE if STORE in overdue else " and ".join(overdue), seconds, may_report=rank <= 1)

    for loop in (exchange, watch):
        threading.Thread(target=loop, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def end(silent: str, seconds: float, *, may_report: bool) -> NoReturn:
    """Ends this process, whatever it waits for."""
    if may_report or os.environ.get("LOCAL_RANK", "0") == "0":
        message = (
            f"resnet-core: {silent} gave no sign of life for {seconds:g} s: stopped, gone or cut off; the same command "
            "continues the run from its last checkpoint"
        )
        print(message, file=sys.stderr, flush=True)
    os._exit(GONE)
