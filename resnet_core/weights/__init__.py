"""Trained weights: published sets, files, and conversion from other libraries."""

from resnet_core.weights.catalog import CATALOG, WeightSet, find_weights, imagenet_classes
from resnet_core.weights.download import DownloadError, fetch
from resnet_core.weights.files import (
    LoadReport,
    WeightsError,
    load_weights,
    match_weights,
    read_info,
    read_weights,
    write_weights,
)
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.inspect import Inspection, inspect_weights
from resnet_core.weights.pretrained import load_model

fit = match_weights  # its name in earlier versions

__all__ = [
    "CATALOG",
    "DownloadError",
    "Inspection",
    "LoadReport",
    "WeightSet",
    "WeightsError",
    "WeightsInfo",
    "fetch",
    "find_weights",
    "fit",
    "imagenet_classes",
    "inspect_weights",
    "load_model",
    "load_weights",
    "read_info",
    "read_weights",
    "write_weights",
]
