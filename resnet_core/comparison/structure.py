"""A traced network in the terms of a ResNet: the layers of its stem, its blocks and its head, whoever wrote them.

`relu`, `clamp(min=0)` and `maximum(x, 0)` are one layer, as are `mean((2, 3))` and an adaptive average pool. Each layer
can be run, so that a structure can be held to what its network computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.comparison.trace import IMAGES, Leaf, Operation, Result, Trace, flat, mapped

Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: what is compared are its kind and its settings, and those of the arms that it joins."""

    kind: str
    settings: Settings
    operation: Operation
    tensors: Mapping[str, Leaf] = field(default_factory=dict)
    arms: tuple[tuple[Layer, ...], ...] = ()
    """Of a join: the layers on each of its ways from the fork."""

    @property
    def key(self) -> tuple[Any, ...]:
        return self.kind, tuple(sorted(self.settings.items(), key=str)), tuple(keys(arm) for arm in self.arms)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.arms:
            return RUN.get(self.kind, replay)(self, x)
        if self.kind != "join":
            return replay(self, *(run(arm, x) for arm in self.arms))

        arms: list[Tensor] = [x] * len(self.arms)
        for number in sorted(range(len(arms)), key=lambda each: first_number(self.arms[each])):
            arms[number] = run(self.arms[number], x)
        return JOINS[self.settings["by"]](self, arms)


def keys(layers: Iterable[Layer]) -> tuple[Any, ...]:
    return tuple(layer.key for layer in layers)


