"""A trained network ready to predict, from whatever holds one: weights, a file in int8, or an exported file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_core.foundation.errors import first_line
from resnet_core.inference.formats import EXPORTERS, Run, format_of
from resnet_core.inference.optimize import head_of, read_quantized
from resnet_core.models.registry import build_on_meta
from resnet_core.weights import WeightsError, WeightsInfo, load_model, read_info
from resnet_core.weights.pretrained import check_config


class ExportedNetwork(nn.Module):
    """An exported file as a network: images `[N, C, H, W]` -> logits, on the CPU."""

    def __init__(self, path: Path, format: str, num_classes: int) -> None:
        super().__init__()
        self.path, self.format, self.num_classes = path, format, num_classes
        self.runs: tuple[Run] = (EXPORTERS[format].load(path),)  # in a tuple: a program of torch.export refuses eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.runs[0](images.cpu().float())

    def features(self) -> ExportedNetwork:
        """The file up to its head's input. Raises ValueError for a format that does not show it."""
        features = EXPORTERS[self.format].features
        if features is None:
            raise ValueError(
                f"{self.path} is compiled, and gives logits only; embed with the weights that it was made of, or with "
                "an export of another format"
            )
        body = copy.copy(self)
        body.runs = (features(self.path),)
        return body


def load_network(source: str | Path, **options: Any) -> tuple[nn.Module, WeightsInfo]:
    """The network of weights, as `load_model` loads it with these options, of a file in int8, or of an exported one."""
    if format_of(Path(source)):
        return load_exported(Path(source))
    return read_quantized(source) if is_quantized(source) else load_model(source, **options)


def load_exported(path: Path) -> tuple[ExportedNetwork, WeightsInfo]:
    """The network of an exported file, and what the file says of itself.

    Loading a file of aoti executes its machine code. Raises WeightsError for a file that says nothing of itself or
    cannot be run, and ValueError where a library is missing.
    """
    format = str(format_of(path))
    exporter = EXPORTERS[format]
    if lacking := exporter.lacks():
        raise ValueError(f"{path} is of the format {format}, which needs {lacking}")
    try:
        info = WeightsInfo.from_metadata(exporter.metadata(path), str(path))
        if info is None:
            raise WeightsError(f"{path} does not say what network it holds; `resnet-core export` writes files that do")
        config = check_config(info.config, str(path))
        network = ExportedNetwork(path, format, head_of(build_on_meta(info.model, **config)).out_features)
        shape = (1, config.get("in_channels", 3), info.image_size, info.image_size)
        with torch.inference_mode():
            logits = network(torch.zeros(shape))
    except WeightsError:
        raise
    except Exception as error:  # runtimes have no family of errors in common
        raise WeightsError(
            f"{path} does not run on images as it says to prepare them ({first_line(error)}); export it again, "
            "without --image-size"
        ) from error
    if logits.shape != (1, network.num_classes):
        raise WeightsError(f"{path} has other classes than it says; export it again")
    return network, info


def is_quantized(source: str | Path) -> bool:
    """Whether this is a file of `write_quantized`."""
    path = Path(source)
    said = read_info(path) if path.is_file() else None
    return bool(said and said.ranges)


def only_predicts(source: str | Path) -> bool:
    """Whether this is a file that runs on the CPU and has no gradients: one in int8, or an exported one."""
    return format_of(Path(source)) is not None or is_quantized(source)


def num_classes_of(model: nn.Module) -> int:
    return model.num_classes if isinstance(model, ExportedNetwork) else head_of(model).out_features
