"""The known datasets, how they lie in a folder, and any dataset by its name.

Whatever is wrong with a folder raises ValueError before any training, and names the file, the rule and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.data.folders import FolderOptions, check_source, load_image_folder, load_test_folder
from resnet_core.data.formats import read_cifar10_records, read_idx
from resnet_core.data.splits import Dataset, ImageFiles, LabelledImages, Split
from resnet_core.data.transforms import CIFAR10_MEAN, CIFAR10_STD, ImageTransform
from resnet_core.foundation.suggestions import did_you_mean

T = TypeVar("T")


def load_digits() -> Dataset:
    """Handwritten digits: 1,437 training and 360 test images, 8x8 grey pixels enlarged to 16x16 (bilinear).

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998,
    doi:10.24432/C50P49, licence CC BY 4.0: its test set, as in scikit-learn's `load_digits()`. The file also holds
    the split: `train_test_split(range(1797), test_size=360, stratify=labels, random_state=0)` of scikit-learn 1.9.1.
    """
    packed = resources.files("resnet_core.data") / "digits.npz"
    with packed.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels, is_test = (torch.from_numpy(arrays[key]) for key in ("images", "labels", "is_test"))
    enlarged = F.interpolate(images[:, None].float() / 16, size=(16, 16), mode="bilinear")  # grey levels are 0..16
    return Dataset(
        train=Split(enlarged[~is_test], labels[~is_test].long()),
        test=Split(enlarged[is_test], labels[is_test].long()),
        class_names=tuple("0123456789"),
        transform=full_size(16, mean=(0.5,), std=(0.5,)),
    )


def full_size(size: int, mean: Sequence[float], std: Sequence[float]) -> ImageTransform:
    return ImageTransform(resize_size=size, crop_size=size, mean=mean, std=std)


FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load_fashion_mnist(folder: Path) -> Dataset:
    """Zalando's articles: 60,000 training and 10,000 test images, 28x28 grey pixels (Xiao et al. 2017).

    The four IDX files, packed as `.gz` or not, lie in the folder itself or in its `FashionMNIST/raw`, where torchvision
    puts them.
    """
    inside = folder / "FashionMNIST" / "raw"
    files = inside if inside.is_dir() else folder
    train, test = (
        labelled(
            read_idx(files / f"{part}-images-idx3-ubyte", num_dimensions=3)[:, None],
            read_idx(files / f"{part}-labels-idx1-ubyte", num_dimensions=1),
            where=f"{files}/{part}-*",
        )
        for part in ("train", "t10k")
    )
    # Mean and standard deviation of the training pixels.
    transform = full_size(train.images.shape[-1], mean=(0.2860,), std=(0.3530,))
    return Dataset(train=train, test=test, class_names=FASHION_CLASSES, transform=transform)


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(folder: Path) -> Dataset:
    """Krizhevsky's tiny images: 50,000 training and 10,000 test images, 32x32 pixels in colour, all in memory.

    Read from the original's binary version (`data_batch_1.bin` .., `test_batch.bin`), or from class folders of image
    files. The version for Python consists of pickles, which can run code, and is refused.
    """
    inside = folder / "cifar-10-batches-bin"
    files = inside if inside.is_dir() else folder
    notes: tuple[tuple[str, str], ...] = ()

    if (files / "test_batch.bin").exists():
        batches = [files / f"data_batch_{number}.bin" for number in range(1, 6)]
        train, test = (
            labelled(*read_cifar10_records(paths), where=str(files)) for paths in (batches, [files / "test_batch.bin"])
        )
    elif (folder / "cifar-10-batches-py").exists() or (folder / "test_batch").exists():
        raise ValueError(
            f"{folder} holds CIFAR-10's version for Python: pickles, which can run code and are not read; "
            "unpack the binary version (cifar-10-binary.tar.gz) instead"
        )
    else:
        lazy = load_image_folder(folder)
        if lazy.class_names != CIFAR10_CLASSES:
            raise ValueError(
                f"{folder} has the classes {', '.join(lazy.class_names)}, not CIFAR-10's {', '.join(CIFAR10_CLASSES)}; "
                "read it with --data.name image_folder"
            )
        train, test, notes = decoded(lazy.train), decoded(lazy.test), lazy.notes

    transform = full_size(train.images.shape[-1], mean=CIFAR10_MEAN, std=CIFAR10_STD)
    return Dataset(train=train, test=test, class_names=CIFAR10_CLASSES, transform=transform, notes=notes)


def labelled(images: Tensor, labels: Tensor, where: str) -> Split:
    """Both as a split of ten classes. Raises ValueError where they do not belong together."""
    if len(images) != len(labels):
        raise ValueError(f"{where} holds {len(images)} images and {len(labels)} labels; unpack the files again")
    if len(labels) and labels.max() > 9:
        raise ValueError(f"{where} holds the label {int(labels.max())}, labels must be 0..9; unpack the files again")
    return Split(images, labels.long())


def decoded(files: LabelledImages) -> Split:
    """All images in memory. Raises ImageError for a damaged file, ValueError where one has another size."""
    assert isinstance(files, ImageFiles)
    with ThreadPoolExecutor() as threads:  # decoders release Python's lock
        images = list(threads.map(lambda index: files[index][0], range(len(files))))
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            sizes = [f"{each.shape[-1]} x {each.shape[-2]}" for each in (image, images[0])]
            raise ValueError(
                f"{files.path(index)} has {sizes[0]} pixels, {files.path(0)} {sizes[1]}: images in memory must "
                "have one size; read them with --data.name image_folder"
            )
    return Split(torch.stack(images), files.labels)


IMAGE_FOLDER = "image_folder"
BUILT_IN: dict[str, Callable[[], Dataset]] = {"digits": load_digits}
IN_FOLDERS: dict[str, Callable[[Path], Dataset]] = {
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    IMAGE_FOLDER: load_image_folder,
}
DATASETS = (*BUILT_IN, *IN_FOLDERS)


def load_dataset(name: str, path: str = "", options: FolderOptions | None = None) -> Dataset:
    """A dataset of DATASETS, from the folder `path` unless it ships with the package.

    `options` say how an image folder is read. Raises ValueError with one line for an unknown name and for a folder that
    is missing, incomplete, damaged or laid out differently.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; {did_you_mean(name, DATASETS)}")
    if name in BUILT_IN:
        if path:
            raise ValueError(f"{name} ships with the package; leave out data.path {path!r}")
        return BUILT_IN[name]()
    load = partial(load_image_folder, options=options) if name == IMAGE_FOLDER else IN_FOLDERS[name]
    dataset = from_folder(load, name, path)
    check_classes(dataset, where=path)
    return dataset


