"""What is in a file of weights: which networks, where they lie, and how to load them. Nothing in it is executed."""

from __future__ import annotations

import glob
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_core.foundation.errors import printable, shortened
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import MODELS, build_on_meta
from resnet_core.models.resnet import TABLE_1, Bottleneck
from resnet_core.weights.containers import Container, index_of, read_container
from resnet_core.weights.folders import FolderDescription, description_of, timm_other
from resnet_core.weights.header import WeightsError
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.names import (
    COUNTERS,
    SCHEMES,
    Body,
    find_bodies,
    fold_caffe2,
    our_modules,
    their_module,
)
from resnet_core.weights.pickles import Inert, module_strides, module_tensors, walk

AVERAGED = re.compile(r"(^|[._-])(ema|swa|averaged?|shadow)([._-]|$)", re.IGNORECASE)
# Networks of self-supervised learning, which end in a projection, even where it has a classifier's shape.
PROJECTED = re.compile(r"encoder_q|encoder_k|momentum|online|target")
# Files whose own tools move the average into `state_dict`: the key of the last step's weights -> another of their keys.
LAST_STEP = {"current_model_state": "averaging_state", "ema_state_dict": "message_hub"}  # Lightning's; mmengine's
QUANTIZATION_AWARE = re.compile(r"activation_post_process|fake_quant")


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


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a file or a folder of weights holds."""

    path: Path
    container: str
    info: WeightsInfo | None
    """What the file, where this package wrote it, or its folder says about the weights."""
    networks: tuple[FoundNetwork, ...]
    nearest: str
    """Where there is no network: the nearest model, and the first tensors that do not fit it."""
    beside: tuple[str, ...]
    """Types of the values beside the tensors, none of which was built."""
    stride_in_1x1: bool = False
    """Whether the caller says that its networks are v1."""
    foreign: str = ""
    """Why the network is not one of ours, although its tensors are, where the file itself names it."""
    nameless: str = ""
    """The keys that lead to a list of averaged weights, which has no names, as torch_ema writes it."""
    described: FolderDescription | None = field(default=None, repr=False)
    """What timm's or transformers' files in the folder say."""

    def choose(
        self, *, key: str | None = None, prefix: str | None = None, model: str | None = None
    ) -> tuple[FoundNetwork, str]:
        """The network to take, and a note if it leaves others. Raises WeightsError for several or none."""
        networks = [
            network
            for network in self.networks
            if (key is None or network.key == key) and (prefix is None or network.prefix == prefix)
        ]
        if not networks:
            raise WeightsError(self._none_of(key, prefix))
        if model is not None and model not in {network.model for network in networks}:
            raise WeightsError(f"{self.path} holds weights of {networks[0].model}, not {model}")

        if len(networks) == 1:
            note = (
                f"{self.path} also holds averaged weights without names, at {self.nameless}, which are not taken; the "
                "library that averaged them copies them into its network"
            )
            return networks[0], note if self.nameless else ""

        averaged = [network for network in networks if network.averaged]
        if len(averaged) == 1:
            raw = [network for network in networks if not network.averaged]
            others = distinguishing(raw[0], networks)
            return averaged[0], (
                f"{self.path} also holds the weights of the last step; the averaged ones are taken, as their own tools "
                f"evaluate them. For the others add {' '.join(as_options(others))}, or in Python {in_python(others)}; "
                f"{self._to_train_from(raw[:1], networks)}"
            )
        options = "; ".join(" ".join(as_options(distinguishing(network, networks))) for network in networks)
        raise WeightsError(
            f"{self.path} holds {len(networks)} networks: choose one with {options}, or in Python with "
            f"{in_python(distinguishing(networks[0], networks))}; {self._to_train_from(networks, networks)}"
        )

    def _to_train_from(self, chosen: Sequence[FoundNetwork], networks: Sequence[FoundNetwork]) -> str:
        """How a training chooses one of these, whose recipe cannot say that a key or a prefix is empty."""
        values = [distinguishing(network, networks) for network in chosen]
        if all(all(each.values()) for each in values):
            return f"for `train`, write them as {' and '.join(f'--model.{name}' for name in values[0])}"
        path = shlex.quote(str(self.path))
        return f"to train from it, make a file first: `resnet-core convert {path} NAME.safetensors` with these options"

    @property
    def holds_int8(self) -> str:
        """An error for what needs floating-point weights, of a file of `quantize`; empty for others."""
        if self.info is None or not self.info.ranges:
            return ""
        return (
            f"{self.path} holds a network in int8, which predicts and cannot be trained, exported or converted: "
            "`resnet_core.inference.optimize.read_quantized` loads it"
        )

    def _none_of(self, key: str | None, prefix: str | None) -> str:
        if self.holds_int8:
            return self.holds_int8
        if not self.networks:
            return f"{self.path} holds no ResNet that this package has. {self.nearest}"
        asked = " and ".join(
            f"{name} {value!r}" for name, value in (("key", key), ("prefix", prefix)) if value is not None
        )
        known = "; ".join(f"key {network.key!r}, prefix {network.prefix!r}" for network in self.networks)
        return f"{self.path} has no network at {asked}; it has {known}"

    def candidates(self) -> tuple[FoundNetwork, ...]:
        """The network that is taken without a choice, or all where the caller must choose."""
        try:
            return (self.choose()[0],)
        except WeightsError:
            return self.networks

    def needed(self, network: FoundNetwork) -> dict[str, Any]:
        """The choices that lead to a network, as keyword arguments of `load_model`."""
        needed: dict[str, Any] = {}
        candidates = self.candidates()
        if len(candidates) > 1 or network is not candidates[0]:
            needed |= distinguishing(network, self.networks)
        if network.unknown and network.has_head:
            needed["ignore"] = patterns_of(network)
        if self.is_v1(network) and self.info is None:
            needed["stride_in_1x1"] = True
        return needed

    def command(self, network: FoundNetwork | None = None) -> str:
        """The command line that uses a network of the file, by default the first of `candidates()`."""
        if not self.networks:
            return ""
        network = network or self.candidates()[0]
        options = as_options(self.needed(network))
        path = shlex.quote(str(self.path))
        if network.has_head and self.is_prepared(network):
            return " ".join(["resnet-core predict", path, "IMAGE", *options])
        if network.has_head and "in_channels" in network.config:
            return " ".join(["resnet-core convert", path, "NAME.safetensors", *options])
        if network.has_head:
            sizes = "--resize-size PIXELS --crop-size PIXELS"
            convert = " ".join(["resnet-core convert", path, "NAME.safetensors", sizes, *options])
            return f"{convert} && resnet-core predict NAME.safetensors IMAGE"

        # A training chooses by key and prefix; for the rest, a file of the body is made first.
        needed = self.needed(network)
        chosen = {f"model.{name}": value for name, value in needed.items() if name in ("key", "prefix") and value}
        direct = len(chosen) == len(needed)
        convert = " ".join(["resnet-core convert", path, "body.safetensors", *options])
        train = ["resnet-core train finetune --model.name", network.model, "--model.weights"]
        train += [path, *as_options(chosen)] if direct else ["body.safetensors"]
        train += ["--model.small-images True"] if "small_images" in network.config else []
        return " ".join([*([] if direct else [convert, "&&"]), *train, "--data.path FOLDER"])

    def is_v1(self, network: FoundNetwork) -> bool:
        """Whether the caller says that it is v1, or its library's networks are."""
        said = self.stride_in_1x1 and is_bottleneck(network.model)
        return said or is_v1(network) or "stride_in_1x1" in network.config

    def config(self, network: FoundNetwork) -> dict[str, Any]:
        """The builder's arguments that are not its defaults, by the shapes and by what the file or its folder says."""
        return (self.info.config if self.info else {}) | network.config

    def is_prepared(self, network: FoundNetwork) -> bool:
        """Whether `predict` knows, or assumes, how images are prepared."""
        return "in_channels" not in network.config if self.info is None else self.info.transform is not None

    def python(self, network: FoundNetwork | None = None) -> str:
        """The line of Python that loads a network of the file, by default the first of `candidates()`."""
        if not self.networks:
            return ""
        network = network or self.candidates()[0]
        needed = self.needed(network)
        path = str(self.path)
        if network.has_head:
            return f"network, info = resnet_core.weights.load_model({', '.join([repr(path), *assigned(needed)])})"
        v1 = {"stride_in_1x1": True} if needed.pop("stride_in_1x1", False) else {}
        built = ", ".join(assigned({"num_classes": 10} | self.config(network) | v1))
        loaded = ", ".join(["network", repr(path), "new_head=True", *assigned(needed)])
        return f"network = resnet_core.{network.model}({built}); resnet_core.weights.load_weights({loaded})"

    def cannot_show(self) -> tuple[str, ...]:
        """What other networks the same tensors could be of, and what else no file of this kind records."""
        if not self.networks:
            return ()
        network = self.candidates()[0]
        if self.info is not None:
            return () if self.is_prepared(network) else ("how images are prepared, which it does not record",)
        notes = []
        if is_bottleneck(network.model) and not network.shows_stride:
            usual = f"{network.scheme}'s networks are v1" if is_v1(network) else "v1.5 is assumed"
            usual = "v1, as you say" if self.stride_in_1x1 else usual
            notes.append(f"whether the stride of a Bottleneck sits on its 3x3 (v1.5) or its first 1x1 (v1): {usual}")
        notes.append("whether pooling is anti-aliased or blurred, as in timm's resnetaa50 and resnetblur50")
        notes.append("how images are prepared, and what the classes are called")
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "path": str(self.path),
            "container": self.container,
            "networks": [
                {
                    "key": network.key,
                    "prefix": network.prefix,
                    "names": network.scheme,
                    "model": network.model,
                    "config": self.config(network),
                    "head": network.head,
                    "averaged": network.averaged,
                    "tensors": len(network.tensors),
                    "dtypes": network.dtypes(),
                    "left_out": list(network.left_out),
                }
                for network in self.networks
            ],
            "nearest": self.nearest,
            "nameless": self.nameless,
            "beside": list(self.beside),
            "cannot_show": list(self.cannot_show()),
            "command": self.command(),
            "python": self.python(),
        }

    def __str__(self) -> str:
        rows = [("file", str(self.path)), ("container", self.container)]
        for network in self.networks:
            config = "".join(f", {key}={value}" for key, value in self.config(network).items())
            averaged = ", averaged weights" if network.averaged else ""
            second, head = network.second_head(), network.head
            if second:
                head += f"; {second} may be the classifier instead: add --ignore {shlex.quote(network.heads[0])}"
            rows += [
                ("network", f"{network.model}{config}{averaged}"),
                ("  at", f"key {network.key or 'none'}, prefix {network.prefix or 'none'}"),
                ("  names", f"as {network.scheme}'s"),
                ("  head", head),
                ("  tensors", network.dtypes()),
            ]
            if network.left_out:
                rows.append(("  left out", shortened(network.left_out)))

        # What concerns the whole file.
        if self.info is not None and self.holds_int8:
            rows.append(("network", f"{self.info.model} in int8; `predict`, `evaluate` and `embed` take it as it is"))
        elif self.nearest:
            rows.append(("network", f"not one of this package. {self.nearest}"))
        if self.info is not None and self.info.origin:
            rows.append(("origin", self.info.origin))
        if self.nameless:
            rows.append(("averaged", f"without names, at {self.nameless}, and not taken"))
        if self.beside:
            rows.append(("beside", f"{shortened(self.beside)} (never built)"))
        rows += [("cannot show", note) for note in self.cannot_show()]

        for network in self.candidates():
            rows += [("command", self.command(network)), ("Python", self.python(network))]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{printable(text)}" for name, text in rows)


