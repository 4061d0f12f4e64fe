"""The digits that ship with the package."""

import hashlib
from importlib import resources

import torch

from resnet_core.data import load_digits


def test_the_file_is_the_one_that_was_made():
    data = (resources.files("resnet_core.data") / "digits.npz").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "633536b9cc3053f2e981f75f8a8223762d3029e3c41504623f2fe4a59f4f4fbf"
    assert len(data) < 50_000


def test_split_is_1437_and_360_and_stratified():
    digits = load_digits()
    train, test = (torch.bincount(split.labels, minlength=10) for split in (digits.train, digits.test))
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    # Images per class as UCI's description of the test set lists them.
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert ((test / (train + test) - 360 / 1797).abs() < 0.004).all()


def test_no_image_is_in_both_splits():
    digits = load_digits()
    train, test = ({image.numpy().tobytes() for image in split.images} for split in (digits.train, digits.test))
    assert (len(train), len(test)) == (1437, 360)
    assert not train & test


def test_images_are_16_pixels_wide_between_minus_1_and_1():
    images = load_digits().train.images
    assert images.shape == (1437, 1, 16, 16)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
