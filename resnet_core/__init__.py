"""The ResNet you can read, prove, train and ship."""

from importlib import import_module
from typing import TYPE_CHECKING

from resnet_core.backbone import Backbone
from resnet_core.cifar import (
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from resnet_core.classifier import composer_resnet, composer_resnet_cifar
from resnet_core.compare import assert_parity, compare
from resnet_core.describe import describe
from resnet_core.models import (
    get_model,
    list_models,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from resnet_core.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "Backbone",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "ResNet",
    "assert_parity",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "compare",
    "composer_resnet",
    "composer_resnet_cifar",
    "describe",
    "get_model",
    "list_models",
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
__version__ = "0.1.0"

if TYPE_CHECKING:
    from resnet_core import data, deploy, recipes, train, weights  # noqa: F401
else:

    def __getattr__(name):
        """Loads the subpackages on first use: the models need torch alone."""
        if name in ("data", "deploy", "recipes", "train", "weights"):
            return import_module(f"resnet_core.{name}")
        raise AttributeError(f"module 'resnet_core' has no attribute {name!r}")