def run(layers: Iterable[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def first_number(layers: Sequence[Layer]) -> float:
    """When the first of the layers ran: random layers draw their numbers in this order."""
    return layers[0].operation.number if layers else -1


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
        x = run(self.branch[: self.shared], x)
        branch = self.branch[self.shared :]
        if self.shortcut is None or self.join is None:
            return run((*branch, *self.after), x)
        if first_number(branch) < first_number(self.shortcut):
            arms = [run(branch, x), run(self.shortcut, x)]
        else:
            arms = [run(self.shortcut, x), run(branch, x)][::-1]
        return run(self.after, JOINS[self.join.settings["by"]](self.join, arms))


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


# What torch's functions are called here, with the settings that matter.


def whole(value: Any) -> Any:
    """(3, 3) as 3."""
    if isinstance(value, list | tuple):
        values = tuple(value)
        return values[0] if len(set(values)) == 1 else values
    return value


def convolution(operation: Operation) -> tuple[str, Settings]:
    get = operation.arguments.get
    weight = operation.arguments["weight"].value.shape
    kernel, dilation = weight[2:], get("dilation", 1)
    padding = get("padding", 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        dilations = dilation if isinstance(dilation, list | tuple) else (dilation, dilation)
        padding = [(size - 1) * step // 2 for size, step in zip(kernel, dilations, strict=True)]
    return "conv", {
        "kernel": whole(kernel),
        "stride": whole(get("stride", 1)),
        "padding": whole(padding),
        "padding_mode": "zeros",
        "dilation": whole(dilation),
        "groups": get("groups", 1),
        "bias": get("bias") is not None,
        "out": weight[0],
    }


def linear(operation: Operation) -> tuple[str, Settings]:
    get = operation.arguments.get
    return "linear", {"out": operation.arguments["weight"].value.shape[0], "bias": get("bias") is not None}


def batch_norm(operation: Operation) -> tuple[str, Settings]:
    get = operation.arguments.get
    return "norm", {
        "type": "BatchNorm",
        "eps": get("eps", 1e-5),
        "momentum": get("momentum", 0.1),
        "affine": get("weight") is not None,
        "statistics": "the batch's" if get("training", False) or get("running_mean") is None else "running",
        "tracked": get("running_mean") is not None,
    }


def group_norm(operation: Operation) -> tuple[str, Settings]:
    get = operation.arguments.get
    affine = get("weight") is not None
    return "norm", {"type": "GroupNorm", "groups": get("num_groups"), "eps": get("eps", 1e-5), "affine": affine}


def instance_norm(operation: Operation) -> tuple[str, Settings]:
    get = operation.arguments.get
    return "norm", {"type": "InstanceNorm", "eps": get("eps", 1e-5), "affine": get("weight") is not None}


def activation(name: str, **defaults: Any) -> Callable[[Operation], tuple[str, Settings]]:
    def recognise(operation: Operation) -> tuple[str, Settings]:
        return "act", {"name": name, **{key: operation.arguments.get(key, value) for key, value in defaults.items()}}

    return recognise


def hardtanh(operation: Operation) -> tuple[str, Settings] | None:
    limits = operation.arguments.get("min_val", -1), operation.arguments.get("max_val", 1)
    return ("act", {"name": "ReLU6"}) if limits == (0, 6) else None


def clamp(operation: Operation) -> tuple[str, Settings] | None:
    limits = operation.arguments.get("min"), operation.arguments.get("max")
    names = {(0, None): "ReLU", (0, 6): "ReLU6"}
    return ("act", {"name": names[limits]}) if limits in names else None


def maximum(operation: Operation) -> tuple[str, Settings] | None:
    zero = [leaf for leaf in operation.leaves.values() if not leaf.value.any()]
    return ("act", {"name": "ReLU"}) if zero else None


def softmax(name: str) -> Callable[[Operation], tuple[str, Settings]]:
    return lambda operation: ("act", {"name": name})


def pool(type: str) -> Callable[[Operation], tuple[str, Settings] | None]:
    def recognise(operation: Operation) -> tuple[str, Settings] | None:
        get = operation.arguments.get
        kernel = whole(get("kernel_size"))
        stride = whole(get("stride") or kernel)
        padding, size = whole(get("padding", 0)), operation.read_shape[-2:]
        if kernel == 1 and padding == 0:
            return ("subsample", {"step": stride}) if stride != 1 else None
        if (kernel, kernel) == size or kernel == size:
            return "pool", {"type": type, "kernel": "global", "fixed": size}
        settings = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": bool(get("ceil_mode", False))}
        if type == "average" and padding != 0 and not get("count_include_pad", True):
            settings["count_include_pad"] = False
        if whole(get("dilation", 1)) != 1:
            settings["dilation"] = whole(get("dilation", 1))
        return "pool", {"type": type, **settings}

    return recognise


def adaptive_pool(type: str) -> Callable[[Operation], tuple[str, Settings] | None]:
    def recognise(operation: Operation) -> tuple[str, Settings] | None:
        size = whole(operation.arguments.get("output_size"))
        kernel: Any = "global" if size == 1 else f"adaptive {size}"
        return "pool", {"type": type, "kernel": kernel, "fixed": None}

    return recognise


def reduction(type: str) -> Callable[[Operation], tuple[str, Settings] | None]:
    """A mean or a maximum over both sides of the images, at once or flattened."""

    def recognise(operation: Operation) -> tuple[str, Settings] | None:
        count = len(operation.read_shape)
        dims = operation.arguments.get("dim", ())
        dims = {each % count for each in (dims if isinstance(dims, list | tuple) else (dims,))}
        if (count == 4 and dims == {2, 3}) or (count == 3 and dims == {2}):
            return "pool", {"type": type, "kernel": "global", "fixed": None}
        return None

    return recognise


def arithmetic(operation: Operation) -> tuple[str, Settings] | None:
    """Times or plus a number, or a tensor that does not depend on the images."""
    other = [value for name, value in operation.arguments.items() if not isinstance(value, Result) and name != "alpha"]
    if len(other) != 1 or not isinstance(other[0], int | float | Leaf):
        return None
    value: Any = other[0]
    if isinstance(value, Leaf):
        known = value.value.numel() == 1 and not value.learned
        value = value.value.item() if known else "learned" if value.learned else "a tensor"
    if isinstance(value, float | int):
        value = {"div": 1 / value if value else value, "sub": -value}.get(operation.function, value)
    if operation.function in ("mul", "div"):
        return "scale", {"factor": value}
    return "shift", {"by": value}


def dropout(operation: Operation) -> tuple[str, Settings]:
    get = operation.arguments.get
    return "dropout", {"probability": get("p", 0.5), "name": operation.function}


def padding(operation: Operation) -> tuple[str, Settings]:
    get = operation.arguments.get
    pads, mode = [*operation.arguments["pad"], 0, 0, 0, 0, 0, 0], get("mode", "constant")
    if mode == "constant" and not any(pads[:4]):
        return "new channels", {"before": pads[4], "after": pads[5]}
    left, right, top, bottom = pads[:4]
    sides = left if len({left, right, top, bottom}) == 1 else (left, right, top, bottom)
    return "pad", {"sides": sides, "mode": mode, "value": get("value") or 0.0}


def concatenation(operation: Operation) -> tuple[str, Settings] | None:
    """Zeros as new channels, before and after the old."""
    tensors = operation.arguments["tensors"]
    place = next(number for number, each in enumerate(tensors) if isinstance(each, Result))
    leaves = [each.value for each in tensors if isinstance(each, Leaf)]
    if len(leaves) != len(tensors) - 1 or any(leaf.any() for leaf in leaves) or operation.arguments.get("dim", 0) != 1:
        return None
    counts = [each.value.shape[1] if isinstance(each, Leaf) else 0 for each in tensors]
    return "new channels", {"before": sum(counts[:place]), "after": sum(counts[place:])}


def indexing(operation: Operation) -> tuple[str, Settings] | None:
    index = operation.arguments.get("index")
    index = list(index) if isinstance(index, tuple) else [index]
    if index and index[0] is Ellipsis:
        index[0:1] = [slice(None)] * (len(operation.read_shape) - len(index) + 1)
    if all(each is None or each == slice(None) for each in index):
        return ALIAS
    steps = index[2:]
    plain = all(each == slice(None) for each in index[:2])
    even = all(isinstance(each, slice) and each.start in (None, 0) and each.stop is None for each in steps)
    if plain and even and len(steps) == 2:
        return "subsample", {"step": whole([each.step or 1 for each in steps])}
    return None


ALIAS: tuple[str, Settings] = ("same", {})
"""What an operation is that leaves the values and their order as they are."""


def reshape(operation: Operation) -> tuple[str, Settings] | None:
    """Only axes of length 1 come and go, or the last axes become one."""
    before, after = ([size for size in shape if size != 1] for shape in (operation.read_shape, operation.shape))
    lead = 0
    while lead < min(len(before), len(after)) - 1 and before[lead] == after[lead]:
        lead += 1
    return ALIAS if before == after or (lead >= 1 and len(after) == lead + 1) else None


SAME = (
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "double",
    "type",
    "type_as",
    "__get__",
    "requires_grad",
    "view_as",
)

RECOGNISE: dict[str, Callable[[Operation], tuple[str, Settings] | None]] = {
    "conv2d": convolution,
    "linear": linear,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "relu": activation("ReLU"),
    "threshold": lambda operation: ("act", {"name": "ReLU"}) if operation.arguments.get("threshold") == 0 else None,
    "relu6": activation("ReLU6"),
    "hardtanh": hardtanh,
    "clamp": clamp,
    "clamp_min": clamp,
    "maximum": maximum,
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
    "softmax": softmax("softmax"),
    "log_softmax": softmax("log-softmax"),
    "max_pool2d": pool("max"),
    "max_pool2d_with_indices": pool("max"),
    "avg_pool2d": pool("average"),
    "adaptive_avg_pool2d": adaptive_pool("average"),
    "adaptive_max_pool2d": adaptive_pool("max"),
    "mean": reduction("average"),
    "amax": reduction("max"),
    "mul": arithmetic,
    "div": arithmetic,
    "add": arithmetic,
    "sub": arithmetic,
    "dropout": dropout,
    "dropout2d": dropout,
    "feature_dropout": dropout,
    "alpha_dropout": dropout,
    "pad": padding,
    "cat": concatenation,
    "concat": concatenation,
    "__getitem__": indexing,
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "expand_as", "unflatten"), reshape),
    **dict.fromkeys(SAME, lambda operation: ALIAS),
}


def recognised(operation: Operation) -> tuple[str, Settings]:
    """The operation's kind and settings; one that is not known is what its function is called."""
    found = RECOGNISE.get(operation.function, lambda operation: None)(operation)
    if found is None:
        if operation.function in ("max_pool2d", "avg_pool2d"):
            return ALIAS  # of one pixel
        return "other", {"function": operation.function, "arguments": str(plain_arguments(operation))}
    kind, settings = found
    unit = (kind, *settings.values()) in (("scale", 1), ("scale", 1.0), ("shift", 0), ("shift", 0.0), ("shift", -0.0))
    none = kind == "dropout" and settings["probability"] == 0
    nothing = kind == "new channels" and not any(settings.values())
    return ALIAS if unit or none or nothing else (kind, settings)


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
    weight = layer.tensors["weight"].value
    x = x.flatten(1) if x.shape[-1] != weight.shape[1] or x.dim() == 4 else x
    return F.linear(x, weight, value_of(layer, "bias"))


def run_norm(layer: Layer, x: Tensor) -> Tensor:
    settings, weight, bias = layer.settings, value_of(layer, "weight"), value_of(layer, "bias")
    x = x if x.dim() == 4 else x[..., None, None]
    if settings["type"] == "GroupNorm":
        return F.group_norm(x, settings["groups"], weight, bias, settings["eps"])
    if settings["type"] == "InstanceNorm":
        return replay(layer, x)
    momentum = layer.operation.arguments.get("momentum", 0.1) if settings["momentum"] is None else settings["momentum"]
    use_batch = settings["statistics"] != "running"
    means, variances = value_of(layer, "running_mean"), value_of(layer, "running_var")
    return F.batch_norm(x, means, variances, weight, bias, use_batch, momentum, settings["eps"])


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
    if str(settings["kernel"]).startswith("adaptive"):
        return replay(layer, x)
    del settings["type"]
    settings["kernel_size"] = settings.pop("kernel")
    return (F.max_pool2d if layer.settings["type"] == "max" else F.avg_pool2d)(x, **settings)


def run_pad(layer: Layer, x: Tensor) -> Tensor:
    sides, mode, value = layer.settings.values()
    sides = sides if isinstance(sides, tuple) else (sides,) * 4
    return F.pad(x, sides, value=value) if mode == "constant" else F.pad(x, sides, mode=mode)


def run_new_channels(layer: Layer, x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, layer.settings["before"], layer.settings["after"]))


def run_subsample(layer: Layer, x: Tensor) -> Tensor:
    step = layer.settings["step"]
    steps = step if isinstance(step, tuple) else (step, step)
    return x[:, :, :: steps[0], :: steps[1]]


def replay(layer: Layer, *inputs: Tensor) -> Tensor:
    """The call as it was traced, on other inputs."""
    values = dict(zip(layer.operation.inputs, inputs, strict=True))

    def filled(each: Any) -> Any:
        if isinstance(each, Result):
            return values[each.number].clone()
        return each.value if isinstance(each, Leaf) else each

    function, args, kwargs = layer.operation.call
    result = function(*mapped(filled, args), **mapped(filled, kwargs))
    if not isinstance(result, Tensor):
        tensors = [each for each in flat(result) if isinstance(each, Tensor)]
        return next(each for each in tensors if tuple(each.shape) == layer.operation.shape)
    return result


RUN: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "conv": run_convolution,
    "linear": run_linear,
    "norm": run_norm,
    "act": run_activation,
    "pool": run_pool,
    "pad": run_pad,
    "new channels": run_new_channels,
    "subsample": run_subsample,
    "dropout": lambda layer, x: replay(layer, x),
}


