"""The accuracy of trained weights, on their run's test data or any other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from resnet_core.data import DataConfig, EvalLoader
from resnet_core.data.datasets import load_evaluation
from resnet_core.foundation.errors import shortened
from resnet_core.inference.files import with_bar
from resnet_core.inference.networks import num_classes_of
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
    *,
    split: str = "",
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, float]:
    """top1, top5 (0..1), loss and count over the test images of `data`, prepared as `info.transform` says.

    `model` and `info` come from `load_model`; precision and memory format are those of `train`. `split` names another
    part of the data: train, val or test. Each rank takes its share of the images, and adds what it predicts to the
    `record`; rank 0 says which images they are. Raises ValueError where the data has classes that the weights lack, or
    where the data or the weights cannot be used.
    """
    if info.transform is None:
        raise ValueError(
            f"the weights do not record how to prepare an image for {info.model}; "
            "`resnet-core convert` records it with --resize-size and --crop-size"
        )

    # The data's labels become the weights' class numbers.
    options = replace(data.folder_options, bits=data.bits or info.transform.bits)
    images, names, notes = load_evaluation(data.name, data.path, options, split)
    num_classes = num_classes_of(model)
    numbers = torch.tensor(class_numbers(names, info, num_classes), device=world.device)
    if world.is_main:
        for label, text in notes:
            say(f"{label:<12}{text}")
        if len(names) < num_classes:
            say(f"{'classes':<12}{len(names):,} of the {num_classes:,} that the weights know: {shortened(names)}")

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
    batches = with_bar(loader, len(loader.keys), shown=world.is_main)
    scores = evaluate(prepare_model(model, train, world).eval(), batches, score, train, world)
    if not all(map(math.isfinite, scores.values())):
        raise ValueError(f"the evaluation gives {scores}: the weights are damaged or diverged")
    return scores


def class_numbers(names: Sequence[str], info: WeightsInfo, num_classes: int) -> list[int]:
    """The weights' number of each class of the data.

    Classes are matched by name, in any order, and the data may lack some. Where one side has no names, they are matched
    by position: for weights that name no classes, and for ImageNet's folders, whose sorted wnids (n01440764 ..) are the
    order of its 1000 classes. Raises ValueError where the weights lack a name, or where the numbers of classes that are
    matched by position differ.
    """
    known = info.class_names
    by_position = known is None or (known == imagenet_classes() and all(map(WNID.fullmatch, names)))
    if by_position and len(names) == num_classes:
        return list(range(num_classes))
    if known is not None and not by_position and set(names) <= set(known):
        return [known.index(name) for name in names]
    counts = f"the data has {len(names)} classes and the weights have {num_classes}"
    if by_position or known is None:
        raise ValueError(f"{counts}; they must be the same")
    raise ValueError(f"{counts}; the weights must know each class of the data{_differences(names, known)}")


def _differences(ours: Sequence[str], theirs: Sequence[str]) -> str:
    only = {"the data": sorted(set(ours) - set(theirs)), "the weights": sorted(set(theirs) - set(ours))}
    return "".join(f"; only in {where}: {shortened(names)}" for where, names in only.items() if names)
