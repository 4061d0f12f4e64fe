"""Which known mistake a network has, found by simulation: the mistake is made in a right one, and the two agree.

Nothing is guessed. The reference with the mistake gets the patient's weights, and both compute in float64, where only
different functions differ.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resnet_core.comparison.matching import (
    Call,
    Fingerprint,
    Shapes,
    align,
    calibrate,
    copy_weights,
    fingerprint,
    own_shapes,
    perturb_constants,
    trace,
)
from resnet_core.comparison.mistakes import MISTAKES, NotApplicable
from resnet_core.models.backbone import STAGES, Backbone, has_small_stem
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet

SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is wrong with a network: nothing, one mistake, two, or something that is not in the catalogue."""

    mistakes: tuple[str, ...] | None
    """Names of MISTAKES; empty for a healthy network, None if nothing in the catalogue explains it."""
    tried: int
    """How many networks were simulated."""
    seconds: float

    @property
    def healthy(self) -> bool:
        return self.mistakes == ()

    def __str__(self) -> str:
        if self.mistakes is None:
            return f"unknown: none of {self.tried} simulated networks computes what this network does"
        if self.healthy:
            return "healthy: it computes what the reference does on these images, in evaluation and in training"
        made = "this mistake" if len(self.mistakes) == 1 else "these mistakes"
        return f"{' and '.join(self.mistakes)}: the reference with {made} computes exactly what this network does"


@dataclass(frozen=True)
class Behaviour:
    """What a network does, in float64: logits in evaluation and in training, and its norms' statistics afterwards."""

    evaluated: Fingerprint
    trained: Fingerprint
    statistics: dict[str, Fingerprint]

    def matches(self, other: Behaviour, pairs: dict[str, str]) -> bool:
        """Whether both do the same. `pairs` are this network's modules and their counterparts in the other."""
        return (
            self.evaluated.matches(other.evaluated)
            and self.trained.matches(other.trained)
            and all(
                other.statistics[name].matches(value)
                for path, counterpart in pairs.items()
                for ending in ("running_mean", "running_var")
                for name, value in [(f"{counterpart}.{ending}", self.statistics.get(f"{path}.{ending}"))]
                if value is not None and name in other.statistics
            )
        )


def diagnose(patient: nn.Module, reference: ResNet, inputs: Tensor, *, seconds: float = SECONDS) -> Diagnosis:
    """The mistake, or the two, that make `reference` compute what `patient` does; neither network is changed.

    A small input is enough: `[2, 3, 64, 64]`. Each mistake is tried, then pairs until `seconds` are over. An error that
    the patient raises on these inputs is passed on.
    """
    began = time.monotonic()
    tried = 0
    with torch.random.fork_rng():
        examined = Patient(patient, inputs)
        for names in examined.candidates(reference, began + seconds):
            tried += 1
            if examined.explained_by(reference, names):
                return Diagnosis(mistakes=names, tried=tried, seconds=time.monotonic() - began)
    return Diagnosis(mistakes=None, tried=tried, seconds=time.monotonic() - began)


