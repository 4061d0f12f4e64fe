"""Two networks with the same weights: what both compute in float64, and where they first differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_core.comparison.networks import with_place
from resnet_core.comparison.operations import Fingerprint, Operation
from resnet_core.comparison.pair import Pair, Weights, copy_weights, held, weights_of
from resnet_core.comparison.trace import calibrate, copied, light, perturb_constants, trace
from resnet_core.comparison.words import described_operation


class Float64Run(NamedTuple):
    """What a network computes in float64."""

    operations: list[Operation]
    logits: Fingerprint
    trained: Fingerprint | None
    """Logits in training; None where the network returns something else."""


class Twins(Pair):
    """Two networks with the first one's weights. `share_weights` makes them."""

    @cached_property
    def in_float64(self) -> tuple[Float64Run, Float64Run]:
        return run_in_float64(self.a, self.inputs), run_in_float64(self.b, self.inputs)

    def counterparts(self, ours: Iterable[Operation]) -> dict[tuple[Weights, int], Operation]:
        """The first network's operations with weights, by their counterparts' and how often these ran before."""
        return numbered(
            (self.operations[weights_of(each)], each) for each in ours if weights_of(each) in self.operations
        )

    def first_divergence(self) -> tuple[str | None, tuple[str, str] | None]:
        """Where the second network first computes what the first never does, in float64, and what both do there.

        That is an operation with weights whose counterpart writes something else. Where its input differs already, it
        is the first operation before it whose result the first network does not have.
        """
        ours, theirs = (each.operations for each in self.in_float64)
        counterparts, matched = self.counterparts(ours), {*self.tensor_names.values()}

        after_last_match = 0
        for key, operation in numbered(with_weights(theirs)).items():
            number = operation.number
            if key not in counterparts and matched.issuperset(key[0]):  # its weights are used elsewhere
                continue
            if key not in counterparts:
                shape = operation.written.shape if operation.written else ()
                return operation.where, (f"nothing of shape {list(shape)}", written(operation))

            # A product of matrices writes another shape than a convolution, and a bias may be added later; what follows
            # shows what they compute.
            counterpart = counterparts[key]
            later = operation.tensors.get("bias") in matched and "bias" not in counterpart.leaves
            if counterpart.function != operation.function or later:
                continue
            if not agree(counterpart.written, operation.written):
                if agree(counterpart.read, operation.read):
                    return operation.where, (written(counterpart), written(operation))
                unknown = first_unknown(theirs[after_last_match:number], ours)
                place = min(after_last_match + unknown, number)
                return theirs[place].where, (read(counterpart), read(operation))
            after_last_match = number + 1

        # Every operation with weights agrees, so only what follows the last one can differ.
        ends = [each.logits for each in self.in_float64]
        if theirs and not ends[0].matches(ends[1]):
            return theirs[-1].where, (f"its end, {ends[0]}", f"its end, {ends[1]}")
        return None, None


def with_weights(operations: Iterable[Operation]) -> Iterator[tuple[Weights, Operation]]:
    return ((weights_of(each), each) for each in operations if held(each))


def numbered(operations: Iterable[tuple[Weights, Operation]]) -> dict[tuple[Weights, int], Operation]:
    """Operations by their weights, and how often these ran before."""
    times: Counter[Weights] = Counter()
    found: dict[tuple[Weights, int], Operation] = {}
    for weights, operation in operations:
        found[weights, times[weights]] = operation
        times[weights] += 1
    return found


def agree(one: Fingerprint | None, other: Fingerprint | None) -> bool:
    return one is not None and other is not None and one.matches(other)


def first_unknown(operations: list[Operation], known: list[Operation]) -> int:
    """The index of the first operation whose result occurs in none of the known; their number if all occur."""
    values: dict[tuple[int, ...], list[Fingerprint]] = {}
    for operation in known:
        for each in (operation.read, operation.written):
            if each is not None:
                values.setdefault(each.shape, []).append(each)
    for number, operation in enumerate(operations):
        result = operation.written
        if result is not None and not any(result.matches(value) for value in values.get(result.shape, ())):
            return number
    return len(operations)


def share_weights(pair: Pair) -> Twins:
    """Gives both networks the first one's weights, without constants, and the BatchNorm statistics of the inputs.

    Uses the pair up: its networks are changed, not copied, since a copy of the largest would take half a gigabyte.
    """
    perturb_constants(pair.a)
    torch.manual_seed(0)
    calibrate(pair.a, pair.inputs)
    copy_weights(pair)
    return Twins(**vars(pair))


@torch.no_grad()
def run_in_float64(model: nn.Module, inputs: Tensor) -> Float64Run:
    """Runs a copy of the model in evaluation and in training. Raises RuntimeError for one that only float32 suits."""
    model = copied(model).double().eval()
    try:
        run, trained = light(trace(model, inputs)), None
        with suppress(TypeError):
            trained = trace(model.train(), 2 * inputs.double() + 1, seed=1, every=False).logits
    except RuntimeError as error:
        raise RuntimeError(f"a {type(model).__name__} does not run in float64 ({with_place(error)})") from error
    assert run.logits is not None
    return Float64Run(run.operations, run.logits, trained)


def written(operation: Operation) -> str:
    return f"{operation.place}, {described_operation(operation)}, writes {operation.written}"


def read(operation: Operation) -> str:
    return f"{operation.where} reads {operation.read}"
