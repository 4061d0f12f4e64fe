"""Datasets: the digits that ship with the package, and folders that are as they should be or are not."""

import gzip
import hashlib
import re
import struct
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_core.data import load_dataset, load_digits, load_image_folder
from resnet_core.data.datasets import CIFAR10_CLASSES


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


def test_digits_are_16_pixels_wide_between_0_and_1_and_prepared_to_minus_1_and_1():
    digits = load_digits()
    images = digits.train.images
    assert images.shape == (1437, 1, 16, 16)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert torch.equal(digits.transform.of_images(images), images * 2 - 1)
    assert torch.equal(images * 256, (images * 256).round())  # bilinear by 2 is exact


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path, values, pack=False, magic=None):
    data = (magic or bytes((0, 0, 8, values.ndim))) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if pack else data)


def fashion(folder, pack=False):
    """A small Fashion-MNIST of 30 and 20 images; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {"train": noise(30, 28, 28), "t10k": noise(20, 28, 28)}
    for part, values in images.items():
        ending = ".gz" if pack else ""
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", values, pack)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", np.arange(len(values), dtype=np.uint8) % 10, pack)
    return images


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_as_torchvision_reads_it(tmp_path, pack, inside):
    images = fashion(tmp_path / inside, pack)
    dataset = load_dataset("fashion_mnist", str(tmp_path))
    assert torch.equal(dataset.train.images, torch.from_numpy(images["train"])[:, None])
    assert torch.equal(dataset.test.labels, torch.arange(20) % 10)
    assert (dataset.in_channels, len(dataset.class_names), dataset.transform.crop_size) == (1, 10, 28)
    image, label = dataset.train[13]
    assert (image.dtype, image.shape, label) == (torch.uint8, (1, 28, 28), 3)
    if not pack:  # torchvision reads unpacked files, in its own layout
        from torchvision.datasets.mnist import read_image_file

        oracle = read_image_file(str(tmp_path / inside / "train-images-idx3-ubyte"))
        assert torch.equal(dataset.train.images[:, 0], oracle)


def cifar_binary(folder):
    """A small binary CIFAR-10, 10 images a file; returns the records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = noise(60, 3073)
    records[:, 0] = np.arange(60) % 10
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, records.reshape(6, 10, -1), strict=True):
        (folder / name).write_bytes(part.tobytes())
    return records


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_binary_version(tmp_path, inside):
    records = torch.from_numpy(cifar_binary(tmp_path / inside))
    dataset = load_dataset("cifar10", str(tmp_path))
    assert (len(dataset.train), len(dataset.test), dataset.in_channels) == (50, 10, 3)
    assert torch.equal(dataset.train.images.flatten(1), records[:50, 1:])
    assert torch.equal(dataset.test.labels, records[50:, 0].long())


def image_folder(folder, classes=("cat", "dog"), parts=("train", "test"), size=(7, 6)):
    """Two images of noise for each class and part, lossless."""
    for part in parts:
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for copy in range(2):
                pixels = np.roll(noise(size[1], size[0], 3), number + copy)
                Image.fromarray(pixels).save(folder / part / name / f"{copy}.png")


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_an_image_folder_lists_classes_in_order_and_decodes_on_demand(tmp_path, parts):
    image_folder(tmp_path, parts=parts)
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "dog" / "1.png").unlink()
    dataset = load_dataset("image_folder", str(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 1]
    assert dataset.test.folder == tmp_path / parts[1]
    image, label = dataset.train[2]
    assert (image.dtype, label) == (torch.uint8, 1)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "train" / "dog" / "0.png"))).permute(2, 0, 1)
    assert torch.equal(image, expected)
    assert torch.equal(dataset.train.take([1, 2])[1], expected)


def test_cifar10_in_class_folders_is_in_memory(tmp_path):
    image_folder(tmp_path, CIFAR10_CLASSES, size=(32, 32))
    dataset = load_dataset("cifar10", str(tmp_path))
    lazy = load_image_folder(tmp_path)
    assert dataset.train.images.shape == (20, 3, 32, 32)
    assert dataset.notes == lazy.notes != ()
    assert dataset.train.labels.tolist() == lazy.train.labels.tolist()
    for index in range(20):
        assert torch.equal(dataset.train[index][0], lazy.train[index][0])


def without(name):
    def change(folder):
        path = folder / name
        [each.unlink() for each in path.glob("*")] if path.is_dir() else path.unlink()

    return change


