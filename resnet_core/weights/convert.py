"""Converting other libraries' weights: both networks are compared before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.errors import first_line
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import build
from resnet_core.weights.files import load_weights, write_weights
from resnet_core.weights.folders import description_of
from resnet_core.weights.header import WeightsError
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.libraries import IMAGE_SIZE, NETWORKS, SOURCES, Network, Source
from resnet_core.weights.names import MODULES, convert_names, their_names


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted, and how far our logits are from the source's own, on seeded random images."""

    source: str
    model: str
    config: dict[str, Any]
    tensors: int
    largest_difference: float
    path: Path

    def __str__(self) -> str:
        config = "".join(f", {key}={value}" for key, value in self.config.items())
        return (
            f"{self.path}: {self.model}{config}, {self.tensors} tensors of {self.source}'s; "
            f"largest difference of the logits {self.largest_difference:.1e}"
        )


def convert(
    src: str | Path, dst: str | Path, *, source: str, model: str | None = None,
    transform: ImageTransform | None = None, allow_pickle: bool = False,
    report: Callable[[Conversion], None] | None = None,
) -> Conversion:  # fmt: skip
    """Writes another library's weights as ours, once both networks gave the same logits, and says what was found.

    `source` is a name of SOURCES. The model is found from the shapes, or refused if it is not `model`. How images
    are prepared is written as `transform` says or, without it, as timm's or transformers' files beside the weights do.
    `allow_pickle` has no effect.
    `report` is called with the result before anything is written.
    Raises WeightsError, and OSError where `dst` exists or cannot be written; then nothing is written.
    """
    src, dst = Path(src), Path(dst)
    check_destination(dst)
    library = find_source(source)
    described = description_of(src)
    said = described.info() if described else None

    # Their weights under our names, in our network.
    original = library.read(src, allow_pickle)
    name, classes = identify(src, original.tensors, source, model)
    config = original.config | (said.config if said else {}) | ({} if classes == 1000 else {"num_classes": classes})
    ours = build(name, **config)
    tensors = convert_names(original.tensors, source, ours.state_dict())
    load_weights(ours, tensors)

    # Both networks on the same images.
    try:
        theirs = original.network(name, classes)
        difference, largest_logit = difference_on_random_images(ours.eval(), theirs)
    except WeightsError:
        raise
    except Exception as error:  # of any type: a library meets what anyone wrote
        raise WeightsError(f"{src} cannot be run by {source} itself ({first_line(error)})") from error
    bound = library.bound * max(1.0, largest_logit)
    if not difference <= bound:  # also where the difference is nan
        raise WeightsError(
            f"{src} read as {name} gives logits that differ from {source}'s own by {difference:.3g}, more than "
            f"{bound:.3g}: the weights belong to a variant of {name}; nothing was written"
        )

    conversion = Conversion(
        source=source, model=name, config=config, tensors=len(tensors), largest_difference=difference, path=dst
    )
    if report is not None:
        report(conversion)
    names = said.class_names if said else original.class_names
    if transform is None and described is not None:
        transform = described.transform
        if described.caveat:
            warnings.warn(described.caveat, stacklevel=2)
    origin = f"{src.name}, converted from {source}"
    info = WeightsInfo(model=name, config=config, transform=transform, class_names=names, origin=origin)
    write_weights(dst, tensors, info)
    return conversion


def check_destination(dst: Path) -> None:
    if dst.suffix != ".safetensors":
        raise WeightsError(f"{dst} must end in .safetensors, the format that is written")
    if dst.exists():
        raise FileExistsError(f"{dst} exists and is not overwritten; remove it or choose another name")
    if not dst.parent.is_dir():
        raise FileNotFoundError(f"{dst.parent} is not a folder; create it, or write {dst.name} elsewhere")


def find_source(name: str) -> Source:
    if name not in SOURCES:
        raise WeightsError(f"unknown source {name!r}; {did_you_mean(name, SOURCES)}")
    return SOURCES[name]


def identify(path: Path, tensors: Mapping[str, Tensor], source: str, model: str | None = None) -> tuple[str, int]:
    """The one of NETWORKS, or `model`, that has exactly these tensors, and its number of classes.

    Raises WeightsError with the first tensors that do not fit the nearest.
    """
    if model is not None and model not in NETWORKS:
        raise WeightsError(f"unknown model {model!r}; {did_you_mean(model, NETWORKS)}")
    head = f"{MODULES[source]['fc']}.weight"
    if head not in tensors or tensors[head].dim() != 2:
        raise WeightsError(f"{path} has no matrix {head}: give weights with a head, under {source}'s names")
    classes = len(tensors[head])
    misfits = {name: list_misfits(tensors, source, name, classes) for name in ([model] if model else NETWORKS)}
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    if misfits[nearest]:
        more = f" and {len(misfits[nearest]) - 3} more" if len(misfits[nearest]) > 3 else ""
        raise WeightsError(
            f"{path} is not {nearest}{'' if model else ', the nearest'} of {source}: "
            f"{', '.join(misfits[nearest][:3])}{more}; name the model it must be with --model NAME"
        )
    return nearest, classes


def list_misfits(tensors: Mapping[str, Tensor], source: str, model: str, classes: int) -> list[str]:
    """What is missing, of another shape or unknown, in words, when these tensors are taken for `model`'s."""
    expected = dict(list_shapes(model))
    expected["fc.weight"] = torch.Size([classes, expected["fc.weight"][1]])
    expected["fc.bias"] = torch.Size([classes])
    theirs, found = their_names(source, expected), convert_names(tensors, source, expected)

    missing = [f"{theirs[name]} is missing" for name in expected if name not in found]
    shapes = [
        f"{theirs[name]} has shape {list(value.shape)} instead of {list(expected[name])}"
        for name, value in found.items()
        if value.shape != expected[name]
    ]
    unknown = [f"{name} is unknown" for name in sorted(tensors.keys() - theirs.values())]
    return missing + shapes + unknown


@cache
def list_shapes(model: str) -> Mapping[str, torch.Size]:
    """Shapes by name of a model with 1000 classes."""
    with torch.device("meta"):
        return {name: value.shape for name, value in build(model).state_dict().items()}


def difference_on_random_images(ours: Network, theirs: Network) -> tuple[float, float]:
    """The largest absolute difference of two networks' logits for two random images, and the largest logit."""
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = ours(images).double(), theirs(images).double()
    return (a - b).abs().max().item(), b.abs().max().item()
