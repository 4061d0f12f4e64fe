"""Several neighbouring operations as the one layer that they are together, also where it is written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.comparison.layers import (
    ACTIVATIONS,
    ALIAS,
    GLOBAL,
    L2,
    LEARNED,
    Layer,
    Settings,
    computed,
    count,
    run,
    whole,
)


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
        case "conv" | "linear", "shift" if b["by"] == LEARNED and not a["bias"] and not first.arms:
            leaf = next(iter(second.operation.leaves.values()))
            bias = replace(leaf, value=leaf.value.flatten())
            if len(bias.value) == a["out"]:
                return [replace(first, settings={**a, "bias": True}, tensors={**first.tensors, "bias": bias})]
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
    """Zeros, a grouped convolution, norms, heads, or two pools at the head, written as a concatenation or a sum."""
    ends = [arm[-1] if arm else None for arm in layer.arms]
    by = layer.settings.get("by")
    if by in ("cat", "add") and all(
        end and len(arm) == 1 and is_global(end) for end, arm in zip(ends, layer.arms, strict=True)
    ):
        types = {"cat": " and ", "add": " plus "}[by].join(sorted({end.settings["type"] for end in ends if end}))
        return replace(layer, kind="pool", settings={"type": types, "kernel": "global", "fixed": None})
    if layer.kind != "join" or layer.settings != {"by": "cat"}:
        return layer
    zero = [bool(arm) and arm[-1].kind == "scale" and arm[-1].settings["factor"] == 0 for arm in layer.arms]
    rest = [arm for arm, is_zero in zip(layer.arms, zero, strict=True) if not is_zero]
    if len(rest) == 1 and not rest[0]:
        width, place = layer.operation.read_shape[1], zero.index(False)
        settings = {"before": width * place, "after": width * (len(zero) - place - 1)}
        return replace(layer, kind="new channels", settings=settings, arms=())

    if factor := space_to_depth([layer]):
        return chain("space to depth", {"factor": factor}, layer)

    if all(end and end.kind == "linear" and len(arm) == 1 for end, arm in zip(ends, layer.arms, strict=True)):
        settings = {"out": layer.operation.shape[1], "bias": True, "parts": len(ends)}
        return replace(layer, kind="linear", settings=settings, arms=((layer,),))
    if all(end and end.kind == "norm" and is_part(arm[0]) for end, arm in zip(ends, layer.arms, strict=True)):
        types = " and ".join(sorted({end.settings["type"] for end in ends if end}))
        return chain("norm", {"type": f"{types} side by side"}, layer)

    return grouped(layer)


def grouped(layer: Layer) -> Layer:
    """Convolutions of parts of the channels, all alike, as one grouped convolution."""
    convolutions = [arm[1] for arm in layer.arms if len(arm) == 2 and is_part(arm[0]) and arm[1].kind == "conv"]
    if len(convolutions) == len(layer.arms) and len({each.key for each in convolutions}) == 1:
        first, groups = convolutions[0], len(convolutions)
        weights = [each.tensors["weight"] for each in convolutions]
        names = tuple(name for leaf in weights for name in leaf.names)
        together = replace(weights[0], value=torch.cat([leaf.value for leaf in weights]), names=names)
        settings = {**first.settings, "groups": groups, "out": groups * first.settings["out"]}
        return replace(first, settings=settings, tensors={**first.tensors, "weight": together})
    return layer


def is_global(layer: Layer) -> bool:
    """Whether it pools the whole map."""
    return layer.kind == "pool" and layer.settings["kernel"] == "global"


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
    """The activation, pool or product that a layer is, written as arithmetic: `x * (x > 0)`, `x @ weight`."""
    if layer.settings.get("function") in PRODUCTS and (product := matrix_product([layer])):
        return product
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
PRODUCTS = ("matmul", "mm", "addmm", "einsum")
BY_HAND = ("LayerNorm", "norm by hand", "fixed scale and shift")


def is_elementary(layer: Layer) -> bool:
    """Whether it is arithmetic, or joins nothing but arithmetic, as the parts of a hand-written layer do."""
    function = layer.settings.get("function", layer.settings.get("by"))
    if layer.settings.get("type") in BY_HAND or function in ELEMENTARY:
        parts = [part for arm in layer.arms for part in arm]
        return all(map(is_elementary, parts)) and bool(parts or not layer.arms)
    of_pixels = layer.kind == "linear" and len(layer.operation.read_shape) == 4
    return layer.kind in ("scale", "shift", "act") or of_pixels or is_global(layer)


def by_result(layers: list[Layer]) -> Iterator[Layer]:
    """The one layer that these are; the layers themselves where nothing known does what they do."""
    if any(map(is_strange, layers)) and (found := known_by_result(layers)) is not None:
        yield from [chain(*found, *layers)] if found != ALIAS else []
    elif product := matrix_product(layers):
        yield product
    elif factor := space_to_depth(layers):
        yield chain("space to depth", {"factor": factor}, *layers)
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
    known += [(L2, F.normalize(x))] if len(shape) == 2 else []
    known += [(("act", {"name": name}), function(x)) for name, function in ACTIVATIONS.items()]
    if len(shape) == 4:
        known += [(GLOBAL["average"], x.mean((2, 3))), (GLOBAL["max"], x.amax((2, 3)))]
    return next((kind for kind, expected in known if same_values(expected, result)), None)


@torch.no_grad()
def space_to_depth(layers: Sequence[Layer]) -> int | None:
    """By how much layers make images smaller, where each pixel that they write holds those of a square."""
    if not layers or len(shape := shape_before(layers[0])) != 4 or len(after := layers[-1].operation.shape) != 4:
        return None
    factor = shape[2] // after[2]
    if factor < 2 or after[1:] != (shape[1] * factor**2, shape[2] // factor, shape[3] // factor):
        return None
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squares, written = F.pixel_unshuffle(x, factor).sort(1).values, run(layers, x).sort(1).values
    return factor if same_values(squares, written) else None


def shape_before(layer: Layer) -> tuple[int, ...]:
    """The shape of what a layer reads; of a join, at the fork."""
    return next((shape_before(arm[0]) for arm in layer.arms if arm), layer.operation.read_shape)


def matrix_product(layers: Sequence[Layer]) -> Layer | None:
    """The linear layer or 1x1 convolution that products with a matrix of weights are."""
    leaves = [
        leaf for layer in layers for leaf in layer.operation.leaves.values() if leaf.learned and leaf.made != "part"
    ]
    matrices = [leaf for leaf in leaves if leaf.value.dim() == 2]
    biases = [replace(leaf, value=leaf.value.flatten()) for leaf in leaves if leaf.value.squeeze().dim() == 1]
    if len(matrices) != 1 or len(biases) > 1 or len(leaves) != len(matrices) + len(biases):
        return None
    x = torch.randn(shape_before(layers[0]), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = {"bias": biases[0]} if biases else {}
    for weight in (matrices[0].value, matrices[0].value.t()):
        out = len(weight)
        settings = {"bias": bool(bias), "out": out, **computed(matrices[0]), **(POINTWISE if x.dim() == 4 else {})}
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


TENSORS = (LEARNED, "a tensor")


def parts_of(layer: Layer) -> Iterator[Layer]:
    """The layers on the ways that a layer joins, and on those that they join."""
    for part in (part for arm in layer.arms for part in arm):
        yield part
        yield from parts_of(part)


def is_reduced(layer: Layer) -> bool:
    """Whether it joins something with a mean or a variance of it."""
    parts = [part for arm in layer.arms for part in arm]
    reduces = any(each.kind in ("pool", "norm") or each.settings.get("function") in REDUCTIONS for each in parts)
    return (reduces and not count(parts, "act")) or any(map(is_reduced, parts))
