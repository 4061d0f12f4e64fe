"""Confusions, mistakes and the scores of each class, counted by hand; ranks together know what one process knows."""

import json

import pytest
import torch

from resnet_core.cli.inference import class_lines
from resnet_core.inference.predictions import PredictionRecord, Predictions, class_scores
from resnet_core.train import World

PREDICTIONS = Predictions(
    labels=torch.tensor([0, 0, 0, 1, 1, 2]),
    classes=torch.tensor([0, 1, 1, 1, 0, 1]),
    probabilities=torch.tensor([0.9, 0.5, 0.8, 0.6, 0.7, 0.95]),
)


def test_confusion_mistakes_and_classes_are_counted():
    confusion = PREDICTIONS.confusion(4)
    assert confusion.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert PREDICTIONS.mistakes() == [5, 2, 4, 1]
    rows = class_scores(confusion, "abcd")
    assert [row.name for row in rows] == ["c", "a", "b", "d"]
    assert [row.recall for row in rows] == [0, pytest.approx(1 / 3), 0.5, None]
    assert [row.precision for row in rows] == [None, 0.5, 0.25, None]
    assert [(row.taken_for, row.times) for row in rows] == [("b", 1), ("b", 2), ("a", 1), (None, 0)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_ranks_predictions_come_in_the_order_of_the_data(size, monkeypatch):
    logits, labels = torch.randn(3 * 4 - 1, 4), torch.arange(11) % 4
    records = [PredictionRecord() for _ in range(size)]
    for rank, record in enumerate(records):
        for part, part_labels in zip(logits[rank::size].split(2), labels[rank::size].split(2), strict=True):
            record.add(part, part_labels)
    monkeypatch.setattr(World, "gather", lambda world, _: [torch.cat(each.batches, dim=1) for each in records])

    found = records[0].gathered(World(size=size))
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.classes, logits.argmax(1))
    assert torch.allclose(found.probabilities, logits.double().softmax(1).amax(1))


def test_evaluate_prints_the_classes_that_are_found_least_first(digits_run, cli):
    finished = cli("evaluate", digits_run[0], "--per-class", "--json")
    found = json.loads(finished.stdout)
    assert sum(each["count"] for each in found["classes"]) == found["count"] == 360
    right = sum(each["count"] * each["recall"] for each in found["classes"])
    assert right == pytest.approx(found["top1"] * 360)
    recalls = [each["recall"] for each in found["classes"]]
    assert recalls == sorted(recalls)

    lines = cli("evaluate", digits_run[0], "--per-class").stdout.splitlines()
    assert lines[0].startswith("top-1 ")
    assert lines[1].split() == ["class", "images", "recall", "precision", "most", "often", "taken", "for"]
    assert [line.split()[0] for line in lines[2:]] == [each["name"] for each in found["classes"]]


def test_a_classs_name_sends_nothing_to_a_terminal():
    lines = class_lines(class_scores(torch.tensor([[0, 1], [0, 1]]), ["\x1b[31mred", "b\nlue"]))
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
