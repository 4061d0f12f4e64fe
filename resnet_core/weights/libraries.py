"""Other libraries' weights: how their files are read, and their own networks to compare with."""

from __future__ import annotations

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
from resnet_core.weights.containers import read_container
from resnet_core.weights.files import load_weights, read_file
from resnet_core.weights.folders import NETWORKS, FolderDescription
from resnet_core.weights.header import WeightsError
from resnet_core.weights.identify import FoundNetwork
from resnet_core.weights.names import EPSILON, KERAS_VARIABLES

IMAGE_SIZE = 64  # of the random images by which two networks are compared
KERAS_EPSILON = 1.001e-5  # that keras.applications' ResNets add to the variance

Network = Callable[[Tensor], Tensor]  # images [N, 3, H, W] -> logits; of a body without a classifier its last map


@dataclass(frozen=True, kw_only=True)
class Original:
    """What another library's file holds, and that library's own network with these weights, to compare with."""

    tensors: Mapping[str, Tensor]
    network: Callable[[FoundNetwork, Mapping[str, Any]], Network | None]
    """What is in the file and our arguments -> the library's network in evaluation mode; None if it has none."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of our builder that neither the shapes nor a folder's description show."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """How a library's files are read, and how far its logits may be from ours."""

    read: Callable[[Path, FolderDescription | None], Original]
    """The file or folder, and what the folder says of it."""
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


def read_torchvision(path: Path, described: FolderDescription | None) -> Original:
    return Original(tensors=read_file(path).raw, network=torchvision_network)


def torchvision_network(network: FoundNetwork, config: Mapping[str, Any]) -> Network | None:
    """torchvision's network with these weights; None where it has none, as for a body and for CIFAR's networks."""
    if network.model not in NETWORKS or not network.has_head:
        return None
    from torchvision import models

    dilation = config.get("replace_stride_with_dilation")
    classes = len(network.tensors["fc.weight"])
    theirs = models.get_model(network.model, num_classes=classes, replace_stride_with_dilation=dilation)
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


def read_timm(path: Path, described: FolderDescription | None) -> Original:
    """A bare file, or one with the Hub's `config.json` beside it."""
    tensors = read_file(path).raw

    def network(found: FoundNetwork, config: Mapping[str, Any]) -> Network:
        arguments = {"num_classes": config.get("num_classes", 1000), "in_chans": config.get("in_channels", 3)}
        dilated = sum(config.get("replace_stride_with_dilation") or ())
        model = library("timm").create_model(found.model, **arguments, output_stride=32 >> dilated)
        load_weights(model, tensors)
        return model.eval()

    return Original(tensors=tensors, network=network)


def read_transformers(path: Path, described: FolderDescription | None) -> Original:
    """The folder of `save_pretrained`, or its file of weights: `config.json` says where a Bottleneck's stride sits."""
    if described is None or described.library != "transformers":
        file = (path if path.is_dir() else path.parent) / "config.json"
        raise WeightsError(
            f"{file} must exist and have model_type 'resnet', as transformers writes it; fetch it into the same "
            "folder, or leave --source out"
        )
    tensors = read_file(path).raw
    transformers = library("transformers")
    try:
        config = transformers.ResNetConfig.from_dict(dict(described.values))
    except Exception as error:  # of any type: anyone may have written the file
        raise WeightsError(f"{described.path} is refused by transformers ({first_line(error)})") from error

    def network(found: FoundNetwork, arguments: Mapping[str, Any]) -> Network:
        model = transformers.ResNetForImageClassification(config)
        load_weights(model, tensors)
        return lambda images: model.eval()(images, return_dict=True).logits

    return Original(tensors=tensors, network=network)


def read_composer(path: Path, described: FolderDescription | None) -> Original:
    """A checkpoint of Composer's Trainer, whose network was torchvision's."""
    try:
        tensors = read_container(path).content["state"]["model"]
    except (TypeError, LookupError) as error:
        raise WeightsError(
            f"{path} is not a checkpoint of Composer's Trainer ({first_line(error)}); save the bare weights, "
            "torch.save(model.module.state_dict(), ...), and convert them from torchvision"
        ) from error
    return Original(tensors=tensors, network=torchvision_network)


def read_keras(path: Path, described: FolderDescription | None) -> Original:
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
        "give weights of keras.applications' ResNet50, ResNet101 or ResNet152, with their head or without (V2 is "
        "another network). Where such a network is a layer of yours, save it in Keras with "
        "model.get_layer('resnet50').save_weights('NAME.weights.h5')"
    )
    if convolutions not in builders or len(classes) > 1:
        raise WeightsError(f"{path} has {convolutions} convolutions and {len(classes)} heads; {known}")

    with keras.device("cpu:0"), warnings.catch_warnings(action="ignore"):
        head = {"classes": classes[0], "classifier_activation": None} if classes else {"include_top": False}
        network = builders[convolutions](weights=None, input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3), **head)
        try:
            network.load_weights(path)
        except Exception as error:  # of any type: anyone may have written the file
            raise WeightsError(f"{path} does not fit Keras' {network.name} ({first_line(error)}); {known}") from error

    def to_torch(value: Any) -> Tensor:
        return torch.from_numpy(keras.ops.convert_to_numpy(value))

    def run(images: Tensor) -> Tensor:
        with keras.device("cpu:0"):
            made = to_torch(network(images.permute(0, 2, 3, 1).numpy(), training=False))
        return made if classes else made.permute(0, 3, 1, 2)

    variables = {variable.path: to_torch(variable) for variable in network.weights}
    return Original(tensors=fold_keras(variables), network=lambda network, config: run, config={"stride_in_1x1": True})


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


LIBRARIES = {
    "torchvision": Library(read=read_torchvision),
    "timm": Library(read=read_timm),
    "transformers": Library(read=read_transformers, scheme="transformers"),
    "composer": Library(read=read_composer),
    "keras": Library(read=read_keras, scheme="keras", bound=2e-5),
}
