"""How two or more ways to do one thing are timed: warmed up, in turn, and compared pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Call = Callable[[], object]


class Medians(NamedTuple):
    """Seconds, and the median of the pairs' ratios."""

    ours: float
    reference: float
    ratio: float


def seconds(call: Call) -> float:
    """Of a call, up to its end on the GPU, if there is one."""
    began = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; every other round goes through them backwards."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            times[name].append(seconds(calls[name]))
        order.reverse()
    return times


def paired_ratio(times: list[float], reference: list[float]) -> float:
    """How long the first takes beside the second: the median of the rounds' ratios."""
    return statistics.median(mine / theirs for mine, theirs in zip(times, reference, strict=True))


def compare(what: str, ours: Call, reference: Call, *, runs: int) -> Medians:
    """Times both in turn after one warm-up each; prints and returns the medians."""
    ours(), reference()
    times = in_turn({"ours": ours, "reference": reference}, runs)
    medians = Medians(
        statistics.median(times["ours"]), statistics.median(times["reference"]), paired_ratio(*times.values())
    )
    print(f"{what:<44}{medians.ours:>9.3f}{medians.reference:>11.3f}{medians.ratio:>8.3f}", flush=True)
    return medians


def print_heading(what: str) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median seconds of runs in turn\n")
    print(f"{what:<44}{'ours':>9}{'reference':>11}{'ratio':>8}")
