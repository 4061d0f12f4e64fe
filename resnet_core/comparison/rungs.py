"""The rungs of the ladder: what two networks with the same weights do, and how equal that is.

No tolerance is chosen by hand. Where bits differ, the reference also runs in float64, and both errors against that are
compared: the first network's may be at most FACTOR times the reference's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.foundation.precision import FACTOR, float_errors, ratio, same_bits

Status = Literal["equal", "rounding", "alike", "differs", "not run"]
STEPS = 3


class Quantity(NamedTuple):
    """What a tensor of an outcome is."""

    what: str
    """In words, with {} for the name of the tensor that it belongs to."""
    tensor: str = ""
    """That parameter's or buffer's name."""

    def __str__(self) -> str:
        return self.what.format(self.tensor)


LOGITS = Quantity("logits")

Outcome = dict[Quantity, Tensor]
Run = Callable[[nn.Module, Tensor, Tensor], Outcome]
"""What a model does with inputs and labels. It may change the model."""


class NotRun(RuntimeError):  # noqa: N818
    """A rung that cannot be climbed here, and why."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One line of the ladder."""

    name: str
    status: Status
    """"equal" to the bit, equal up to float32's "rounding" as float64 judges it, "alike" for other random draws of the
    same distributions, "differs", or "not run" where the rung makes no sense or cannot run here."""
    largest_difference: float | None = None
    errors: tuple[float, float] | None = None
    """Of the first and the second network against float64, where they are not equal to the bit."""
    detail: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status != "differs"


def timed(rungs: Iterator[Rung]) -> Iterator[Rung]:
    """The rungs with the seconds that each took."""
    began = time.monotonic()
    for rung in rungs:
        yield replace(rung, seconds=round(time.monotonic() - began, 3))
        began = time.monotonic()


def judge(name: str, ours: Outcome, theirs: Outcome, exact: Callable[[], Outcome]) -> Rung:
    """How equal two outcomes are; `exact` gives the reference's in float64 and is called where bits differ."""
    # The same quantities of the same shapes.
    if not ours and not theirs:
        return Rung(name=name, status="not run", detail="neither network has any")
    for key in sorted(ours.keys() ^ theirs.keys(), key=str):
        owner = "first" if key in ours else "second"
        return Rung(name=name, status="differs", detail=f"{key}: only the {owner} network has one")
    for key in theirs:
        if ours[key].shape != theirs[key].shape:
            shapes = f"{list(ours[key].shape)} and {list(theirs[key].shape)}"
            return Rung(name=name, status="differs", detail=f"{key} has the shapes {shapes}")

    if all(same_bits(ours[key], theirs[key]) for key in theirs):
        return Rung(name=name, status="equal", largest_difference=0.0)

    # The quantity whose error is the most times the reference's own decides.
    largest = max((ours[key].double() - theirs[key].double()).abs().max().item() for key in theirs)
    truth = exact()
    errors = {key: float_errors(ours[key], theirs[key], truth[key]) for key in theirs}
    worst = max(errors, key=lambda key: ratio(*errors[key]))
    return Rung(
        name=name,
        status="rounding" if ratio(*errors[worst]) <= FACTOR else "differs",
        largest_difference=largest,
        errors=errors[worst],
        detail="" if worst == LOGITS else str(worst),
    )


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    output = model(inputs)
    if not isinstance(output, Tensor):
        mode = "in training" if model.training else "in evaluation"
        raise TypeError(f"it returns a {type(output).__name__} {mode}, not a tensor of logits")
    return output


