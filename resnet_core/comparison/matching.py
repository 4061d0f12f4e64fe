"""Which module of one network stands for which of another, whatever their names: by execution order, shape and source.

Both networks run once on the same input. What each module reads and writes is kept as a fingerprint, not as a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]

ROUNDING = 1e-9  # of float64, relative to a tensor's norm, through the deepest network: orders of magnitude to spare


@dataclass(frozen=True)
class Fingerprint:
    """A tensor in five numbers: equal tensors have equal ones, and others differ beyond rounding."""

    shape: tuple[int, ...]
    norm: float
    projections: tuple[float, ...]
    """Onto fixed pseudo-random directions of length about 1."""
    mean: float

    def matches(self, other: Fingerprint) -> bool:
        """Whether both stand for one tensor, up to float64's rounding. Tensors that are not finite match nothing."""
        if self.shape != other.shape:
            return False
        scale = ROUNDING * max(self.norm, other.norm) + 1e-300
        pairs = zip((self.norm, *self.projections), (other.norm, *other.projections), strict=True)
        return all(abs(a - b) <= scale for a, b in pairs)

    def __str__(self) -> str:
        return f"{list(self.shape)}, mean {self.mean:.10g}, norm {self.norm:.10g}"


def fingerprint(tensor: Tensor) -> Fingerprint:
    values = tensor.detach().double().flatten()
    projections = tuple(torch.mv(directions(len(values), values.device), values).tolist())
    return Fingerprint(tuple(tensor.shape), values.norm().item(), projections, values.mean().item())


@cache
def directions(length: int, device: torch.device) -> Tensor:
    """Three fixed vectors of norm about 1."""
    angles = torch.arange(length, dtype=torch.float64)[None] * torch.tensor([[0.7], [1.3], [2.9]], dtype=torch.float64)
    return (angles.square().cos() * math.sqrt(2 / max(length, 1))).to(device)


@dataclass(frozen=True)
class Call:
    """One run of a module without children, or with parameters of its own."""

    path: str
    kind: str
    shapes: Shapes
    """Of its own parameters and buffers."""
    read: Fingerprint
    written: Fingerprint
    time: int
    """0 in the module's first run of a forward, 1 in its second."""


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Call]]:
    """Inside this context each call of such a module is appended to the list."""
    calls: list[Call] = []
    handles = []
    entered: dict[str, list[Fingerprint]] = {}
    for path, module in model.named_modules():
        if next(module.children(), None) is not None and not own_shapes(module):
            continue

        # The input's fingerprint is taken before the call: a module may change its input in place.
        def before(module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                entered.setdefault(path, []).append(fingerprint(inputs[0]))

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any, path: str = path) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                shapes = own_shapes(module)
                time = sum(call.path == path for call in calls)
                kind = type(module).__name__
                calls.append(Call(path, kind, shapes, entered[path].pop(), fingerprint(output), time))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def own_shapes(module: nn.Module) -> Shapes:
    """Shapes of a module's own parameters and buffers, without its children's and without counters."""
    parameters = dict(module.named_parameters(recurse=False))
    return {
        name: tuple(value.shape) for name, value in own_tensors(module).items() if value.dim() > 0 or name in parameters
    }


@torch.no_grad()
def trace(model: nn.Module, inputs: Tensor) -> list[Call]:
    """The calls of one forward, in order. In float64, rounding and difference are far apart."""
    with recording(model) as calls:
        model(inputs.clone())
    return calls


