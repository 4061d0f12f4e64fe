"""The model card's API: a network with its loss and metrics, as MosaicML Composer had it until 0.18.2.

With Composer installed, `resnet_core.classifier.composer` makes it a `ComposerModel` for Composer's `Trainer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resnet_core.classifier.losses import LOSSES, soft_cross_entropy

if TYPE_CHECKING:
    from torchmetrics import Metric

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # images, labels


class Classifier(nn.Module):
    """A network with its training loss and its metrics. A batch is (images, labels).

    `forward` returns logits, which the losses take: log(softmax(x)) computed in one step neither overflows nor rounds
    to log(0). `predict` returns probabilities. The state dict has the network's keys with `module.` before them.
    """

    def __init__(self, module: nn.Module, loss_name: str = "soft_cross_entropy") -> None:
        super().__init__()
        self.module = module
        self.loss_name = loss_name

    @property
    def num_classes(self) -> int:
        """Number of outputs of the network's present head; 0 if it has no head."""
        return getattr(self.get_classifier(), "out_features", 0)

    def get_classifier(self) -> nn.Module:
        """The network's head."""
        return self.module.get_submodule("fc")

    def reset_classifier(self, num_classes: int) -> None:
        """Gives the network a new head with `num_classes` outputs."""
        head: Any = self.get_classifier()
        self.module.fc = nn.Linear(head.in_features, num_classes)

    def forward(self, batch: tuple[Tensor, Any]) -> Tensor:
        images, _ = batch
        return self.module(images)

    def loss(self, outputs: Tensor, batch: Batch, **options: Any) -> Tensor:
        """The loss of logits. `options` go to the loss function: Composer's selective backprop passes `reduction`."""
        _, labels = batch
        return LOSSES[self.loss_name](outputs, labels, **options)

    def eval_forward(self, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """Logits: `outputs` if given, computed from the batch if not."""
        return self(batch) if outputs is None else outputs

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities `[N, num_classes]` of images, computed in eval mode; each module's mode is restored afterwards.

        Softmax for soft cross entropy. Sigmoid for binary cross entropy, whose rows need not add to 1.
        """
        in_training = [module for module in self.module.modules() if module.training]
        self.module.eval()
        try:
            return PROBABILITIES[self.loss_name](self.module(images))
        finally:
            for module in in_training:
                module.training = True

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Fresh torchmetrics by name, on the network's device: in evaluation cross entropy, and always accuracy.

        Raises ImportError if torchmetrics is not installed.
        """
        try:
            from torchmetrics import MeanMetric
            from torchmetrics.classification import MulticlassAccuracy
        except ImportError as error:
            raise ImportError("metrics need torchmetrics: pip install 'resnet-core[composer]'") from error

        metrics: dict[str, Metric] = {}
        if not is_train:
            metrics["CrossEntropy"] = MeanMetric(nan_strategy="disable")
        metrics["MulticlassAccuracy"] = MulticlassAccuracy(num_classes=self.num_classes, average="micro")

        device = next(self.module.parameters()).device
        return {name: metric.to(device) for name, metric in metrics.items()}

    def update_metric(self, batch: Batch, outputs: Tensor, metric: Metric) -> None:
        """Adds a batch to a metric. A `MeanMetric` averages the cross entropy over the images."""
        from torchmetrics import MeanMetric

        _, labels = batch
        if isinstance(metric, MeanMetric):
            # One value per image: with nan_strategy="disable" torchmetrics 1.9 ignores weights.
            metric.update(soft_cross_entropy(outputs, labels, reduction="none"))
        else:
            metric.update(outputs, labels)


# The losses that a classifier can train with, and what turns its logits into probabilities.
PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "soft_cross_entropy": lambda logits: logits.softmax(dim=1),
    "binary_cross_entropy_with_logits": torch.sigmoid,
}
