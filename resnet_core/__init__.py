"""The ResNet you can read, prove, train and ship."""

from importlib import import_module
from typing import TYPE_CHECKING

from resnet_core import builders
from resnet_core.builders import *  # noqa: F403
from resnet_core.classifier.builders import composer_resnet, composer_resnet_cifar
from resnet_core.comparison.compare import assert_parity, compare
from resnet_core.foundation.version import __version__ as __version__
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.describe import describe
from resnet_core.models.registry import list_models
from resnet_core.models.relus import separate_relus
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "Backbone",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "ResNet",
    "assert_parity",
    "compare",
    "composer_resnet",
    "composer_resnet_cifar",
    "describe",
    "list_models",
    "separate_relus",
]
__all__ += builders.__all__

# Loaded on first use, since the models need only torch.
ROOMS = ("data", "exercises", "inference", "recipes", "runs", "train", "weights")
FUNCTIONS = {
    "inspect_weights": "resnet_core.weights.inspect",
    "optimize_for_inference": "resnet_core.inference.optimize",
}
__all__ += FUNCTIONS

if TYPE_CHECKING:
    from resnet_core import data, exercises, inference, recipes, runs, train, weights  # noqa: F401
    from resnet_core.inference.optimize import optimize_for_inference  # noqa: F401
    from resnet_core.weights.inspect import inspect_weights  # noqa: F401
else:

    def __getattr__(name):
        if name in ROOMS:
            return import_module(f"resnet_core.{name}")
        if name in FUNCTIONS:
            return getattr(import_module(FUNCTIONS[name]), name)
        raise AttributeError(f"module 'resnet_core' has no attribute {name!r}")
