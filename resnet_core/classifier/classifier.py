"""The model card's API: a network with its loss and metrics, as MosaicML Composer had it until 0.18.2.

Where Composer is installed, a classifier is a `ComposerModel` as well, which its `Trainer` takes.
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
