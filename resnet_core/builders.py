"""A function for each model, with random or trained weights: `resnet50()`, `resnet50(weights="DEFAULT")`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn

from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import build, check_arguments, find_model
from resnet_core.models.resnet import NormLayer

__all__ = [
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "get_model",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class ResNetConfig(TypedDict, total=False):
    """The arguments that a builder passes on to `Backbone`, which describes them with `ResNet`."""

    num_classes: int
    zero_init_residual: bool
    groups: int
    width_per_group: int
    replace_stride_with_dilation: Sequence[bool] | None
    norm_layer: NormLayer | None
    in_channels: int
    stride_in_1x1: bool
    small_images: bool
    pretrained: bool
    """True means `weights="IMAGENET1K_V1"`, as in torchvision before 0.13."""


class CifarConfig(TypedDict, total=False):
    """The arguments that a builder passes on to `CifarResNet`, which describes them.

    `num_classes` is 10 unless it is given, or weights have another number.
    """

    shortcut: str
    in_channels: int


# None, a published set's name ("DEFAULT", "IMAGENET1K_V1", torchvision's own enum), or a weights file.
Weights = str | Path | Enum | None


def resnet18(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-18 (He et al. 2015, Table 1)."""
    return _build("resnet18", weights, progress, **config)


def resnet34(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-34 (He et al. 2015, Table 1)."""
    return _build("resnet34", weights, progress, **config)


def resnet50(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-50 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet50", weights, progress, **config)


def resnet101(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-101 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet101", weights, progress, **config)


def resnet152(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNet-152 (He et al. 2015, Table 1), v1.5 unless `stride_in_1x1`."""
    return _build("resnet152", weights, progress, **config)


def resnext50_32x4d(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNeXt-50, 32 groups of width 4 (Xie et al. 2017)."""
    return _build("resnext50_32x4d", weights, progress, **config)


def resnext101_32x8d(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNeXt-101, 32 groups of width 8 (Xie et al. 2017)."""
    return _build("resnext101_32x8d", weights, progress, **config)


def resnext101_64x4d(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """ResNeXt-101, 64 groups of width 4 (Xie et al. 2017)."""
    return _build("resnext101_64x4d", weights, progress, **config)


def wide_resnet50_2(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """Wide ResNet-50-2: every 3x3 twice as wide (Zagoruyko & Komodakis 2016)."""
    return _build("wide_resnet50_2", weights, progress, **config)


def wide_resnet101_2(*, weights: Weights = None, progress: bool = True, **config: Unpack[ResNetConfig]) -> Backbone:
    """Wide ResNet-101-2: every 3x3 twice as wide (Zagoruyko & Komodakis 2016)."""
    return _build("wide_resnet101_2", weights, progress, **config)


def cifar_resnet20(
    num_classes: int | None = None, *, weights: Weights = None, progress: bool = True, **config: Unpack[CifarConfig]
) -> CifarResNet:
    """ResNet-20 (n = 3): 8.75% test error in the paper."""
    return _build("cifar_resnet20", weights, progress, num_classes=num_classes, **config)


def cifar_resnet32(
    num_classes: int | None = None, *, weights: Weights = None, progress: bool = True, **config: Unpack[CifarConfig]
) -> CifarResNet:
    """ResNet-32 (n = 5): 7.51% test error in the paper."""
    return _build("cifar_resnet32", weights, progress, num_classes=num_classes, **config)


def cifar_resnet44(
    num_classes: int | None = None, *, weights: Weights = None, progress: bool = True, **config: Unpack[CifarConfig]
) -> CifarResNet:
    """ResNet-44 (n = 7): 7.17% test error in the paper."""
    return _build("cifar_resnet44", weights, progress, num_classes=num_classes, **config)


def cifar_resnet56(
    num_classes: int | None = None, *, weights: Weights = None, progress: bool = True, **config: Unpack[CifarConfig]
) -> CifarResNet:
    """ResNet-56 (n = 9): 6.97% test error in the paper."""
    return _build("cifar_resnet56", weights, progress, num_classes=num_classes, **config)


def cifar_resnet110(
    num_classes: int | None = None, *, weights: Weights = None, progress: bool = True, **config: Unpack[CifarConfig]
) -> CifarResNet:
    """ResNet-110 (n = 18): 6.43% test error in the paper, best of 5."""
    return _build("cifar_resnet110", weights, progress, num_classes=num_classes, **config)


def get_model(name: str, **config: Any) -> nn.Module:
    """The model with this name (in any case); `config` goes to its builder.

    Raises ValueError for an unknown name, and TypeError for an unknown argument, with the nearest known ones.
    """
    find_model(name)
    return _build(name.lower(), **config)


def _build(name: str, weights: Weights = None, progress: bool = True, **config: Any) -> Any:
    check_arguments(name, config, more=("weights", "progress", "pretrained"))
    if config.pop("pretrained", False):
        if weights is not None:
            raise ValueError(f"{name}: pretrained=True means weights='IMAGENET1K_V1'; give one of the two")
        weights = "IMAGENET1K_V1"
    if config.get("num_classes", 0) is None:
        del config["num_classes"]
    if weights is None:
        return build(name, **config)

    # Imported here, since building a model needs only torch.
    from resnet_core.weights.pretrained import with_weights

    return with_weights(name, weights, progress, config)
