"""Networks with trained weights: published ones, a file's, a run's.

What a file says of itself is what a stranger wrote: it is checked, and fits the file's tensors, before a network is
made of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import build, constructor_config
from resnet_core.weights import (
    CATALOG,
    WeightsInfo,
    fetch,
    find_weights,
    fit,
    imagenet_classes,
    load_weights,
    read_info,
    read_weights,
)
from resnet_core.weights.catalog import WeightSet
from resnet_core.weights.files import SUFFIXES

LARGEST = 1 << 20  # classes, channels, groups: far above any real network's


def with_weights(name: str, weights: str | Path | Enum, progress: bool, config: Mapping[str, Any]) -> nn.Module:
    """One of the ten with the weights that its builder was asked for. Raises as the builders."""
    if isinstance(weights, Enum) or not names_a_file(weights):
        return _with_published(name, weights, progress, config)  # type: ignore[arg-type]  # a Path names a file
    state, info = read_weights(weights), read_info(weights)
    if info and info.model != name:
        raise ValueError(f"{weights} holds weights of {info.model}, not {name}")
    needed = check_config(info.config, str(weights)) if info else classes_of(state)
    _check_agreement(config, needed, str(weights))
    arguments = constructor_config(name, {**config, **needed})
    with torch.device("meta"):
        fit(build(name, **arguments), state, str(weights))
    network = build(name, **arguments)
    load_weights(network, state)
    return network


def _with_published(name: str, weights: str | Enum, progress: bool, config: Mapping[str, Any]) -> nn.Module:
    published = find_weights(name, weights)
    needed = {"num_classes": published.num_classes, "stride_in_1x1": False}
    _check_agreement(config, needed, f"{name}'s {published.name}")
    # Built before the download: what cannot be built need not be fetched.
    network = build(name, **{**config, **needed})
    path = fetch(published.url, sha256_prefix=published.sha256_prefix, progress=progress)
    # torchvision publishes pickles: this one has the published hash, and only tensors are read from it.
    load_weights(network, read_weights(path, allow_pickle=True))
    return network


def load_model(
    source: str | Path, *, model: str | None = None, allow_pickle: bool = False, progress: bool = True
) -> tuple[nn.Module, WeightsInfo]:
    """A trained model in evaluation mode, and what its weights say of themselves.

    `source` is a finished run's folder, a file of weights, or a published set: "resnet50" (its best) or
    "resnet50:IMAGENET1K_V1". `model` names the architecture of a file that does not; images of one of the ten are then
    prepared as torchvision's V1 sets want them. Raises ValueError or OSError with the remedy.
    """
    path = _file_of(source)
    if path is None:
        published, about = _published(str(source))
        return with_weights(about.model, published.name, progress, {}).eval(), about
    state, info = read_weights(path, allow_pickle=allow_pickle), read_info(path)
    if info and model not in (None, info.model):
        raise ValueError(f"{path} holds weights of {info.model}, not {model}")
    if info is None:
        if model is None:
            raise ValueError(f"{path} {UNNAMED}; name it (--model NAME)")
        info = assumed(model, state)
    config = check_config(info.config, str(path))
    shape = skeleton(info.model, config, str(path))
    fit(shape, state, str(path))
    _check_use(info, shape, path)
    network = build(info.model, **config)
    load_weights(network, state)
    return network.eval(), info


def info_of(source: str | Path) -> WeightsInfo:
    """What `load_model` would give besides the model, from the file's header alone; nothing is fetched.

    Raises as `load_model`, and ValueError for a file that does not name its model.
    """
    path = _file_of(source)
    if path is None:
        return _published(str(source))[1]
    info = read_info(path)
    if info is None:
        raise ValueError(f"{path} {UNNAMED}; `resnet-core convert` writes a file that does")
    return info


def skeleton(name: str, arguments: Mapping[str, Any], origin: str) -> nn.Module:
    """A model on the meta device, where weights take no memory. Raises ValueError that begins with `origin`."""
    try:
        with torch.device("meta"):
            return build(name, **arguments)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{origin}: {error}") from error


UNNAMED = "does not say of which model it holds the weights"


def _file_of(source: str | Path) -> Path | None:
    """The file of weights that a source means, None for a published set."""
    path = Path(source)
    if path.is_dir():
        path /= "model.safetensors"
        if not path.exists():
            raise ValueError(f"{source} has no model.safetensors: its run is not finished, or it is no run's folder")
        return path
    return path if names_a_file(source) else None


def _published(source: str) -> tuple[WeightSet, WeightsInfo]:
    """The set of "resnet50" (its best) or "resnet50:IMAGENET1K_V1"."""
    name, _, chosen = source.partition(":")
    if name not in CATALOG:
        raise ValueError(
            f"{source!r} is neither a run's folder, nor a file of weights ({', '.join(SUFFIXES)}), nor a model "
            f"with published weights; {did_you_mean(name, CATALOG)}"
        )
    published = find_weights(name, chosen or "DEFAULT")
    info = WeightsInfo(model=name, transform=published.transform, class_names=imagenet_classes(), origin=published.url)
    return published, info


def assumed(model: str, state: Mapping[str, Tensor]) -> WeightsInfo:
    """What is most likely true of weights that say nothing."""
    if model not in CATALOG:
        return WeightsInfo(model=model, config=classes_of(state), origin="the file says no more")
    config = classes_of(state)
    return WeightsInfo(
        model=model,
        config=config,
        transform=find_weights("resnet50", "IMAGENET1K_V1").transform,
        class_names=imagenet_classes() if config.get("num_classes") == 1000 else None,
        origin="the file says no more: images are prepared as for torchvision's V1 sets, 1000 classes are ImageNet's",
    )


def classes_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The number of classes of a head's bias, as a builder's argument; nothing where there is none."""
    bias = state.get("fc.bias")
    return {"num_classes": len(bias)} if bias is not None and bias.dim() == 1 else {}