class Patient:
    """The network to diagnose, what it does, and the comparison with simulated networks."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        self.inputs = inputs.double()
        self.network = perturb_constants(copy.deepcopy(network)).double()
        torch.manual_seed(0)
        calibrate(self.network, self.inputs)
        self.calls = trace(self.network, self.inputs)
        self.shapes = shape_counts({call.path: call.shapes for call in self.calls}.values())
        self.behaviour = behave(self.network, self.inputs)
        self.alignments: dict[tuple[Any, ...], tuple[dict[str, str], list[str]]] = {}

    def candidates(self, reference: ResNet, deadline: float) -> Iterator[tuple[str, ...]]:
        """No mistake, then each mistake, then two of which the first explains the first divergence."""
        yield ()
        for name in MISTAKES:
            yield (name,)

        # A mistake explains the first divergence if the networks with it agree for longer than without.
        found = self.divergence(reference, ())
        later = []
        for name in MISTAKES:
            if time.monotonic() > deadline:
                return
            if self.divergence(reference, (name,)) > found:
                later.append(name)

        # If no single mistake fits the shapes, or evaluation shows none, the first divergence rules none out.
        blind = not later and found in (-1, len(self.calls))
        for first in MISTAKES if blind else later:
            for second in MISTAKES:
                if time.monotonic() > deadline:
                    return
                if second != first:
                    yield (first, second)

    def simulated(self, reference: ResNet, names: Iterable[str]) -> tuple[nn.Module, dict[str, str]] | None:
        """The reference with these mistakes and the patient's weights, and which module stands for which.

        None where the mistakes do not apply or the shapes do not fit.
        """
        # Two mistakes may exclude each other.
        network: nn.Module = copy.deepcopy(reference)
        try:
            for name in names:
                network = MISTAKES[name](network)  # type: ignore[arg-type]
            if shape_counts(map(own_shapes, network.modules())) != self.shapes:
                return None
            network = network.double().eval()
            pairs, unmatched = self.aligned(network)
        except (NotApplicable, RuntimeError, ValueError, AttributeError, TypeError):
            return None

        if unmatched:
            return None
        copy_weights(self.network, network, pairs)
        return network, pairs

    def aligned(self, network: nn.Module) -> tuple[dict[str, str], list[str]]:
        """`align`, once for all networks whose modules have the same names and shapes."""
        key = tuple((path, *own_shapes(module).items()) for path, module in network.named_modules())
        if key not in self.alignments:
            self.alignments[key] = align(self.calls, trace(network, self.inputs))
        return self.alignments[key]

    def explained_by(self, reference: ResNet, names: tuple[str, ...]) -> bool:
        simulated = self.simulated(reference, names)
        if simulated is None:
            return False
        network, pairs = simulated

        # Evaluation first: it rules most out at half the price.
        try:
            if not fingerprint(evaluate(network, self.inputs)).matches(self.behaviour.evaluated):
                return False
            return self.behaviour.matches(behave(network, self.inputs), pairs)
        except RuntimeError:  # two mistakes that leave a branch and its shortcut with different shapes
            return False

    def divergence(self, reference: ResNet, names: tuple[str, ...]) -> int:
        """How many of the patient's calls come before the first whose result the simulated network never has."""
        simulated = self.simulated(reference, names)
        if simulated is None:
            return -1
        try:
            return first_unknown(self.calls, trace(simulated[0], self.inputs))
        except RuntimeError:
            return -1


def first_unknown(calls: list[Call], known: list[Call]) -> int:
    """The index of the first call whose result occurs in none of the known; the number of calls if all occur."""
    values = [value for call in known for value in (call.read, call.written)]
    for number, call in enumerate(calls):
        if not any(call.written.matches(value) for value in values):
            return number
    return len(calls)


def shape_counts(modules: Iterable[Shapes]) -> Counter[tuple[tuple[int, ...], ...]]:
    """How many modules have tensors of these shapes: rules out most simulated networks before anything runs."""
    return Counter(tuple(sorted(shapes.values())) for shapes in modules if shapes)


def as_resnet(model: nn.Module) -> ResNet | None:
    """Our ResNet that computes what `model` does, built from its torchvision names; None if it has other names."""
    if isinstance(model, ResNet):
        return model

    network: Any = model
    try:
        first, config = network.layer1[0], {}
        if hasattr(first, "conv3"):
            groups = first.conv2.groups
            v1 = network.layer2[0].conv1.stride == (2, 2)
            config = {"groups": groups, "width_per_group": first.conv2.out_channels // groups, "stride_in_1x1": v1}

        ours = Backbone(
            Bottleneck if config else BasicBlock,
            [len(network.get_submodule(stage)) for stage in STAGES],
            num_classes=network.fc.out_features,
            in_channels=network.conv1.in_channels,
            small_images=has_small_stem(network),
            **config,
        )
        ours.load_state_dict(network.state_dict())
    except (AttributeError, RuntimeError, ValueError, TypeError, IndexError):
        return None
    return ours


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor) -> Tensor:
    return model.eval()(inputs.clone())


@torch.no_grad()
def behave(model: nn.Module, inputs: Tensor) -> Behaviour:
    """Runs the model in evaluation, then once in training, and restores its statistics."""
    kept = {name: value.clone() for name, value in model.named_buffers()}
    evaluated = fingerprint(evaluate(model, inputs))

    # Other images than those that the statistics come from: with the same, no momentum would show.
    torch.manual_seed(1)
    trained = fingerprint(model.train()(2 * inputs + 1))
    statistics = {name: fingerprint(value) for name, value in model.named_buffers() if value.is_floating_point()}

    for name, value in model.named_buffers():
        value.copy_(kept[name])
    model.eval()
    return Behaviour(evaluated, trained, statistics)
