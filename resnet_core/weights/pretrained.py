"""Networks with trained weights: a published set's, a file's, a run's.

All take one road: locate -> read -> check on the meta device -> build -> load. Anyone may have written a file, so what
it says of itself is checked, and compared with its tensors, before a network is made of it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from resnet_core.data.transforms import CIFAR10_MEAN, CIFAR10_STD, ImageTransform
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import MODELS, build
from resnet_core.weights.catalog import CATALOG, WeightSet, find_weights, imagenet_classes
from resnet_core.weights.download import fetch
from resnet_core.weights.files import SUFFIXES, fit, read_file, read_info, read_weights
from resnet_core.weights.folders import description_of, weights_in
from resnet_core.weights.header import WeightsError
from resnet_core.weights.info import WeightsInfo

LARGEST = 1 << 20  # classes, channels, groups: far above any real network's
CIFAR10_TRANSFORM = ImageTransform(resize_size=32, crop_size=32, mean=CIFAR10_MEAN, std=CIFAR10_STD)

# The arguments, where there is a choice, of the networks whose weights are published.
PUBLISHED_FORMS: dict[type[nn.Module], dict[str, Any]] = {
    Backbone: {"stride_in_1x1": False, "small_images": False},
    CifarResNet: {"shortcut": "A"},
}


def with_weights(name: str, weights: str | Path | Enum, progress: bool, config: Mapping[str, Any]) -> nn.Module:
    """The network that the builder `name` makes with a published set or a file of weights. Raises what it raises."""
    found = Path(weights) if names_a_file(weights) else find_weights(name, weights)  # type: ignore[arg-type]
    return _load(found, name, config, progress=progress)[0]


def load_model(
    source: str | Path, *, model: str | None = None, allow_pickle: bool = False, progress: bool = True
) -> tuple[nn.Module, WeightsInfo]:
    """A trained model in evaluation mode, and what its weights say of themselves.

    `source` is a finished run's folder, a weights file, or a published set: "resnet50" (its best) or
    "resnet50:IMAGENET1K_V1". `model` names the architecture for a file that does not record it; images for one of the
    ten are then prepared as torchvision's V1 sets need them. Raises ValueError or OSError with the remedy.
    """
    network, info = _load(locate(source), model, {}, allow_pickle=allow_pickle, progress=progress)
    return network.eval(), info


def info_of(source: str | Path) -> WeightsInfo:
    """The info that `load_model` would return, from the file's header; nothing is downloaded.

    Raises what `load_model` raises, and ValueError for a file that does not record its model.
    """
    found = locate(source)
    info = published_info(found) if isinstance(found, WeightSet) else read_info(found)
    if info is None and isinstance(found, Path) and (described := description_of(found)):
        info = described.info()
    if info is None:
        raise ValueError(
            f"{found} does not record which model its weights belong to; `resnet-core convert` writes a file that does"
        )
    return info


def locate(source: str | Path) -> Path | WeightSet:
    """The file or the published set that a user names. Raises ValueError where it is neither."""
    path = Path(source)
    if (path / "checkpoint.json").exists():
        raise ValueError(
            f"{source} is a checkpoint, from which `resnet-core train` continues; give the run's folder once the run "
            "is finished"
        )
    if path.is_dir():
        if not weights_in(path):
            raise ValueError(f"{source} has no model.safetensors: its run is not finished, or it is not a run's folder")
        return weights_in(path)[0]
    if names_a_file(source):
        if not path.exists():
            raise WeightsError(f"{source} does not exist")
        return path

    name, _, chosen = str(source).partition(":")
    if name not in CATALOG:
        raise ValueError(
            f"{source!r} is neither a run's folder, nor a weights file ({', '.join(SUFFIXES)}), nor a model with "
            f"published weights; {did_you_mean(name, CATALOG)}"
        )
    return find_weights(name, chosen or "DEFAULT")


def _load(
    found: Path | WeightSet, model: str | None, asked: Mapping[str, Any], *, allow_pickle: bool = False, progress: bool
) -> tuple[nn.Module, WeightsInfo]:
    """The network of located weights, and their info. `model` and `asked` are what the caller asked for."""
    # A set is known before its download, so that what cannot be built is not fetched. A file is known once it is read.
    if isinstance(found, WeightSet):
        origin, info = f"{found.model}'s {found.name}", published_info(found)
        needed = {"num_classes": found.num_classes, **PUBLISHED_FORMS[MODELS[found.model].network]}
        arguments, shape = _check(info, needed, asked, origin)
        # All are published as pickles: this one has the published hash, and only tensors are read from it.
        path = fetch(found.url, sha256_prefix=found.sha256_prefix, progress=progress)
        state = with_our_head(read_weights(path, allow_pickle=True))
    else:
        origin = str(found)
        state, metadata = read_file(found, allow_pickle=allow_pickle)
        own = WeightsInfo.from_metadata(metadata, origin) or info_beside(found, state)
        info = _info_for(model, own, state, origin)
        arguments, shape = _check(info, check_config(info.config, origin), asked, origin)

    matched, _ = fit(shape, state, origin)
    network = build(info.model, **arguments)
    network.load_state_dict(matched, strict=False)
    return network, info


def _info_for(model: str | None, info: WeightsInfo | None, state: Mapping[str, Tensor], origin: str) -> WeightsInfo:
    """A file's own info, or what is assumed of `model`'s. Raises ValueError where neither names the model asked for."""
    if info is None and model is None:
        raise ValueError(
            f"{origin} does not record which model its weights belong to; name it with --model, or model= in Python"
        )
    if info is None:
        return assumed(str(model), state)
    if model not in (None, info.model):
        raise ValueError(f"{origin} holds weights of {info.model}, not {model}")
    return info


def info_beside(file: Path, state: Mapping[str, Tensor]) -> WeightsInfo | None:
    """What timm's or transformers' files beside a weights file say of it. Raises WeightsError for another network."""
    described = description_of(file)
    if described is None:
        return None

    info = described.info()
    if described.caveat:
        warnings.warn(described.caveat, stacklevel=2)

    # What the folder leaves open is assumed, as for a file without a folder.
    likely = assumed(info.model, state)
    transform = info.transform or (None if described.caveat else likely.transform)
    names = info.class_names or likely.class_names
    says = [info.origin]
    if transform is not info.transform:
        says.append("images are prepared as for torchvision's V1 sets")
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
        with torch.device("meta"):
            return arguments, build(info.model, **arguments)
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
        with torch.device("meta"):
            return build(name, **arguments)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{origin}: {error}") from error


def published_info(published: WeightSet) -> WeightsInfo:
    return WeightsInfo(
        model=published.model,
        transform=published.transform,
        class_names=published.class_names,
        origin=f"{published.url}, {published.credit}" if published.credit else published.url,
    )


def with_our_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, the head's as `fc`, which the published CIFAR sets call `linear`."""
    return {re.sub(r"^linear\.", "fc.", name): value for name, value in state.items()}


