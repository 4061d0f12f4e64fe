"""Model names and their builders: `resnet50()`, `get_model("resnet50")`, `list_models("resnet*")`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn

from resnet_core import cifar
from resnet_core.backbone import Backbone
from resnet_core.resnet import TABLE_1, WIDER, BasicBlock, Bottleneck, NormLayer
from resnet_core.suggestions import did_you_mean


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
    # Imported here, since building a model needs torch alone.
    from resnet_core.pretrained import with_weights

    return with_weights(name, weights, progress, config)


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
