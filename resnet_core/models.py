"""Model names and their builders: `resnet50()`, `get_model("resnet50")`, `list_models("resnet*")`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, Unpack

from torch import Tensor, nn

from resnet_core import cifar
from resnet_core.backbone import Backbone
from resnet_core.resnet import TABLE_1, WIDER, BasicBlock, Bottleneck, NormLayer

if TYPE_CHECKING:
    from resnet_core.weights import WeightsInfo


class ResNetConfig(TypedDict, total=False):
    """What a builder passes on to `ResNet`, where it is described."""

    num_classes: int
    zero_init_residual: bool
    groups: int
    width_per_group: int
    replace_stride_with_dilation: Sequence[bool] | None
    norm_layer: NormLayer | None
    in_channels: int
    stride_in_1x1: bool
    pretrained: bool
    """True stands for `weights="IMAGENET1K_V1"`, as in torchvision before 0.13."""


# None, a published set's name ("DEFAULT", "IMAGENET1K_V1", torchvision's own enum), or a file of weights.
Weights = str | Path | Enum | None


def resnet18(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-18 (He et al. 2015, Table 1)."""
    return _build("resnet18", weights, progress, config)


def resnet34(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-34 (He et al. 2015, Table 1)."""
    return _build("resnet34", weights, progress, config)


def resnet50(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-50 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet50", weights, progress, config)


def resnet101(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-101 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet101", weights, progress, config)


def resnet152(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-152 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet152", weights, progress, config)


def resnext50_32x4d(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNeXt-50, 32 groups of width 4 (Xie et al. 2017)."""
    return _build("resnext50_32x4d", weights, progress, config)


def resnext101_32x8d(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNeXt-101, 32 groups of width 8 (Xie et al. 2017)."""
    return _build("resnext101_32x8d", weights, progress, config)


def resnext101_64x4d(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNeXt-101, 64 groups of width 4 (Xie et al. 2017)."""
    return _build("resnext101_64x4d", weights, progress, config)


def wide_resnet50_2(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """Wide ResNet-50-2: every 3x3 twice as wide (Zagoruyko & Komodakis 2016)."""
    return _build("wide_resnet50_2", weights, progress, config)


def wide_resnet101_2(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """Wide ResNet-101-2: every 3x3 twice as wide (Zagoruyko & Komodakis 2016)."""
    return _build("wide_resnet101_2", weights, progress, config)


def _build(name: str, weights: Weights, progress: bool, config: Mapping[str, Any]) -> Backbone:
    config = dict(config)
    if config.pop("pretrained", False):
        if weights is not None:
            raise ValueError(f"{name}: pretrained=True means weights='IMAGENET1K_V1'; give one of the two")
        weights = "IMAGENET1K_V1"
    if weights is None:
        return Backbone(*blocks_of(name), **constructor_config(name, config))
    return _with_weights(name, weights, progress, config)


def blocks_of(name: str) -> tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]:
    """Block and depths of one of the ten."""
    return TABLE_1[WIDER[name][0] if name in WIDER else name]


def constructor_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ResNet` besides block and depths. Raises ValueError for one that makes it another model."""
    base, wider = WIDER.get(name, (name, {}))
    for key, value in wider.items():
        if config.get(key, value) != value:
            raise ValueError(f"{name} has {key}={value}, got {key}={config[key]}; for another value build {base}")
    return {**config, **wider}


def _with_weights(name: str, weights: str | Path | Enum, progress: bool, config: dict[str, Any]) -> Backbone:
    # Imported here, since building a model needs torch alone.
    from resnet_core.weights import fetch, find_weights, load_weights, read_info, read_weights

    if names_a_file(weights):
        state, info = read_weights(weights), read_info(weights)
        if info and info.model != name:
            raise ValueError(f"{weights} holds weights of {info.model}, not {name}")
        needed = dict(info.config) if info else {}
        if not info and "fc.bias" in state:
            needed["num_classes"] = len(state["fc.bias"])
        _check_agreement(config, needed, str(weights))
    else:
        published = find_weights(name, weights)  # type: ignore[arg-type]  # a Path names a file
        needed = {"num_classes": published.num_classes, "stride_in_1x1": False}
        _check_agreement(config, needed, f"{name}'s {published.name}")
        path = fetch(published.url, sha256_prefix=published.sha256_prefix, progress=progress)
        # torchvision publishes pickles: this one has the published hash, and only tensors are read from it.
        state = read_weights(path, allow_pickle=True)
    model = Backbone(*blocks_of(name), **constructor_config(name, {**config, **needed}))
    load_weights(model, state)
    return model


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


def names_a_file(weights: Weights) -> TypeGuard[str | Path]:
    """Whether `weights` is a path: a Path, or text with a folder in it or the ending of a file of weights."""
    from resnet_core.weights.files import SUFFIXES

    return isinstance(weights, Path) or (
        isinstance(weights, str) and (os.sep in weights or Path(weights).suffix in SUFFIXES)
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnext50_32x4d": resnext50_32x4d,
    "resnext101_32x8d": resnext101_32x8d,
    "resnext101_64x4d": resnext101_64x4d,
    "wide_resnet50_2": wide_resnet50_2,
    "wide_resnet101_2": wide_resnet101_2,
    "cifar_resnet20": cifar.cifar_resnet20,
    "cifar_resnet32": cifar.cifar_resnet32,
    "cifar_resnet44": cifar.cifar_resnet44,
    "cifar_resnet56": cifar.cifar_resnet56,
    "cifar_resnet110": cifar.cifar_resnet110,
}


def list_models(include: str | Iterable[str] | None = None, exclude: str | Iterable[str] | None = None) -> list[str]:
    """Sorted model names; `include` and `exclude` are shell patterns (or several), as `"resnet*"`, and exclude wins."""
    return [name for name in sorted(MODELS) if _matches(name, include, True) and not _matches(name, exclude, False)]


def _matches(name: str, patterns: str | Iterable[str] | None, if_none: bool) -> bool:
    if not patterns:
        return if_none
    return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def get_model(name: str, **config: Any) -> nn.Module:
    """The model that `name` (in any case) stands for; `config` goes to its builder.

    Raises ValueError for an unknown name, with the nearest known ones.
    """
    builder = MODELS.get(str(name).lower())
    if builder is None:
        raise ValueError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
    return builder(**config)


def load_model(
    source: str | Path, *, model: str | None = None, allow_pickle: bool = False, progress: bool = True
) -> tuple[nn.Module, WeightsInfo]:
    """A trained model in evaluation mode, and what its weights say of themselves.

    `source` is a finished run's folder, a file of weights, or a published set: "resnet50" (its best) or
    "resnet50:IMAGENET1K_V1". `model` names the architecture of a file that does not; its images are then prepared as
    torchvision's V1 sets want them. Raises ValueError or OSError with the remedy.
    """
    from resnet_core.weights import load_weights, read_info, read_weights

    path = Path(source)
    if path.is_dir():
        path /= "model.safetensors"
        if not path.exists():
            raise ValueError(f"{source} holds no model.safetensors: it is not the folder of a finished run")
    elif not names_a_file(source):
        return _published(str(source), progress)
    state, info = read_weights(path, allow_pickle=allow_pickle), read_info(path)
    if info and model not in (None, info.model):
        raise ValueError(f"{path} holds weights of {info.model}, not {model}")
    if info is None:
        if model is None:
            raise ValueError(f"{path} does not say of which model it holds the weights; name it (--model NAME)")
        info = _assumed(model, state)
    network = get_model(info.model, **info.config)
    load_weights(network, state)
    return network.eval(), info


def _published(source: str, progress: bool) -> tuple[nn.Module, WeightsInfo]:
    from resnet_core.weights import CATALOG, WeightsInfo, find_weights, imagenet_classes
    from resnet_core.weights.files import SUFFIXES

    name, _, chosen = source.partition(":")
    if name not in CATALOG:
        raise ValueError(
            f"{source!r} is neither a run's folder, nor a file of weights ({', '.join(SUFFIXES)}), nor a model "
            f"with published weights; {did_you_mean(name, CATALOG)}"
        )
    published = find_weights(name, chosen or "DEFAULT")
    info = WeightsInfo(model=name, transform=published.transform, class_names=imagenet_classes(), origin=published.url)
    return get_model(name, weights=published.name, progress=progress).eval(), info


def _assumed(model: str, state: Mapping[str, Tensor]) -> WeightsInfo:
    """What is most likely true of weights that say nothing."""
    from resnet_core.weights import WeightsInfo, find_weights, imagenet_classes

    classes = len(state["fc.bias"]) if "fc.bias" in state else 1000
    return WeightsInfo(
        model=model,
        config={"num_classes": classes},
        transform=find_weights("resnet50", "IMAGENET1K_V1").transform,
        class_names=imagenet_classes() if classes == 1000 else None,
        origin="the file says no more: images are prepared as for torchvision's V1 sets, 1000 classes are ImageNet's",
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known names, or all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(known)}"
