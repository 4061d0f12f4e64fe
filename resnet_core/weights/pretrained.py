"""Networks with trained weights: a published set's, a file's, a run's.

All take one road: locate -> read -> check on the meta device -> build -> load, each once. Anyone may have written a
file, so what it says of itself is checked, and compared with its tensors, before a network is made of it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeGuard

from torch import nn

from resnet_core.data.transforms import CIFAR10_MEAN, CIFAR10_STD, ImageTransform
from resnet_core.foundation.errors import shortened
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import MODELS, build, build_on_meta
from resnet_core.weights.catalog import CATALOG, WeightSet, find_weights, imagenet_classes
from resnet_core.weights.containers import file_of
from resnet_core.weights.download import fetch
from resnet_core.weights.files import SUFFIXES, Found, match_file, read_file
from resnet_core.weights.folders import FolderDescription, description_of
from resnet_core.weights.header import WeightsError
from resnet_core.weights.identify import FoundNetwork
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.names import SCHEMES
from resnet_core.weights.rules import FLAG, is_count

SETS = {name for sets in CATALOG.values() for name in sets}
CIFAR10_TRANSFORM = ImageTransform(resize_size=32, crop_size=32, mean=CIFAR10_MEAN, std=CIFAR10_STD)

# The arguments, where there is a choice, of the networks whose weights are published.
PUBLISHED_FORMS: dict[type[nn.Module], dict[str, Any]] = {
    Backbone: {"stride_in_1x1": False, "small_images": False},
    CifarResNet: {"shortcut": "A"},
}


def with_weights(name: str, weights: str | Path | Enum, progress: bool, config: Mapping[str, Any]) -> nn.Module:
    """The network that the builder `name` makes with a published set or a file of weights. Raises what it raises."""
    located = Path(weights) if names_a_file(weights) else find_weights(name, weights)  # type: ignore[arg-type]
    return _open(located, name).build(config, progress=progress)


def load_model(
    source: str | Path, *, model: str | None = None, key: str | None = None, prefix: str | None = None,
    ignore: Sequence[str] = (), stride_in_1x1: bool = False, new_head: bool = False, allow_pickle: bool = False,
    progress: bool = True,
) -> tuple[nn.Module, WeightsInfo]:  # fmt: skip
    """A trained model in evaluation mode, and what its weights say of themselves.

    `source` is a finished run's folder, a weights file of any library, or a published set: "resnet50" (its best) or
    "resnet50:IMAGENET1K_V1". The model is found from the file, and refused where it is not `model`. How a file that
    does not say it has its images prepared is assumed, and `origin` says so. `key`, `prefix` and `ignore` are those of
    `read_weights`. `stride_in_1x1` makes it a v1 network, which a file cannot show. With `new_head`, a body without
    classifier gets one with random weights. Raises ValueError or OSError with the remedy.
    """
    weights = _open(locate(source), model, key=key, prefix=prefix, ignore=ignore, stride_in_1x1=stride_in_1x1)
    return weights.build(new_head=new_head, progress=progress).eval(), weights.info


def open_weights(source: str | Path, *, key: str | None = None, prefix: str | None = None) -> OpenedWeights:
    """What `load_model` makes its network of: a file is read, and a published set not yet downloaded.

    Raises what `load_model` raises.
    """
    return _open(locate(source), key=key, prefix=prefix)


def locate(source: str | Path) -> Path | WeightSet:
    """The file or the published set that a user names. Raises ValueError where it is neither."""
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"weights are read from a run's folder, a weights file or a published set, got a {type(source).__name__}; "
            "load_weights(model, file) loads them into a network of your own"
        )
    path = Path(source)
    if (path / "checkpoint.json").exists():
        raise ValueError(
            f"{source} is a checkpoint, from which `resnet-core train` continues; give the run's folder once the run "
            "is finished"
        )
    if path.is_dir():
        file_of(path)  # which refuses a folder of no weights
        return path
    if names_a_file(source):
        if not path.exists():
            raise WeightsError(
                f"{source} does not exist; check the path, or name a published set such as resnet50:IMAGENET1K_V2"
            )
        return path

    name, _, chosen = str(source).partition(":")
    if name not in CATALOG:
        raise ValueError(
            f"{source!r} is neither a run's folder, nor a weights file that exists, nor a model with published "
            f"weights; {did_you_mean(name, CATALOG)}"
        )
    return find_weights(name, chosen or "DEFAULT")


@dataclass(frozen=True, kw_only=True)
class OpenedWeights:
    """Weights of which it is known what they are, and from which a network can be built."""

    origin: str
    """Their name in errors."""
    info: WeightsInfo
    needed: Mapping[str, Any]
    """The builder's arguments that the weights decide."""
    read: Callable[[bool], Found]
    """Whether to show the progress of a download -> what is in the file."""

    def build(
        self, asked: Mapping[str, Any] | None = None, *, new_head: bool = False, progress: bool = True
    ) -> nn.Module:
        """The network with these weights. `asked` are the builder's arguments that the caller chose."""
        arguments, shape = _check(self.info, self.needed, asked or {}, self.origin)
        found = self.read(progress)
        headless = found.network is not None and not found.network.has_head
        matched, _ = match_file(shape, found, self.origin, new_head=new_head and headless)
        network = build(self.info.model, **arguments)
        network.load_state_dict(matched, strict=False)
        return network


