"""What a network said of each evaluated sample, and what that says of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_core.train import World


@dataclass(frozen=True)
class Predictions:
    """The samples of an evaluation, in the order of the data, each tensor `[N]`."""

    labels: Tensor
    classes: Tensor
    """The most likely class."""
    probabilities: Tensor
    """And its probability."""

    def confusion(self, num_classes: int) -> Tensor:
        """How many samples of each class (row) were taken for each class (column), `[K, K]`."""
        return torch.bincount(self.labels * num_classes + self.classes, minlength=num_classes**2).view(num_classes, -1)

    def mistakes(self) -> list[int]:
        """The numbers of the samples that were taken for another class, the most confident first."""
        wrong = (self.classes != self.labels).nonzero()[:, 0]
        return wrong[self.probabilities[wrong].argsort(descending=True, stable=True)].tolist()


class PredictionRecord:
    """Keeps one rank's predictions while it evaluates."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """A batch's predictions, of `logits [N, K]`."""
        best = logits.double().softmax(1).max(1)
        self.batches.append(torch.stack([labels.double(), best.indices.double(), best.values]).cpu())

    def gathered(self, world: World) -> Predictions:
        """The predictions of all ranks, of which each took every `world.size`-th sample."""
        every_rank = world.gather(torch.cat(self.batches, dim=1) if self.batches else torch.empty(3, 0).double())
        together = torch.empty(3, sum(rank.shape[1] for rank in every_rank)).double()
        for rank, found in enumerate(every_rank):
            together[:, rank :: world.size] = found
        labels, classes, probabilities = together
        return Predictions(labels.long(), classes.long(), probabilities)


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class is found."""

    name: str
    count: int
    """Samples of this class."""
    recall: float | None
    """The share of them that was found, 0..1; None where there are none."""
    precision: float | None
    """The share of this class among what was taken for it; None where nothing was."""
    taken_for: str | None
    """The class that its other samples were most often taken for."""
    times: int
    """How often."""


def class_scores(confusion: Tensor, names: Sequence[str]) -> list[ClassScore]:
    """The score of each class of `confusion [K, K]`, sorted by recall, lowest first."""
    hits, counts, taken = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    others = (confusion - torch.diag(hits)).max(1)
    scores = [
        ClassScore(
            name=name,
            count=int(counts[index]),
            recall=float(hits[index] / counts[index]) if counts[index] else None,
            precision=float(hits[index] / taken[index]) if taken[index] else None,
            taken_for=names[int(others.indices[index])] if others.values[index] else None,
            times=int(others.values[index]),
        )
        for index, name in enumerate(names)
    ]
    return sorted(scores, key=lambda score: 2 if score.recall is None else score.recall)
