"""Metrics: sums that add up exactly, whatever the batches."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from resnet_core.train.metrics import classification_sums, means


def totals(logits, targets, sizes):
    sums = {}
    for part in zip(logits.split(sizes), targets.split(sizes), strict=True):
        for key, value in classification_sums(*part).items():
            sums[key] = sums.get(key, 0) + value.item()
    return means(sums)


def test_scores_are_those_of_a_hand_made_case():
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 0], [9, 8, 7, 6, 5, 4, 3], [0, 0, 0, 0, 0, 0, 1]])
    scores = totals(logits, torch.tensor([0, 5, 6]), [3])
    assert scores == {"top1": 2 / 3, "top5": 2 / 3, "loss": scores["loss"], "count": 3}
    assert abs(scores["loss"] - F.cross_entropy(logits.double(), torch.tensor([0, 5, 6])).item()) < 1e-12


@given(st.integers(1, 40), st.integers(1, 9), st.integers(2, 12), st.integers(0, 1000))
def test_batches_do_not_change_the_counts(num_samples, batch, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_samples, classes, generator=generator)
    targets = torch.randint(classes, (num_samples,), generator=generator)
    in_batches, at_once = totals(logits, targets, batch), totals(logits, targets, num_samples)
    assert {key: in_batches[key] for key in ("top1", "top5", "count")} == {
        key: at_once[key] for key in ("top1", "top5", "count")
    }
    assert abs(in_batches["loss"] - at_once["loss"]) < 1e-9
    assert in_batches["top1"] == (logits.argmax(dim=1) == targets).sum().item() / num_samples
    assert classes > 5 or in_batches["top5"] == 1
