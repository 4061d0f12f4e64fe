"""What a pickle made, looked through: every value with the keys that lead to it, and the tensors of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from resnet_core.weights.pickles import Inert

DEEPEST = 200


def walk(content: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with the keys that lead to it, the outer ones first; what a container holds is visited once.

    So it ends for content that holds itself, and takes no longer than the file for content that holds one value many
    times. Values more than DEEPEST levels down are left out.
    """
    yield (), content
    waiting = [(content, -1, "", 0)]  # a container, its parent's place in this list, its key, its depth
    seen = {id(content)}
    for place, (container, above, key, depth) in enumerate(waiting):
        path = []
        while above >= 0:
            path += [key] if key else []
            _, above, key, _ = waiting[above]
        for name, value in parts(container):
            yield (*path[::-1], *([name] if name else [])), value
            if isinstance(value, dict | list | tuple | Inert) and id(value) not in seen and depth < DEEPEST:
                seen.add(id(value))
                waiting.append((value, place, name, depth + 1))


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The values in a container, by key or number, and those in a placeholder, which lie under its own name."""
    if isinstance(value, dict):
        yield from ((str(key) if isinstance(key, str | int) else "", each) for key, each in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(number), each) for number, each in enumerate(value))
    elif isinstance(value, Inert):
        held = (value.entries, value.elements, value.state, value.arguments)
        yield from (("", each) for each in held if each is not None)


def module_tensors(module: Inert) -> dict[str, Tensor]:
    """The state dict of a pickled `nn.Module`, or of a module in a TorchScript archive; empty for anything else.

    Raises ValueError where modules hold each other.
    """
    named: dict[str, Tensor] = {}
    for prefix, state in modules_in(module):
        unsaved = {name for name in names_not_saved(state) if isinstance(name, str)}
        for name, value in own_parts(state):
            if isinstance(value, Tensor) and name not in unsaved:
                named[f"{prefix}{name}"] = value
    return named


def module_strides(module: Inert) -> dict[str, Any]:
    """The strides of a pickled module's layers, by the layer's name."""
    return {prefix.removesuffix("."): state["stride"] for prefix, state in modules_in(module) if "stride" in state}


def modules_in(module: Inert) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The prefix and the state of a pickled module and of all modules in it. Raises ValueError for a cycle."""
    waiting, left = [("", module)], 1 << 26  # bytes for all names
    while waiting:
        prefix, each = waiting.pop()
        state = each.state if isinstance(each.state, dict) else {}
        parts = list(own_parts(state))
        left -= 8 * len(names_not_saved(state)) + len(parts) * (len(prefix) + 200)
        if left < 0:
            raise ValueError("the pickle has modules that hold each other")
        yield prefix, state
        inner = [(name, value) for name, value in parts if isinstance(value, Inert) and isinstance(value.state, dict)]
        waiting += [(f"{prefix}{name}.", value) for name, value in inner[::-1]]


def names_not_saved(state: dict[Any, Any]) -> list[Any]:
    unsaved = state.get("_non_persistent_buffers_set")
    return unsaved.elements if isinstance(unsaved, Inert) else []


def own_parts(state: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """A module's parameters, buffers and modules by name. TorchScript keeps them side by side."""
    groups = [state.get(key) for key in ("_parameters", "_buffers", "_modules")] if "_modules" in state else [state]
    for group in groups:
        if isinstance(group, dict):
            yield from ((name, value) for name, value in group.items() if isinstance(name, str))
