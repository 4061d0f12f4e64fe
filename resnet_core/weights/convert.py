"""Other libraries' weights: their names for ours, and a conversion that is compared before anything is written."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from resnet_core.data.transforms import ImageTransform
from resnet_core.models import did_you_mean, get_model
from resnet_core.resnet import TABLE_1, WIDER
from resnet_core.weights.files import (
    WeightsError,
    load_weights,
    read_weights,
    write_weights,
)
from resnet_core.weights.header import file_size
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.pickles import pickle_member

NETWORKS = (*TABLE_1, *WIDER)
IMAGE_SIZE = 64
KERAS_EPSILON, EPSILON = 1.001e-5, 1e-5  # added to the variance: keras.applications' ResNets, torch's BatchNorm

# Our modules -> theirs. A field's last digit is the number of the first: {stage1} counts the stages 1, 2, 3, 4 and
# {stage0} counts the same ones 0, 1, 2, 3.
TRANSFORMERS = {
    "conv1": "resnet.embedder.embedder.convolution",
    "bn1": "resnet.embedder.embedder.normalization",
    "layer{stage1}.{block0}.conv{layer1}": "resnet.encoder.stages.{stage0}.layers.{block0}.layer.{layer0}.convolution",
    "layer{stage1}.{block0}.bn{layer1}": "resnet.encoder.stages.{stage0}.layers.{block0}.layer.{layer0}.normalization",
    "layer{stage1}.{block0}.downsample.0": "resnet.encoder.stages.{stage0}.layers.{block0}.shortcut.convolution",
    "layer{stage1}.{block0}.downsample.1": "resnet.encoder.stages.{stage0}.layers.{block0}.shortcut.normalization",
    "fc": "classifier.1",
}
KERAS = {
    "conv1": "conv1_conv",
    "bn1": "conv1_bn",
    "layer{stage1}.{block0}.conv{layer1}": "conv{stage2}_block{block1}_{layer1}_conv",
    "layer{stage1}.{block0}.bn{layer1}": "conv{stage2}_block{block1}_{layer1}_bn",
    "layer{stage1}.{block0}.downsample.0": "conv{stage2}_block{block1}_0_conv",
    "layer{stage1}.{block0}.downsample.1": "conv{stage2}_block{block1}_0_bn",
    "fc": "predictions",
}
SAME = {ours: ours for ours in TRANSFORMERS}
COMPOSER = {ours: f"module.{ours}" for ours in TRANSFORMERS}

# A Keras layer's variables -> a torch module's tensors. A convolution's bias goes into the BatchNorm after it.
KERAS_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# What a Composer checkpoint holds beside tensors: read as `Ignored`, so that nothing of it comes to life.
COMPOSER_EXTRAS = (
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "torch.torch_version.TorchVersion",
)

Network = Callable[[Tensor], Tensor]  # images [N, 3, H, W] -> logits


@dataclass(frozen=True, kw_only=True)
class Original:
    """What another library's file holds, and that library's own network with these weights, to compare with."""

    tensors: Mapping[str, Tensor]
    network: Callable[[str, int], Network]
    """A name of NETWORKS and the number of classes -> the network, in evaluation mode."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of our builder that shapes do not tell."""
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A library: its names for our modules, how its files are read, how far its logits may be from ours."""

    modules: Mapping[str, str]
    read: Callable[[Path, bool], Original]
    bound: float = 0.0
    """In units of the largest logit, or of 1 where that is larger."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted, and how far our logits are from the source's own, on seeded random images."""

    source: str
    model: str
    config: dict[str, Any]
    tensors: int
    largest_difference: float
    path: Path


