"""Layers in words, and as the code that makes them."""

from __future__ import annotations

from typing import Any

from resnet_core.comparison.layers import Layer, by, recognised
from resnet_core.comparison.operations import Operation


def described(layer: Layer | None) -> str:
    """`conv 7x7 stride 2 padding 3`."""
    if layer is None:
        return "nothing"
    s = layer.settings
    match layer.kind:
        case "conv":
            words = [f"conv {by(s['kernel'])}", f"stride {s['stride']}", f"padding {s['padding']}"]
            words += [f"{name} {s[name]}" for name in ("dilation", "groups") if s[name] != 1]
            words += ["with bias"] * s["bias"]
            words += [f"padded by {s['padding_mode']}"] * (s["padding_mode"] != "zeros")
            return " ".join([*words, f"to {s['out']} channels", *computed(layer)])
        case "linear":
            return " ".join([f"linear to {s['out']}", *["without bias"] * (not s["bias"]), *computed(layer)])
        case "norm":
            values = [f"{name} {number(s[name])}" for name in ("groups", "eps", "momentum") if name in s]
            if not s.get("affine", True):
                values.append("without scale and shift")
            if not s.get("tracked", True):
                values.append("without running statistics")
            return " ".join([s["type"], *values, *computed(layer)])
        case "pool":
            if s["kernel"] == "global":
                return f"{s['type']} pool of {by(s['fixed']) if s.get('fixed') else 'the whole map'}"
            if "stride" not in s:
                return f"{s['type']} pool {s['kernel']}"
            ceil = " ceil_mode" if s["ceil_mode"] else ""
            return f"{s['type']} pool {by(s['kernel'])} stride {s['stride']} padding {s['padding']}{ceil}"
        case "act":
            usual = {"approximate": "none"}
            return " ".join([s["name"], *(f"{k} {v}" for k, v in s.items() if k != "name" and usual.get(k) != v)])
        case "scale" if s["factor"] == "random":
            return "random factor for each image"
        case "shift" if s["by"] == "random":
            return "random noise"
        case "join" | "other" if layer.arms:
            arm = max(layer.arms, key=len)
            gate = () in layer.arms and s["by"] == "mul"
            parts = [JOINED.get(each.settings.get("by", ""), name_of(each)) for each in arm]
            if "times" in s:
                return f"{JOINED[s['by']]} of {number(s['times'])} times the second"
            return f"gate of {', '.join(parts)}" if gate else JOINED.get(s["by"], f"torch.{s['by']}")
        case kind if kind in SENTENCES:
            return SENTENCES[kind].format(**{name: number(value) for name, value in s.items()})
    return f"torch.{s.get('function', s.get('by'))}"


SENTENCES = {
    "constants": "constant channels ({channels})",
    "dropout": "dropout {probability}",
    "scale": "scale by {factor}",
    "shift": "shift by {by}",
    "pad": "padding of {sides}",
    "new channels": "{before} zero channels before and {after} behind",
    "subsample": "subsampling by {step}",
    "space to depth": "space to depth by {factor}",
    "copies": "{times} copies of the channels",
    "filter": "fixed filter {kernel}x{kernel} stride {stride}",
    "channels": "channels in the order {order}",
    "resize": "resize to {size} pixels",
}
JOINED = {"add": "addition", "sub": "difference", "mul": "product", "cat": "concatenation", "maximum": "maximum"}


ORDINALS = ("", "first", "second", "third", "fourth", "fifth")


def and_more(places: int) -> str:
    """The end of a list of this many places, of which only the first is named."""
    return {1: "", 2: " and 1 more place"}.get(places, f" and {places - 1} more places")


def computed(layer: Layer) -> list[str]:
    return [words for name, words in SPECIAL.items() if name in layer.settings]


SPECIAL = {
    "weight": "with a computed weight",
    "held": "in a plain list, or made in forward",
    "separable": "with a 1x1 behind",
    "parts": "in parts",
}


def name_of(layer: Layer | None) -> str:
    """`ReLU`, `BatchNorm`, `conv`, `average pool`."""
    if layer is None:
        return "layer"
    by_default = layer.settings.get("function", layer.kind)
    name = str(layer.settings.get("name", layer.settings.get("type", by_default)))
    return f"{name} pool" if layer.kind == "pool" else name


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


# A layer's arguments in code, where they are not torch's own.
USUAL: dict[str, dict[str, Any]] = {
    "conv": {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": True, "padding_mode": "zeros"},
    "linear": {"bias": True},
    "norm": {"eps": 1e-5, "momentum": 0.1, "affine": True},
    "pool": {"ceil_mode": False},
}


def as_code(layer: Layer) -> str:
    """`nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)`, or the layer in words."""
    s = layer.settings
    usual = USUAL.get(layer.kind, {})
    rest = [f"{name}={s[name]!r}" for name, value in usual.items() if s.get(name, value) != value]
    match layer.kind:
        case "conv":
            weight = layer.tensors["weight"].value.shape
            name, values = "Conv2d", [weight[1] * s["groups"], weight[0], s["kernel"]]
        case "linear":
            weight = layer.tensors["weight"].value.shape
            name, values = "Linear", [weight[1], weight[0]]
        case "norm" if s["type"] == "BatchNorm":
            shape = layer.operation.read_shape
            name, values = f"BatchNorm{2 if len(shape) == 4 else 1}d", [shape[1]]
        case "act" if s["name"] in ("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Hardswish", "Tanh"):
            name, values = s["name"], []
        case "pool" if s["kernel"] == "global":
            name, values = f"Adaptive{'Max' if s['type'] == 'max' else 'Avg'}Pool2d", [1]
        case "pool" if "stride" in s:
            name, values = "MaxPool2d" if s["type"] == "max" else "AvgPool2d", [s["kernel"], s["stride"], s["padding"]]
        case _:
            return f"the {described(layer)}"
    return f"nn.{name}({', '.join([*map(str, values), *rest])})"
