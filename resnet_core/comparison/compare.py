"""Two networks, rung by rung: how equal they are, where they first differ, and what the likely cause is.

    result = compare(my_resnet50, resnet_core.resnet50, torch.randn(2, 3, 64, 64))
    print(result)         # the ladder
    assert result         # falsy where a rung differs

Names may differ: operations are matched by execution order, shapes and sources. Both networks get the first one's
weights, with noise where a parameter is one constant, as in new norms. The networks given are not changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from resnet_core.comparison.climb import (
    ALL_RUNGS,
    DEFAULT_RUNGS,
    cause_of_initialisation,
    higher_rungs,
    starting_rungs,
)
from resnet_core.comparison.diagnosis import Difference
from resnet_core.comparison.pair import Network, match
from resnet_core.comparison.references import complete
from resnet_core.comparison.rungs import SLOW, Rung, timed
from resnet_core.comparison.twins import share_weights
from resnet_core.comparison.verdict import Verdict, judge_networks
from resnet_core.foundation.suggestions import did_you_mean

FAST_RUNGS = ("names and shapes", "parameters", "logits", "loss and gradients")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ladder of two networks. True where rungs were climbed and none differs."""

    rungs: tuple[Rung, ...]
    first_divergence: str | None = None
    """Path of the second network's first module that writes what the first network never has."""
    values: tuple[str, str] | None = None
    """What both networks have there, in words."""
    likely_cause: str | None = None
    mistakes: tuple[str, ...] | None = None
    """What the differences are called; None where there are none, or where they do not explain everything."""
    differences: tuple[Difference, ...] = ()
    """What the network in question does differently from the other, in the order in which it computes."""
    reference: str | None = None
    """What the differences are from, in words, where that is not the second network as it was given."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The first network's modules -> the second's, where names differ."""

    def __bool__(self) -> bool:
        return all(rung.passed for rung in self.rungs) and any(rung.status != "not run" for rung in self.rungs)

    def to_json(self) -> str:
        return json.dumps({"equal": bool(self), **asdict(self)}, indent=2)

    def __str__(self) -> str:
        lines = [f"{'rung':<24}{'result':<10}{'difference':>12}"]
        for rung in self.rungs:
            difference = "" if rung.largest_difference is None else f"{rung.largest_difference:.2e}"
            errors = "errors against float64 {:.1e} and {:.1e}".format(*rung.errors) if rung.errors else ""
            notes = "; ".join(note for note in (rung.detail, errors) if note)
            lines.append(f"{rung.name:<24}{rung.status:<10}{difference:>12}  {notes}".rstrip())
        if self.reference:
            lines.append(f"reference: {self.reference}")
        if self.first_divergence:
            lines.append(f"first divergence: {self.first_divergence}")
        if self.values:
            lines += [f"  first network:  {self.values[0]}", f"  second network: {self.values[1]}"]
        if self.likely_cause:
            lines.append(f"likely cause: {self.likely_cause}")
        lines += [f"  {number}. {difference}" for number, difference in enumerate(self.differences, 1)]
        return "\n".join(lines)


def compare(
    a: Network,
    b: Network | None = None,
    inputs: Tensor | None = None,
    *,
    rungs: Collection[str] = DEFAULT_RUNGS,
    skip: Collection[str] = (),
    diagnosis_seconds: float = 60.0,
    progress: Callable[[str], object] | None = None,
) -> Comparison:
    """The ladder of `a`, the network in question, and `b`, the reference, on `inputs` `[N, C, H, W]`, N at least 2.

    Each is a module, or a function that builds one. With functions the weights that a seed gives are compared, too.
    The reference may be left out: the model of ours that is nearest by the shapes of its weights takes its place. It
    may also come first, if it is a healthy ResNet and the second network is not. Without `inputs` two random images are
    used, of a size that both networks take. `rungs` are names of ALL_RUNGS, by default all but the slow ones, without
    those of `skip`. They run on the inputs' device. Where a rung differs, the differences of the layers are named,
    unless `diagnosis_seconds` is 0. `progress` is called with what is being done, in words, and at the end with an
    empty text. Raises TypeError for anything that is not a network, RuntimeError for a network that does not run on
    these inputs, and ValueError for fewer than 2 images, for values that are not finite, and for an unknown rung.
    """
    if not isinstance(inputs, Tensor | None):
        raise TypeError(
            f"inputs must be a tensor of images [N, C, H, W], got a {type(inputs).__name__}; torch.stack one"
        )
    if inputs is not None and (len(inputs) < 2 or not inputs.isfinite().all()):
        raise ValueError(f"inputs must be finite and at least 2 images, got {list(inputs.shape)}")
    for name in (*rungs, *skip):
        if name not in ALL_RUNGS:
            raise ValueError(f"unknown rung {name!r}; {did_you_mean(name, ALL_RUNGS)}")
    names = [name for name in rungs if name not in skip]
    say = progress or (lambda text: None)
    with exact_arithmetic(), torch.random.fork_rng():
        say("building the networks")
        b, inputs, reference = complete(a, b, inputs)
        pair = match(a, b, inputs)
        found = [*reported(timed(starting_rungs(pair, names)), say)]
        differ_at_start = any(rung.name == "seeded initialisation" and not rung.passed for rung in found)
        cause_of_weights = cause_of_initialisation(pair) if differ_at_start else None

        twins = share_weights(pair)
        found += reported(timed(higher_rungs(twins, names)), say)

        # Other initial weights are no other function, and a graph that cannot be captured has no module to blame.
        path, values, verdict = None, None, Verdict()
        failed = {rung.name for rung in found if not rung.passed} - {"seeded initialisation", *SLOW}
        if failed:
            say("looking for the cause")
            path, values = twins.first_divergence()
            if diagnosis_seconds > 0:
                verdict = judge_networks(twins, failed)
        say("")

    return Comparison(
        rungs=tuple(found),
        first_divergence=path,
        values=values,
        likely_cause="; ".join(filter(None, (verdict.cause, cause_of_weights))) or None,
        mistakes=verdict.mistakes,
        differences=verdict.differences,
        reference=reference or verdict.reference,
        renamed=pair.renamed,
    )


def assert_parity(
    a: Network,
    b: Network | None = None,
    inputs: Tensor | None = None,
    *,
    rungs: Collection[str] = DEFAULT_RUNGS,
    skip: Collection[str] = (),
    diagnosis_seconds: float = 60.0,
) -> None:
    """Raises AssertionError with the ladder where a rung differs; for tests. The arguments are those of `compare`."""
    __tracebackhide__ = True  # pytest then shows only the ladder
    comparison = compare(a, b, inputs, rungs=rungs, skip=skip, diagnosis_seconds=diagnosis_seconds)
    if not comparison:
        raise AssertionError(f"the networks differ\n{comparison}")


def reported(rungs: Iterator[Rung], say: Callable[[str], object]) -> Iterator[Rung]:
    """The rungs, each of which is said when it has been climbed."""
    for rung in rungs:
        say(f"{rung.name}: {rung.status}")
        yield rung


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Inside this context a GPU computes float32 as float32, not as TF32, and cuDNN repeats its algorithms."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
