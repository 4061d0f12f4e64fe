"""Which known mistake a network has, found by simulation: the mistake is made in a right one, and the two agree.

Nothing is guessed. The patient's weights are carried into the reference with the mistake, and both compute in float64,
where only what is not the same function differs.
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
    carry,
    fingerprint,
    own_shapes,
    shake,
    trace,
)
from resnet_core.comparison.mistakes import MISTAKES, NotApplicable
from resnet_core.models.backbone import STAGES
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet

SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is wrong with a network: nothing, one mistake, two, or something that the catalogue does not hold."""

    mistakes: tuple[str, ...] | None
    """Names of MISTAKES; empty for a healthy network, None where nothing in the catalogue explains it."""
    tried: int
    """How many networks were simulated."""
    seconds: float

    @property
    def healthy(self) -> bool:
        return self.mistakes == ()

    def __str__(self) -> str:
        if self.mistakes is None:
            return f"unknown: none of {self.tried} simulated networks computes what it does"
        if self.healthy:
            return "healthy: it computes what the reference does on these images, in evaluation and in training"
        return f"{' and '.join(self.mistakes)}: with that, the reference computes just what it does"


@dataclass(frozen=True)
class Behaviour:
    """What a network does, in float64: logits in evaluation and in training, and its norms' statistics after it."""

    evaluated: Fingerprint
    trained: Fingerprint
    statistics: dict[str, Fingerprint]

    def matches(self, other: Behaviour, pairs: dict[str, str]) -> bool:
        """`pairs` are our modules and their counterparts in the other."""
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

    A small input is enough: `[2, 3, 64, 64]`. Each mistake is tried, then pairs until `seconds` are over. Raises what
    the patient raises on these inputs.
    """
    began = time.monotonic()
    tried = 0
    with torch.random.fork_rng():
        case = Case(patient, inputs)
        for names in case.candidates(reference, began + seconds):
            tried += 1
            if case.explained_by(reference, names):
                return Diagnosis(mistakes=names, tried=tried, seconds=time.monotonic() - began)
    return Diagnosis(mistakes=None, tried=tried, seconds=time.monotonic() - began)


class Case:
    """A patient, what it does, and the comparison with simulated networks."""

    def __init__(self, patient: nn.Module, inputs: Tensor) -> None:
        self.inputs = inputs.double()
        self.patient = calibrate(shake(copy.deepcopy(patient)).double(), self.inputs)
        self.calls = trace(self.patient, self.inputs)
        self.shapes = shape_counts({call.path: call.shapes for call in self.calls}.values())
        self.behaviour = behave(self.patient, self.inputs)
        self.alignments: dict[tuple[Any, ...], tuple[dict[str, str], list[str]]] = {}

    def candidates(self, reference: ResNet, deadline: float) -> Iterator[tuple[str, ...]]:
        """No mistake, each alone, then two of which the first explains the first divergence."""
        yield ()
        for name in MISTAKES:
            yield (name,)
        found = self.divergence(reference, ())
        later = []
        for name in MISTAKES:
            if time.monotonic() > deadline:
                return
            if self.divergence(reference, (name,)) > found:
                later.append(name)
        # Where no single mistake fits the shapes, or evaluation shows none, the first divergence explains nothing.
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
        network: nn.Module = copy.deepcopy(reference)
        try:
            for name in names:
                network = MISTAKES[name](network)  # type: ignore[arg-type]
            if shape_counts(map(own_shapes, network.modules())) != self.shapes:
                return None
            network = network.double().eval()
            pairs, alone = self.aligned(network)
        except (NotApplicable, RuntimeError, ValueError, AttributeError, TypeError):
            return None  # two mistakes that exclude each other
        if alone:
            return None
        carry(self.patient, network, pairs)
        return network, pairs

    def aligned(self, network: nn.Module) -> tuple[dict[str, str], list[str]]:
        """As `align`; networks whose modules have the same names and shapes are aligned once."""
        key = tuple((path, *own_shapes(module).items()) for path, module in network.named_modules())
        if key not in self.alignments:
            self.alignments[key] = align(self.calls, trace(network, self.inputs))
        return self.alignments[key]

    def explained_by(self, reference: ResNet, names: tuple[str, ...]) -> bool:
        simulated = self.simulated(reference, names)
        if simulated is None:
            return False
        network, pairs = simulated
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
    """The number of the first call whose result is in none of the known; their number where all are."""
    values = [value for call in known for value in (call.read, call.written)]
    for number, call in enumerate(calls):
        if not any(call.written.matches(value) for value in values):
            return number
    return len(calls)


def shape_counts(modules: Iterable[Shapes]) -> Counter[tuple[tuple[int, ...], ...]]:
    """How many modules have tensors of these shapes; which have the right ones is told before anything runs."""
    return Counter(tuple(sorted(shapes.values())) for shapes in modules if shapes)


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The model in evaluation mode, after its norms have seen the inputs: untrained logits would explode."""
    torch.manual_seed(0)
    model.train()(inputs.clone())
    return model.eval()


def as_resnet(model: nn.Module) -> ResNet | None:
    """Our ResNet that computes what `model` does, built from its torchvision names; None where there is none."""
    if isinstance(model, ResNet):
        return model
    network: Any = model
    try:
        first, config = network.layer1[0], {}
        if hasattr(first, "conv3"):
            groups = first.conv2.groups
            v1 = network.layer2[0].conv1.stride == (2, 2)
            config = {"groups": groups, "width_per_group": first.conv2.out_channels // groups, "stride_in_1x1": v1}
        ours = ResNet(
            Bottleneck if config else BasicBlock,
            [len(network.get_submodule(stage)) for stage in STAGES],
            num_classes=network.fc.out_features,
            in_channels=network.conv1.in_channels,
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
    """Runs the model, in evaluation and then once in training; its statistics are then put back."""
    kept = {name: value.clone() for name, value in model.named_buffers()}
    evaluated = fingerprint(evaluate(model, inputs))
    torch.manual_seed(1)
    trained = fingerprint(model.train()(2 * inputs + 1))  # other images than those that the statistics come from
    statistics = {name: fingerprint(value) for name, value in model.named_buffers() if value.is_floating_point()}
    for name, value in model.named_buffers():
        value.copy_(kept[name])
    model.eval()
    return Behaviour(evaluated, trained, statistics)
