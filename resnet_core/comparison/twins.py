"""Two networks with the same weights: what both compute in float64, and where they first differ."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_core.comparison.diagnosis import first_unknown
from resnet_core.comparison.matching import (
    Call,
    Fingerprint,
    calibrate,
    copy_weights,
    fingerprint,
    perturb_constants,
    recording,
)
from resnet_core.comparison.networks import with_place
from resnet_core.comparison.pair import Pair


class Float64Run(NamedTuple):
    """What a network computes in float64."""

    calls: list[Call]
    logits: Fingerprint
    trained: Fingerprint
    """Logits in training."""


@dataclass(frozen=True)
class Twins:
    """Two networks with the first one's weights. `share_weights` makes them."""

    a: nn.Module
    b: nn.Module
    inputs: Tensor
    labels: Tensor
    counterparts: dict[str, str]
    tensor_names: dict[str, str]
    comparable: bool
    """Whether every module got weights."""

    @cached_property
    def in_float64(self) -> tuple[Float64Run, Float64Run]:
        return run_in_float64(self.a, self.inputs), run_in_float64(self.b, self.inputs)

    def first_divergence(self) -> tuple[str | None, tuple[str, str] | None]:
        """The second network's first module that computes what the first never does, in float64, and both values.

        That is a module with parameters whose counterpart writes something else. Where its input differs already, it
        is the first module before it whose result the first network does not have.
        """
        ours, theirs = (each.calls for each in self.in_float64)
        counterparts = {
            (self.counterparts[call.path], call.time): call for call in ours if call.path in self.counterparts
        }

        after_last_match = 0
        for number, call in enumerate(theirs):
            if not call.shapes:
                continue
            if (call.path, call.time) not in counterparts:
                return call.path, (f"nothing of shape {list(call.written.shape)}", written(call))

            counterpart = counterparts[call.path, call.time]
            if not counterpart.written.matches(call.written):
                if counterpart.read.matches(call.read):
                    return call.path, (written(counterpart), written(call))
                unknown = first_unknown(theirs[after_last_match:number], ours)
                place = min(after_last_match + unknown, number)
                return theirs[place].path, (read(counterpart), read(call))
            after_last_match = number + 1

        # Every module agrees, so only what follows the last one can differ.
        ends = [each.logits for each in self.in_float64]
        if theirs and not ends[0].matches(ends[1]):
            return theirs[-1].path, (f"its end, {ends[0]}", f"its end, {ends[1]}")
        return None, None


def share_weights(pair: Pair) -> Twins:
    """Gives both networks the first one's weights, without constants, and the BatchNorm statistics of the inputs.

    Uses the pair up: its networks are changed, not copied, since a copy of the largest would take half a gigabyte.
    """
    perturb_constants(pair.a)
    torch.manual_seed(0)
    calibrate(pair.a, pair.inputs)
    copy_weights(pair.a, pair.b, pair.counterparts)
    return Twins(pair.a, pair.b, pair.inputs, pair.labels, pair.counterparts, pair.tensor_names(), pair.comparable)


@torch.no_grad()
def run_in_float64(model: nn.Module, inputs: Tensor) -> Float64Run:
    """Runs a copy of the model. Raises RuntimeError for one that only float32 suits."""
    model = copy.deepcopy(model).double().eval()
    try:
        with recording(model) as calls:
            logits = fingerprint(model(inputs.double()))
        torch.manual_seed(1)
        return Float64Run(calls, logits, fingerprint(model.train()(2 * inputs.double() + 1)))
    except RuntimeError as error:
        raise RuntimeError(
            f"a {type(model).__name__} runs in float32 and not in float64 ({with_place(error)}): a list of blocks "
            "must be an nn.ModuleList, and a tensor made in forward must take the input's dtype"
        ) from error


def written(call: Call) -> str:
    return f"{call.path} writes {call.written}"


def read(call: Call) -> str:
    return f"{call.path} reads {call.read}"
