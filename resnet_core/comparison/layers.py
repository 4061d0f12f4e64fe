"""A traced operation in the terms of a ResNet: a layer with its settings, which can run, whoever wrote it.

`relu`, `clamp(min=0)` and `maximum(x, 0)` are one layer, as are `mean((2, 3))` and an adaptive average pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.comparison.operations import Leaf, Operation, Result, flat, mapped
from resnet_core.comparison.recorder import SAME, VIEWS

Settings = Mapping[str, Any]
Recognised = tuple[str, Settings] | None
"""A layer's kind and settings; None for an operation that has no name."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: what is compared are its kind and its settings, and those of the arms that it joins."""

    kind: str
    settings: Settings
    operation: Operation
    tensors: Mapping[str, Leaf] = field(default_factory=dict)
    arms: tuple[tuple[Layer, ...], ...] = ()
    """Of a join: the layers on each of its ways from the fork. A single arm: the layers that are one together."""

    @property
    def key(self) -> tuple[Any, ...]:
        return self.kind, tuple(sorted(self.settings.items(), key=str)), tuple(keys(arm) for arm in self.arms)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.arms:
            return RUN.get(self.kind, replay)(self, x)
        if len(self.arms) == 1:
            return run(self.arms[0], x)
        return replay(self, *(run(arm, x) for arm in self.arms))


JOINS = ("add", "sub", "mul", "maximum", "cat")
"""What the ways that part in a network are joined by."""


def keys(layers: Iterable[Layer]) -> tuple[Any, ...]:
    return tuple(layer.key for layer in layers)