def emptied(folder):
    for path in (folder / "train").rglob("*.png"):
        path.unlink()
    for path in (folder / "train").iterdir():
        path.rmdir()


def one_class(folder):
    for part in ("train", "test"):
        (folder / part / "dog").rename(folder / f"away-{part}")


def replaced(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def cut(name, end=-1):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def relabelled(folder):
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(30, dtype=np.uint8) % 11)


def two_classes_missing(folder):
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 8)


IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("name", "make", "change", "message"),
    [
        (
            "image_folder",
            image_folder,
            lambda folder: (folder / "train").rename(folder / "training"),
            "no folder train, only test, training; add it",
        ),
        (
            "image_folder",
            image_folder,
            lambda folder: (folder / "test").rename(folder / "t"),
            "no folder val or test to",
        ),
        ("image_folder", image_folder, emptied, r"train has no class folders; put its images as .*/train/CLASS/IMAGE"),
        ("image_folder", image_folder, without("train/dog"), "train/dog is a folder without images; known endings are"),
        ("image_folder", image_folder, one_class, "only one class, cat; a classifier needs at least 2"),
        ("cifar10", image_folder, lambda folder: None, "has the classes cat, dog, not CIFAR-10's .* image_folder"),
        ("cifar10", cifar_binary, without("data_batch_3.bin"), r"data_batch_3\.bin is missing; unpack the whole"),
        ("cifar10", cifar_binary, cut("data_batch_2.bin"), "30,729 bytes, not a multiple of the 3,073 of a record"),
        (
            "cifar10",
            lambda folder: (folder / "cifar-10-batches-py").mkdir(),
            lambda folder: None,
            "pickles, which can run code and are not read; unpack the binary version",
        ),
        ("fashion_mnist", fashion, without(IMAGES), f"{IMAGES} is missing, and so is {IMAGES}.gz; put the dataset's"),
        ("fashion_mnist", fashion, cut(IMAGES), "announces 30 x 28 x 28 values and holds 23,519; download"),
        (
            "fashion_mnist",
            fashion,
            lambda folder: (folder / IMAGES).write_bytes((folder / IMAGES).read_bytes() + b"!"),
            "announces 30 x 28 x 28 values and holds more; download",
        ),
        ("fashion_mnist", fashion, replaced(IMAGES, b"<htm"), "begins with 3c 68 74 6d, not 00 00 08 03; download"),
        ("fashion_mnist", fashion, replaced(IMAGES, b""), "it begins with nothing, not 00 00 08 03"),
        ("fashion_mnist", fashion, replaced("t10k-labels-idx1-ubyte", bytes((0, 0, 8, 1, 0))), "is not an IDX file"),
        (
            "fashion_mnist",
            lambda folder: fashion(folder, pack=True),
            cut(f"{IMAGES}.gz", 900),
            f"{IMAGES}.gz is not a whole gzip file .*; download it again",
        ),
        ("fashion_mnist", fashion, relabelled, r"train-\* holds the label 10, labels must be 0"),
        ("fashion_mnist", fashion, two_classes_missing, "has no test images of Bag, Ankle boot; both parts"),
        (
            "fashion_mnist",
            fashion,
            lambda folder: write_idx(folder / "train-labels-idx1-ubyte", np.zeros(29, np.uint8)),
            "30 images and 29 labels; unpack",
        ),
    ],
)
def test_a_folder_that_is_not_right_is_refused_in_one_line(tmp_path, name, make, change, message):
    make(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(name, str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown dataset 'digit'; did you mean digits\?"):
        load_dataset("digit")


def test_images_in_memory_must_be_of_one_size(tmp_path):
    image_folder(tmp_path, CIFAR10_CLASSES, size=(32, 32))
    Image.new("RGB", (31, 32)).save(tmp_path / "train" / "bird" / "1.png")
    with pytest.raises(ValueError, match=re.escape("train/bird/1.png has 31 x 32 pixels, ")):
        load_dataset("cifar10", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("digits", "data", "digits ships with the package; leave out data.path 'data'"),
        ("cifar10", "", "cifar10 is read from a folder; name it with --data.path DIR"),
        ("cifar10", "/nowhere/at/all", "/nowhere/at/all does not exist"),
        ("cifar10", __file__, r"test_datasets\.py is a file; name the folder of the images"),
    ],
)
def test_a_path_is_needed_where_the_data_does_not_ship(name, path, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, path)
