"""Two networks, rung by rung: how equal they are, where they first differ, and what the likely cause is.

    result = compare(my_resnet50(), resnet_core.resnet50(), torch.randn(2, 3, 64, 64))
    print(result)         # the ladder
    assert result         # falsy where a rung differs

Names may differ: modules are matched by execution order, shapes and sources. Both get the first network's weights; the
networks given are not changed.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.alignment import Call, align, carry, fingerprint, trace
from resnet_core.backbone import STAGES
from resnet_core.doctor import calibrated, diagnose, first_unknown
from resnet_core.models import get_model
from resnet_core.resnet import BasicBlock, Bottleneck, ResNet
from resnet_core.suggestions import did_you_mean

Status = Literal["equal", "rounding", "differs", "not run"]
FACTOR = 10.0  # an error of float32 may be this many times the other's
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One line of the ladder."""

    name: str
    status: Status
    """To the bit; up to float32's rounding, judged by float64; or not. "not run" where it makes no sense."""
    largest_difference: float | None = None
    errors: tuple[float, float] | None = None
    """Of the first and the second network against float64, where they are not equal to the bit."""
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status != "differs"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ladder of two networks. True where no rung differs."""

    rungs: tuple[Rung, ...]
    first_divergence: str | None = None
    """Path of the second network's module whose result the first one never has."""
    values: tuple[str, str] | None = None
    """What both networks have there, in words."""
    likely_cause: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    """The first network's modules -> the second's, where names differ."""

    def __bool__(self) -> bool:
        return all(rung.passed for rung in self.rungs)

    def to_json(self) -> str:
        return json.dumps({"equal": bool(self), **asdict(self)}, indent=2)

    def __str__(self) -> str:
        lines = [f"{'rung':<24}{'result':<10}{'difference':>12}"]
        for rung in self.rungs:
            difference = "" if rung.largest_difference is None else f"{rung.largest_difference:.2e}"
            errors = "errors against float64 {:.1e} and {:.1e}".format(*rung.errors) if rung.errors else ""
            notes = "; ".join(note for note in (rung.detail, errors) if note)
            lines.append(f"{rung.name:<24}{rung.status:<10}{difference:>12}  {notes}".rstrip())
        if self.first_divergence:
            lines.append(f"first divergence: {self.first_divergence}")
        if self.values:
            lines += [f"  first network:  {self.values[0]}", f"  second network: {self.values[1]}"]
        if self.likely_cause:
            lines.append(f"likely cause: {self.likely_cause}")
        return "\n".join(lines)


def compare(a: nn.Module, b: nn.Module, inputs: Tensor, *, diagnosis_seconds: float = 60.0) -> Comparison:
    """The ladder of `a`, the network in question, and `b`, the reference, on `inputs` `[N, C, H, W]`, N at least 2.

    Where a rung differs and `b` is a ResNet of this package or of torchvision's form, the known mistakes are simulated
    for at most `diagnosis_seconds`. Raises what the networks raise on these inputs.
    """
    for network in (a, b):
        check_network(network, inputs)
    pair = Pair(a, b, inputs)
    rungs = tuple(pair.rungs())
    if all(rung.passed for rung in rungs):
        return Comparison(rungs=rungs, renamed=pair.renamed)
    path, values = pair.first_divergence()
    reference = as_resnet(b)
    cause = None
    if diagnosis_seconds > 0 and reference is not None:
        cause = str(diagnose(a, reference, inputs, seconds=diagnosis_seconds))
    return Comparison(rungs=rungs, first_divergence=path, values=values, likely_cause=cause, renamed=pair.renamed)


