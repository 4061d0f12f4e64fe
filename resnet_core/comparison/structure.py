"""A traced network as a ResNet: the layers of its stem, its blocks and its head.

A structure can be run, so that it can be held to what its network computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from resnet_core.comparison.layers import (
    ACTIVATIONS,
    ALIAS,
    GLOBAL,
    JOINS,
    Layer,
    Settings,
    count,
    keys,
    recognised,
    run,
    whole,
)
from resnet_core.comparison.trace import IMAGES, Operation, Trace


@dataclass(frozen=True)
class Block:
    """A residual block: what is added to its shortcut, the shortcut, and what follows the addition."""

    branch: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] | None
    """None: the block has no shortcut."""
    join: Layer | None
    after: tuple[Layer, ...]
    shared: int = 0
    """How many of the branch's first layers the shortcut reads through, as the projections of pre-activation do."""
    stage: int = 1
    number: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        shortcut = None if self.shortcut is None else keys(self.shortcut)
        join = self.join.settings if self.join else {}
        return keys(self.branch), shortcut, tuple(sorted(join.items())), keys(self.after), self.shared

    @property
    def name(self) -> str:
        return f"layer{self.stage}.{self.number}"

    @property
    def channels(self) -> int:
        """What the block writes."""
        return next((layer.settings["out"] for layer in reversed(self.branch) if layer.kind == "conv"), 0)

    @property
    def stride(self) -> int:
        return math.prod(whole(layer.settings["stride"]) for layer in self.branch if "stride" in layer.settings)

    def layers(self) -> Iterator[Layer]:
        yield from (*self.branch, *(self.shortcut or ()), *self.after)

    def __call__(self, x: Tensor) -> Tensor:
        if self.join is None:
            return run((*self.branch, *self.after), x)
        return run(self.after, self.join(run(self.branch[: self.shared], x)))


@dataclass(frozen=True)
class Structure:
    """A network from its images to its logits."""

    stem: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    head: tuple[Layer, ...]

    @property
    def depths(self) -> tuple[int, ...]:
        stages = [block.stage for block in self.blocks]
        return tuple(stages.count(stage) for stage in sorted(set(stages)))

    def layers(self) -> Iterator[Layer]:
        yield from self.stem
        for block in self.blocks:
            yield from block.layers()
        yield from self.head

    def __call__(self, images: Tensor) -> Tensor:
        x = run(self.stem, images)
        for block in self.blocks:
            x = block(x)
        return run(self.head, x)


# From operations to layers.


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


# Several operations that are one layer together.