def convert(
    src: str | Path, dst: str | Path, *, source: str, model: str | None = None,
    transform: ImageTransform | None = None, allow_pickle: bool = False,
) -> Conversion:  # fmt: skip
    """Writes another library's weights as ours, after both networks gave the same logits; says what was found.

    `source` is a name of SOURCES. The model is found from the shapes, or refused if it is not `model`. A file does not
    say how its images were prepared: `transform` is recorded where you give it. `allow_pickle` as in `read_weights`.
    Raises WeightsError, and OSError where `dst` exists or cannot be written; `dst` is then not there.
    """
    src, dst = Path(src), Path(dst)
    check_destination(dst)
    library = find_source(source)
    original = library.read(src, allow_pickle)
    name, classes = identify(src, original.tensors, source, model)
    config = original.config | ({} if classes == 1000 else {"num_classes": classes})
    ours = get_model(name, **config)
    tensors = convert_names(original.tensors, source, ours.state_dict())
    load_weights(ours, tensors)
    difference, largest_logit = compare_logits(ours.eval(), original.network(name, classes))
    bound = library.bound * max(1.0, largest_logit)
    if not difference <= bound:
        raise WeightsError(
            f"{src} read as {name} gives logits that differ from {source}'s own by {difference:.3g}, more than "
            f"{bound:.3g}: they belong to a variant of it; nothing was written"
        )
    origin = f"{src.name}, converted from {source}"
    info = WeightsInfo(model=name, config=config, transform=transform, class_names=original.class_names, origin=origin)
    write_weights(dst, tensors, info)
    return Conversion(
        source=source, model=name, config=config, tensors=len(tensors), largest_difference=difference, path=dst
    )


def check_destination(dst: Path) -> None:
    if dst.suffix != ".safetensors":
        raise WeightsError(f"{dst} must end in .safetensors, the form that is written")
    if dst.exists():
        raise FileExistsError(f"{dst} exists and is not overwritten; remove it or choose another name")
    if not dst.parent.is_dir():
        raise FileNotFoundError(f"{dst.parent} is not a folder; make it, or write {dst.name} elsewhere")


def find_source(name: str) -> Source:
    if name not in SOURCES:
        raise WeightsError(f"unknown source {name!r}; {did_you_mean(name, SOURCES)}")
    return SOURCES[name]


def their_names(source: str, names: Iterable[str]) -> dict[str, str]:
    """Our state-dict names -> the source's, whose last part (`weight`, `running_mean`) is ours."""
    modules: dict[str, str] = {}
    for stage, block, layer in product(range(4), range(max(max(depths) for _, depths in TABLE_1.values())), range(3)):
        numbers = {"stage": stage, "block": block, "layer": layer}
        fields = {f"{what}{first}": number + first for what, number in numbers.items() for first in range(3)}
        modules |= {ours.format(**fields): theirs.format(**fields) for ours, theirs in SOURCES[source].modules.items()}
    return {name: ".".join((modules[name.rpartition(".")[0]], name.rpartition(".")[2])) for name in names}


def convert_names(tensors: Mapping[str, Tensor], source: str, names: Iterable[str]) -> dict[str, Tensor]:
    """The source's tensors under our names, as far as they are there; a BatchNorm without a count of batches gets 0."""
    converted = {}
    for ours, theirs in their_names(source, names).items():
        if theirs in tensors:
            converted[ours] = tensors[theirs]
        elif ours.endswith(".num_batches_tracked"):
            converted[ours] = torch.tensor(0)
    return converted


def identify(path: Path, tensors: Mapping[str, Tensor], source: str, model: str | None = None) -> tuple[str, int]:
    """The one of NETWORKS, or `model`, that has exactly these tensors, and its number of classes.

    Raises WeightsError with the first tensors that do not fit the nearest.
    """
    if model is not None and model not in NETWORKS:
        raise WeightsError(f"unknown model {model!r}; {did_you_mean(model, NETWORKS)}")
    head = f"{SOURCES[source].modules['fc']}.weight"
    if head not in tensors or tensors[head].dim() != 2:
        raise WeightsError(f"{path} has no matrix {head}: give weights with a head, under {source}'s names")
    classes = len(tensors[head])
    misfits = {name: list_misfits(tensors, source, name, classes) for name in ([model] if model else NETWORKS)}
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    if misfits[nearest]:
        more = f" and {len(misfits[nearest]) - 3} more" if len(misfits[nearest]) > 3 else ""
        raise WeightsError(
            f"{path} is not {nearest}{'' if model else ', the nearest'} of {source}: "
            f"{', '.join(misfits[nearest][:3])}{more}; "
            "name the model it must be with model=NAME"
        )
    return nearest, classes