@torch.no_grad()
def check_network(network: nn.Module, inputs: Tensor) -> None:
    """Raises TypeError for what is no network, or gives anything but a tensor of logits."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"compare takes networks, got a {type(network).__name__}; where it is a function, call it")
    output = copy.deepcopy(network).to(inputs.dtype)(inputs)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{type(network).__name__} returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            "returns the logits"
        )


def assert_parity(a: nn.Module, b: nn.Module, inputs: Tensor) -> None:
    """Raises AssertionError with the ladder where a rung differs; for tests."""
    comparison = compare(a, b, inputs)
    if not comparison:
        raise AssertionError(f"the networks differ\n{comparison}")


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


def build(spec: str) -> nn.Module:
    """The network that a text names: "resnet50" of ours, "torchvision:resnet50", "timm:resnet18", "my.module:function".

    It imports and calls what is named, which is the user's own code. Raises ValueError with the remedy where that is
    not to be had, or is no network that can be built without arguments.
    """
    place, _, name = spec.rpartition(":")
    if not place:
        return get_model(name)
    module = LIBRARIES.get(place, place)
    try:
        builder = getattr(import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"{spec}: {module} cannot be imported ({error}); go to its folder, or set PYTHONPATH"
        ) from error
    except AttributeError as error:
        known = [each for each, value in vars(sys.modules[module]).items() if callable(value) and each[0] != "_"]
        raise ValueError(f"{spec}: {module} has no {name}; {did_you_mean(name, known)}") from error
    try:
        network = builder if isinstance(builder, nn.Module) else builder()
    except TypeError as error:
        raise ValueError(f"{spec} cannot be called without arguments ({error}); name a function that can") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{spec} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm.models"}

Outcome = dict[str, Tensor]


class Pair:
    """Two networks with the same weights, ready to be compared."""

    def __init__(self, a: nn.Module, b: nn.Module, inputs: Tensor) -> None:
        self.a, self.b, self.inputs = calibrated(a, inputs.float()), copy.deepcopy(b).float(), inputs.float()
        self.labels = torch.arange(len(inputs))
        self.calls_a = trace(copy.deepcopy(self.a).double(), inputs.double())
        self.pairs, self.alone = align(self.calls_a, trace(copy.deepcopy(self.b).double().eval(), inputs.double()))
        self.renamed = {ours: theirs for ours, theirs in self.pairs.items() if ours != theirs}
        carry(self.a, self.b, self.pairs)
        self.exact = copy.deepcopy(self.b).double()

    def rungs(self) -> Iterator[Rung]:
        yield self.names_and_shapes()
        yield self.parameters()
        if self.alone:
            yield from (Rung(name=name, status="not run", detail="shapes differ") for name in RUNGS)
            return
        yield self.activations()
        for name, outcome in RUNGS.items():
            yield self.judge(name, outcome)

    def names_and_shapes(self) -> Rung:
        if self.alone:
            more = f" and {len(self.alone) - 3} more" if len(self.alone) > 3 else ""
            detail = f"without counterpart: {', '.join(self.alone[:3])}{more}"
            if all("Linear" in each for each in self.alone):
                detail += "; give both heads the same number of classes"
            return Rung(name="names and shapes", status="differs", detail=detail)
        note = f"{len(self.renamed)} modules have other names" if self.renamed else ""
        return Rung(name="names and shapes", status="equal", detail=note)

    def parameters(self) -> Rung:
        counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (self.a, self.b)]
        detail = f"{counts[0]:,}" if counts[0] == counts[1] else f"{counts[0]:,} and {counts[1]:,}"
        return Rung(name="parameters", status="equal" if counts[0] == counts[1] else "differs", detail=detail)

    def activations(self) -> Rung:
        """What every module with parameters reads and writes, beside its counterpart."""
        ours, theirs = (trace(model.eval(), self.inputs) for model in (self.a, self.b))
        written = {self.pairs[call.path]: call.written for call in ours if call.path in self.pairs}
        count = f"{len(written)} modules"
        if all(written[call.path] == call.written for call in theirs if call.path in written):
            return Rung(name="activations", status="equal", detail=count)
        place = self.first_divergence()[0]
        if place is None:
            return Rung(name="activations", status="rounding", detail=count)
        return Rung(name="activations", status="differs", detail=f"first at {place}")

    def first_divergence(self) -> tuple[str | None, tuple[str, str] | None]:
        """The second network's first module that computes what the first never does, in float64, and both values.

        That is a module with parameters whose counterpart writes something else, or, where already what it reads
        differs, the first module before it whose result the first network does not have.
        """
        theirs = trace(self.exact.eval(), self.inputs.double())
        ours = {self.pairs[call.path]: call for call in self.calls_a if call.path in self.pairs}
        since = 0
        for number, call in enumerate(theirs):
            if not call.shapes:
                continue
            if call.path not in ours:
                return call.path, (f"nothing of shape {list(call.written.shape)}", in_words(call))
            counterpart = ours[call.path]
            if not counterpart.written.matches(call.written):
                same_input = counterpart.read.matches(call.read)
                between = theirs[since:number] if not same_input else []
                place = since + first_unknown(between, self.calls_a)
                return theirs[min(place, number) if between else number].path, (in_words(counterpart), in_words(call))
            since = number + 1
        if self.calls_a and theirs and not self.outputs_match():
            return theirs[-1].path, (in_words(self.calls_a[-1]), in_words(theirs[-1]))
        return None, None

    def outputs_match(self) -> bool:
        ours, theirs = (
            self.run(eval_logits, model)["logits"] for model in (copy.deepcopy(self.a).double(), self.exact)
        )
        return fingerprint(ours).matches(fingerprint(theirs))

    def judge(self, name: str, outcome: Callable[[nn.Module, Tensor, Tensor], Outcome]) -> Rung:
        """Both networks' outcome in float32, and its errors against the second's in float64 where bits differ."""
        ours = {self.translated(key): value for key, value in self.run(outcome, self.a).items()}
        theirs = self.run(outcome, self.b)
        unlike = [key for key in theirs if key not in ours or ours[key].shape != theirs[key].shape]
        if unlike:
            return Rung(name=name, status="differs", detail=f"{unlike[0]} is missing or of another shape")
        largest = max((ours[key].double() - theirs[key].double()).abs().max().item() for key in theirs)
        if all(same_bits(ours[key], theirs[key]) for key in theirs):
            return Rung(name=name, status="equal", largest_difference=largest)
        exact = self.run(outcome, self.exact)
        errors = {key: float_errors(ours[key], theirs[key], exact[key]) for key in theirs}
        worst = max(errors, key=lambda key: ratio(*errors[key]))
        passed = ratio(*errors[worst]) <= FACTOR
        return Rung(
            name=name,
            status="rounding" if passed else "differs",
            largest_difference=largest,
            errors=errors[worst],
            detail="" if worst == name else worst,
        )

    def run(self, outcome: Callable[[nn.Module, Tensor, Tensor], Outcome], model: nn.Module) -> Outcome:
        """What happens to a copy of the model; random layers draw the same numbers each time."""
        model = copy.deepcopy(model)
        torch.manual_seed(1)
        return outcome(model, self.inputs.to(next(model.parameters()).dtype), self.labels)

    def translated(self, name: str) -> str:
        """The second network's name of one of the first's tensors."""
        path, _, tensor = name.rpartition(".")
        return f"{self.pairs[path]}.{tensor}" if path in self.pairs else name


def in_words(call: Call) -> str:
    return f"{call.path}: {list(call.written.shape)}, mean {call.written.mean:.6g}, norm {call.written.norm:.6g}"


def float_errors(ours: Tensor, theirs: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest errors of two tensors; half a float32 step of the largest value is granted to the second."""
    floor = exact.abs().max().item() * torch.finfo(torch.float32).eps / 2
    error, reference = ((each.double() - exact).abs().max().item() for each in (ours, theirs))
    return error, max(reference, floor)