def simplified(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, where those that together are one known layer are replaced by it."""
    done: list[Layer] = []
    for layer in without_hand_written(map(known_join, layers)):
        done.append(layer)
        while len(done) > 1 and (merged := merge(done[-2], done[-1])) is not None:
            done[-2:] = merged
    return tuple(done)


def merge(first: Layer, second: Layer) -> list[Layer] | None:
    """What two neighbouring layers are together; None where they are just these two."""
    a, b = first.settings, second.settings
    match first.kind, second.kind:
        case "pad", "conv" if b["padding"] == 0 and is_even(a["sides"]) and a["value"] == 0:
            mode = {"constant": "zeros"}.get(a["mode"], a["mode"])
            return [replace(second, settings={**b, "padding": even(a["sides"]), "padding_mode": mode})]
        case "pad", "pool" if b.get("padding") == 0 and b["type"] == "max" and is_even(a["sides"]):
            if a["value"] == -math.inf:
                return [replace(second, settings={**b, "padding": even(a["sides"])})]
        case "conv", "conv" if a["groups"] == a["out"] > 1 == b["kernel"] == b["groups"] and not a["bias"]:
            whole_layer = chain("conv", {**b, **{name: a[name] for name in SHAPE}, "separable": True}, first, second)
            return [replace(whole_layer, tensors=second.tensors)]
        case "pad", "filter":
            return [chain("filter", b, first, second)]
        case "subsample", "conv" if b["kernel"] == 1 and b["padding"] == 0 and b["stride"] == 1:
            return [replace(second, settings={**b, "stride": a["step"]})]
        case "scale", "scale" if a["factor"] == "random" or {type(a["factor"]), type(b["factor"])} <= {int, float}:
            product = "random" if a["factor"] == "random" else a["factor"] * b["factor"]
            return [chain("scale", {"factor": product}, first, second)]
        case "act", "act" if a["name"] == b["name"] == "ReLU":
            return [first]
        case "pool", "act" if a["type"] == "max" and b["name"] == "ReLU" and a["kernel"] != "global":
            return [second, first]
    return None


SHAPE = ("kernel", "stride", "padding", "padding_mode", "dilation")


def chain(kind: str, settings: Settings, *layers: Layer) -> Layer:
    """Layers as the one that they are together."""
    return Layer(kind, settings, layers[0].operation, arms=(layers,))


def is_even(sides: Any) -> bool:
    return not isinstance(sides, tuple) or (sides[0] == sides[1] and sides[2] == sides[3])


def even(sides: Any) -> Any:
    return whole((sides[2], sides[0])) if isinstance(sides, tuple) else sides


def known_join(layer: Layer) -> Layer:
    """Zeros, a grouped convolution, norms, heads, or two pools at the head, written as a concatenation."""
    if layer.kind != "join" or layer.settings != {"by": "cat"}:
        return layer
    zero = [bool(arm) and arm[-1].kind == "scale" and arm[-1].settings["factor"] == 0 for arm in layer.arms]
    rest = [arm for arm, is_zero in zip(layer.arms, zero, strict=True) if not is_zero]
    if len(rest) == 1 and not rest[0]:
        width, place = layer.operation.read_shape[1], zero.index(False)
        settings = {"before": width * place, "after": width * (len(zero) - place - 1)}
        return replace(layer, kind="new channels", settings=settings, arms=())

    ends = [arm[-1] if arm else None for arm in layer.arms]
    if all(end and end.kind == "pool" and end.settings["kernel"] == "global" for end in ends):
        types = " and ".join(sorted({end.settings["type"] for end in ends if end}))
        return replace(layer, kind="pool", settings={"type": types, "kernel": "global", "fixed": None})

    if all(end and end.kind == "linear" and len(arm) == 1 for end, arm in zip(ends, layer.arms, strict=True)):
        settings = {"out": layer.operation.shape[1], "bias": True, "parts": len(ends)}
        return replace(layer, kind="linear", settings=settings, arms=((layer,),))
    if all(end and end.kind == "norm" and is_part(arm[0]) for end, arm in zip(ends, layer.arms, strict=True)):
        types = " and ".join(sorted({end.settings["type"] for end in ends if end}))
        return chain("norm", {"type": f"{types} side by side"}, layer)

    convolutions = [arm[1] for arm in layer.arms if len(arm) == 2 and is_part(arm[0]) and arm[1].kind == "conv"]
    if len(convolutions) == len(layer.arms) and len({each.key for each in convolutions}) == 1:
        first, groups = convolutions[0], len(convolutions)
        weights = [each.tensors["weight"] for each in convolutions]
        names = tuple(name for leaf in weights for name in leaf.names)
        together = replace(weights[0], value=torch.cat([leaf.value for leaf in weights]), names=names)
        settings = {**first.settings, "groups": groups, "out": groups * first.settings["out"]}
        return replace(first, settings=settings, tensors={**first.tensors, "weight": together})
    return layer


def is_part(layer: Layer) -> bool:
    """Whether a layer takes some of the channels."""
    return layer.kind == "other" and layer.settings.get("function") in ("chunk", "split", "narrow", "__getitem__")


def without_hand_written(layers: Iterator[Layer]) -> Iterator[Layer]:
    """The layers, where each run of operations without name that is a known layer, or a norm, is one layer."""
    pending: list[Layer] = []
    for layer in map(by_itself, layers):
        if is_elementary(layer) and layer.kind not in (("act",) if pending else ("act", "pool")):
            pending.append(layer)
        else:
            yield from by_result(pending)
            yield layer
            pending = []
    yield from by_result(pending)


def by_itself(layer: Layer) -> Layer:
    """The activation or pool that a layer is, written as arithmetic: `x * (x > 0)`, `x * sigmoid(x)`."""
    found = known_by_result([layer]) if is_strange(layer) and is_elementary(layer) else None
    if found is None and is_gate(layer) and is_elementary(layer) and not is_reduced(layer):
        found = "act", {"name": "activation by hand"}
    return layer if found is None or found == ALIAS else chain(*found, layer)


def is_gate(layer: Layer) -> bool:
    """Whether a layer multiplies its input with something that it makes of it."""
    return layer.settings.get("by") == "mul" and len(layer.arms) == 2 and () in layer.arms


def is_strange(layer: Layer) -> bool:
    return layer.kind == "other" or len(layer.arms) > 1


# Functions of arithmetic, of which hand-written layers are made.
REDUCTIONS, OTHERS = (
    frozenset(names.split())
    for names in (
        "mean var std var_mean std_mean sum norm max min",
        "add sub mul div pow square sqrt rsqrt reciprocal abs neg exp log gt ge lt le where clamp clamp_min clamp_max "
        "maximum minimum threshold hardtanh matmul bmm einsum mm addmm permute transpose movedim reshape view flatten "
        "unfold unflatten",
    )
)
ELEMENTARY = REDUCTIONS | OTHERS
BY_HAND = ("LayerNorm", "norm by hand", "fixed scale and shift")


def is_elementary(layer: Layer) -> bool:
    """Whether it is arithmetic, or joins nothing but arithmetic, as the parts of a hand-written layer do."""
    function = layer.settings.get("function", layer.settings.get("by"))
    if layer.settings.get("type") in BY_HAND or function in ELEMENTARY:
        parts = [part for arm in layer.arms for part in arm]
        return all(map(is_elementary, parts)) and bool(parts or not layer.arms)
    return layer.kind in ("scale", "shift", "act") or (layer.kind == "pool" and layer.settings["kernel"] == "global")


def by_result(layers: list[Layer]) -> Iterator[Layer]:
    """The one layer that these are; the layers themselves where nothing known does what they do."""
    if any(map(is_strange, layers)) and (found := known_by_result(layers)) is not None:
        yield from [chain(*found, *layers)] if found != ALIAS else []
    elif product := matrix_product(layers):
        yield product
    elif [layer.settings.get("function", layer.kind) for layer in layers][-3:] == ["pow", "pool", "pow"]:
        yield chain("pool", {**layers[-2].settings, "type": "GeM"}, *layers)
    elif is_norm(layers):
        over_channels = any(layer.settings.get("type") == "LayerNorm" for layer in layers)
        fixed = {layer.settings.get("factor", layer.settings.get("by")) for layer in layers} == {"a tensor"}
        name = "LayerNorm over channels" if over_channels else "fixed scale and shift" if fixed else "norm by hand"
        yield chain("norm", {"type": name}, *layers)
    else:
        yield from layers


@torch.no_grad()
def known_by_result(layers: Sequence[Layer]) -> tuple[str, Settings] | None:
    """The activation or pool that gives the layers' results on random numbers."""
    shape = shape_before(layers[0])
    x = 4 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        result = run(layers, x.clone())
    except (RuntimeError, TypeError, KeyError, IndexError):
        return None
    known: list[tuple[tuple[str, Settings], Tensor]] = [(ALIAS, x)]
    known += [(("act", {"name": name}), function(x)) for name, function in ACTIVATIONS.items()]
    if len(shape) == 4:
        known += [(GLOBAL["average"], x.mean((2, 3))), (GLOBAL["max"], x.amax((2, 3)))]
    return next((kind for kind, expected in known if same_values(expected, result)), None)


def shape_before(layer: Layer) -> tuple[int, ...]:
    """The shape of what a layer reads; of a join, at the fork."""
    return next((shape_before(arm[0]) for arm in layer.arms if arm), layer.operation.read_shape)


def matrix_product(layers: Sequence[Layer]) -> Layer | None:
    """The linear layer or 1x1 convolution that products with a matrix of weights are."""
    leaves = [leaf for layer in layers for leaf in layer.operation.leaves.values() if leaf.learned and not leaf.made]
    matrices = [leaf for leaf in leaves if leaf.value.dim() == 2]
    biases = [replace(leaf, value=leaf.value.flatten()) for leaf in leaves if leaf.value.squeeze().dim() == 1]
    if len(matrices) != 1 or len(biases) > 1 or len(leaves) != len(matrices) + len(biases):
        return None
    x = torch.randn(shape_before(layers[0]), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = {"bias": biases[0]} if biases else {}
    for weight in (matrices[0].value, matrices[0].value.t()):
        out = len(weight)
        settings = {**POINTWISE, "bias": bool(bias), "out": out} if x.dim() == 4 else {"out": out, "bias": bool(bias)}
        kernel = weight[:, :, None, None] if x.dim() == 4 else weight
        if layers[0].settings.get("function") == "unfold":
            unfold = {"stride": 1, "padding": 0, "dilation": 1, **layers[0].operation.arguments}
            size = unfold["kernel_size"] if isinstance(unfold["kernel_size"], tuple) else (unfold["kernel_size"],) * 2
            if weight.numel() != out * x.shape[1] * math.prod(size):
                continue
            settings |= {name: whole(unfold[name]) for name in ("stride", "padding", "dilation")} | {
                "kernel": whole(size)
            }
            kernel = weight.reshape(out, x.shape[1], *size)
        tensors = {"weight": replace(matrices[0], value=kernel), **bias}
        layer = Layer("conv" if x.dim() == 4 else "linear", settings, layers[0].operation, tensors)
        with suppress(RuntimeError, TypeError):
            if same_values(run(layers, x.clone()), layer(x)):
                return layer
    return None


POINTWISE = {"kernel": 1, "stride": 1, "padding": 0, "padding_mode": "zeros", "dilation": 1, "groups": 1}


def same_values(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.allclose(one.flatten(), other.flatten().double(), atol=1e-9)


def is_norm(layers: Sequence[Layer]) -> bool:
    """Whether arithmetic on maps, not on images, normalises: by a mean or a variance, or by a scale and a shift."""
    shape = shape_before(layers[0]) if layers else ()
    if len(shape) < 2 or shape[1] <= 4 or count(layers, "pool"):
        return False
    kinds = {layer.kind for layer in layers if layer.settings.get("factor", layer.settings.get("by")) in TENSORS}
    by_itself = any(is_reduced(layer) for layer in layers)
    permuted = layers[0].settings.get("function") == "permute" and any(each.kind == "norm" for each in layers)
    return by_itself or permuted or {"scale", "shift"} <= kinds


TENSORS = ("learned", "a tensor")


def parts_of(layer: Layer) -> Iterator[Layer]:
    """The layers on the ways that a layer joins, and on those that they join."""
    for part in (part for arm in layer.arms for part in arm):
        yield part
        yield from parts_of(part)


def goes_around_blocks(layer: Layer) -> bool:
    """Whether a layer adds ways of which one has a block in it. What a gate joins is none."""
    parts = [part for arm in layer.arms for part in arm if not is_gate(part)]
    return any(is_residual(part) or goes_around_blocks(part) for part in parts)


def is_reduced(layer: Layer) -> bool:
    """Whether it joins something with a mean or a variance of it."""
    parts = [part for arm in layer.arms for part in arm]
    reduces = any(each.kind in ("pool", "norm") or each.settings.get("function") in REDUCTIONS for each in parts)
    return (reduces and not count(parts, "act")) or any(map(is_reduced, parts))


# From layers to blocks.


def is_residual(layer: Layer) -> bool:
    by = layer.settings.get("by")
    joins = by in ("add", "maximum") or (by == "cat" and () in layer.arms)
    return layer.kind == "join" and joins and len(layer.arms) == 2 and any(count(arm, "conv") for arm in layer.arms)


def structure_of(trace: Trace, like: Structure | None = None) -> Structure:
    """The network's stem, blocks and head. Blocks without shortcut are taken to be as long as those of `like`."""
    runs: list[list[Layer]] = [[]]
    joins: list[Layer] = []
    for layer in layers_of(trace):
        if layer.settings.get("by") == "add" and goes_around_blocks(layer):
            raise EntangledError(
                f"the shortcut that ends at {layer.operation.place} goes around whole blocks; the doctor judges "
                "networks of blocks, each with one shortcut around it"
            )
        if is_residual(layer):
            joins.append(layer)
            runs.append([])
        else:
            runs[-1].append(layer)

    length = count(like.blocks[0].branch, "conv") if like and like.blocks else 2
    *before, last = runs
    last, head = without_head(last)
    head = [*map(as_linear, head)]
    runs = [*before, last]

    # The stem, and blocks without shortcut that follow it.
    stem, plain = stem_and_rest(runs[0], length)
    blocks = plain_blocks(plain, length)
    shared: list[Layer] = []
    if joins and completes(plain, joins[0], length):
        blocks, shared = [], plain
    elif joins and not blocks:
        stem, shared = without_prelude(stem, stem, joins[0])

    # Each join ends a block; what follows it is its own, the next one's, or blocks without shortcut.
    for join, following, upcoming in zip(joins, runs[1:], [*joins[1:], None], strict=False):
        branch, shortcut = sorted(join.arms, key=lambda arm: (count(arm, "conv"), len(arm)), reverse=True)
        start = next((number for number, layer in enumerate(following) if layer.kind == "conv"), len(following))
        after, plain = following[:start], following[start:]
        here, shared = shared, []
        if upcoming is None:
            after, rest = without_last_norm(after, branch, head, branch)
            head = [*rest, *head] if not plain else head
        elif completes(plain, upcoming, length):
            plain, shared = [], plain
        elif plain:
            plain, shared = without_prelude(plain, plain, upcoming)
        else:
            after, shared = without_prelude(after, branch, upcoming)
        blocks.append(Block((*here, *branch), shortcut, join, tuple(after), shared=len(here)))
        blocks += plain_blocks(plain, length)
    return Structure(tuple(stem), tuple(numbered(blocks)), tuple(head))


def without_head(layers: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """What stands before the pool over the whole map, or the first linear layer, and the rest."""
    for number, layer in enumerate(layers):
        if (
            layer.kind == "conv"
            and layer.settings["kernel"] == 1
            and [each.kind for each in layers[number + 1 :]] == ["pool"]
        ):
            return layers[:number], layers[number:]  # a convolution in place of the linear layer
        whole_map = layer.kind == "pool" and str(layer.settings["kernel"]).startswith(("global", "adaptive"))
        if whole_map or layer.kind in ("linear", "dropout"):
            return layers[:number], layers[number:]
    acts = next((number for number, layer in enumerate(layers) if layer.kind not in ("act", "scale")), len(layers))
    return (layers, []) if count(layers, "conv") else (layers[:acts], layers[acts:])


def as_linear(layer: Layer) -> Layer:
    """A 1x1 convolution of one pixel is a linear layer."""
    if layer.kind != "conv" or layer.settings["kernel"] != 1 or layer.operation.read_shape[2:] != (1, 1):
        return layer
    return replace(layer, kind="linear", settings={k: v for k, v in layer.settings.items() if k in LINEAR})


LINEAR = ("out", "bias", "weight")


def stem_and_rest(layers: list[Layer], length: int) -> tuple[list[Layer], list[Layer]]:
    """The stem ends with its pool, or with its last convolution: the only one, or the last of a deep stem."""
    pools = [number for number, layer in enumerate(layers) if layer.kind == "pool"]
    places = [number for number, layer in enumerate(layers) if layer.kind == "conv"]
    if pools:
        end = pools[0] + 1
    else:
        widths = [layers[place].settings["out"] for place in places]
        deep = len(set(widths)) > 1 and len(places) <= 3
        blocks = 0 if deep or len(places) <= length else (len(places) - 1) // length
        first = len(places) - blocks * length
        end = places[first] if blocks else len(layers)
    end = end if any(layer.kind == "conv" for layer in layers[end:]) else len(layers)
    return layers[:end], layers[end:]


def without_prelude(layers: Sequence[Layer], before: Sequence[Layer], join: Layer) -> tuple[list[Layer], list[Layer]]:
    """The layers before, and from, the norm that belongs to the pre-activated block that ends with `join`."""
    branch = max(join.arms, key=lambda arm: (count(arm, "conv"), len(arm)))
    if [layer.kind for layer in branch if layer.kind in ("norm", "conv")][:1] != ["conv"]:
        return [*layers], []
    return without_last_norm(layers, before, branch, branch)


def without_last_norm(
    layers: Sequence[Layer], before: Sequence[Layer], behind: Sequence[Layer], branch: Sequence[Layer]
) -> tuple[list[Layer], list[Layer]]:
    """The layers before, and from, the last norm, where the branch's last convolution has none.

    All stay together where that norm stands in the code with what comes before, not with what comes behind.
    """
    norms = [number for number, layer in enumerate(layers) if layer.kind == "norm"]
    kinds = [layer.kind for layer in branch if layer.kind in ("norm", "conv")]
    if not norms or "norm" not in kinds or kinds[-1] != "conv":
        return [*layers], []
    norm = layers[norms[-1]]
    apart = [modules_between(norm, around) for around in (before[::-1], behind)]
    split = norms[-1] if apart[0] >= apart[1] else len(layers)
    return [*layers[:split]], [*layers[split:]]


def modules_between(layer: Layer, others: Sequence[Layer]) -> int:
    """How many modules hold only one of a layer and the first of others that has weights."""
    other = next((each for each in others if each.kind in ("conv", "linear")), layer)
    paths = [each.operation.path.split(".")[:-1] for each in (layer, other)]
    both = takewhile(lambda pair: pair[0] == pair[1], zip(*paths, strict=False))
    return sum(map(len, paths)) - 2 * sum(1 for _ in both)


def completes(layers: Sequence[Layer], join: Layer, length: int) -> bool:
    """Whether these layers are what the branch of `join` lacks: its shortcut then begins behind them."""
    branch = max(count(arm, "conv") for arm in join.arms)
    return branch < length == branch + count(layers, "conv")


def plain_blocks(layers: Sequence[Layer], length: int) -> list[Block]:
    """Blocks without shortcut, each of `length` convolutions and what follows them."""
    places = [number for number, layer in enumerate(layers) if layer.kind == "conv"]
    blocks: list[Block] = []
    if not places:
        return blocks
    for start, end in zip([0, *places[length::length]], [*places[length::length], len(layers)], strict=False):
        part = layers[start:end]
        close = max(number for number, layer in enumerate(part) if layer.kind not in ("act", "scale")) + 1
        blocks.append(Block(tuple(part[:close]), None, None, tuple(part[close:])))
    return blocks


def numbered(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks with their stages: a new one begins where the channels or the resolution change."""
    stage, number, channels = 1, 0, None
    for block in blocks:
        if channels is not None and (block.channels != channels or block.stride != 1):
            stage, number = stage + 1, 0
        yield replace(block, stage=stage, number=number)
        channels, number = block.channels, number + 1