def _open(
    located: Path | WeightSet, model: str | None = None, *, key: str | None = None, prefix: str | None = None,
    ignore: Sequence[str] = (), stride_in_1x1: bool = False,
) -> OpenedWeights:  # fmt: skip
    """Opens what was located. A set is known before its download, so that what cannot be built is not fetched."""
    if isinstance(located, WeightSet):
        return OpenedWeights(
            origin=f"{located.model}'s {located.name}",
            info=WeightsInfo(
                model=located.model,
                transform=located.transform,
                class_names=located.class_names,
                origin=", ".join(filter(None, (located.url, located.credit))),
            ),
            needed={"num_classes": located.num_classes, **PUBLISHED_FORMS[MODELS[located.model].network]},
            # All are published as pickles: this one has the published hash, and only tensors are read from it.
            read=lambda progress: read_file(fetch(located.url, sha256_prefix=located.sha256_prefix, progress=progress)),
        )

    found = read_file(located, key=key, prefix=prefix, ignore=ignore)
    info = _info_for(model, found, located)
    if stride_in_1x1:
        info = replace(info, config={**info.config, "stride_in_1x1": True})
    needed = check_config(info.config, str(located))
    return OpenedWeights(origin=str(located), info=info, needed=needed, read=lambda progress: found)


def _info_for(model: str | None, read: Found, path: Path) -> WeightsInfo:
    """What a file, or its folder, says of itself; else what its shapes show, with assumptions for the rest.

    Raises WeightsError for another network than one of ours, or than the one asked for.
    """
    said = read.inspection.info
    described = None if said else description_of(path)
    info = described.info() if described else said  # first, since it refuses a network that is not ours by name
    if read.inspection.foreign:
        raise WeightsError(read.inspection.foreign)
    if read.network is None:
        raise WeightsError(f"{path} holds no ResNet that this package has. {read.inspection.nearest}")
    if described and info:
        info = with_the_rest(info, described, read.network)
    info = info or assumed(read.network)
    if model not in (None, info.model):
        raise WeightsError(f"{path} holds weights of {info.model}, not {model}; ask for {info.model}")
    return info


def with_the_rest(info: WeightsInfo, described: FolderDescription, network: FoundNetwork) -> WeightsInfo:
    """What timm's or transformers' files beside a weights file say; what they leave open is assumed as without them."""
    if described.caveat:
        warnings.warn(described.caveat, stacklevel=2)
    likely = assumed(network)
    transform = info.transform or (None if described.caveat else likely.transform)
    names = info.class_names or likely.class_names
    says = [info.origin]
    if transform is not info.transform:
        says.append(f"images are prepared as for {preparation_of(network)[1]}")
    if names is not info.class_names:
        says.append("1000 classes are ImageNet's")
    return replace(
        info, config=likely.config | info.config, transform=transform, class_names=names, origin="; ".join(says)
    )


