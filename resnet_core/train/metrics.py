"""Metrics as sums over samples: add them up over batches and ranks, then divide once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_sums(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Sums over a batch, `logits [N, K]` and `targets [N]`: hits in the top 1 and top 5, cross entropy, count.

    Counts are int64, so that their sums are exact. The cross entropy is summed in float64.
    """
    highest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = highest == targets[:, None]
    return {
        "top1": hits[:, 0].sum(),
        "top5": hits.sum(),
        "loss": F.cross_entropy(logits.double(), targets, reduction="sum"),
        "count": torch.tensor(len(targets), device=logits.device),
    }


def scores_to_hide(num_classes: int) -> tuple[str, ...]:
    """Scores that say nothing: among five classes or fewer the five highest are always right."""
    return ("top5",) if num_classes <= 5 else ()


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Each sum divided by the count, and the count itself."""
    return {key: value / sums["count"] for key, value in sums.items() if key != "count"} | {"count": sums["count"]}