def list_misfits(tensors: Mapping[str, Tensor], source: str, model: str, classes: int) -> list[str]:
    """What is missing, of another shape or unknown, in words, when these tensors are taken for `model`'s."""
    expected = list_shapes(model)
    expected = {
        **expected,
        "fc.weight": torch.Size([classes, expected["fc.weight"][1]]),
        "fc.bias": torch.Size([classes]),
    }
    theirs, found = their_names(source, expected), convert_names(tensors, source, expected)
    missing = [f"{theirs[name]} is missing" for name in expected if name not in found]
    shapes = [
        f"{theirs[name]} has shape {list(value.shape)} instead of {list(expected[name])}"
        for name, value in found.items()
        if value.shape != expected[name]
    ]
    return missing + shapes + [f"{name} is unknown" for name in sorted(tensors.keys() - theirs.values())]


@cache
def list_shapes(model: str) -> Mapping[str, torch.Size]:
    """Shapes by name of a model with 1000 classes."""
    with torch.device("meta"):
        return {name: value.shape for name, value in get_model(model).state_dict().items()}


def compare_logits(ours: Network, theirs: Network) -> tuple[float, float]:
    """The largest absolute difference of two networks' logits for two random images, and their largest size."""
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = ours(images).double(), theirs(images).double()
    return (a - b).abs().max().item(), b.abs().max().item()


def library(name: str) -> ModuleType:
    """The imported library. Raises WeightsError, naming how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"its own network is needed to compare with, and {error.name} is not installed: "
            "pip install 'resnet-core[interop]'"
        ) from error


def read_torchvision(path: Path, allow_pickle: bool) -> Original:
    tensors = read_weights(path, allow_pickle=allow_pickle)
    return Original(tensors=tensors, network=lambda name, classes: torchvision_network(name, classes, tensors))


def torchvision_network(name: str, classes: int, tensors: Mapping[str, Tensor]) -> Network:
    from torchvision import models

    network = models.get_model(name, num_classes=classes)
    load_weights(network, tensors)
    return network.eval()


def read_timm(path: Path, allow_pickle: bool) -> Original:
    """A bare file, or one with the Hub's `config.json` beside it, whose architecture is then checked."""
    file = weights_file(path)
    architecture = config_beside(file).get("architecture", "resnet50")
    if architecture not in NETWORKS:  # resnetblur50 has resnet50's tensors, and other logits
        raise WeightsError(f"{file.with_name('config.json')} has architecture {architecture!r}, not one of ours")
    tensors = read_weights(file, allow_pickle=allow_pickle)

    def network(name: str, classes: int) -> Network:
        model = library("timm").create_model(name, num_classes=classes)
        load_weights(model, tensors)
        return model.eval()

    return Original(tensors=tensors, network=network)


def read_transformers(path: Path, allow_pickle: bool) -> Original:
    """The folder of `save_pretrained`, or its file of weights: `config.json` says where a Bottleneck's stride sits."""
    file = weights_file(path)
    values = config_beside(file)
    if values.get("model_type") != "resnet":
        raise WeightsError(f"{file.with_name('config.json')} must be there and have model_type 'resnet'")
    tensors = read_weights(file, allow_pickle=allow_pickle)
    transformers = library("transformers")
    try:
        config = transformers.ResNetConfig.from_dict(values)
    except Exception as error:  # of any type: the library checks what is anyone's
        raise WeightsError(
            f"{file.with_name('config.json')} is refused by transformers ({first_line(error)})"
        ) from error

    def network(name: str, classes: int) -> Network:
        model = transformers.ResNetForImageClassification(config)
        load_weights(model, tensors)
        return lambda images: model.eval()(images, return_dict=True).logits

    v1 = config.layer_type == "bottleneck" and config.downsample_in_bottleneck
    names = tuple(config.id2label[label] for label in sorted(config.id2label))
    return Original(
        tensors=tensors,
        network=network,
        config={"stride_in_1x1": True} if v1 else {},
        class_names=None if names[:1] == ("LABEL_0",) else names,
    )


