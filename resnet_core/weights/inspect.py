"""What is in a file of weights: which networks, where they lie, and how to load them. Nothing in it is executed."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from resnet_core.foundation.errors import printable, shortened
from resnet_core.weights.arguments import as_options, assigned
from resnet_core.weights.containers import Container, index_of, read_container
from resnet_core.weights.contents import module_strides, module_tensors, walk
from resnet_core.weights.folders import FolderDescription, description_of
from resnet_core.weights.foreign import explain, find_foreign
from resnet_core.weights.header import WeightsError
from resnet_core.weights.identify import AVERAGED, FoundNetwork, Nearest, identify, is_bottleneck, is_v1
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.names import find_bodies, fold_caffe2, their_module
from resnet_core.weights.pickles import Inert

# Files whose own tools move the average into `state_dict`: the key of the last step's weights -> another of their keys.
LAST_STEP = {"current_model_state": "averaging_state", "ema_state_dict": "message_hub"}  # Lightning's; mmengine's
QUANTIZATION_AWARE = re.compile(r"activation_post_process|fake_quant")


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
            raise WeightsError(
                f"{self.path} holds weights of {networks[0].model}, not {model}; ask for {networks[0].model}"
            )

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
            python = " and ".join(assigned(others))
            return averaged[0], (
                f"{self.path} also holds the weights of the last step; the averaged ones are taken, as their own tools "
                f"evaluate them. For the others add {' '.join(as_options(others))}, or in Python {python}; "
                f"{self._to_train_from(raw[:1], networks)}"
            )
        options = "; ".join(" ".join(as_options(distinguishing(network, networks))) for network in networks)
        python = " and ".join(assigned(distinguishing(networks[0], networks)))
        raise WeightsError(
            f"{self.path} holds {len(networks)} networks: choose one with {options}, or in Python with "
            f"{python}; {self._to_train_from(networks, networks)}"
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
        if is_bottleneck(network.model):
            notes.append("whether strides became dilations, as in segmentation networks: they are taken for strides")
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
    inspection = inspect_container(read_container(path), ignore=ignore)
    if inspection.foreign:
        raise WeightsError(inspection.foreign)
    inspection = replace(inspection, stride_in_1x1=stride_in_1x1)
    described = description_of(Path(path)) if inspection.info is None else None
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

    try:
        found = list(named_tensors(container))
    except ValueError as error:
        raise WeightsError(f"{container.path} is malformed: {error}; fetch or write it again") from error
    networks, nearest = find_networks(container, found, ignore)
    return Inspection(
        path=container.path,
        container=container.kind,
        info=WeightsInfo.from_metadata(container.metadata, str(container.path)),
        networks=tuple(networks),
        nearest="" if networks else explain(container.path, found, nearest),
        beside=container.beside,
        foreign=find_foreign(container, networks[0]) if networks else "",
        nameless=find_nameless(container),
    )


def find_networks(
    container: Container, found: Iterable[tuple[str, dict[str, Any]]], ignore: Sequence[str]
) -> tuple[list[FoundNetwork], Nearest | None]:
    """Every network in these dicts of tensors; and what comes nearest among what is none."""
    every: list[FoundNetwork] = []
    others: list[Nearest] = []
    for key, named in found:
        tensors = fold_caffe2(plain_tensors(named, container, ignore))
        for body in find_bodies(tensors):
            network = identify(body, key, tensors)
            if isinstance(network, Nearest):
                others.append(network)
            else:
                every.append(network)

    # The same network twice is one network.
    distinct = [one for number, one in enumerate(every) if not any(is_same(one, other) for other in every[:number])]
    averaged = with_average_as_main(container)
    networks = [
        replace(without_names_of(every, network), averaged=averaged.get(network.key, network.averaged))
        for network in map(partial(with_stride, container), distinct)
    ]
    return networks, min(others, key=lambda each: each.faults, default=None)


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


def distinguishing(network: FoundNetwork, networks: Sequence[FoundNetwork]) -> dict[str, str]:
    """Those of `key` and `prefix` that distinguish a network from the others of its file: one of them if one does."""
    for name in ("key", "prefix"):
        if len({getattr(each, name) for each in networks}) == len(networks):
            return {name: getattr(network, name)}
    return {"key": network.key, "prefix": network.prefix}


def patterns_of(network: FoundNetwork) -> list[str]:
    """Patterns of `ignore` for the unknown names: one for each module."""
    modules: dict[str, list[str]] = {}
    for name in network.unknown:
        module = f"{network.prefix}{name.removeprefix(network.prefix).partition('.')[0]}"
        if not name.startswith(network.prefix):
            module = name.rpartition(".")[0] or name
        modules.setdefault(f"{glob.escape(module)}.*", []).append(name)
    return [glob.escape(names[0]) if len(names) == 1 else pattern for pattern, names in modules.items()]
