"""Which network some tensors are of: its model, its arguments and its head, by names and shapes."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resnet_core.foundation.errors import shortened
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import MODELS, build_on_meta
from resnet_core.models.resnet import TABLE_1, Bottleneck
from resnet_core.weights.names import COUNTERS, SCHEMES, Body, our_modules

AVERAGED = re.compile(r"(^|[._-])(ema|swa|averaged?|shadow)([._-]|$)", re.IGNORECASE)
# Networks of self-supervised learning, which end in a projection, even where it has a classifier's shape.
PROJECTED = re.compile(r"encoder_q|encoder_k|momentum|online|target")
# Names of linear layers that are not classifiers.
PROJECTION = re.compile(r"proj|predict|prototype|embed")


@dataclass(frozen=True, kw_only=True)
class FoundNetwork:
    """One network in a file, under our names."""

    key: str
    """The keys that lead to its dict of tensors, joined by dots; empty where the file is that dict."""
    prefix: str
    """What stands before each of its names."""
    scheme: str
    """Whose names they are: a key of SCHEMES."""
    model: str
    config: dict[str, Any]
    """Arguments of the builder that are not its defaults."""
    tensors: dict[str, Tensor] = field(repr=False)
    head: str
    """In words: "linear, 10 classes", or why there is no classifier."""
    heads: tuple[str, ...]
    """Patterns of its classifier, and of the layer that is taken for it where that one is left out."""
    averaged: bool
    left_out: tuple[str, ...]
    """The file's names beside those of the network."""
    unknown: tuple[str, ...]
    """Those of them that may be part of it: under its own prefix, or layers that fit behind its body or its head."""

    shows_stride: bool = False
    """Whether it is a pickled module, whose Bottlenecks say where their stride is."""

    @property
    def has_head(self) -> bool:
        return "fc.weight" in self.tensors

    def second_head(self) -> str:
        """The pattern of another layer that may be the classifier; else empty."""
        second = "".join(self.heads[1:])
        return second if any(fnmatchcase(name, second) for name in self.unknown) else ""

    def dtypes(self) -> str:
        counts = Counter(str(value.dtype).removeprefix("torch.") for value in self.tensors.values())
        return ", ".join(f"{name} ({count} tensors)" for name, count in counts.most_common())


class Nearest(NamedTuple):
    """Why a body is not one of our models'."""

    faults: int
    """How many of its tensors do not fit the nearest model."""
    words: str
    key: str
    body: Body


def identify(body: Body, key: str, tensors: Mapping[str, Tensor]) -> FoundNetwork | Nearest:
    """The network that a body is of, or why it is of none."""
    # The models of this depth.
    stem = body.tensors.get("conv1.weight")
    place, count = f"under prefix {body.prefix!r}, whose names are {body.scheme}'s", len(body.tensors)
    if stem is None or stem.dim() != 4:
        return Nearest(count, f"The convolution of the stem is missing {place}", key, body)
    found = [(name, config_of(name, body.tensors)) for name in models_of_depth(body.tensors)]
    if not found:
        blocks = ", ".join(map(str, depths(body.tensors)))
        words = f"The stages {place}, have {blocks} blocks, as no model of this package has"
        return Nearest(count, words, key, body)

    # The one that fits.
    own = {module.partition(".")[0] for module in our_modules(body.scheme)}
    foreign = [f"{name} is unknown" for name in body.beside if name.partition(".")[0] in own]
    faults = {name: list_faults(body.tensors, name, config) + foreign for name, config in found}
    model, config = min(found, key=lambda each: len(faults[each[0]]))
    if faults[model]:
        more = f" and {len(faults[model]) - 3} more" if len(faults[model]) > 3 else ""
        remedy = ""
        if all(re.search(r"\.running_\w+ is missing", each) for each in faults[model]):
            remedy = (
                ". Its normalisation has no statistics. If it was saved from named_parameters(), save "
                "model.state_dict(), which has them; if it is not BatchNorm, it is another network"
            )
        words = f"The nearest is {model}, but {', '.join(faults[model][:3])}{more}{remedy}"
        return Nearest(len(faults[model]), words, key, body)

    # Its head, and what else is in the file.
    shape = list_shapes(model)["fc.weight"]
    head, words = find_head(body, key, tensors, features=shape[1])
    if head.used and len(head.tensors["fc.weight"]) != shape[0]:
        config["num_classes"] = len(head.tensors["fc.weight"])
    rivals = find_rivals(body, head, tensors)
    without = {name: value for name, value in tensors.items() if name not in head.used}
    second = find_head(body, key, without, features=shape[1])[0] if rivals else NO_HEAD
    taken = head.used | {"n_averaged"} | {name for name in tensors if name.rpartition(".")[2] in COUNTERS}
    outside = (name for name in tensors if not name.startswith(body.prefix))
    left_out = [name for name in (*(f"{body.prefix}{name}" for name in body.beside), *outside) if name not in taken]

    return FoundNetwork(
        key=key,
        prefix=body.prefix,
        scheme=body.scheme,
        model=model,
        config=config,
        tensors={**body.tensors, **head.tensors},
        head=words,
        heads=tuple(f"{glob.escape(min(each.used).rpartition('.')[0])}.*" for each in (head, second) if each.used),
        averaged="n_averaged" in tensors or bool(AVERAGED.search(f"{key}.{body.prefix}")),
        left_out=tuple(left_out),
        unknown=tuple(name for name in left_out if name.startswith(body.prefix) or name in rivals),
    )


