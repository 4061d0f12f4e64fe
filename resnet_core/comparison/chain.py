"""From a trace to the chain of its layers; where ways part and meet again, one layer joins them."""

from __future__ import annotations

from resnet_core.comparison.grouping import simplified
from resnet_core.comparison.layers import JOINS, Layer, Settings, recognised
from resnet_core.comparison.operations import IMAGES, Operation, Trace


class EntangledError(ValueError):
    """A network that is no chain of layers and blocks."""


def layers_of(trace: Trace) -> tuple[Layer, ...]:
    """The layers on the way from the images to the logits; where ways part and meet again, one layer joins them."""
    source: dict[int, tuple[int, ...]] = {}
    same: dict[int, int] = {}
    made: dict[int, tuple[str, Settings]] = {}
    for operation in trace.operations:
        inputs = tuple(dict.fromkeys(same.get(number, number) for number in operation.inputs))
        kind, settings = ("join", join_settings(operation)) if len(operation.inputs) > 1 else recognised(operation)
        if kind == "same":
            same[operation.number] = inputs[0]
            continue
        source[operation.number], made[operation.number] = inputs, (kind, settings)

    dominator = dominators(source)
    visited: dict[int, int] = {}

    def way(end: int, start: int) -> tuple[Layer, ...]:
        layers = []
        while end != start:
            operation = trace.operations[end]
            kind, settings = made[end]
            visited[end] = visited.get(end, 0) + 1
            if visited[end] > (1 if kind in ("conv", "linear", "norm") else 16):
                raise EntangledError(
                    f"the ways that part at {operation.place} cross each other, as in a DenseNet; the doctor "
                    "judges networks of blocks, each with one shortcut around it"
                )
            arms: tuple[tuple[Layer, ...], ...] = ()
            if kind == "join":
                order = [same.get(number, number) for number in operation.inputs]
                arms = tuple(way(number, dominator[end]) for number in order)
                kind = kind if settings["by"] in JOINS else "other"
            layers.append(Layer(kind, settings, operation, operation.leaves, arms))
            end = dominator[end]
        return simplified(layers[::-1])

    return way(same.get(trace.output, trace.output), IMAGES)


def dominators(source: dict[int, tuple[int, ...]]) -> dict[int, int]:
    """For each operation the last one before it through which every way from the images goes."""
    depth: dict[int, int] = {IMAGES: 0}
    found: dict[int, int] = {}
    for number, inputs in source.items():
        above = inputs[0]
        for other in inputs[1:]:
            while above != other:
                if depth[above] >= depth[other]:
                    above = found[above]
                else:
                    other = found[other]
        found[number], depth[number] = above, depth[above] + 1
    return found


def join_settings(operation: Operation) -> Settings:
    by = {"concat": "cat", "concatenate": "cat"}.get(operation.function, operation.function)
    if by == "cat" and operation.arguments.get("dim", 0) != 1:
        by = "cat of other axes"
    times = operation.arguments.get("alpha", 1)
    return {"by": by} if times == 1 else {"by": by, "times": times}