def load_test(
    name: str, path: str = "", options: FolderOptions | None = None, split: str = ""
) -> tuple[LabelledImages, tuple[str, ...]]:
    """The images to evaluate on and their classes; an image folder needs no others.

    Raises what `load_dataset` raises.
    """
    images, class_names, _ = load_evaluation(name, path, options, split)
    return images, class_names


def load_evaluation(
    name: str, path: str = "", options: FolderOptions | None = None, split: str = ""
) -> tuple[LabelledImages, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The same with the dataset's notes. `split` is train, val or test; without it, what training evaluates."""
    if name == IMAGE_FOLDER:
        return from_folder(partial(load_test_folder, options=options, split=split), name, path)
    dataset = load_dataset(name, path)
    parts = {"": dataset.test, "test": dataset.test, "train": dataset.train}
    if split not in parts:
        raise ValueError(f"{name} has no split {split!r}; choose train or test")
    return parts[split], dataset.class_names, dataset.notes


def from_folder(load: Callable[[Path], T], name: str, path: str) -> T:
    """What `load` reads from the folder. Raises ValueError for a folder that does not exist or cannot be read."""
    if not path:
        raise ValueError(f"{name} is read from a folder; name it with --data.path DIR")
    check_source(Path(path), may_be_list=name == IMAGE_FOLDER)
    try:
        return load(Path(path))
    except OSError as error:
        raise ValueError(
            f"{error.filename or path} cannot be read ({error.strerror or error}); allow reading it"
        ) from error


def check_classes(dataset: Dataset, where: str) -> None:
    """Raises ValueError for a single class, and for a class without images to train on.

    Datasets in memory must have each class in both parts. Your own images may be evaluated on some of them.
    """
    names = dataset.class_names
    if len(names) < 2:
        raise ValueError(f"{where} has only one class, {names[0]}; a classifier needs at least 2")
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        present = set(split.labels.tolist())
        missing = [name for number, name in enumerate(names) if number not in present]
        if missing and not isinstance(split, ImageFiles):
            raise ValueError(
                f"{where} has no {part} images of {', '.join(missing)}; both parts must have images of each class"
            )