def broadcast(arms: Sequence[Tensor]) -> list[Tensor]:
    """The arms with as many axes as the one that has most."""
    count = max(arm.dim() for arm in arms)
    return [arm.reshape(*arm.shape, *[1] * (count - arm.dim())) for arm in arms]


def added(layer: Layer, arms: Sequence[Tensor]) -> Tensor:
    first, *others = broadcast(arms)
    for other in others:
        first = first + layer.settings.get("times", 1) * other
    return first


def multiplied(layer: Layer, arms: Sequence[Tensor]) -> Tensor:
    first, *others = broadcast(arms)
    for other in others:
        first = first * other
    return first


JOINS: dict[str, Callable[[Layer, Sequence[Tensor]], Tensor]] = {
    "add": added,
    "mul": multiplied,
    "cat": lambda layer, arms: torch.cat([*arms], 1),
}


# From operations to layers, and from layers to blocks.


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

    depth: dict[int, int] = {IMAGES: 0}
    dominator: dict[int, int] = {}
    for number, inputs in source.items():
        above = inputs[0]
        for other in inputs[1:]:
            while above != other:
                if depth[above] >= depth[other]:
                    above = dominator[above]
                else:
                    other = dominator[other]
        dominator[number], depth[number] = above, depth[above] + 1

    steps = 0

    def way(end: int, start: int) -> tuple[Layer, ...]:
        nonlocal steps
        layers = []
        while end != start:
            # Where ways part and meet without being nested, as in a DenseNet, one operation stands on many ways.
            steps += 1
            if steps > 4 * len(trace.operations):
                raise EntangledError(f"the ways through {trace.operations[end].place} are not nested as a ResNet's are")
            operation = trace.operations[end]
            kind, settings = made[end]
            arms: tuple[tuple[Layer, ...], ...] = ()
            if kind == "join":
                order = [same.get(number, number) for number in operation.inputs]
                arms = tuple(way(number, dominator[end]) for number in order)
                if settings["by"] not in JOINS:
                    kind = "other"
            layers.append(Layer(kind, settings, operation, operation.leaves, arms))
            end = dominator[end]
        return simplified(layers[::-1])

    return way(same.get(trace.output, trace.output), IMAGES)