def inspect_weights(path: str | Path, *, ignore: Sequence[str] = (), stride_in_1x1: bool = False) -> Inspection:
    """What a file or a folder of weights holds, from its content; nothing in it is executed.

    Tensors whose name matches a pattern of `ignore`, such as "*.mask", are left out. `stride_in_1x1` says that its
    networks are v1, which no file shows. Raises WeightsError for what is not a weights file, saying what it is.
    """
    path = Path(path)
    inspection = inspect_container(read_container(path), ignore=ignore)
    if inspection.foreign:
        raise WeightsError(inspection.foreign)
    inspection = replace(inspection, path=path, stride_in_1x1=stride_in_1x1)
    described = description_of(path) if inspection.info is None else None
    return replace(inspection, info=described.info(), described=described) if described else inspection


def inspect_container(container: Container, *, ignore: Sequence[str] = ()) -> Inspection:
    """`inspect_weights` of what was read: every dict of tensors, every network in it, and what comes nearest."""
    if container.kind in ("HDF5", "Keras archive"):
        path = shlex.quote(str(container.path))
        raise WeightsError(
            f"{container.path} is a Keras file, which Keras itself reads: "
            f"`resnet-core convert {path} NAME.safetensors --source keras` makes a file of it that loads here"
        )

    index = index_of(container.path) if container.path.is_file() else None
    if index is not None:
        raise WeightsError(
            f"{container.path} is one of several files that {index.name} lists; give {index}, or its folder"
        )

    networks: list[FoundNetwork] = []
    others: list[tuple[int, str]] = []
    for key, found in named_tensors(container):
        tensors = fold_caffe2(plain_tensors(found, container, ignore))
        for body in find_bodies(tensors):
            network = identify(body, key, tensors)
            if isinstance(network, FoundNetwork):
                networks.append(network)
            else:
                others.append(network)

    # The same network twice is one network.
    distinct: list[FoundNetwork] = []
    for network in networks:
        if not any(is_same(network, other) for other in distinct):
            distinct.append(network)
    averaged = with_average_as_main(container)
    networks = [
        replace(without_names_of(networks, network), averaged=averaged.get(network.key, network.averaged))
        for network in map(partial(with_stride, container), distinct)
    ]
    nearest = ""
    if not networks:
        nearest = min(others)[1] if others else nothing_like_a_resnet(container)
        nearest += by_order(container)
    return Inspection(
        path=container.path,
        container=container.kind,
        info=WeightsInfo.from_metadata(container.metadata, str(container.path)),
        networks=tuple(networks),
        nearest=nearest,
        beside=container.beside,
        foreign=find_foreign(container, networks[0]) if networks else "",
        nameless=find_nameless(container),
    )