def _check(
    info: WeightsInfo, needed: Mapping[str, Any], asked: Mapping[str, Any], origin: str
) -> tuple[dict[str, Any], nn.Module]:
    """The builder's arguments, and the network that they make on the meta device.

    Raises ValueError where the caller asks for another network than the weights are of, where that network cannot be
    built, or where class names or transform do not fit it.
    """
    for key, value in needed.items():
        if asked.get(key, value) == value:
            continue
        if key == "num_classes":
            raise ValueError(
                f"{origin} needs num_classes={value!r}, got {asked[key]!r}; to keep the body under a new head, leave "
                "num_classes out and call model.reset_classifier(num_classes) afterwards, or load_weights(model, file, "
                "new_head=True)"
            )
        if key == "small_images" and not value:
            raise ValueError(
                f"{origin} needs small_images=False, got True: it was trained with the stem for large images, a 7x7 "
                "convolution of stride 2 and a max-pool; leave small_images out, or leave weights out to start from "
                "random ones"
            )
        raise ValueError(f"{origin} needs {key}={value!r}, got {asked[key]!r}")

    arguments = {**asked, **needed}
    if asked:  # the caller's own arguments may be wrong, so the builder's error stands as it is
        return arguments, build_on_meta(info.model, **arguments)
    network = skeleton(info.model, arguments, origin)

    classes, channels = len(network.get_parameter("fc.weight")), network.get_parameter("conv1.weight").shape[1]
    if info.class_names is not None and len(info.class_names) != classes:
        raise ValueError(f"{origin} names {len(info.class_names)} classes, and its weights have {classes}")
    if info.transform is not None and len(info.transform.mean) != channels:
        raise ValueError(
            f"{origin} prepares images of {len(info.transform.mean)} channels, and its weights take {channels}"
        )
    return arguments, network


def skeleton(name: str, arguments: Mapping[str, Any], origin: str) -> nn.Module:
    """A model on the meta device, where weights take no memory. Raises ValueError that begins with `origin`."""
    try:
        return build_on_meta(name, **arguments)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{origin}: {error}") from error


def assumed(network: FoundNetwork) -> WeightsInfo:
    """What is most likely true of weights that do not say what they are."""
    config = network.config
    transform, whose = preparation_of(network)
    guesses = [f"images are prepared as for {whose}"] if transform else []
    class_names = None
    if network.has_head and not is_small(network) and "num_classes" not in config:
        class_names = imagenet_classes()
        guesses.append("the 1000 classes are ImageNet's")
    if "small_images" in config:
        guesses.append("its 3x3 stem has stride 1 and no max-pool")

    return WeightsInfo(
        model=network.model,
        config=config,
        transform=transform,
        class_names=class_names,
        origin=f"assumed: {', '.join(guesses)}" if guesses else "the file says no more",
    )


def preparation_of(network: FoundNetwork) -> tuple[ImageTransform | None, str]:
    """How images are most likely prepared, and as for what, in words; None for images that are not RGB."""
    if "in_channels" in network.config:
        return None, ""
    if is_small(network):
        transform, words = CIFAR10_TRANSFORM, "CIFAR-10, with its mean and deviation at 32 pixels"
    else:
        transform, words = find_weights("resnet50", "IMAGENET1K_V1").transform, "torchvision's V1 sets"
    normalising = [name for name in network.left_out if re.search(r"(^|[._])(?<!running_)(mean|std)$", name)]
    if normalising:
        words += f", though {shortened(normalising)} in the file may normalise them once more"
    if SCHEMES[network.scheme].stride_in_1x1:
        words += f", though networks of {network.scheme} usually take BGR images of 0 to 255"
    return transform, words


def is_small(network: FoundNetwork) -> bool:
    """Whether it is made for images of about 32 pixels."""
    return network.model.startswith("cifar_") or "small_images" in network.config


def names_a_file(weights: object) -> TypeGuard[str | Path]:
    """Whether `weights` is a path: a Path, or text with a folder in it, with the ending of weights, or that exists.

    The names of published weights stay their names where a file has the same one.
    """
    if not isinstance(weights, str):
        return isinstance(weights, Path)
    published = weights.partition(":")[0] in CATALOG or weights.rpartition(".")[2] in ("DEFAULT", *SETS)
    return os.sep in weights or Path(weights).suffix.lower() in SUFFIXES or (Path(weights).exists() and not published)


def check_config(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The same arguments. Raises ValueError unless all are plain values that a weights file may set."""
    for key, value in config.items():
        if key not in PLAIN:
            raise ValueError(f"{origin} sets {key!r}, which a weights file may not set; it may set {', '.join(PLAIN)}")
        if not PLAIN[key](value):
            raise ValueError(f"{origin} sets {key}={value!r}, which is not a value for it")
    return dict(config)


PLAIN: dict[str, Callable[[object], bool]] = {
    "num_classes": is_count,
    "in_channels": is_count,
    "groups": is_count,
    "width_per_group": is_count,
    "stride_in_1x1": FLAG.holds,
    "small_images": FLAG.holds,
    "zero_init_residual": FLAG.holds,
    "replace_stride_with_dilation": lambda value: isinstance(value, list | tuple) and all(map(FLAG.holds, value)),
    "shortcut": lambda value: value in ("A", "B"),
}
