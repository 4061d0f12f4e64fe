"""From image files to batches: formats, datasets, augmentation, order of samples, loaders."""

from resnet_core.data.config import DataConfig, dataset_of, loaders_of
from resnet_core.data.datasets import (
    DATASETS,
    load_cifar10,
    load_dataset,
    load_digits,
    load_fashion_mnist,
    load_test,
)
from resnet_core.data.folders import FolderOptions, load_image_folder
from resnet_core.data.images import ImageError
from resnet_core.data.loaders import EvalLoader, TrainLoader
from resnet_core.data.manifest import identity
from resnet_core.data.splits import Dataset, ImageFiles, LabelledImages, Split
from resnet_core.data.transforms import Augmentation, ImageTransform, Mixing
from resnet_core.data.workers import WorkerError

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataConfig",
    "Dataset",
    "EvalLoader",
    "FolderOptions",
    "ImageError",
    "ImageFiles",
    "ImageTransform",
    "LabelledImages",
    "Mixing",
    "Split",
    "TrainLoader",
    "WorkerError",
    "dataset_of",
    "identity",
    "load_cifar10",
    "load_dataset",
    "load_digits",
    "load_fashion_mnist",
    "load_image_folder",
    "load_test",
    "loaders_of",
]
