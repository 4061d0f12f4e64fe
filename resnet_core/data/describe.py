"""What people should know of a dataset before they train on it, in one line each."""

from __future__ import annotations

import torch

from resnet_core.data.sampler import steps_per_epoch
from resnet_core.data.splits import Dataset, LabelledImages
from resnet_core.foundation.errors import shortened


def describe(dataset: Dataset, *, global_batch: int, repeats: int = 1) -> list[tuple[str, str]]:
    """Label and text of each line: the images, what is evaluated, what is skipped, the classes, what is left over."""
    train, test = dataset.train, dataset.test
    lines = [("data", f"{counted(train)} to train on, {counted(test)} to evaluate on"), *dataset.notes]

    sizes = torch.bincount(train.labels, minlength=len(dataset.class_names))
    smallest, largest = int(sizes.argmin()), int(sizes.argmax())
    names = [shortened([name]) for name in dataset.class_names]
    classes = f"{sizes[smallest]:,} {'image' if sizes[smallest] == 1 else 'images'} each to train on"
    if sizes[smallest] < sizes[largest]:
        classes = (
            f"{sizes[smallest]:,} to {sizes[largest]:,} images each to train on: {names[smallest]} has the fewest, "
            f"{names[largest]} the most"
        )
    lines.append(("classes", classes))

    shown = steps_per_epoch(len(train), global_batch=global_batch, repeats=repeats) * global_batch // repeats
    if shown < len(train):
        left_over = f"{len(train) - shown:,} of the {len(train):,} images in each epoch, different ones each time"
        lines.append(("left over", f"{left_over}: an epoch has only full batches"))
    return lines


def counted(images: LabelledImages) -> str:
    """How many images of how many classes."""
    number = len(images.labels.unique())
    noun = "image" if len(images) == 1 else "images"
    return f"{len(images):,} {noun} of {number:,} {'class' if number == 1 else 'classes'}"
