"""Other libraries' weights: how their files are read, and their own networks to compare with."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from resnet_core.foundation.errors import first_line
from resnet_core.models.resnet import TABLE_1
from resnet_core.weights.containers import read_container
from resnet_core.weights.files import load_weights, read_file
from resnet_core.weights.folders import NETWORKS, file_in
from resnet_core.weights.header import WeightsError
from resnet_core.weights.inspect import FoundNetwork
from resnet_core.weights.names import KERAS_VARIABLES

IMAGE_SIZE = 64  # of the random images by which two networks are compared
KERAS_EPSILON, EPSILON = 1.001e-5, 1e-5  # added to the variance: keras.applications' ResNets, torch's BatchNorm

Network = Callable[[Tensor], Tensor]  # images [N, 3, H, W] -> logits


@dataclass(frozen=True, kw_only=True)
class Original:
    """What another library's file holds, and that library's own network with these weights, to compare with."""

    tensors: Mapping[str, Tensor]
    network: Callable[[FoundNetwork, Mapping[str, Any]], Network | None]
    """What is in the file and our arguments -> the library's network in evaluation mode; None if it has none."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of our builder that cannot be found from the shapes."""
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A library: how its files are read, how far its logits may be from ours."""

    read: Callable[[Path], Original]
    scheme: str = "torchvision"
    """Whose names its tensors have: a key of SCHEMES."""
    bound: float = 0.0
    """In units of the largest logit, or of 1 where that is larger."""


def library(name: str) -> ModuleType:
    """The imported library. Raises WeightsError, naming how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"the library's own network is needed for the comparison, and {error.name} is not installed: "
            "pip install 'resnet-core[interop]'"
        ) from error


def raw_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors under its own names."""
    return read_file(path).raw


def read_torchvision(path: Path) -> Original:
    tensors = raw_tensors(path)
    return Original(tensors=tensors, network=torchvision_network)


def torchvision_network(network: FoundNetwork, config: Mapping[str, Any]) -> Network | None:
    """torchvision's network with these weights; None where it has none, as for a body and for CIFAR's networks."""
    if network.model not in NETWORKS or not network.has_head:
        return None
    from torchvision import models

    theirs = models.get_model(network.model, num_classes=len(network.tensors["fc.weight"]))
    if config.get("small_images"):
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = nn.Identity()
    if config.get("stride_in_1x1"):
        for block in (theirs.layer2[0], theirs.layer3[0], theirs.layer4[0]):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    channels = config.get("in_channels", 3)
    if channels != 3:
        stem = theirs.conv1
        theirs.conv1 = nn.Conv2d(channels, 64, stem.kernel_size, stem.stride, stem.padding, bias=False)
    load_weights(theirs, network.tensors)
    return theirs.eval()


def read_timm(path: Path) -> Original:
    """A bare file, or one with the Hub's `config.json` beside it. The architecture in that file is checked."""
    file = file_in(path) if path.is_dir() else path
    architecture = config_beside(file).get("architecture", "resnet50")
    if architecture not in NETWORKS:  # resnetblur50 has resnet50's tensors, and other logits
        raise WeightsError(
            f"{file.with_name('config.json')} has architecture {architecture!r}, which is not one of ours"
        )
    tensors = raw_tensors(file)

    def network(found: FoundNetwork, config: Mapping[str, Any]) -> Network:
        classes = config.get("num_classes", 1000)
        model = library("timm").create_model(found.model, num_classes=classes, in_chans=config.get("in_channels", 3))
        load_weights(model, tensors)
        return model.eval()

    return Original(tensors=tensors, network=network)


def read_transformers(path: Path) -> Original:
    """The folder of `save_pretrained`, or its file of weights: `config.json` says where a Bottleneck's stride sits."""
    file = file_in(path) if path.is_dir() else path
    values = config_beside(file)
    if values.get("model_type") != "resnet":
        raise WeightsError(f"{file.with_name('config.json')} must exist and have model_type 'resnet'")
    tensors = raw_tensors(file)
    transformers = library("transformers")
    try:
        config = transformers.ResNetConfig.from_dict(values)
    except Exception as error:  # of any type: anyone may have written the file
        raise WeightsError(
            f"{file.with_name('config.json')} is refused by transformers ({first_line(error)})"
        ) from error

    def network(found: FoundNetwork, arguments: Mapping[str, Any]) -> Network:
        name, classes = found.model, arguments.get("num_classes", 1000)

        # What its config says has to be the model that its shapes were taken for.
        expected = {"num_channels": 3, "embedding_size": 64, "hidden_act": "relu", "num_labels": classes}
        odd = [f"{key}={getattr(config, key)!r}" for key, value in expected.items() if getattr(config, key) != value]
        expansion, depths = 4 if config.layer_type == "bottleneck" else 1, TABLE_1[name][1]
        sizes = [width * expansion for width in (64, 128, 256, 512)]
        if odd or list(config.depths) != [*depths] or list(config.hidden_sizes) != sizes:
            raise WeightsError(f"{file.with_name('config.json')} is not {name}'s ({', '.join(odd) or 'depths, sizes'})")
        model = transformers.ResNetForImageClassification(config)
        load_weights(model, tensors)
        return lambda images: model.eval()(images, return_dict=True).logits

    v1 = config.layer_type == "bottleneck" and config.downsample_in_bottleneck
    names = tuple(config.id2label[label] for label in sorted(config.id2label))
    if sorted(config.id2label) != list(range(len(names))) or not all(isinstance(each, str) for each in names):
        raise WeightsError(f"{file.with_name('config.json')}: id2label must name the classes 0, 1, 2, ... in words")
    return Original(
        tensors=tensors,
        network=network,
        config={"stride_in_1x1": True} if v1 else {},
        class_names=None if names[:1] == ("LABEL_0",) else names,
    )