def assumed(model: str, state: Mapping[str, Tensor]) -> WeightsInfo:
    """What is most likely true of weights that do not say what they are."""
    config = shown_by_shapes(model, state)
    transform, class_names = find_weights("resnet50", "IMAGENET1K_V1").transform, None
    guesses = ["images are prepared as for torchvision's V1 sets", "1000 classes are ImageNet's"]
    if model.startswith("cifar_") or "small_images" in config:
        transform = CIFAR10_TRANSFORM
        guesses = ["images are prepared as for CIFAR-10, with its mean and deviation at 32 pixels"]
    elif config.get("num_classes") == 1000:
        class_names = imagenet_classes()
    if "in_channels" in config:
        guesses.pop(0)
    if "small_images" in config:
        guesses.append("its 3x3 stem has stride 1 and no max-pool")

    return WeightsInfo(
        model=model,
        config=config,
        transform=None if "in_channels" in config else transform,
        class_names=class_names,
        origin=": ".join(["the file says no more", ", ".join(guesses)] if guesses else ["the file says no more"]),
    )


def shown_by_shapes(model: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The builder's arguments that the shapes of head and stem show, without those that are the default."""
    bias, stem = state.get("fc.bias"), state.get("conv1.weight")
    arguments: dict[str, Any] = {}
    if bias is not None and bias.dim() == 1:
        arguments["num_classes"] = len(bias)
    if stem is not None and stem.dim() == 4:
        if stem.shape[1] != 3:
            arguments["in_channels"] = stem.shape[1]
        if stem.shape[2:] == (3, 3) and not model.startswith("cifar_"):
            arguments["small_images"] = True
    return arguments


def names_a_file(weights: object) -> TypeGuard[str | Path]:
    """Whether `weights` is a path: a Path, or text with a folder in it or the ending of a file of weights."""
    return isinstance(weights, Path) or (
        isinstance(weights, str) and (os.sep in weights or Path(weights).suffix.lower() in SUFFIXES)
    )


def check_config(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The same arguments. Raises ValueError unless all are plain values that a weights file may set."""
    for key, value in config.items():
        if key not in PLAIN:
            raise ValueError(f"{origin} sets {key!r}, which a weights file may not set; it may set {', '.join(PLAIN)}")
        if not PLAIN[key](value):
            raise ValueError(f"{origin} sets {key}={value!r}, which is not a value for it")
    return dict(config)


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _is_flag(value: object) -> bool:
    return type(value) is bool


PLAIN: dict[str, Callable[[object], bool]] = {
    "num_classes": _is_count,
    "in_channels": _is_count,
    "groups": _is_count,
    "width_per_group": _is_count,
    "stride_in_1x1": _is_flag,
    "small_images": _is_flag,
    "zero_init_residual": _is_flag,
    "replace_stride_with_dilation": lambda value: isinstance(value, list | tuple) and all(map(_is_flag, value)),
    "shortcut": lambda value: value in ("A", "B"),
}
