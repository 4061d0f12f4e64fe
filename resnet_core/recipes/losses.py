"""The losses that recipes name, with label smoothing and mixed targets."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from resnet_core.classifier.losses import LOSSES
from resnet_core.foundation.suggestions import did_you_mean

NAMES = ("cross_entropy", "binary_cross_entropy")  # the losses that smooth labels


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss that training minimizes. Targets are class numbers, or probabilities if images are mixed."""

    name: str = "cross_entropy"
    """cross_entropy, or binary_cross_entropy, which treats each class as an independent yes or no."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, below 1 (Szegedy et al. 2016, arXiv:1512.00567)."""
    target_threshold: float = 0.0
    """For binary_cross_entropy of mixed images: classes whose share of the image exceeds this become targets of 1, all
    others 0. It is below 1; at 0, the shares themselves are the targets."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"loss.name: unknown loss {self.name!r}; {did_you_mean(self.name, NAMES)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must be at least 0 and less than 1, got {self.label_smoothing}")
        if not 0 <= self.target_threshold < 1:
            raise ValueError(f"loss.target_threshold must be at least 0 and less than 1, got {self.target_threshold}")
        if self.target_threshold and self.name != "binary_cross_entropy":
            raise ValueError(f"loss.target_threshold is binary_cross_entropy's; leave it 0 for {self.name}")

    def of(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`([N, classes], [N] or [N, classes])` -> the mean over the batch."""
        if self.target_threshold and targets.dim() == 2:
            targets = (targets > self.target_threshold).to(targets.dtype)
        return LOSSES[self.name](logits, targets, label_smoothing=self.label_smoothing)