def is_same(network: FoundNetwork, other: FoundNetwork) -> bool:
    """Whether two networks have the same weights."""
    one, two = network.tensors, other.tensors
    return one.keys() == two.keys() and all(value is two[name] or value.equal(two[name]) for name, value in one.items())


def without_names_of(others: Iterable[FoundNetwork], network: FoundNetwork) -> FoundNetwork:
    """The network, of whose unknown names none is another network's or under its longer prefix."""
    beside = [other for other in others if other.key == network.key]
    nested = tuple(other.prefix for other in beside if len(other.prefix) > len(network.prefix))
    unknown = {name for name in network.unknown if not name.startswith(nested)}
    unknown = unknown.intersection(*(other.left_out for other in beside))
    return replace(network, unknown=tuple(name for name in network.unknown if name in unknown))


def with_stride(container: Container, network: FoundNetwork) -> FoundNetwork:
    """The network with the place of a Bottleneck's stride, where the file is a pickled module, which shows it."""
    if not is_bottleneck(network.model):
        return network
    for path, value in walk(container.content):
        if isinstance(value, Inert) and ".".join(path) == network.key and (strides := module_strides(value)):
            first, second = (
                strides.get(f"{network.prefix}{their_module(network.scheme, f'layer2.0.conv{number}')}")
                for number in (1, 2)
            )
            v1 = {"stride_in_1x1": True} if (first, second) == ((2, 2), (1, 1)) else {}
            shown = bool(v1) or (first, second) == ((1, 1), (2, 2))
            return replace(network, config=network.config | v1, shows_stride=shown)
    return network