def weights_file(path: Path) -> Path:
    """The file that `path` is, or that a folder of `save_pretrained` holds."""
    if not path.is_dir():
        return path
    known = [path / "model.safetensors", path / "pytorch_model.bin"]
    found = [file for file in known if file.exists()]
    if not found:
        raise WeightsError(f"{path} holds neither {known[0].name} nor {known[1].name}; name the file of weights")
    return found[0]


def config_beside(file: Path) -> dict[str, Any]:
    """The `config.json` in the same folder; empty when there is none."""
    path = file.with_name("config.json")
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} is not a JSON object ({error}); fetch it again") from error


class Ignored:
    """Stands where a checkpoint holds something that is no tensor."""

    def __init__(self, *values: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_composer(path: Path, allow_pickle: bool) -> Original:
    """A checkpoint of Composer's Trainer, whose network was torchvision's."""
    bare = "save the bare weights, torch.save(model.module.state_dict(), ...), and convert them from torchvision"
    if not allow_pickle:
        raise WeightsError(f"{path} is a pickle: choose allow_pickle=True (--allow-pickle) to read it, or {bare}")
    try:
        with path.open("rb") as file:
            pickle_member(file, file_size(path))  # sizes that the zip has, not only claims
        with torch.serialization.safe_globals([(Ignored, name) for name in COMPOSER_EXTRAS]):
            tensors = torch.load(path, map_location="cpu", weights_only=True)["state"]["model"]
    except Exception as error:  # of any type, as the bytes are anyone's
        raise WeightsError(f"{path} is no checkpoint of Composer's Trainer ({first_line(error)}); {bare}") from error
    return Original(tensors=tensors, network=lambda name, classes: torchvision_network(name, classes, tensors))


def read_keras(path: Path, allow_pickle: bool) -> Original:
    """`.weights.h5`, `.h5` or `.keras` of keras.applications' ResNet50, 101 or 152; a saved model's code is not run."""
    os.environ.setdefault("KERAS_BACKEND", "torch")  # read at keras' first import
    keras = library("keras")
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
        except (ValueError, KeyError) as error:
            raise WeightsError(f"{path} does not fit Keras' {network.name} ({first_line(error)}); {known}") from error

    def to_torch(value: Any) -> Tensor:
        return torch.from_numpy(keras.ops.convert_to_numpy(value))

    def logits(images: Tensor) -> Tensor:
        with keras.device("cpu:0"):
            return to_torch(network(images.permute(0, 2, 3, 1).numpy(), training=False))

    variables = {variable.path: to_torch(variable) for variable in network.weights}
    return Original(tensors=fold_keras(variables), network=lambda name, classes: logits, config={"stride_in_1x1": True})


def count_keras(path: Path) -> tuple[int, list[int]]:
    """The number of convolutions in Keras' HDF5, and the number of classes of each dense layer: from shapes alone."""
    shapes = []

    def note(name: str, item: Any) -> None:
        if hasattr(item, "shape") and not name.startswith("optimizer"):
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
    """Keras' variables as torch's tensors, under Keras' layer names: HWIO becomes OIHW, and the two differences go
    into the BatchNorm's statistics: a convolution's bias moves the mean, the larger epsilon the variance."""
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


def first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


SOURCES = {
    "torchvision": Source(modules=SAME, read=read_torchvision),
    "timm": Source(modules=SAME, read=read_timm),
    "transformers": Source(modules=TRANSFORMERS, read=read_transformers),
    "composer": Source(modules=COMPOSER, read=read_composer),
    "keras": Source(modules=KERAS, read=read_keras, bound=2e-5),
}