def run(layers: Iterable[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def count(layers: Iterable[Layer], kind: str) -> int:
    return sum(layer.kind == kind for layer in layers)


def whole(value: Any) -> Any:
    """(3, 3) as 3."""
    if isinstance(value, list | tuple):
        values = tuple(value)
        return values[0] if len(set(values)) == 1 else values
    return value


def by(size: Any) -> str:
    """`3x3`, `1x7`."""
    return "{}x{}".format(*(size if isinstance(size, tuple) else (size, size)))


# What torch's functions are called here, with the settings that matter.


def convolution(operation: Operation) -> Recognised:
    get, weight = operation.arguments.get, operation.arguments["weight"]
    kernel, dilation, padding = weight.value.shape[2:], get("dilation", 1), get("padding", 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        dilations = dilation if isinstance(dilation, list | tuple) else (dilation, dilation)
        padding = [(size - 1) * step // 2 for size, step in zip(kernel, dilations, strict=True)]
    if not weight.learned and get("groups", 1) > 1:
        return "filter", {"kernel": whole(kernel), "stride": whole(get("stride", 1))}
    return "conv", {
        "kernel": whole(kernel),
        "stride": whole(get("stride", 1)),
        "padding": whole(padding),
        "padding_mode": "zeros",
        "dilation": whole(dilation),
        "groups": get("groups", 1),
        "bias": get("bias") is not None,
        "out": weight.value.shape[0],
        **computed(weight),
    }


def linear(operation: Operation) -> Recognised:
    get, weight = operation.arguments.get, operation.arguments["weight"]
    return "linear", {"out": weight.value.shape[0], "bias": get("bias") is not None, **computed(weight)}


def computed(weight: Leaf) -> Settings:
    found = {"weight": "computed"} if weight.made == "computed" else {}
    return found | ({"held": False} if weight.unregistered else {})


def norm(type: str, **defaults: Any) -> Callable[[Operation], Recognised]:
    def recognise(operation: Operation) -> Recognised:
        get = operation.arguments.get
        settings = {"type": type, "affine": get("weight") is not None}
        settings |= {key.removeprefix("num_"): get(key, value) for key, value in defaults.items()}
        if type == "BatchNorm":
            settings["tracked"] = get("running_mean") is not None
            by_batch = get("training", False) or not settings["tracked"]
            settings["statistics"] = "the batch's" if by_batch else "running"
        if settings["affine"]:
            settings |= computed(operation.arguments["weight"])
        return "norm", settings

    return recognise


def activation(name: str, **defaults: Any) -> Callable[[Operation], Recognised]:
    def recognise(operation: Operation) -> Recognised:
        return "act", {"name": name, **{key: operation.arguments.get(key, value) for key, value in defaults.items()}}

    return recognise


def pool(type: str) -> Callable[[Operation], Recognised]:
    def recognise(operation: Operation) -> Recognised:
        get = operation.arguments.get
        kernel = whole(get("kernel_size"))
        stride, padding = whole(get("stride") or kernel), whole(get("padding", 0))
        size, dilation = operation.read_shape[-2:], whole(get("dilation", 1))
        if kernel == 1 and padding == 0:
            return ALIAS if stride == 1 else ("subsample", {"step": stride})
        if (kernel, kernel) == size or kernel == size:
            return "pool", {"type": type, "kernel": "global", "fixed": size}
        settings = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": bool(get("ceil_mode", False))}
        if type == "average" and padding != 0 and not get("count_include_pad", True):
            settings["count_include_pad"] = False
        return "pool", {"type": type, **settings, **({"dilation": dilation} if dilation != 1 else {})}

    return recognise


def adaptive_pool(type: str) -> Callable[[Operation], Recognised]:
    def recognise(operation: Operation) -> Recognised:
        size = whole(operation.arguments.get("output_size"))
        return "pool", {"type": type, "kernel": "global" if size == 1 else f"to {by(size)}", "fixed": None}

    return recognise


def reduction(type: str) -> Callable[[Operation], Recognised]:
    """A mean or a maximum over both sides of the images, at once or flattened."""

    def recognise(operation: Operation) -> Recognised:
        count = len(operation.read_shape)
        dims = operation.arguments.get("dim", ())
        dims = {each % count for each in (dims if isinstance(dims, list | tuple) else (dims,))}
        return GLOBAL[type] if (count, dims) in ((4, {2, 3}), (3, {2})) else None

    return recognise


GLOBAL = {type: ("pool", {"type": type, "kernel": "global", "fixed": None}) for type in ("average", "max")}


LEARNED = "a learned tensor"


def arithmetic(operation: Operation) -> Recognised:
    """Times or plus a number, or a tensor that does not depend on the images."""
    other = [value for name, value in operation.arguments.items() if not isinstance(value, Result) and name != "alpha"]
    if len(other) != 1 or not isinstance(other[0], int | float | Leaf):
        return None
    value: Any = other[0]
    if isinstance(value, Leaf) and value.value.numel() == 1 and not value.learned and not value.made:
        value = value.value.item()
    if isinstance(value, Leaf):
        learned = LEARNED if value.value.numel() > 1 else "a learned number"
        value = value.made if value.made == "random" else learned if value.learned else "a tensor"
    else:
        value = {"div": 1 / value if value else value, "sub": -value}.get(operation.function, value)
    return ("scale", {"factor": value}) if operation.function in ("mul", "div") else ("shift", {"by": value})


def dropout(operation: Operation) -> Recognised:
    return "dropout", {"probability": operation.arguments.get("p", 0.5), "name": operation.function}


def padding(operation: Operation) -> Recognised:
    get = operation.arguments.get
    pads, mode = [*operation.arguments["pad"], 0, 0, 0, 0, 0, 0], get("mode", "constant")
    if mode == "constant" and not any(pads[:4]):
        return "new channels", {"before": pads[4], "after": pads[5]}
    sides = pads[0] if len({*pads[:4]}) == 1 else (*pads[:4],)
    return "pad", {"sides": sides, "mode": mode, "value": get("value") or 0.0}


def concatenation(operation: Operation) -> Recognised:
    """Zeros as new channels, before and after the old; or other constants, such as the coordinates of pixels."""
    tensors = operation.arguments["tensors"]
    place = next(number for number, each in enumerate(tensors) if isinstance(each, Result))
    leaves = [each.value for each in tensors if isinstance(each, Leaf) and not each.learned]
    if {*map(type, tensors)} == {Result}:
        return copies(operation)
    if len(leaves) != len(tensors) - 1 or operation.arguments.get("dim", 0) != 1:
        return None
    if any(leaf.any() for leaf in leaves):
        return "constants", {"channels": sum(leaf.shape[1] for leaf in leaves)}
    counts = [each.value.shape[1] if isinstance(each, Leaf) else 0 for each in tensors]
    return "new channels", {"before": sum(counts[:place]), "after": sum(counts[place:])}


def copies(operation: Operation) -> Recognised:
    """The channels, several times."""
    before, after = operation.read_shape, operation.shape
    times = after[1] // before[1] if len(after) == len(before) == 4 else 0
    return ("copies", {"times": times}) if times > 1 and after == (before[0], times * before[1], *before[2:]) else None


def indexing(operation: Operation) -> Recognised:
    """Every second pixel, the channels in another order, or new axes."""
    index = operation.arguments.get("idx")
    index = list(index) if isinstance(index, tuple) else [index]
    if index and index[0] is Ellipsis:
        index[0:1] = [slice(None)] * (len(operation.read_shape) - len(index) + 1)
    kept = [size for each, size in zip(index, operation.read_shape, strict=False) if isinstance(each, int)]
    if all(each is None or isinstance(each, int) or each == slice(None) for each in index) and {*kept} <= {1}:
        return ALIAS
    if index[0] == slice(None) and len(index) > 1 and isinstance(index[1], list):
        return "channels", {"order": tuple(index[1])}
    steps = index[2:]
    from_zero = all(isinstance(each, slice) and each.start in (None, 0) and each.stop is None for each in steps)
    if index[:2] == [slice(None)] * 2 and from_zero and len(steps) == 2:
        return "subsample", {"step": whole([each.step or 1 for each in steps])}
    return None


def flip(operation: Operation) -> Recognised:
    dims = operation.arguments.get("dims")
    return ("channels", {"order": (*range(operation.shape[1])[::-1],)}) if whole(dims) in (1, -3) else None


L2: tuple[str, Settings] = ("norm", {"type": "L2 normalisation"})
ALIAS: tuple[str, Settings] = ("same", {})
"""What an operation is that leaves the values and their order as they are."""


def reshape(operation: Operation) -> Recognised:
    """Only axes of length 1 come and go, or the last axes become one."""
    before, after = ([size for size in shape if size != 1] for shape in (operation.read_shape, operation.shape))
    lead = 0
    while lead < min(len(before), len(after)) - 1 and before[lead] == after[lead]:
        lead += 1
    return ALIAS if before == after or (lead >= 1 and len(after) == lead + 1) else None


RECOGNISE: dict[str, Callable[[Operation], Recognised]] = {
    "conv2d": convolution,
    "linear": linear,
    "batch_norm": norm("BatchNorm", eps=1e-5, momentum=0.1),
    "group_norm": norm("GroupNorm", num_groups=1, eps=1e-5),
    "instance_norm": norm("InstanceNorm", eps=1e-5),
    "layer_norm": norm("LayerNorm", eps=1e-5),
    "relu": activation("ReLU"),
    "rrelu": activation("RReLU"),
    "relu6": activation("ReLU6"),
    "leaky_relu": activation("LeakyReLU", negative_slope=0.01),
    "gelu": activation("GELU", approximate="none"),
    "silu": activation("SiLU"),
    "elu": activation("ELU", alpha=1.0),
    "selu": activation("SELU"),
    "celu": activation("CELU", alpha=1.0),
    "mish": activation("Mish"),
    "hardswish": activation("Hardswish"),
    "hardsigmoid": activation("Hardsigmoid"),
    "softplus": activation("Softplus"),
    "prelu": activation("PReLU"),
    "tanh": activation("Tanh"),
    "sigmoid": activation("sigmoid"),
    "softmax": activation("softmax"),
    "log_softmax": activation("log-softmax"),
    "max_pool2d": pool("max"),
    "max_pool2d_with_indices": pool("max"),
    "avg_pool2d": pool("average"),
    "adaptive_avg_pool2d": adaptive_pool("average"),
    "adaptive_max_pool2d": adaptive_pool("max"),
    "mean": reduction("average"),
    "amax": reduction("max"),
    "pad": padding,
    "cat": concatenation,
    "concat": concatenation,
    "__getitem__": indexing,
    "flip": flip,
    "repeat": copies,
    "tile": copies,
    "fold": lambda operation: ALIAS if whole(operation.arguments.get("kernel_size")) == 1 else None,
    "pixel_unshuffle": lambda operation: ("space to depth", {"factor": operation.arguments.get("downscale_factor")}),
    "normalize": lambda operation: L2 if operation.arguments.get("p", 2.0) == 2 else None,
    "interpolate": lambda operation: ("resize", {"size": operation.shape[-2:]}),
    **dict.fromkeys(("mul", "div", "add", "sub"), arithmetic),
    **dict.fromkeys(("dropout", "dropout2d", "feature_dropout", "alpha_dropout"), dropout),
    **dict.fromkeys(VIEWS - {"permute", "transpose", "t", "expand"}, reshape),
    **dict.fromkeys(SAME, lambda operation: ALIAS),
}

NOTHING = (("scale", 1), ("shift", 0), ("new channels", 0, 0))
"""Kinds and settings that change no value."""


def recognised(operation: Operation) -> tuple[str, Settings]:
    """The operation's kind and settings; one that is not known is what its function is called."""
    found = RECOGNISE.get(operation.function, lambda operation: None)(operation)
    if found is None:
        return "other", {"function": operation.function, "arguments": str(plain_arguments(operation))}
    kind, settings = found
    none = kind == "dropout" and settings["probability"] == 0
    return ALIAS if none or (kind, *settings.values()) in NOTHING else (kind, settings)


def plain_arguments(operation: Operation) -> dict[str, Any]:
    return {
        name: mapped(lambda each: "tensor" if isinstance(each, Leaf | Result) else each, value)
        for name, value in operation.arguments.items()
        if not isinstance(value, Result)
    }


# How layers compute.


def value_of(layer: Layer, role: str) -> Tensor | None:
    leaf = layer.tensors.get(role)
    return None if leaf is None else leaf.value


def run_convolution(layer: Layer, x: Tensor) -> Tensor:
    settings = layer.settings
    padding, weight = settings["padding"], layer.tensors["weight"].value
    x = x if x.dim() == 4 else x[..., None, None]
    if settings["padding_mode"] != "zeros":
        sides = padding if isinstance(padding, tuple) else (padding, padding)
        x, padding = F.pad(x, (sides[1], sides[1], sides[0], sides[0]), mode=settings["padding_mode"]), 0
    rest = settings["stride"], padding, settings["dilation"], settings["groups"]
    return F.conv2d(x, weight, value_of(layer, "bias"), *rest)


def run_linear(layer: Layer, x: Tensor) -> Tensor:
    weight = layer.tensors["weight"].value.flatten(1)
    of_pixels = layer.operation.function == "linear" and len(layer.operation.read_shape) == 4
    x = x if of_pixels or (x.dim() < 4 and x.shape[-1] == weight.shape[1]) else x.flatten(1)
    return F.linear(x, weight, value_of(layer, "bias"))


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "ReLU": F.relu,
    "ReLU6": F.relu6,
    "LeakyReLU": F.leaky_relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "ELU": F.elu,
    "SELU": F.selu,
    "CELU": F.celu,
    "Mish": F.mish,
    "Hardswish": F.hardswish,
    "Hardsigmoid": F.hardsigmoid,
    "Tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def run_activation(layer: Layer, x: Tensor) -> Tensor:
    name, *values = layer.settings.values()
    if name in ("softmax", "log-softmax"):
        return (F.softmax if name == "softmax" else F.log_softmax)(x.flatten(1), 1)
    if name not in ACTIVATIONS:
        return replay(layer, x)
    return ACTIVATIONS[name](x, **dict(zip([*layer.settings][1:], values, strict=True)))


def run_pool(layer: Layer, x: Tensor) -> Tensor:
    settings = dict(layer.settings)
    if settings["kernel"] == "global":
        return x.flatten(2).amax(2) if settings["type"] == "max" else x.flatten(2).mean(2)
    if str(settings["kernel"]).startswith("to "):
        return replay(layer, x)
    del settings["type"]
    settings["kernel_size"] = settings.pop("kernel")
    return (F.max_pool2d if layer.settings["type"] == "max" else F.avg_pool2d)(x, **settings)


def run_subsample(layer: Layer, x: Tensor) -> Tensor:
    step = layer.settings["step"]
    steps = step if isinstance(step, tuple) else (step, step)
    return x[:, :, :: steps[0], :: steps[1]]


def replay(layer: Layer, *inputs: Tensor) -> Tensor:
    """The call as it was traced, on other inputs of the traced ones' shapes."""
    values = dict(zip(layer.operation.inputs, inputs, strict=True))

    def filled(each: Any) -> Any:
        if not isinstance(each, Result):
            return each.value if isinstance(each, Leaf) else each
        value = values[each.number]
        return (value.reshape(each.shape) if value.numel() == math.prod(each.shape) else value).clone()

    if layer.operation.seed is not None:
        torch.manual_seed(layer.operation.seed)
    function, args, kwargs = layer.operation.call
    result = function(*mapped(filled, args), **mapped(filled, kwargs))
    if isinstance(result, Tensor):
        return result
    tensors = [each for each in flat(result) if isinstance(each, Tensor)]
    return tensors[layer.operation.arguments.get("result", 0)]


RUN: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "conv": run_convolution,
    "linear": run_linear,
    "act": run_activation,
    "pool": run_pool,
    "new channels": lambda layer, x: F.pad(x, (0, 0, 0, 0, *layer.settings.values())),
    "subsample": run_subsample,
}
"""What runs layers whose settings may be other than their operation's; all others are replayed."""
