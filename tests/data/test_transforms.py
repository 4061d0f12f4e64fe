"""Augmentation and preparation, against torchvision's transforms and hand-made ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from resnet_core.data import Augmentation, ImageTransform, Mixing, load_digits
from resnet_core.data.transforms import ViewSeeds, crop_and_flip, growing_size, normalize

HALVES = ImageTransform(resize_size=12, crop_size=12, mean=(0.5,) * 3, std=(0.25,) * 3)


def colours(count=6, size=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def augmented(images, seeds=range(100, 106), mean=(0.5,) * 3, std=(0.25,) * 3, size_of_epoch=None, size=12, **settings):
    augmentation = Augmentation(mean=mean, std=std, size=size, size_of_epoch=size_of_epoch, **settings)
    return augmentation(images, ViewSeeds(0, list(seeds)))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_moves_each_image_as_slicing_a_padded_one_does(padding):
    images = colours()
    moved = crop_and_flip(images, range(6), padding=padding, flip=True)
    for seed, image in enumerate(images):
        generator = torch.Generator().manual_seed(seed)
        top, left = torch.randint(2 * padding + 1, (2,), generator=generator).tolist()
        mirrored = torch.randint(2, (), generator=generator).item()
        padded = F.pad(image[None].float(), (padding,) * 4, mode="replicate")[0].to(torch.uint8)
        expected = padded[:, top : top + 12, left : left + 12]
        assert torch.equal(moved[seed], expected.flip(-1) if mirrored else expected)


def test_crop_and_flip_reaches_every_shift_and_mirrors_half():
    image = torch.arange(25.0).view(1, 1, 5, 5).expand(900, 1, 5, 5)
    middles = crop_and_flip(image, range(900), padding=1, flip=True)[:, 0, 1:4, 1:4]
    assert set(middles[:, 1, 1].tolist()) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
    mirrored = (middles[:, 1, 0] > middles[:, 1, 2]).double().mean()
    assert 0.45 < mirrored < 0.55
    assert not (crop_and_flip(image, range(900), padding=1, flip=False).diff(dim=-1) < 0).any()


@pytest.mark.parametrize(
    ("settings", "transform", "shift"),
    [
        ({"random_resized_crop": 0.2}, v2.RandomResizedCrop(12, scale=(0.2, 1.0)), 1),
        ({"trivial_augment": True}, v2.TrivialAugmentWide(), 2),
        ({"rand_augment_ops": 2, "rand_augment_magnitude": 7}, v2.RandAugment(2, 7), 2),
    ],
)
def test_a_setting_is_torchvisions_transform_seeded_for_each_image(settings, transform, shift):
    for image, seed, changed in zip(colours(), range(100, 106), augmented(colours(), **settings), strict=True):
        torch.manual_seed(seed + shift)
        assert torch.equal(changed, normalize(transform(image), (0.5,) * 3, (0.25,) * 3))


def test_random_erasing_puts_the_mean_into_that_share_of_the_images():
    images = colours(200)
    erased = augmented(images, seeds=range(200), random_erasing=0.25)
    plain = augmented(images, seeds=range(200))
    changed = erased != plain
    assert 0.15 < changed.flatten(1).any(1).double().mean() < 0.35
    assert (erased[changed] == 0).all()


def test_images_of_any_size_become_a_batch_of_the_epochs_size():
    images = [image[:, : 12 - number, : 9 + number] for number, image in enumerate(colours())]
    for settings in ({}, {"random_resized_crop": 0.5}, {"crop_padding": 1, "flip": True}):
        assert augmented(images, size_of_epoch=lambda epoch: 10, **settings).shape == (6, 3, 10, 10)


@pytest.mark.parametrize(
    "settings",
    [{"trivial_augment": True}, {"rand_augment_ops": 3}, {"random_resized_crop": 0.3}, {"random_erasing": 1.0}],
    ids=str,
)
def test_grey_images_between_0_and_1_take_every_augmentation(settings):
    images = load_digits().train.take(range(40))
    changed = augmented(images, range(40), (0.5,), (0.5,), None, 16, **settings)
    assert changed.shape == (40, 1, 16, 16)
    assert changed.isfinite().all()
    assert changed.abs().max() <= 1
    assert not torch.equal(changed, normalize(images, (0.5,), (0.5,)))


@pytest.mark.parametrize("count", [1, 3])
def test_normalize_is_torchvisions_to_the_bit(count):
    images = colours()[:, :count]
    mean, std = (0.485, 0.456, 0.406)[:count], (0.229, 0.224, 0.225)[:count]
    assert torch.equal(normalize(images, mean, std), V.normalize(images / 255, list(mean), list(std)))


@pytest.mark.parametrize("sizes", [(12, 12), (10, 8)])
def test_a_batch_is_prepared_as_each_of_its_files_would_be(sizes):
    transform = ImageTransform(resize_size=sizes[0], crop_size=sizes[1])
    prepared = transform.of_images(colours())
    for image, ours in zip(colours(), prepared, strict=True):
        assert torch.equal(ours, transform(Image.fromarray(np.asarray(image.permute(1, 2, 0)))))


@given(st.integers(1, 300), st.integers(1, 120), st.integers(0, 300), st.sampled_from([1, 4, 32]))
def test_sizes_grow_from_the_first_epochs_to_the_lasts_by_whole_steps(start, epochs, more, step):
    end = start + more
    sizes = [growing_size(epoch, start=start, end=end, epochs=epochs, step=step) for epoch in range(epochs + 2)]
    assert sizes == sorted(sizes)
    assert sizes[epochs - 1 :] == [end] * 3
    assert epochs == 1 or sizes[0] == start
    assert all(size % step == 0 for size in set(sizes) - {start, end})


def test_a_growing_size_is_linear_in_the_epoch():
    sizes = [growing_size(epoch, start=128, end=224, epochs=7, step=32) for epoch in range(9)]
    assert sizes == [128, 128, 160, 160, 192, 192, 224, 224, 224]


def test_images_are_moved_at_full_size_and_then_made_small():
    """A move by 2 of 12 pixels is one by 1 of 6: moved at 6 pixels, it would be twice as far."""
    moving = {"crop_padding": 2, "flip": True}
    small = augmented(colours(), size_of_epoch=lambda epoch: 6, **moving)
    moved = crop_and_flip(colours(), range(100, 106), padding=2, flip=True)
    expected = torch.stack([v2.Resize(6)(image) for image in moved])
    assert torch.equal(small, normalize(expected, (0.5,) * 3, (0.25,) * 3))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_is_torchvisions_and_targets_say_what_an_image_shows(kind):
    images, labels = normalize(colours(), (0.5,) * 3, (0.25,) * 3), torch.arange(6)
    mixed, targets = Mixing(num_classes=7, **{kind: 0.8})(images, labels, seed=4)
    assert targets.shape == (6, 7)
    assert targets.sum(1).tolist() == pytest.approx([1] * 6)
    share = targets[1, 1]  # torchvision mixes each image with the one before it
    if kind == "mixup":
        assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
    else:
        kept = (mixed == images).all(1)
        assert kept.double().mean() == pytest.approx(share.item())
        assert torch.equal(mixed, torch.where(kept[:, None], images, images.roll(1, 0)))
    assert torch.equal(mixed, Mixing(num_classes=7, **{kind: 0.8})(images, labels, seed=4)[0])


def test_with_both_alphas_each_batch_is_mixed_in_one_way():
    images, labels = torch.rand(4, 3, 12, 12), torch.arange(4)
    mixing = Mixing(num_classes=4, mixup=5.0, cutmix=5.0)
    pasted = [bool((mixing(images, labels, seed)[0] == images).any()) for seed in range(60)]
    assert 10 < sum(pasted) < 50
