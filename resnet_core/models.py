"""Model names and their builders: `resnet50()`, `get_model("resnet50")`, `list_models("resnet*")`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypedDict, Unpack

from torch import nn

from resnet_core import cifar
from resnet_core.resnet import TABLE_1, WIDER, NormLayer, ResNet


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


def resnet18(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-18 (He et al. 2015, Table 1)."""
    return _build("resnet18", weights, config)


def resnet34(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-34 (He et al. 2015, Table 1)."""
    return _build("resnet34", weights, config)


def resnet50(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-50 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet50", weights, config)


def resnet101(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-101 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet101", weights, config)


def resnet152(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-152 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet152", weights, config)


def resnext50_32x4d(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNeXt-50, 32 groups of width 4 (Xie et al. 2017)."""
    return _build("resnext50_32x4d", weights, config)


def resnext101_32x8d(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNeXt-101, 32 groups of width 8 (Xie et al. 2017)."""
    return _build("resnext101_32x8d", weights, config)


def resnext101_64x4d(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """ResNeXt-101, 64 groups of width 4 (Xie et al. 2017)."""
    return _build("resnext101_64x4d", weights, config)


def wide_resnet50_2(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """Wide ResNet-50-2: every 3x3 twice as wide (Zagoruyko & Komodakis 2016)."""
    return _build("wide_resnet50_2", weights, config)


def wide_resnet101_2(*, weights: None = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> ResNet:
    """Wide ResNet-101-2: every 3x3 twice as wide (Zagoruyko & Komodakis 2016)."""
    return _build("wide_resnet101_2", weights, config)


def _build(name: str, weights: None, config: Mapping[str, Any]) -> ResNet:
    if weights is not None:
        raise ValueError(
            f"{name}(weights={weights!r}): published weights are not in this release; build with weights=None and "
            "call load_state_dict() with a state dict of torchvision's, whose keys are the same"
        )
    base, wider = WIDER.get(name, (name, {}))
    for key, value in wider.items():
        if config.get(key, value) != value:
            raise ValueError(f"{name} has {key}={value}, got {key}={config[key]}; for another value build {base}")
    block, layers = TABLE_1[base]
    return ResNet(block, layers, **{**config, **wider})


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
    if patterns is None:
        return if_none
    return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def get_model(name: str, **config: Any) -> nn.Module:
    """The model that `name` (in any case) stands for; `config` goes to its builder.

    Raises ValueError for an unknown name, with the nearest known ones.
    """
    builder = MODELS.get(name.lower())
    if builder is None:
        raise ValueError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
    return builder(**config)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known names, or all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(known)}"
