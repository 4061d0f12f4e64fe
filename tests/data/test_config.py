"""The data of a recipe: its settings are checked, and reach the batches."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from resnet_core.data import DATASETS, Augmentation, DataConfig, dataset_of, loaders_of

DIGITS = DataConfig(name="digits", global_batch=64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cifar"}, "unknown dataset 'cifar'; did you mean cifar10"),
        ({"global_batch": 0}, "data.global_batch must be at least 1, got 0"),
        ({"eval_batch": 0}, "data.eval_batch must be at least 1, got 0"),
        ({"crop_padding": -1}, r"data.crop_padding must be in 0\.\.4096, got -1"),
        ({"random_erasing": 1.5}, r"data.random_erasing must be in 0\.\.1, got 1.5"),
        ({"mixup": float("nan")}, "data.mixup must be in .* got nan"),
        ({"rand_augment_magnitude": 31}, r"data.rand_augment_magnitude must be in 0\.\.30, got 31"),
        ({"crop_padding": 2, "random_resized_crop": 0.08}, "crop and data.crop_padding exclude each other; set one"),
        ({"trivial_augment": True, "rand_augment_ops": 2}, "data.rand_augment_ops exclude each other"),
        ({"repeated_augmentation": 3}, "data.global_batch 64 cannot hold each image 3 times"),
        ({"eval_size": 16}, "go together, the first at least the second; got 0 and 16"),
        ({"eval_size": 16, "eval_resize": 12}, "got 12 and 16"),
        ({"train_size_start": 32, "train_size": 16}, "must be at most data.train_size, got 32 and 16"),
        ({"train_size_epochs": 5}, "data.train_size_epochs 5 changes nothing"),
        ({"train_size": 16, "train_size_start": 8, "train_size_epochs": 1}, "over at least 2 epochs; set it to 0"),
        ({"train_size_start": 8}, "data.train_size_start needs data.train_size, the size to which images grow"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(DIGITS, **settings)


def test_every_augmentation_is_off_by_default():
    dataset = dataset_of(DIGITS)
    train_loader, eval_loader = loaders_of(DIGITS, dataset, epochs=1, seed=0)
    for loader, split in ((train_loader, dataset.train), (eval_loader, dataset.test)):
        images, labels = next(iter(loader.epoch(0) if loader is train_loader else loader))
        whole = {image.numpy().tobytes() for image in dataset.transform.of_images(split.images)}
        assert {image.numpy().tobytes() for image in images} <= whole
        assert labels.ndim == 1


def test_an_augmentation_has_the_settings_of_the_configuration_under_the_same_names():
    names = {field.name for field in fields(Augmentation)} - {"mean", "std", "size", "size_of_epoch", "normalized"}
    assert len(names & {field.name for field in fields(DataConfig)}) == len(names) == 7


@pytest.mark.parametrize(
    ("settings", "shape", "target_shape"),
    [
        ({"mixup": 0.2, "cutmix": 1.0}, (64, 1, 16, 16), (64, 10)),
        ({"train_size": 24, "random_resized_crop": 0.3}, (64, 1, 24, 24), (64,)),
        ({"train_size": 24, "repeated_augmentation": 2, "trivial_augment": True}, (64, 1, 24, 24), (64,)),
    ],
)
def test_settings_reach_the_batches(settings, shape, target_shape):
    config = replace(DIGITS, **settings)
    train_loader, _ = loaders_of(config, dataset_of(config), epochs=2, seed=0)
    images, targets = next(train_loader.epoch(0))
    assert (images.shape, targets.shape) == (shape, target_shape)
    assert len(train_loader) == 1437 // 64


def test_repeated_augmentation_shows_fewer_images_more_often():
    config = replace(DIGITS, repeated_augmentation=4, crop_padding=2)
    train_loader, _ = loaders_of(config, dataset_of(config), epochs=1, seed=0)
    samples = [sample for epoch, position, batch in train_loader.keys(0) for sample, _ in batch]
    assert len(samples) == 4 * len(set(samples)) == 1437 // 64 * 64


def test_evaluation_has_sizes_and_a_batch_of_its_own():
    config = replace(DIGITS, eval_batch=50, eval_resize=24, eval_size=20)
    _, eval_loader = loaders_of(config, dataset_of(config), epochs=1, seed=0, rank=2, world_size=3)
    assert [tuple(images.shape) for images, _ in eval_loader] == [(50, 1, 20, 20)] * 2 + [(20, 1, 20, 20)]


def test_the_page_of_data_has_every_setting_and_dataset():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    settings = {f"--data.{field.name.replace('_', '-')}" for field in fields(DataConfig)} - {"--data.global-batch"}
    assert {setting for setting in settings if setting not in page} == set()
    assert {name for name in DATASETS if f"| `{name}` |" not in page} == set()