def join_settings(operation: Operation) -> Settings:
    by = {"cat": "cat", "concat": "cat", "concatenate": "cat"}.get(operation.function, operation.function)
    if by == "cat" and operation.arguments.get("dim", 0) != 1:
        by = "cat of other axes"
    times = operation.arguments.get("alpha", 1)
    return {"by": by} if times == 1 else {"by": by, "times": times}


def simplified(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, where two that together are one known layer are replaced by it."""
    done: list[Layer] = []
    for layer in map(known_join, layers):
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
        case "subsample", "conv" if b["kernel"] == 1 and b["padding"] == 0 and b["stride"] == 1:
            return [replace(second, settings={**b, "stride": a["step"]})]
        case "scale", "scale" if isinstance(a["factor"], float | int) and isinstance(b["factor"], float | int):
            return [replace(first, settings={"factor": a["factor"] * b["factor"]})]
        case "act", "act" if a["name"] == b["name"] == "ReLU":
            return [first]
        case "pool", "act" if a["type"] == "max" and b["name"] == "ReLU" and a["kernel"] != "global":
            return [second, first]
        case "other", "other" if is_mean_over_side(first) and is_mean_over_side(second):
            settings = {"type": "average", "kernel": "global", "fixed": None}
            return [replace(second, kind="pool", settings=settings)]
    return None


def is_even(sides: Any) -> bool:
    return not isinstance(sides, tuple) or (sides[0] == sides[1] and sides[2] == sides[3])


def even(sides: Any) -> Any:
    return whole((sides[2], sides[0])) if isinstance(sides, tuple) else sides


def is_mean_over_side(layer: Layer) -> bool:
    operation = layer.operation
    dim = operation.arguments.get("dim")
    return operation.function == "mean" and dim in (2, 3, -1, -2, [2], [3], [-1], [-2])


def known_join(layer: Layer) -> Layer:
    """An activation or zeros written as arithmetic: `x * (x > 0)`, `x * sigmoid(x)`, `cat([x, x * 0])`."""
    if layer.kind != "join":
        return layer
    arms = sorted(layer.arms, key=len)
    if layer.settings == {"by": "mul"} and len(arms) == 2 and not arms[0] and len(arms[1]) == 1:
        other = arms[1][0]
        if other.kind == "act" and other.settings["name"] in ("sigmoid", "ReLU6"):
            return replace(layer, kind="act", settings={"name": "SiLU"}, arms=()) if is_silu(other) else layer
        if (
            other.kind == "other"
            and other.operation.function in ("gt", "ge")
            and 0 in other.operation.arguments.values()
        ):
            return replace(layer, kind="act", settings={"name": "ReLU"}, arms=())
    if layer.settings == {"by": "cat"}:
        zero = [bool(arm) and arm[-1].kind == "scale" and arm[-1].settings["factor"] == 0 for arm in layer.arms]
        rest = [arm for arm, is_zero in zip(layer.arms, zero, strict=True) if not is_zero]
        if len(rest) == 1 and not rest[0]:
            width, place = layer.operation.read_shape[1], zero.index(False)
            settings = {"before": width * place, "after": width * (len(zero) - place - 1)}
            return replace(layer, kind="new channels", settings=settings, arms=())
    return layer


def is_silu(other: Layer) -> bool:
    return other.settings["name"] == "sigmoid"


def is_residual(layer: Layer) -> bool:
    return layer.kind == "join" and layer.settings["by"] == "add" and len(layer.arms) == 2


def count(layers: Iterable[Layer], kind: str) -> int:
    return sum(layer.kind == kind for layer in layers)


def structure_of(trace: Trace, like: Structure | None = None) -> Structure:
    """The network's stem, blocks and head. Blocks without shortcut are taken to be as long as those of `like`."""
    runs: list[list[Layer]] = [[]]
    joins: list[Layer] = []
    for layer in layers_of(trace):
        if is_residual(layer) and any(count(arm, "conv") for arm in layer.arms):
            joins.append(layer)
            runs.append([])
        else:
            runs[-1].append(layer)

    length = count(like.blocks[0].branch, "conv") if like and like.blocks else 2
    *before, last = runs
    last, head = without_head(last)
    runs = [*before, last]

    # The stem, and blocks without shortcut that follow it.
    stem, plain = stem_and_rest(runs[0], length)
    blocks = plain_blocks(plain, length)
    shared: list[Layer] = []
    if joins and not blocks:
        stem, shared = without_prelude(stem, joins[0])

    # Each join ends a block; what follows it is its own, the next one's, or blocks without shortcut.
    for join, following, upcoming in zip(joins, runs[1:], [*joins[1:], None], strict=False):
        branch, shortcut = sorted(join.arms, key=lambda arm: (count(arm, "conv"), len(arm)), reverse=True)
        start = next((number for number, layer in enumerate(following) if layer.kind == "conv"), len(following))
        after, plain = following[:start], following[start:]
        here, shared = shared, []
        if upcoming is None:
            after, rest = without_prelude(after, join, pre_activated=True)
            head = [*rest, *head] if not plain else head
        elif plain:
            plain, shared = without_prelude(plain, upcoming)
        else:
            after, shared = without_prelude(after, upcoming)
        blocks.append(Block((*here, *branch), shortcut, join, tuple(after), shared=len(here)))
        blocks += plain_blocks(plain, length)
    return Structure(tuple(stem), tuple(numbered(blocks)), tuple(head))


def without_head(layers: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """What stands before the pool over the whole map, or the first linear layer, and the rest."""
    for number, layer in enumerate(layers):
        whole_map = layer.kind == "pool" and str(layer.settings["kernel"]).startswith(("global", "adaptive"))
        if whole_map or layer.kind in ("linear", "dropout"):
            return layers[:number], layers[number:]
    acts = next((number for number, layer in enumerate(layers) if layer.kind not in ("act", "scale")), len(layers))
    return (layers, []) if count(layers, "conv") else (layers[:acts], layers[acts:])


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


def without_prelude(
    layers: Sequence[Layer], join: Layer, pre_activated: bool = False
) -> tuple[list[Layer], list[Layer]]:
    """The layers before, and from, the norm that belongs to the pre-activated block that ends with `join`."""
    branch = max(join.arms, key=lambda arm: (count(arm, "conv"), len(arm)))
    norms = [number for number, layer in enumerate(layers) if layer.kind == "norm"]
    kinds = [layer.kind for layer in branch if layer.kind in ("norm", "conv")]
    open_end = kinds and kinds[-1] == "conv" and "norm" in kinds
    if norms and open_end and (pre_activated or kinds[0] == "conv"):
        return [*layers[: norms[-1]]], [*layers[norms[-1] :]]
    return [*layers], []


def plain_blocks(layers: Sequence[Layer], length: int) -> list[Block]:
    """Blocks without shortcut, each of `length` convolutions and what follows them."""
    places = [number for number, layer in enumerate(layers) if layer.kind == "conv"]
    blocks = []
    for start, end in zip(places[::length], [*places[length::length], len(layers)], strict=False):
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


def described(layer: Layer) -> str:
    """`conv 7x7 stride 2 padding 3`."""
    s = layer.settings
    match layer.kind:
        case "conv":
            size = s["kernel"] if isinstance(s["kernel"], tuple) else (s["kernel"],) * 2
            words = [f"conv {size[0]}x{size[1]}", f"stride {s['stride']}", f"padding {s['padding']}"]
            words += [f"{name} {s[name]}" for name in ("dilation", "groups") if s[name] != 1]
            return " ".join([*words, *(["with bias"] if s["bias"] else []), f"to {s['out']} channels"])
        case "norm":
            values = [f"{name} {number(s[name])}" for name in ("groups", "eps", "momentum") if name in s]
            return " ".join([s["type"], *values])
        case "pool":
            if s["kernel"] == "global":
                return f"{s['type']} pool of the whole map"
            if "stride" not in s:
                return f"{s['type']} pool, {s['kernel']}"
            ceil = " ceil_mode" if s["ceil_mode"] else ""
            return f"{s['type']} pool {s['kernel']}x{s['kernel']} stride {s['stride']} padding {s['padding']}{ceil}"
        case "linear":
            return f"linear to {s['out']}{'' if s['bias'] else ' without bias'}"
        case "act":
            return " ".join([s["name"], *(f"{name} {value}" for name, value in s.items() if name != "name")])
        case "dropout":
            return f"dropout {s['probability']:g}"
        case "scale":
            return f"scale by {number(s['factor'])}"
        case "shift":
            return f"shift by {number(s['by'])}"
        case "pad":
            return f"padding of {s['sides']}"
        case "new channels":
            return f"{s['before']} zero channels before and {s['after']} behind"
        case "subsample":
            return f"every {s['step']}. pixel"
        case "join":
            return {"add": "addition", "mul": "product", "cat": "concatenation"}[s["by"]]
    return f"torch.{s.get('function', s.get('by'))}"


def described_operation(operation: Operation) -> str:
    try:
        kind, settings = recognised(operation)
    except (AttributeError, KeyError, TypeError, NotImplementedError):
        return operation.function
    return operation.function if kind in ("same", "other") else described(Layer(kind, settings, operation))


def number(value: Any) -> str:
    """1e-3, 1.001e-5, 0.9."""
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 0.01:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def as_code(layer: Layer) -> str:
    """`nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)`, or the layer in words."""
    s = layer.settings
    match layer.kind:
        case "conv":
            weight = layer.tensors["weight"].value.shape
            usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": True, "padding_mode": "zeros"}
            rest = [f"{name}={s[name]!r}" for name, value in usual.items() if s[name] != value]
            return f"nn.Conv2d({', '.join(map(str, (weight[1] * s['groups'], weight[0], s['kernel'], *rest)))})"
        case "linear":
            weight = layer.tensors["weight"].value.shape
            return f"nn.Linear({weight[1]}, {weight[0]}{'' if s['bias'] else ', bias=False'})"
        case "norm" if s["type"] == "BatchNorm":
            usual = {"eps": 1e-5, "momentum": 0.1, "affine": True}
            rest = [f"{name}={number(s[name])}" for name, value in usual.items() if s[name] != value]
            channels = layer.operation.read_shape[1]
            return f"nn.BatchNorm2d({', '.join(map(str, (channels, *rest)))})"
        case "act" if s["name"] in ("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Hardswish", "Tanh"):
            return f"nn.{s['name']}()"
        case "pool" if s["kernel"] == "global":
            return f"nn.Adaptive{'Max' if s['type'] == 'max' else 'Avg'}Pool2d(1)"
        case "pool" if "stride" in s:
            name = "MaxPool2d" if s["type"] == "max" else "AvgPool2d"
            ceil = ", ceil_mode=True" if s["ceil_mode"] else ""
            return f"nn.{name}({s['kernel']}, {s['stride']}, {s['padding']}{ceil})"
    return f"the {described(layer)}"
