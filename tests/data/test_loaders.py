"""Batches: the same whatever the workers, and wherever an epoch is entered."""

from functools import partial

import pytest
import torch

from resnet_core.data import EvalLoader, Split, TrainLoader
from resnet_core.data.transforms import random_crop


def split(count=23):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count))


def loader(**options):
    augment = partial(random_crop, padding=1)
    return TrainLoader(split(), augment=augment, global_batch=4, seed=3, **options)


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(value, other)
        for pair in zip(batches, others, strict=True)
        for value, other in zip(*pair, strict=True)
    )


def test_workers_do_not_change_the_batches():
    assert same(list(loader().epoch(2)), list(loader(workers=2).epoch(2)))


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_entered_late_goes_on_as_if_from_the_start(start):
    assert same(list(loader().epoch(1))[start:], list(loader().epoch(1, start=start)))


def test_epochs_differ_in_order_and_augmentation():
    (first, labels), (second, other_labels) = (
        (torch.cat(values) for values in zip(*loader().epoch(epoch), strict=True)) for epoch in (0, 1)
    )
    assert not torch.equal(labels, other_labels)
    assert not torch.equal(first[labels.argsort()][:5], second[other_labels.argsort()][:5])


def test_ranks_together_give_the_batches_of_one_process():
    whole = list(loader().epoch(0))
    parts = [list(loader(rank=rank, world_size=2).epoch(0)) for rank in range(2)]
    joined = [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*parts, strict=True)]
    assert same(whole, joined)
    assert len(loader()) == len(whole) == 23 // 4


def test_evaluation_gives_each_sample_once_as_it_is():
    shares = [list(EvalLoader(split(), batch=4, rank=rank, world_size=3)) for rank in range(3)]
    labels = torch.cat([labels for share in shares for _, labels in share])
    assert sorted(labels.tolist()) == list(range(23))
    for images, labels in shares[1]:
        assert torch.equal(images, split().images[labels])


def test_random_crop_moves_by_at_most_the_padding_and_repeats_the_border():
    image = torch.arange(16.0).reshape(1, 4, 4)
    shifts = set()
    for seed in range(200):
        moved = random_crop(image, torch.Generator().manual_seed(seed), padding=1)
        rows = (moved[0, :, 1] - image[0, :, 1]).div(4).round()
        shifts.add((int(rows[1]), int(moved[0, 1, 1] - image[0, 1, 1] - 4 * rows[1])))
        assert set(moved.flatten().tolist()) <= set(image.flatten().tolist())
    assert shifts == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    assert random_crop(image, torch.Generator(), padding=0) is image
