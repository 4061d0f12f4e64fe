"""`composer_resnet` and `composer_resnet_cifar`, with the model card's arguments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec

from torch import nn

from resnet_core.builders import get_model
from resnet_core.classifier.classifier import PROBABILITIES, Classifier
from resnet_core.classifier.initializers import Initializer, name_of
from resnet_core.foundation.suggestions import with_checked_keywords
from resnet_core.models.resnet import TABLE_1

log = logging.getLogger("resnet_core.classifier")


@with_checked_keywords
def composer_resnet(
    model_name: str, num_classes: int = 1000, pretrained: bool = False, groups: int = 1, width_per_group: int = 64,
    initializers: Sequence[str | Initializer] | None = None, loss_name: str = "soft_cross_entropy",
) -> Classifier:  # fmt: skip
    """One of the paper's five networks with its loss and metrics; `pretrained` loads torchvision's IMAGENET1K_V1.

    `initializers` run last, in the list's order, and overwrite pretrained weights too. Raises ValueError for an unknown
    name, for arguments that do not fit the block and for weights that do not fit the arguments.
    """
    if model_name not in TABLE_1:
        raise ValueError(f"model_name must be one of {list(TABLE_1)} instead of {model_name}.")
    if loss_name not in PROBABILITIES:
        raise ValueError(f"Unrecognized loss function: {loss_name}. loss_name must be one of {list(PROBABILITIES)}.")
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, got {pretrained!r}; other weights: {model_name}(weights=)")

    names = [name_of(initializer) for initializer in initializers or ()]
    if loss_name == "binary_cross_entropy_with_logits" and Initializer.LINEAR_LOG_CONSTANT_BIAS not in names:
        log.warning("%s without the initializer linear_log_constant_bias can cost accuracy; add it", loss_name)

    module = get_model(
        model_name,
        weights="IMAGENET1K_V1" if pretrained else None,
        num_classes=num_classes,
        groups=groups,
        width_per_group=width_per_group,
    )
    return assemble(module, initializers, loss_name)


@with_checked_keywords
def composer_resnet_cifar(
    model_name: str, num_classes: int = 10, initializers: Sequence[str | Initializer] | None = None
) -> Classifier:
    """One of the paper's CIFAR networks with projections (option B, as in Composer), soft cross entropy and metrics.

    Raises ValueError for an unknown name, and for Composer's `resnet_9`, which is not one of the paper's networks.
    """
    if model_name == "resnet_9":
        raise ValueError(
            "resnet_9 is not supported: Composer's resnet_9 was another architecture, myrtle.ai's nine layers of 64 to "
            "256 channels with max-pooling, not one of the paper's 6n+2 networks; the smallest of those is resnet_20"
        )
    if model_name not in CIFAR_MODELS:
        raise ValueError(f"model_name must be one of {list(CIFAR_MODELS)} instead of {model_name}.")
    return assemble(get_model(CIFAR_MODELS[model_name], num_classes=num_classes, shortcut="B"), initializers)


CIFAR_MODELS = {f"resnet_{depth}": f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)}


def assemble(
    module: nn.Module, initializers: Sequence[str | Initializer] | None, loss_name: str = "soft_cross_entropy"
) -> Classifier:
    """Runs the initializers on a network and wraps it as a classifier. Raises ValueError for an unknown initializer."""
    if isinstance(initializers, str):
        raise TypeError(f"initializers must be a list of names, got {initializers!r}; write [{initializers!r}]")
    for initializer in initializers or ():
        module.apply(Initializer(initializer).get_initializer())
    return classifier_class()(module, loss_name)


def classifier_class() -> type[Classifier]:
    """`Classifier`, or `ComposerClassifier` if MosaicML Composer is installed."""
    if find_spec("composer") is None:
        return Classifier
    try:
        from resnet_core.classifier.composer import ComposerClassifier
    except Exception as error:  # a broken Composer can fail with anything, and the classifier works without it
        log.warning(
            "the installed package composer has no usable ComposerModel (%s): Composer's Trainer will refuse this "
            "classifier, which works on its own; reinstall mosaicml, or remove the package",
            error,
        )
        return Classifier
    return ComposerClassifier