def with_average_as_main(container: Container) -> dict[str, bool]:
    """Whether the weights under a key are averaged, by key, where the library that wrote the file has its own order."""
    content = container.content
    for last, sign in LAST_STEP.items():
        if isinstance(content, dict) and {"state_dict", last, sign} <= content.keys():
            return {"state_dict": True, last: False}
    return {}


def named_tensors(container: Container) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict of tensors in the content, and every pickled module's, with the keys that lead to it."""
    inside: set[int] = set()
    for path, value in walk(container.content):
        if isinstance(value, dict):
            named = any(isinstance(each, Tensor) and isinstance(key, str) for key, each in value.items())
            if named and id(value) not in inside:
                yield ".".join(path), value
        elif isinstance(value, Inert) and id(value) not in inside:
            tensors = module_tensors(value)
            if tensors:
                inside |= {id(each) for _, each in walk(value)}
                yield ".".join(path), tensors


# Layers without tensors that a pickled module and a TorchScript archive name, and those of them that ours have.
LAYER_KIND = re.compile(r"\bnn\.modules\.(?:activation|pooling)\.(?:___torch_mangle_\d+\.)?(\w+)$")
OUR_LAYERS = {"ReLU", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"}


def find_foreign(container: Container, network: FoundNetwork) -> str:
    """Why the network is not one of ours, where something beside its tensors shows that; else empty."""
    for path, value in walk(container.content):
        if isinstance(value, Inert) and ".".join(path) == network.key and module_tensors(value):
            kinds = {each.kind: None for _, each in walk(value) if isinstance(each, Inert)}
            layers = [found[1] for found in map(LAYER_KIND.search, kinds) if found and found[1] not in OUR_LAYERS]
            if layers:
                file = repr(str(container.path))
                scripted = container.kind == "TorchScript archive"
                line = f"torch.jit.load({file})" if scripted else f"torch.load({file}, weights_only=False)"
                return (
                    f"{container.path} holds a module that computes {shortened(layers)}, which no network of this "
                    f"package does; if you trust the file, {line} loads it where its own code is installed"
                )
        if isinstance(value, str) and path and path[-1] in ("arch", "architecture", "model", "model_name"):
            name = value.partition(".")[0]
            if re.fullmatch(r"resnet(aa|blur)\d+", name):
                made = ", ".join([repr(name), *assigned(network.config), f"checkpoint_path={str(container.path)!r}"])
                return (
                    f"{container.path} says at {'.'.join(path)} that its network is {name}, {timm_other(name)}; timm "
                    f"loads it: timm.create_model({made})"
                )
    return ""


def find_nameless(container: Container) -> str:
    """The keys that lead to the first list of averaged weights; empty where there is none."""
    for path, value in walk(container.content):
        averaged = isinstance(value, list) and len(value) > 1 and AVERAGED.search(".".join(path))
        if averaged and all(isinstance(each, Tensor) for each in value):
            return ".".join(path)
    return ""


def plain_tensors(found: Mapping[str, Any], container: Container, ignore: Sequence[str]) -> dict[str, Tensor]:
    """The dense tensors by name, with pruned weights put together. Raises WeightsError for quantized networks."""
    quantized = [key for key, value in found.items() if isinstance(value, Inert) and "quantized" in value.kind]
    aware = [key for key in found if isinstance(key, str) and QUANTIZATION_AWARE.search(key)]
    if quantized or aware:
        what = "int8" if quantized else "quantization-aware"
        raise WeightsError(
            f"{container.path} holds an {what} network ({shortened([str(key) for key in quantized or aware])}): its "
            "numbers only fit the network that was quantized; take the float32 weights that it was made from"
        )

    tensors = {
        key: value
        for key, value in found.items()
        if isinstance(key, str) and isinstance(value, Tensor) and not any(fnmatchcase(key, each) for each in ignore)
    }
    for key in [key for key in tensors if key.endswith("_orig") and f"{key.removesuffix('_orig')}_mask" in tensors]:
        name = key.removesuffix("_orig")
        tensors[name] = tensors.pop(key) * tensors.pop(f"{name}_mask")
    return tensors


def identify(body: Body, key: str, tensors: Mapping[str, Tensor]) -> FoundNetwork | tuple[int, str]:
    """The network that a body is of, or how many tensors do not fit the nearest one, and the first of these."""
    # The models of this depth.
    stem = body.tensors.get("conv1.weight")
    place, count = f"under prefix {body.prefix!r}, whose names are {body.scheme}'s", len(body.tensors)
    if stem is None or stem.dim() != 4:
        return count, f"The convolution of the stem is missing {place}"
    found = [(name, config_of(name, body.tensors)) for name in models_of_depth(body.tensors)]
    if not found:
        blocks = ", ".join(map(str, depths(body.tensors)))
        return count, f"The stages {place}, have {blocks} blocks, as no model of this package has"

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
        return len(faults[model]), f"The nearest is {model}, but {', '.join(faults[model][:3])}{more}{remedy}"

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
    places = [match for name in tensors if (match := re.match(r"layer(\d+)\.(\d+)\.", name))]
    last = {int(match[1]): 0 for match in places}
    for match in places:
        last[int(match[1])] = max(last[int(match[1])], int(match[2]) + 1)
    return tuple(last[stage] for stage in sorted(last))


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


@dataclass(frozen=True, kw_only=True)
class Head:
    """A classifier under our names, and the names that it has in the file."""

    tensors: dict[str, Tensor]
    used: set[str]


NO_HEAD = Head(tensors={}, used=set())


def find_head(body: Body, key: str, tensors: Mapping[str, Tensor], *, features: int) -> tuple[Head, str]:
    """The one linear layer after the body, beside it or under a prefix that the whole network has; and in words."""
    projects = PROJECTED.search(f"{key}.{body.prefix}")
    for start in head_starts(body):
        under = {name: value for name, value in tensors.items() if name.startswith(f"{start}.")}
        matrices = [name for name, value in under.items() if value.dim() == 2]
        if not matrices:
            continue
        weight = matrices[0]
        bias = f"{weight.removesuffix('weight')}bias"
        if projects or under.keys() - {weight, bias} or under[weight].shape[1] != features:
            return NO_HEAD, f"none: {shortened(list(under))} are a projection or several layers, and are left out"
        values = under.get(bias, torch.zeros(len(under[weight]), dtype=under[weight].dtype))
        without = "" if bias in under else " without bias"
        head = Head(tensors={"fc.weight": under[weight], "fc.bias": values}, used={weight, bias})
        return head, f"linear{without}, {len(under[weight])} classes"
    return NO_HEAD, "none: a body without a classifier"


def find_rivals(body: Body, head: Head, tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of linear layers outside the body that may follow its head or stand in its place."""
    if not head.used:
        return set()
    sizes = head.tensors["fc.weight"].shape
    outside = [name for name in tensors if not name.startswith(body.prefix) and name not in head.used]
    weights = {name for name in outside if tensors[name].dim() == 2 and tensors[name].shape[1] in sizes}
    return weights | {name for name in outside if f"{name.removesuffix('bias')}weight" in weights}


def head_starts(body: Body) -> Iterator[str]:
    """Where a head's names may start: at the body's prefix, and at each shorter one."""
    parts = body.prefix.split(".")[:-1]
    for length in range(len(parts), -1, -1):
        prefix = "".join(f"{part}." for part in parts[:length])
        yield from (f"{prefix}{head}" for head in SCHEMES[body.scheme].heads)


def distinguishing(network: FoundNetwork, networks: Sequence[FoundNetwork]) -> dict[str, str]:
    """Those of `key` and `prefix` that distinguish a network from the others of its file: one of them if one does."""
    for name in ("key", "prefix"):
        if len({getattr(each, name) for each in networks}) == len(networks):
            return {name: getattr(network, name)}
    return {"key": network.key, "prefix": network.prefix}


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Keyword arguments of `load_model` as words of the command line."""
    words: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        for each in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            words += [option, quoted(each)]
    return words


def quoted(word: str) -> str:
    """A word of the command line; one that a terminal would obey, as an escape sequence, in the shell's `$'...'`."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + word.encode("unicode_escape").decode().replace("'", r"\'") + "'"


def assigned(values: Mapping[str, Any]) -> list[str]:
    """Keyword arguments, as they are to be typed."""
    return [f"{name}={value!r}" for name, value in values.items()]


def in_python(values: Mapping[str, Any]) -> str:
    return " and ".join(assigned(values))


def patterns_of(network: FoundNetwork) -> list[str]:
    """Patterns of `ignore` for the unknown names: one for each module."""
    modules: dict[str, list[str]] = {}
    for name in network.unknown:
        module = f"{network.prefix}{name.removeprefix(network.prefix).partition('.')[0]}"
        if not name.startswith(network.prefix):
            module = name.rpartition(".")[0] or name
        modules.setdefault(f"{glob.escape(module)}.*", []).append(name)
    return [glob.escape(names[0]) if len(names) == 1 else pattern for pattern, names in modules.items()]


def is_v1(network: FoundNetwork) -> bool:
    """Whether the library's networks of this kind have their stride on the first 1x1."""
    return SCHEMES[network.scheme].stride_in_1x1 and is_bottleneck(network.model) and network.model in TABLE_1


def by_order(container: Container) -> str:
    """How to load tensors under unknown names that have the shapes of one of our models, in its order; else empty."""
    found = list(named_tensors(container))
    if len(found) != 1:
        return ""
    tensors = [value for value in found[0][1].values() if isinstance(value, Tensor) and value.dim()]
    shapes = [value.shape for value in tensors]
    if not shapes or len(shapes[0]) != 4 or 0 in shapes[0] or len(shapes[-1]) != 1:  # no stem first, no bias last
        return ""

    for model, row in MODELS.items():
        config = config_of(model, {"conv1.weight": tensors[0]}) | {"num_classes": len(tensors[-1])}
        for form in ({}, {"shortcut": "B"}) if row.network is CifarResNet else ({},):
            if shapes == [shape for shape in list_shapes(model, **config, **form).values() if shape]:
                arguments = ", ".join(assigned(config | form))
                return (
                    f". In the file's order they have {model}'s shapes; if that is the order of its modules, these "
                    f"lines load them: network = resnet_core.{model}({arguments}); names = [name for name, value in "
                    "network.state_dict().items() if value.dim()]; values = [value for value in "
                    f"resnet_core.weights.read_weights({str(container.path)!r}).values() if value.dim()]; "
                    "resnet_core.weights.load_weights(network, dict(zip(names, values)))"
                )
    return ""


def nothing_like_a_resnet(container: Container) -> str:
    found = [key for _, tensors in named_tensors(container) for key in tensors]
    return f"Its tensors are {shortened(found)}" if found else "It has no tensors with names"
