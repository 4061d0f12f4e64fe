"""`composer_resnet` and `composer_resnet_cifar`, with the model card's arguments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec

from torch import nn

from resnet_core.builders import get_model
from resnet_core.classifier.classifier import Classifier
from resnet_core.classifier.initializers import Initializer, name_of
from resnet_core.classifier.losses import LOSSES
from resnet_core.models.resnet import TABLE_1

log = logging.getLogger("resnet_core.classifier")


def composer_resnet(
    model_name: str, num_classes: int = 1000, pretrained: bool = False, groups: int = 1, width_per_group: int = 64,
    initializers: Sequence[str | Initializer] | None = None, loss_name: str = "soft_cross_entropy",
) -> Classifier:  # fmt: skip
    """One of the paper's five with its loss and metrics; `pretrained` is torchvision's IMAGENET1K_V1.

    `initializers` run last, in their order, and overwrite what they name, pretrained weights too. Raises ValueError
    for an unknown name and, as the builders do, for arguments that do not fit the block or the weights.
    """
    if model_name not in TABLE_1:
        raise ValueError(f"model_name must be one of {list(TABLE_1)} instead of {model_name}.")
    if loss_name not in LOSSES:
        raise ValueError(f"Unrecognized loss function: {loss_name}. loss_name must be one of {list(LOSSES)}.")
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, got {pretrained!r}; other weights: {model_name}(weights=)")
    started = [name_of(initializer) for initializer in initializers or ()]
    if loss_name == "binary_cross_entropy_with_logits" and Initializer.LINEAR_LOG_CONSTANT_BIAS not in started:
        log.warning("%s without the initializer linear_log_constant_bias can cost accuracy; add it", loss_name)
    module = get_model(
        model_name,
        weights="IMAGENET1K_V1" if pretrained else None,
        num_classes=num_classes,
        groups=groups,
        width_per_group=width_per_group,
    )
    return assemble(module, initializers, loss_name)


def composer_resnet_cifar(
    model_name: str, num_classes: int = 10, initializers: Sequence[str | Initializer] | None = None
) -> Classifier:
    """One of the paper's CIFAR networks with projections (option B, as in Composer), soft cross entropy and metrics.

    Raises ValueError for an unknown name, and for `resnet_9`, which is none of them.
    """
    if model_name == "resnet_9":
        raise ValueError(
            "resnet_9 is not here: Composer's was another architecture, myrtle.ai's nine layers of 64 to 256 channels "
            "with max-pooling, not one of the paper's 6n+2; the smallest of those is resnet_20"
        )
    if model_name not in CIFAR_MODELS:
        raise ValueError(f"model_name must be one of {list(CIFAR_MODELS)} instead of {model_name}.")
    return assemble(get_model(CIFAR_MODELS[model_name], num_classes=num_classes, shortcut="B"), initializers)


CIFAR_MODELS = {f"resnet_{depth}": f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)}


def assemble(
    module: nn.Module, initializers: Sequence[str | Initializer] | None, loss_name: str = "soft_cross_entropy"
) -> Classifier:
    """The classifier of a network, after its initializers. Raises ValueError for an unknown one."""
    if isinstance(initializers, str):
        raise TypeError(f"initializers must be a list of names, got {initializers!r}; write [{initializers!r}]")
    for initializer in initializers or ():
        module.apply(Initializer(initializer).get_initializer())
    return classifier_class()(module, loss_name)


def classifier_class() -> type[Classifier]:
    """`Classifier`, or where MosaicML Composer is installed the one that is a `ComposerModel` as well."""
    if find_spec("composer") is None:
        return Classifier
    try:
        from resnet_core.classifier.composer import ComposerClassifier
    except Exception as error:  # whatever its import runs into: our classifier does not need it
        log.warning(
            "a package composer is installed, but gives no ComposerModel (%s): Composer's Trainer will refuse this "
            "classifier, which works otherwise; reinstall mosaicml, or remove the package",
            error,
        )
        return Classifier
    return ComposerClassifier