@torch.no_grad()
def eval_logits(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    return {LOGITS: logits_of(model.eval(), inputs)}


@torch.no_grad()
def train_logits(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    return {LOGITS: logits_of(model.train(), inputs)}


def gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    inputs = inputs.clone().requires_grad_()
    loss = F.cross_entropy(logits_of(model.train(), inputs), labels)
    loss.backward()
    found = {Quantity("loss"): loss.detach(), Quantity("gradient of the images"): inputs.grad}
    found |= {Quantity("gradient of {}", name): parameter.grad for name, parameter in model.named_parameters()}
    return {key: value for key, value in found.items() if value is not None}


def other_shapes(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    """Logits of a single image, and of images that are not square."""
    height, width = inputs.shape[-2] + 13, inputs.shape[-1] + 6
    wide = F.interpolate(inputs, size=(height, width), mode="bilinear")
    return {Quantity(f"of {list(each.shape)}"): eval_logits(model, each, labels)[LOGITS] for each in (inputs[:1], wide)}


def statistics(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    """What training leaves in buffers, of norms and any that it changes.

    The images are other ones than those that the statistics come from: with the same, no momentum would show.
    """
    before = {name: value.clone() for name, value in model.named_buffers() if value.is_floating_point()}
    train_logits(model, 2 * inputs + 1, labels)
    return {
        Quantity("{}", name): value
        for name, value in model.named_buffers()
        if name in before and ("running_" in name or not same_bits(value, before[name]))
    }


def optimizer_steps(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for _ in range(STEPS):
        F.cross_entropy(logits_of(model, inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    found = {Quantity("{}", name): value.detach() for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        if state := optimizer.state[value]:  # a parameter without gradient has none
            found[Quantity("{} momentum", name)] = state["momentum_buffer"]
    return found


def channels_last(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    model = model.to(memory_format=torch.channels_last)
    return eval_logits(model, inputs.to(memory_format=torch.channels_last), labels)


def half_precision(dtype: torch.dtype, model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    """Logits of a network and inputs in 16 bits; a float64 run stays in float64."""
    if inputs.dtype is torch.float64:
        return eval_logits(model, inputs, labels)
    try:
        return eval_logits(model.to(dtype), inputs.to(dtype), labels)
    except RuntimeError as error:
        if "not implemented" in str(error):
            raise NotRun(f"torch has no arithmetic of {dtype} on this device") from error
        raise


def compiled(model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    """Logits of the network as one graph of `torch.compile`."""
    from resnet_core.inference.formats import lacks_aoti

    if lacking := lacks_aoti():
        raise NotRun(f"needs {lacking}")
    try:
        return eval_logits(torch.compile(model.eval(), fullgraph=True), inputs, labels)  # type: ignore[arg-type]
    finally:
        torch.compiler.reset()


def from_file(format: Literal["onnx", "torch-export"], model: nn.Module, inputs: Tensor, labels: Tensor) -> Outcome:
    """Logits of the network's exported file, run on the CPU."""
    from resnet_core.inference.formats import EXPORTERS, Request

    exporter = EXPORTERS[format]
    if lacking := exporter.lacks():
        raise NotRun(f"needs {lacking}")
    with TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder, f"model{exporter.suffix}")
        exporter.write(Request(model.cpu().eval(), inputs.cpu()), file)
        return {LOGITS: exporter.load(file)(inputs.cpu()).to(inputs.device)}


# Name -> what the first network does, and what the second does beside it.
RUNGS: dict[str, tuple[Run, Run]] = {
    "logits": (eval_logits, eval_logits),
    "other shapes": (other_shapes, other_shapes),
    "training logits": (train_logits, train_logits),
    "loss and gradients": (gradients, gradients),
    "BatchNorm statistics": (statistics, statistics),
    f"{STEPS} optimizer steps": (optimizer_steps, optimizer_steps),
    "channels_last": (channels_last, channels_last),
    "bfloat16": (partial(half_precision, torch.bfloat16),) * 2,
    "float16": (partial(half_precision, torch.float16),) * 2,
    "torch.compile": (compiled, eval_logits),
    "torch.export": (partial(from_file, "torch-export"), eval_logits),
    "ONNX": (partial(from_file, "onnx"), eval_logits),
}
SLOW = ("torch.compile", "torch.export", "ONNX")
