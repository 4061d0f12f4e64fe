"""`train.fast`: the settings with which a step takes the least time on this machine, found by measuring a few steps.

Settings that are on stay on. Another is turned on where it saves at least a twentieth of a step's time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from resnet_core.foundation.errors import first_line
from resnet_core.train.config import TrainConfig

Form = TypeVar("Form")
Call = Callable[[], object]
Say = Callable[[str], None]
StepOf = Callable[[TrainConfig], Call]
"""Makes a training step with these settings."""

CHOSEN = ("precision", "channels_last", "compile", "cuda_graphs")
ROUNDS = 5
LEAST_SAVED = 0.05  # of a step's time; less may be chance
# What is assumed of a compiled network, to decide whether it is worth measuring: the share of a step's time that it
# saves, and the seconds that the compiler takes for each shape of a batch.
COMPILED_SAVES, COMPILE_SECONDS = 0.1, 60.0


def choose_form(config: TrainConfig, step_of: StepOf, *, cuda_graphs: bool, say: Say) -> TrainConfig:
    """The uncompiled form of the configuration whose step takes the least time; `say` gets each line of the table."""
    steps = {form: step_of(form) for form in forms(replace(config, fast=False, compile=False), cuda_graphs)}
    seconds = seconds_in_turn(steps)
    say_seconds({words(form): found for form, found in seconds.items()}, say)
    return quickest(seconds)


def choose_threads(step: Call, say: Say) -> int:
    """The number of CPU threads with which the step takes the least time: torch's, or half as often as that helps."""
    threads = torch.get_num_threads()
    while threads > 1:
        seconds = seconds_in_turn({count: with_threads(count, step) for count in (threads, threads // 2)})
        say_seconds({f"threads {count}": found for count, found in seconds.items()}, say)
        if quickest(seconds) == threads:
            break
        threads //= 2
    torch.set_num_threads(threads)
    return threads


def choose_compiled(form: TrainConfig, step_of: StepOf, *, num_steps: float, num_shapes: int, say: Say) -> TrainConfig:
    """The form, compiled if that saves more time than it takes.

    A run has `num_steps` such steps, and batches of `num_shapes` shapes, for each of which a network is compiled.
    """
    step = step_of(form)
    step()
    run_seconds = num_steps * seconds_of(step)
    if COMPILED_SAVES * run_seconds <= COMPILE_SECONDS * num_shapes:
        say(
            f"fast: compiling is not tried: it is assumed to save {COMPILED_SAVES:.0%} of about {run_seconds:,.0f} s "
            f"and to take {COMPILE_SECONDS:.0f} s for each of {num_shapes} shapes of batches"
        )
        return form

    say("fast: compiling the network, which may take minutes")
    compiled = replace(form, compile=True)
    try:
        compiled_step = step_of(compiled)
        compile_seconds = seconds_of(compiled_step)
        seconds = seconds_in_turn({form: step, compiled: compiled_step})
    except Exception as error:  # whatever the compiler raises, above all that there is none
        say(f"fast: the network cannot be compiled here ({first_line(error)})")
        return form

    say_seconds({words(each): found for each, found in seconds.items()}, say)
    saved = num_steps * (statistics.median(seconds[form]) - statistics.median(seconds[compiled]))
    say(f"fast: compiling took {compile_seconds:.0f} s for one of {num_shapes} shapes, and saves {saved:,.0f} s")
    return quickest(seconds) if saved > num_shapes * compile_seconds else form


def with_threads(count: int, step: Call) -> Call:
    def call() -> object:
        torch.set_num_threads(count)
        return step()

    return call


def forms(config: TrainConfig, cuda_graphs: bool) -> list[TrainConfig]:
    """The configuration, and then each time one more setting turned on."""
    found = [config]
    changes = [{"channels_last": True}, {"precision": "bf16"}, {"cuda_graphs": True}]
    for change in changes[: 3 if cuda_graphs else 2]:
        found.append(replace(found[-1], **change))  # type: ignore[arg-type]
    return list(dict.fromkeys(found))


def words(config: TrainConfig) -> str:
    on = [name for name in ("channels_last", "compile", "cuda_graphs") if getattr(config, name)]
    return ", ".join([config.precision, *on])


def quickest(seconds: Mapping[Form, Sequence[float]]) -> Form:
    """The first form, unless a later one saves enough: by the median of the rounds' ratios, as they took turns."""
    best, *others = seconds
    for form in others:
        if ratio(seconds[form], seconds[best]) <= 1 - LEAST_SAVED:
            best = form
    return best


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(seconds, reference, strict=True))


def seconds_in_turn(steps: Mapping[Form, Call]) -> dict[Form, list[float]]:
    """Seconds of each step in each round, after one that warms it up."""
    for step in steps.values():
        step()
    rounds = [{form: seconds_of(step) for form, step in steps.items()} for _ in range(ROUNDS)]
    return {form: [each[form] for each in rounds] for form in steps}


def seconds_of(step: Call) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def say_seconds(seconds: Mapping[str, Sequence[float]], say: Say) -> None:
    """Prints a table: milliseconds of a step, and how many times as fast as the first it is."""
    first = next(iter(seconds.values()))
    for label, found in seconds.items():
        say(f"fast: {label:<40}{1000 * statistics.median(found):9.1f} ms a step{1 / ratio(found, first):7.2f}x")
