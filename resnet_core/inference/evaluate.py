"""The accuracy of trained weights, on their run's test data or any other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from resnet_core.data import DataConfig, EvalLoader, load_test
from resnet_core.foundation.errors import shortened
from resnet_core.inference.predictions import PredictionRecord
from resnet_core.train import TrainConfig, World
from resnet_core.train.evaluate import evaluate
from resnet_core.train.forward import prepare_model
from resnet_core.train.metrics import classification_sums
from resnet_core.weights import WeightsInfo, imagenet_classes

WNID = re.compile(r"n\d{8}")  # as ImageNet's folders are named


def evaluate_weights(
    model: nn.Module,
    info: WeightsInfo,
    data: DataConfig,
    train: TrainConfig,
    world: World,
    record: PredictionRecord | None = None,
) -> dict[str, float]:
    """top1, top5 (0..1), loss and count over the test images of `data`, prepared as `info.transform` says.

    `model` and `info` come from `load_model`; precision and memory format are those of `train`. Each rank takes its
    share of the images, and adds what it predicts to the `record`. Raises ValueError where the data's classes differ
    from the weights', or where the data or the weights cannot be used.
    """
    if info.transform is None:
        raise ValueError(
            f"the weights do not record how to prepare an image for {info.model}; "
            "`resnet-core convert` records it with --resize-size and --crop-size"
        )

    # The data's labels become the weights' class numbers.
    images, names = load_test(data.name, data.path)
    numbers = torch.tensor(class_numbers(names, info, len(model.get_parameter("fc.weight"))), device=world.device)

    def score(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if record is not None:
            record.add(logits, numbers[labels])
        return classification_sums(logits, numbers[labels])

    loader = EvalLoader(
        images,
        batch=data.eval_batch,
        transform=info.transform.of_images,
        rank=world.rank,
        world_size=world.size,
        workers=data.workers,
        pin_memory=world.device.type == "cuda",
    )
    train = replace(train, sync_batchnorm=False)  # only for training, and only on GPUs
    scores = evaluate(prepare_model(model, train, world).eval(), loader, score, train, world)
    if not all(map(math.isfinite, scores.values())):
        raise ValueError(f"the evaluation gives {scores}: the weights are damaged or diverged")
    return scores


def class_numbers(names: Sequence[str], info: WeightsInfo, num_classes: int) -> list[int]:
    """The weights' number of each class of the data.

    Classes are matched by name, in any order. Where one side has no names, they are matched by position: for weights
    that name no classes, and for ImageNet's folders, whose sorted wnids (n01440764 ..) are the order of its 1000
    classes. Raises ValueError where the names or their number differ.
    """
    known = info.class_names
    by_position = known is None or (known == imagenet_classes() and all(map(WNID.fullmatch, names)))
    if by_position and len(names) == num_classes:
        return list(range(num_classes))
    if known is not None and not by_position and sorted(names) == sorted(known):
        return [known.index(name) for name in names]
    differences = "" if by_position or known is None else _differences(names, known)
    raise ValueError(
        f"the data has {len(names)} classes and the weights have {num_classes}; they must be the same{differences}"
    )


def _differences(ours: Sequence[str], theirs: Sequence[str]) -> str:
    only = {"the data": sorted(set(ours) - set(theirs)), "the weights": sorted(set(theirs) - set(ours))}
    return "".join(f"; only in {where}: {shortened(names)}" for where, names in only.items() if names)
