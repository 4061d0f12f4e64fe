"""The operations of a forward, with what each reads and writes as a fingerprint, not as a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


IMAGES = -1
"""Stands for the network's input where an operation's number is expected."""


@dataclass(frozen=True)
class Leaf:
    """A tensor that does not depend on the images: a weight, a buffer or a constant."""

    value: Tensor
    names: tuple[str, ...] = ()
    """The network's parameters and buffers that it is, or is made from."""
    learned: bool = False
    """Whether one of these is a parameter."""
    unregistered: bool = False
    """Whether it is a parameter that the network does not hold: of a layer in a plain list, or made in forward."""
    shape: tuple[int, ...] = ()
    """Of the parameter or buffer that it is a view of; else its own."""
    made: str = ""
    """"computed" from weights, a "part" of one, or "random"; empty for a tensor as it is, whatever its shape."""


@dataclass(frozen=True)
class Result:
    """An argument that depends on the images: what the operation of this number wrote."""

    number: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of a torch function on something that depends on the images."""

    number: int
    function: str
    """Without the marks of a method or of working in place: "add" for `x += y`."""
    arguments: Mapping[str, Any]
    """By name; tensors as Leaf or Result."""
    call: tuple[Callable[..., Any], Any, Any]
    """The function as it was called, with the same stand-ins for tensors."""
    path: str
    """The module that holds its weights, or else the innermost that runs."""
    file: str | None
    """Of the innermost line outside torch that led to it."""
    line: int | None
    read: Fingerprint | None
    written: Fingerprint | None
    read_shape: tuple[int, ...]
    shape: tuple[int, ...]
    time: int
    """0 for the first operation of its function and path in a forward, 1 for the second."""
    cut: bool
    """Whether something that it reads requires a gradient and what it writes does not."""
    seed: int | None = None
    """The random generator's, set before an operation that draws numbers."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the operations whose results it reads."""
        return tuple(dict.fromkeys(each.number for each in flat(self.arguments) if isinstance(each, Result)))

    @property
    def leaves(self) -> dict[str, Leaf]:
        """Weights, buffers and constants by the argument's name."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Leaf)}

    @property
    def tensors(self) -> dict[str, str]:
        """The argument's name -> the parameter's or buffer's, of those that the network holds."""
        return {
            role if count == 0 else f"{role} {count}": name
            for role, leaf in self.leaves.items()
            for count, name in enumerate(leaf.names)
        }

    @property
    def where(self) -> str:
        """The module's path, or else the line."""
        return self.path or self.place

    @property
    def place(self) -> str:
        """`layer1.0.conv1 (mine.py:31)`, as far as it is known."""
        line = f"{Path(self.file).name}:{self.line}" if self.file else ""
        return f"{self.path} ({line})" if self.path and line else self.path or line or self.function


@dataclass(frozen=True)
class Trace:
    """The operations of one forward, in order, and the one that wrote the logits."""

    operations: list[Operation]
    output: int
    logits: Fingerprint | None
    casts: tuple[Operation, ...]
    """Where the network asks for float32 or less; `function` is what it asks for."""
    leaves: tuple[Leaf, ...]
    """Every parameter and buffer that an operation used."""
    returned: str
    """"tensor", or the type of the outputs that hold the logits."""
    channels_last: bool
    """Whether a result lies in memory with its channels last."""

    @property
    def on_the_way(self) -> list[Operation]:
        """The operations that the logits depend on, in order."""
        found = {self.output}
        for operation in reversed(self.operations):
            if operation.number in found:
                found.update(operation.inputs)
        return [operation for operation in self.operations if operation.number in found]


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists and dicts."""
    if isinstance(value, tuple | list):
        for each in value:
            yield from flat(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from flat(each)
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same nest of tuples, lists and dicts, of what the function makes of its leaves."""
    if isinstance(value, tuple) and type(value) is not tuple:
        return function(value)  # torch.Size
    if isinstance(value, tuple | list):
        return type(value)(mapped(function, each) for each in value)
    if isinstance(value, dict):
        return {key: mapped(function, each) for key, each in value.items()}
    return function(value)
