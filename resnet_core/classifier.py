"""The model card's API: a network with its loss and metrics, as MosaicML Composer had it until 0.18.2.

Where Composer is installed, a classifier is a `ComposerModel` as well, which its `Trainer` takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resnet_core.initializers import Initializer, name_of
from resnet_core.losses import LOSSES, soft_cross_entropy
from resnet_core.models import get_model
from resnet_core.resnet import TABLE_1

if TYPE_CHECKING:
    from torchmetrics import Metric

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # images, labels


class Classifier(nn.Module):
    """A network, the loss it is trained with and the metrics it is judged by; a batch is (images, labels).

    `forward` gives logits: the losses want them, since log(softmax(x)) taken in one step neither overflows nor
    rounds to log(0). `predict` gives probabilities. The state dict's keys are the network's after `module.`.
    """

    def __init__(self, module: nn.Module, loss_name: str = "soft_cross_entropy") -> None:
        super().__init__()
        self.module = module
        self.loss_name = loss_name

    @property
    def num_classes(self) -> int:
        """Outputs of the network's head, as it is now; 0 where it has none."""
        return getattr(self.get_classifier(), "out_features", 0)

    def get_classifier(self) -> nn.Module:
        """The network's head."""
        return self.module.get_submodule("fc")

    def reset_classifier(self, num_classes: int) -> None:
        """Gives the network a new head of `num_classes` outputs."""
        head: Any = self.get_classifier()
        self.module.fc = nn.Linear(head.in_features, num_classes)

    def forward(self, batch: tuple[Tensor, Any]) -> Tensor:
        images, _ = batch
        return self.module(images)

    def loss(self, outputs: Tensor, batch: Batch, **options: Any) -> Tensor:
        """The loss of logits; `options` are the loss function's, as Composer's selective backprop gives `reduction`."""
        _, labels = batch
        return LOSSES[self.loss_name](outputs, labels, **options)

    def eval_forward(self, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """Logits, computed unless `outputs` are they."""
        return self(batch) if outputs is None else outputs

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities `[N, num_classes]` of images, in evaluation mode whatever mode the network is in.

        Softmax after soft cross entropy; after binary cross entropy sigmoid, each class's own, rows not adding to 1.
        """
        in_training = [module for module in self.module.modules() if module.training]
        self.module.eval()
        try:
            return PROBABILITIES[self.loss_name](self.module(images))
        finally:
            for module in in_training:
                module.training = True

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Fresh torchmetrics by name, on the network's device: accuracy, and in evaluation cross entropy before it.

        Raises ImportError where torchmetrics is not installed.
        """
        try:
            from torchmetrics import MeanMetric
            from torchmetrics.classification import MulticlassAccuracy
        except ImportError as error:
            raise ImportError("metrics need torchmetrics: pip install 'resnet-core[composer]'") from error
        accuracy = MulticlassAccuracy(num_classes=self.num_classes, average="micro")
        metrics = {} if is_train else {"CrossEntropy": MeanMetric(nan_strategy="disable")}
        device = next(self.module.parameters()).device
        return {name: metric.to(device) for name, metric in {**metrics, "MulticlassAccuracy": accuracy}.items()}

    def update_metric(self, batch: Batch, outputs: Tensor, metric: Metric) -> None:
        """Counts a batch in a metric; one that is a mean is taken over the images' cross entropy."""
        from torchmetrics import MeanMetric

        _, labels = batch
        if isinstance(metric, MeanMetric):
            # One value an image: torchmetrics 1.9 forgets weights where it is told to keep NaN.
            metric.update(soft_cross_entropy(outputs, labels, reduction="none"))
        else:
            metric.update(outputs, labels)


PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "soft_cross_entropy": lambda logits: logits.softmax(dim=1),
    "binary_cross_entropy_with_logits": torch.sigmoid,
}


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
        from resnet_core.composer_classifier import ComposerClassifier
    except Exception as error:  # whatever its import runs into: our classifier does not need it
        log.warning(
            "a package composer is installed, but gives no ComposerModel (%s): Composer's Trainer will refuse this "
            "classifier, which works otherwise; reinstall mosaicml, or remove the package",
            error,
        )
        return Classifier
    return ComposerClassifier