def names_a_file(weights: object) -> TypeGuard[str | Path]:
    """Whether `weights` is a path: a Path, or text with a folder in it or the ending of a file of weights."""
    return isinstance(weights, Path) or (
        isinstance(weights, str) and (os.sep in weights or Path(weights).suffix.lower() in SUFFIXES)
    )


def check_config(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The same arguments. Raises ValueError for any but plain values of the builders' own."""
    for key, value in config.items():
        if key not in PLAIN:
            raise ValueError(f"{origin} has the argument {key!r}, which is none that a file can give a builder")
        if not PLAIN[key](value):
            raise ValueError(f"{origin} has {key}={value!r}, which no builder takes")
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
    "zero_init_residual": _is_flag,
    "replace_stride_with_dilation": lambda value: isinstance(value, list | tuple) and all(map(_is_flag, value)),
    "shortcut": lambda value: value in ("A", "B"),
}


def _check_use(info: WeightsInfo, network: nn.Module, path: Path) -> None:
    """Raises ValueError where class names or transform do not fit the network."""
    classes, channels = len(network.get_parameter("fc.weight")), network.get_parameter("conv1.weight").shape[1]
    if info.class_names is not None and len(info.class_names) != classes:
        raise ValueError(f"{path} names {len(info.class_names)} classes, and its weights have {classes}")
    if info.transform is not None and len(info.transform.mean) != channels:
        raise ValueError(
            f"{path} prepares images of {len(info.transform.mean)} channels, and its weights take {channels}"
        )


def _check_agreement(config: Mapping[str, Any], needed: Mapping[str, Any], origin: str) -> None:
    """Raises ValueError where the caller asks for another network than the weights are of."""
    for key, value in needed.items():
        if config.get(key, value) != value:
            remedy = NEW_HEAD if key == "num_classes" else ""
            raise ValueError(f"{origin} needs {key}={value!r}, got {config[key]!r}{remedy}")


NEW_HEAD = (
    "; to keep the body under a new head, leave num_classes out and call model.reset_classifier(num_classes) "
    "afterwards, or load_weights(model, file, new_head=True)"
)
