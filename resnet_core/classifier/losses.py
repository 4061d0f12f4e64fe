"""All losses. Logits are `[N, C, d1, ...]`; targets are class indices `[N, d1, ...]` or probabilities like the logits.

`soft_cross_entropy` and `binary_cross_entropy_with_logits` are the model card's, with its arguments and its warnings.
Recipes train with `cross_entropy`, torch's own, and `binary_cross_entropy`: both smooth labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

INDEX_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Cross entropy: torch's own for class indices `[N, d1, ...]`, and for probabilities `[N, C, d1, ...]` as follows.

    The mean is taken over the total probability: the sum is divided by `target.sum()`, so that rows of zeros do not
    count. A warning says when that total is below the number of rows by more than rounding. `weight`, one for each
    class, scales the terms and does not divide the mean. `ignore_index` applies to indices only.
    Raises RuntimeError for shapes that fit neither, ValueError for probabilities that sum to 0 or less.
    """
    if not is_dense(input, target):
        return F.cross_entropy(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {list(REDUCTIONS)}, got {reduction!r}")
    if ignore_index != -100:
        warnings.warn("ignore_index is for class indices; of dense targets, rows of zeros are ignored", stacklevel=2)

    terms = -(target * F.log_softmax(input, dim=1))
    if weight is not None:
        terms = terms * class_axis(weight, terms)
    return REDUCTIONS[reduction](terms.sum(dim=1), target)


ROUNDING = 1e-5  # relative; smoothed rows of float32 seldom add to 1 exactly


def mean_over_probability(losses: Tensor, target: Tensor) -> Tensor:
    """The sum of the losses divided by the targets' total probability."""
    total = target.sum()
    if total <= 0:
        raise ValueError(f"dense targets must have probability to divide by, got a sum of {total.item():g}")
    if total < losses.numel() * (1 - ROUNDING):
        warnings.warn("Some targets have less than 1 total probability.", stacklevel=3)
    return losses.mean() * (losses.numel() / total)


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda losses, target: losses,
    "sum": lambda losses, target: losses.sum(),
    "mean": mean_over_probability,
}


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "sum",
    pos_weight: Tensor | None = None, scale_by_batch_size: bool = True,
) -> Tensor:  # fmt: skip
    """Each class as a yes or no of its own: torch's function of the same name, divided by the batch size N.

    The sum over classes keeps the loss, and so the learning rate, in the range of cross entropy; torch's mean is C
    times smaller. Indices become one-hot. A negative index answers no to all classes, and a warning says so.
    `weight` and `pos_weight` broadcast against `[N, C, d1, ...]`.
    Raises RuntimeError for shapes that do not fit, ValueError for indices that are not integers or are above C - 1.
    """
    dense = target if is_dense(input, target) else one_hot(target, input.shape[1])
    dense = dense.to(torch.promote_types(input.dtype, torch.float32))
    loss = F.binary_cross_entropy_with_logits(input, dense, weight, reduction=reduction, pos_weight=pos_weight)
    return loss / len(input) if scale_by_batch_size else loss


def binary_cross_entropy(input: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The loss above of smoothed labels, for logits `[N, C]` (Beyer et al. 2020, arXiv:2006.07159, section 5)."""
    classes = input.shape[1]
    # torch's one_hot, unlike ours, checks no values: on a GPU a check would wait for the device in every step.
    dense = target if target.dim() == 2 else F.one_hot(target, classes)
    smoothed = dense.to(input.dtype) * (1 - label_smoothing) + label_smoothing / classes
    return binary_cross_entropy_with_logits(input, smoothed)


def is_dense(input: Tensor, target: Tensor) -> bool:
    """True for targets of the input's shape, False for one dimension fewer. Raises RuntimeError for any other."""
    if target.shape == input.shape:
        return True
    if target.ndim == input.ndim - 1:
        return False
    raise RuntimeError(
        f"targets must have the logits' shape {list(input.shape)} (probabilities) or that without its second "
        f"dimension (class indices), got {list(target.shape)}"
    )


def one_hot(indices: Tensor, num_classes: int) -> Tensor:
    """`[N, d1, ...]` indices -> `[N, C, d1, ...]` booleans; a negative index gives a row of zeros."""
    if indices.dtype not in INDEX_TYPES:
        raise ValueError(f"class indices must be integers, got {indices.dtype}; probabilities need the logits' shape")
    if (indices >= num_classes).any():
        raise ValueError(f"class indices must be below the number of classes, {num_classes}, got {indices.max()}")
    if (indices < 0).any():
        warnings.warn("Negative class indices become rows of zeros: no class is right for them", stacklevel=3)
    indices = indices.unsqueeze(1)
    return indices == class_axis(torch.arange(num_classes, device=indices.device), indices)


def class_axis(values: Tensor, like: Tensor) -> Tensor:
    """One value of each class, shaped to broadcast along the second dimension of `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 2))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "soft_cross_entropy": soft_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}