def ratio(error: float, reference: float) -> float:
    """How many times larger the error is; infinite where it is no number."""
    if not error < float("inf"):
        return float("inf")
    return error / reference if reference else float(error > 0)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(each.contiguous().flatten().view(torch.uint8) for each in (a, b)))


@torch.no_grad()
def eval_logits(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    return {"logits": model.eval()(inputs)}


@torch.no_grad()
def train_logits(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    return {"logits": model.train()(inputs)}


def gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    inputs = inputs.clone().requires_grad_()
    loss = F.cross_entropy(model.train()(inputs), labels)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), "the input's gradient": inputs.grad, **found}  # type: ignore[dict-item]


def statistics(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    train_logits(model, inputs, labels)
    return {name: value for name, value in model.named_buffers() if value.is_floating_point()}


def optimizer_steps(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    momenta = {
        f"{name} momentum": optimizer.state[value]["momentum_buffer"] for name, value in model.named_parameters()
    }
    return parameters | momenta


def channels_last(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    model = model.to(memory_format=torch.channels_last)
    return eval_logits(model, inputs.to(memory_format=torch.channels_last), labels)


def bfloat16(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    if inputs.dtype is torch.float32:
        model, inputs = model.bfloat16(), inputs.bfloat16()
    return {name: value.to(torch.float64) for name, value in eval_logits(model, inputs, labels).items()}


RUNGS: dict[str, Callable[[nn.Module, Tensor, Tensor], Outcome]] = {
    "logits": eval_logits,
    "training logits": train_logits,
    "loss and gradients": gradients,
    "BatchNorm statistics": statistics,
    f"{STEPS} optimizer steps": optimizer_steps,
    "channels_last": channels_last,
    "bfloat16": bfloat16,
}