@torch.no_grad()
def perturb_constants(model: nn.Module) -> nn.Module:
    """The model with noise on each parameter that was one constant, as the scales and shifts of new norms are.

    A scale of 0 silences a branch and lets different tensors be equal; scales of 1 are all alike.
    """
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if (parameter == parameter.flatten()[0]).all():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return model


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The model in evaluation mode, after its norms have seen the inputs: without that, untrained logits explode."""
    model.train()(inputs.clone())
    return model.eval()


def align(ours: list[Call], theirs: list[Call]) -> tuple[dict[str, str], list[str]]:
    """Our modules with parameters -> theirs, and the modules of either that have no counterpart, in words.

    Convolutions and linear layers are matched in the order in which they run, by their weights' shapes and by whether
    they share their input with another: a projection does, a block's later convolutions do not. What follows one of
    them, a norm, is matched with what follows its counterpart.
    """
    ours, theirs = first_runs(ours), first_runs(theirs)
    pairs: dict[str, str] = {}

    # Convolutions and linear layers: first those that share their input alike, then any of the same shape.
    for exact in (True, False):
        for call in (call for call in ours if is_weighted(call) and call.path not in pairs):
            for other in theirs:
                if other.path in pairs.values() or weight_shape(other) != weight_shape(call) or not is_weighted(other):
                    continue
                if not exact or branches(call, ours) == branches(other, theirs):
                    pairs[call.path] = other.path
                    break

    # Norms: first those that follow counterparts, then any of the same shapes.
    for by_source in (True, False):
        for call in (call for call in ours if call.path not in pairs):
            for other in theirs:
                if other.path in pairs.values() or [*other.shapes.values()] != [*call.shapes.values()]:
                    continue
                source, their_source = source_of(call, ours), source_of(other, theirs)
                if not by_source or (source is not None and pairs.get(source) == their_source):
                    pairs[call.path] = other.path
                    break

    unmatched = [f"the first's {call.path} {describe_shapes(call)}" for call in ours if call.path not in pairs]
    unmatched += [
        f"the second's {call.path} {describe_shapes(call)}" for call in theirs if call.path not in pairs.values()
    ]
    return pairs, unmatched


def first_runs(calls: Iterable[Call]) -> list[Call]:
    """The first call of each module that has tensors of its own."""
    first: dict[str, Call] = {}
    for call in calls:
        if call.shapes:
            first.setdefault(call.path, call)
    return [*first.values()]


def is_weighted(call: Call) -> bool:
    return len(weight_shape(call)) > 1


def weight_shape(call: Call) -> tuple[int, ...]:
    """The shape of the largest of its tensors: a convolution's or linear layer's weight."""
    return max(call.shapes.values(), key=lambda shape: (len(shape), math.prod(shape)))


def branches(call: Call, calls: list[Call]) -> bool:
    """Whether another convolution or linear layer reads the same tensor."""
    return any(other.path != call.path and other.read == call.read for other in calls if is_weighted(other))


def source_of(call: Call, calls: list[Call]) -> str | None:
    """The module with weights whose output this one reads as it is."""
    return next((other.path for other in calls if other.written == call.read and is_weighted(other)), None)


def describe_shapes(call: Call) -> str:
    return f"({call.kind} {' '.join(f'{name} {list(shape)}' for name, shape in call.shapes.items())})"


def matching_tensors(module: nn.Module, other: nn.Module) -> dict[str, str]:
    """A module's own parameters and buffers -> those of its counterpart: by name, or else by their order and shapes."""
    names: dict[str, str] = {}
    for ours, theirs in (
        (dict(module.named_parameters(recurse=False)), dict(other.named_parameters(recurse=False))),
        (dict(module.named_buffers(recurse=False)), dict(other.named_buffers(recurse=False))),
    ):
        names |= {name: name for name in ours if name in theirs}

        # One module may have more tensors than the other.
        unnamed = ([name for name in ours if name not in theirs], [name for name in theirs if name not in ours])
        rest = zip(*unnamed, strict=False)
        names |= {name: counterpart for name, counterpart in rest if ours[name].shape == theirs[counterpart].shape}
    return names


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, pairs: dict[str, str]) -> None:
    """Copies the tensors of `source`'s modules into their counterparts in `target`, but for those that one lacks."""
    for path, counterpart in pairs.items():
        module, other = source.get_submodule(path), target.get_submodule(counterpart)
        values, theirs = own_tensors(module), own_tensors(other)
        for name, their_name in matching_tensors(module, other).items():
            if theirs[their_name].shape == values[name].shape:
                theirs[their_name].copy_(values[name])


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, without its children's."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