def depths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The number of blocks of each stage, by the names."""
    blocks: dict[int, int] = {}
    for match in filter(None, (re.match(r"layer(\d+)\.(\d+)\.", name) for name in tensors)):
        stage, block = map(int, match.groups())
        blocks[stage] = max(blocks.get(stage, 0), block + 1)
    return tuple(blocks[stage] for stage in sorted(blocks))


def models_of_depth(tensors: Mapping[str, Tensor]) -> list[str]:
    """The models with as many blocks in each stage, of the same kind."""
    found, bottleneck = depths(tensors), "layer1.0.conv3.weight" in tensors
    return [name for name in MODELS if depths_of(name) == found and is_bottleneck(name) == bottleneck]


def depths_of(model: str) -> tuple[int, ...]:
    row = MODELS[model]
    return row.arguments * 3 if row.network is CifarResNet else tuple(row.arguments[1])


def is_bottleneck(model: str) -> bool:
    return MODELS[model].arguments[0] is Bottleneck


def config_of(model: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The builder's arguments that the shapes show."""
    _, channels, height, _ = tensors["conv1.weight"].shape
    config: dict[str, Any] = {} if channels == 3 else {"in_channels": channels}
    if MODELS[model].network is CifarResNet:
        return config | ({"shortcut": "B"} if any(".downsample." in name for name in tensors) else {})
    return config | ({"small_images": True} if height == 3 else {})


def list_faults(tensors: Mapping[str, Tensor], model: str, config: Mapping[str, Any]) -> list[str]:
    """What is missing or of another shape, in words, where these tensors are taken for the body of a model."""
    expected = {name: shape for name, shape in list_shapes(model, **config).items() if not name.startswith("fc.")}
    required = [name for name in expected if not name.endswith(".num_batches_tracked")]
    missing = [f"{name} is missing" for name in required if name not in tensors]
    shapes = [
        f"{name} has shape {list(value.shape)} instead of {list(expected[name])}"
        for name, value in tensors.items()
        if name in expected and value.shape != expected[name]
    ]
    return missing + shapes + [f"{name} is unknown" for name in tensors if name not in expected]


@cache
def list_shapes(model: str, **config: Any) -> Mapping[str, torch.Size]:
    return {name: value.shape for name, value in build_on_meta(model, **config).state_dict().items()}


class Head(NamedTuple):
    """A classifier under our names, and the names that it has in the file."""

    tensors: dict[str, Tensor]
    used: set[str]


NO_HEAD = Head({}, set())


def find_head(body: Body, key: str, tensors: Mapping[str, Tensor], *, features: int) -> tuple[Head, str]:
    """The one linear layer after the body, beside it or under a prefix that the whole network has; and in words."""
    projects = PROJECTED.search(f"{key}.{body.prefix}")
    for start in head_starts(body):
        under = {name: value for name, value in tensors.items() if name.startswith(f"{start}.")}
        matrices = [name for name, value in under.items() if value.dim() == 2]
        if not matrices:
            continue
        head = linear(under, matrices[0])
        if projects or under.keys() - head.used or under[matrices[0]].shape[1] != features:
            return NO_HEAD, f"none: {shortened(list(under))} are a projection or several layers, and are left out"
        without = "" if len(head.used) == 2 else " without bias"
        return head, f"linear{without}, {len(under[matrices[0]])} classes"

    # Under a name of its own.
    outside = [
        name for name in tensors if name.removeprefix(body.prefix) in body.beside or not name.startswith(body.prefix)
    ]
    layers = [name for name in outside if tensors[name].dim() > 1]
    if projects or len(layers) != 1 or PROJECTION.search(layers[0]) or tensors[layers[0]].shape[1:] != (features,):
        return NO_HEAD, "none: a body without a classifier"
    head, module = linear(tensors, layers[0]), layers[0].rpartition(".")[0]
    if len(head.used) < 2:
        return NO_HEAD, "none: a body without a classifier"
    return (
        head,
        f"linear, {len(tensors[layers[0]])} classes: {module}, the only layer outside the body, is taken for it",
    )


def linear(tensors: Mapping[str, Tensor], weight: str) -> Head:
    """The layer of a weight, with a bias of 0 where it has none."""
    bias, values = f"{weight.removesuffix('weight')}bias", tensors[weight]
    zeros = torch.zeros(len(values), dtype=values.dtype)
    return Head({"fc.weight": values, "fc.bias": tensors.get(bias, zeros)}, {weight, bias} & tensors.keys())


def find_rivals(body: Body, head: Head, tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of layers outside the body that may stand before its head, behind it or in its place."""
    if not head.used:
        return set()
    sizes = head.tensors["fc.weight"].shape
    outside = [name for name in tensors if not name.startswith(body.prefix) and name not in head.used]
    layers = {name for name in outside if tensors[name].dim() == 2 and tensors[name].shape[1] in sizes}
    norms = {name for name in outside if name.endswith(".running_mean") and tensors[name].shape == sizes[1:]}
    modules = {name.rpartition(".")[0] for name in layers | norms}
    return {name for name in outside if name.rpartition(".")[0] in modules}


def head_starts(body: Body) -> Iterator[str]:
    """Where a head's names may start: at the body's prefix, and at each shorter one."""
    parts = body.prefix.split(".")[:-1]
    for length in range(len(parts), -1, -1):
        prefix = "".join(f"{part}." for part in parts[:length])
        yield from (f"{prefix}{head}" for head in SCHEMES[body.scheme].heads)


def is_v1(network: FoundNetwork) -> bool:
    """Whether the library's networks of this kind have their stride on the first 1x1."""
    return SCHEMES[network.scheme].stride_in_1x1 and is_bottleneck(network.model) and network.model in TABLE_1
