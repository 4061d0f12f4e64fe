"""Trained weights: published sets, files, and conversion from other libraries."""

from resnet_core.weights.catalog import CATALOG, WeightSet, find_weights, imagenet_classes
from resnet_core.weights.download import DownloadError, fetch
from resnet_core.weights.files import (
    LoadReport,
    WeightsError,
    fit,
    load_weights,
    read_info,
    read_weights,
    write_weights,
)
from resnet_core.weights.info import WeightsInfo

__all__ = [
    "CATALOG",
    "DownloadError",
    "LoadReport",
    "WeightSet",
    "WeightsError",
    "WeightsInfo",
    "fetch",
    "find_weights",
    "fit",
    "imagenet_classes",
    "load_weights",
    "read_info",
    "read_weights",
    "write_weights",
]