def config_beside(file: Path) -> dict[str, Any]:
    """The `config.json` in the same folder; empty when there is none."""
    path = file.with_name("config.json")
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path} is not a JSON object ({error}); fetch it again") from error


def read_composer(path: Path) -> Original:
    """A checkpoint of Composer's Trainer, whose network was torchvision's."""
    try:
        tensors = read_container(path).content["state"]["model"]
    except (TypeError, LookupError) as error:
        raise WeightsError(
            f"{path} is not a checkpoint of Composer's Trainer ({first_line(error)}); save the bare weights, "
            "torch.save(model.module.state_dict(), ...), and convert them from torchvision"
        ) from error
    return Original(tensors=tensors, network=torchvision_network)


def read_keras(path: Path) -> Original:
    """A `.weights.h5`, `.h5` or `.keras` file of keras.applications' ResNet50, 101 or 152. Its code is not run."""
    os.environ.setdefault("KERAS_BACKEND", "torch")  # read at keras' first import
    keras = library("keras")

    # Which of the three it is, before Keras reads it.
    convolutions, classes = count_keras(path)
    builders = {
        53: keras.applications.ResNet50,
        104: keras.applications.ResNet101,
        155: keras.applications.ResNet152,
    }
    known = (
        "give weights of keras.applications' ResNet50, ResNet101 or ResNet152 with their head (V2 is another network)"
    )
    if convolutions not in builders or len(classes) != 1:
        raise WeightsError(f"{path} has {convolutions} convolutions and {len(classes)} heads; {known}")

    with keras.device("cpu:0"), warnings.catch_warnings(action="ignore"):
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
        network = builders[convolutions](
            weights=None, classes=classes[0], classifier_activation=None, input_shape=shape
        )
        try:
            network.load_weights(path)
        except Exception as error:  # of any type: anyone may have written the file
            raise WeightsError(f"{path} does not fit Keras' {network.name} ({first_line(error)}); {known}") from error

    def to_torch(value: Any) -> Tensor:
        return torch.from_numpy(keras.ops.convert_to_numpy(value))

    def logits(images: Tensor) -> Tensor:
        with keras.device("cpu:0"):
            return to_torch(network(images.permute(0, 2, 3, 1).numpy(), training=False))

    variables = {variable.path: to_torch(variable) for variable in network.weights}
    return Original(
        tensors=fold_keras(variables), network=lambda network, config: logits, config={"stride_in_1x1": True}
    )


def count_keras(path: Path) -> tuple[int, list[int]]:
    """The number of convolutions in Keras' HDF5, and the number of classes of each dense layer: from their shapes."""
    shapes = []

    def note(name: str, item: Any) -> None:
        if hasattr(item, "shape") and not name.startswith("optimizer"):
            if item.id.get_storage_size() < item.nbytes:
                raise KeyError(f"{name} claims more bytes than it has")
            shapes.append(item.shape)

    try:
        with ExitStack() as opened:
            file: Any = path
            if path.suffix == ".keras":
                file = opened.enter_context(opened.enter_context(zipfile.ZipFile(path)).open("model.weights.h5"))
            opened.enter_context(library("h5py").File(file, "r")).visititems(note)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} cannot be read as .weights.h5, .h5 or .keras ({first_line(error)})") from error
    return sum(len(shape) == 4 for shape in shapes), [shape[1] for shape in shapes if len(shape) == 2]


def fold_keras(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keras' variables as torch's tensors, under Keras' layer names.

    Kernels go from HWIO to OIHW. The two differences between the libraries go into the BatchNorm's statistics: a
    convolution's bias is subtracted from the mean, and the larger epsilon is added to the variance.
    """
    folded = {}
    for name, value in variables.items():
        layer, _, variable = name.rpartition("/")
        value = value.double()
        if layer.endswith("_conv") and variable == "bias":
            continue
        if variable == "kernel":
            value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.T
        elif variable == "moving_mean":
            value = value - variables[f"{layer.removesuffix('_bn')}_conv/bias"]
        elif variable == "moving_variance":
            value = value + (KERAS_EPSILON - EPSILON)
        folded[f"{layer}.{KERAS_VARIABLES[variable]}"] = value.float().contiguous()
    return folded


SOURCES = {
    "torchvision": Source(read=read_torchvision),
    "timm": Source(read=read_timm),
    "transformers": Source(read=read_transformers, scheme="transformers"),
    "composer": Source(read=read_composer),
    "keras": Source(read=read_keras, scheme="keras", bound=2e-5),
}
