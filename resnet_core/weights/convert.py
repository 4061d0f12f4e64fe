"""Converting other libraries' weights: both networks are compared before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.errors import first_line, shortened
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import build
from resnet_core.weights.containers import Container, recognise
from resnet_core.weights.files import check_unknown, load_weights, write_weights
from resnet_core.weights.folders import read_description
from resnet_core.weights.header import WeightsError
from resnet_core.weights.identify import FoundNetwork
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.inspect import Inspection, inspect_container, inspect_weights
from resnet_core.weights.libraries import IMAGE_SIZE, LIBRARIES, Library, Network, Original, torchvision_network
from resnet_core.weights.names import SCHEMES
from resnet_core.weights.pretrained import assumed, is_small, preparation_of


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted, and how far our logits are from the source's own, on seeded random images."""

    source: str
    """Whose names the weights had."""
    compared_with: str
    model: str
    config: dict[str, Any]
    tensors: int
    largest_difference: float | None
    """None where there is no other implementation to compare with."""
    left_out: tuple[str, ...]
    """Names in the file that were not taken."""
    path: Path

    def __str__(self) -> str:
        config = "".join(f", {key}={value}" for key, value in self.config.items())
        compared = (
            "not compared: no other implementation has this network"
            if self.largest_difference is None
            else f"largest difference of the logits to {self.compared_with}'s network {self.largest_difference:.1e}, "
            "which proves the names and shapes, not how images are prepared"
        )
        left_out = f"; left out: {shortened(self.left_out)}" if self.left_out else ""
        return f"{self.path}: {self.model}{config}, {self.tensors} tensors of {self.source}'s{left_out}; {compared}"


def convert(
    src: str | Path, dst: str | Path, *, source: str | None = None, model: str | None = None, key: str | None = None,
    prefix: str | None = None, ignore: Sequence[str] = (), stride_in_1x1: bool = False,
    transform: ImageTransform | None = None, sizes: tuple[int, int] | None = None, allow_pickle: bool = False,
    report: Callable[[Conversion], None] | None = None,
) -> Conversion:  # fmt: skip
    """Writes any library's weights as ours, once another implementation gave the same logits, and says what was found.

    Whose names the file has, and which model it is, is found from the file; `source` (a name of LIBRARIES) and `model`
    are checked if given. With a `source`, that library's own network is compared; without one, torchvision's with the
    renamed weights, where it has this network. `key`, `prefix`, `ignore` and `stride_in_1x1` are those of `load_model`.
    How images are prepared is written as `transform` says or, without it, as timm's or transformers' files beside the
    weights do, or as `load_model` assumes; `sizes` replaces the sizes of resize and crop in that. `allow_pickle` has no
    effect. `report` is called with the result before
    anything is written.
    Raises WeightsError, and OSError where `dst` exists or cannot be written; then nothing is written.
    """
    src, dst = Path(src), Path(dst)
    check_destination(dst)
    source = source or ("keras" if not src.is_dir() and recognise(src) in ("HDF5", "Keras archive") else None)
    bound = find_library(source).bound if source else 0.0

    # Their weights under our names, in our network.
    original, inspection = read_original(src, source, ignore)
    said, described = inspection.info, inspection.described
    network, note = inspection.choose(key=key, prefix=prefix, model=model or (said.model if said else None))
    if note:
        warnings.warn(note, stacklevel=2)
    check_unknown(network, str(src))
    asked = {"stride_in_1x1": True} if stride_in_1x1 else {}
    config = original.config | (said.config if said else {}) | network.config | asked
    ours = build(network.model, **config)
    load_weights(ours, network.tensors, new_head=not network.has_head)
    counts = {name: torch.tensor(0) for name in ours.state_dict() if name.endswith(".num_batches_tracked")}
    tensors = counts | network.tensors

    conversion = Conversion(
        source=source or network.scheme,
        compared_with=source or "torchvision",
        model=network.model,
        config=config,
        tensors=len(tensors),
        largest_difference=check_logits(
            ours, network, config, original, bound, source=source or "torchvision", src=src
        ),
        left_out=network.left_out,
        path=dst,
    )

    # How images are prepared.
    info = WeightsInfo(
        model=network.model,
        config=config,
        transform=transform,
        class_names=said.class_names if said else None,
        origin=f"{src.name}, converted from {conversion.source}",
    )
    if transform is None:
        info = with_preparation(info, network, said, sizes)
        if described is not None and described.caveat and sizes is None:
            warnings.warn(described.caveat, stacklevel=2)
    if report is not None:
        report(conversion)
    write_weights(dst, tensors, info)
    return conversion


def with_preparation(
    info: WeightsInfo, network: FoundNetwork, said: WeightsInfo | None, sizes: tuple[int, int] | None
) -> WeightsInfo:
    """The info with how images are prepared: as the file or its folder says, else as is assumed, at the given sizes.

    Raises WeightsError for sizes of images that are not RGB.
    """
    if sizes is None:
        if said is not None:
            return replace(info, transform=said.transform)
        if SCHEMES[network.scheme].stride_in_1x1:
            return info
        likely = assumed(network)
        return replace(
            info, transform=likely.transform, class_names=likely.class_names, origin=f"{info.origin}; {likely.origin}"
        )

    transform, note = (said.transform if said else None), ""
    if transform is None:
        transform, _ = preparation_of(network)
        whose = "CIFAR-10's" if is_small(network) else "ImageNet's"
        note = f"; assumed: images are normalised by {whose} mean and deviation"
    if transform is None:
        raise WeightsError(
            f"{network.model} takes images of {network.config['in_channels']} channels, whose mean and deviation are "
            "unknown; leave --resize-size and --crop-size out, and prepare images in Python"
        )
    resize_size, crop_size = sizes
    transform = replace(transform, resize_size=resize_size, crop_size=crop_size)
    return replace(info, transform=transform, origin=f"{info.origin}{note}")


def read_original(src: Path, source: str | None, ignore: Sequence[str]) -> tuple[Original, Inspection]:
    """A file as the named library reads it, and what `inspect_weights` finds in it.

    Raises WeightsError where the names are not the library's.
    """
    if source is None:
        return Original(tensors={}, network=torchvision_network), inspect_weights(src, ignore=ignore)
    library = find_library(source)
    described = read_description(src if src.is_dir() else src.parent)
    info = described.info() if described else None
    original = library.read(src, described)
    inspection = inspect_container(Container(src, source, original.tensors), ignore=ignore)
    schemes = {network.scheme for network in inspection.networks}
    if schemes - {library.scheme}:
        raise WeightsError(f"{src} has the names of {min(schemes)}, not those of {source}; leave --source out")
    return original, replace(inspection, info=info, described=described)


def check_logits(
    ours: nn.Module, network: FoundNetwork, config: Mapping[str, Any], original: Original, bound: float, *, source: str,
    src: Path,
) -> float | None:  # fmt: skip
    """The largest difference to the source's own network on the same images; None where there is no such network.

    Raises WeightsError for a difference above `bound`, in units of the largest logit or of 1 where that is larger.
    """
    try:
        theirs = original.network(network, config)
        if theirs is None:
            return None
        channels = config.get("in_channels", 3)
        run: Any = ours.eval()
        run = run if network.has_head else run.forward_features
        difference, largest_logit = difference_on_random_images(run, theirs, channels)
    except WeightsError:
        raise
    except Exception as error:  # of any type: a library meets what anyone wrote
        raise WeightsError(f"{src} cannot be run by {source} itself ({first_line(error)})") from error
    bound *= max(1.0, largest_logit)
    if not difference <= bound:  # also where the difference is nan
        raise WeightsError(
            f"{src} read as {network.model} gives logits that differ from {source}'s own by {difference:.3g}, more "
            f"than {bound:.3g}: the weights belong to a variant of {network.model}; nothing was written"
        )
    return difference


def check_destination(dst: Path) -> None:
    if dst.suffix != ".safetensors":
        raise WeightsError(f"{dst} must end in .safetensors, the format that is written")
    if dst.exists():
        raise FileExistsError(f"{dst} exists and is not overwritten; remove it or choose another name")
    if not dst.parent.is_dir():
        raise FileNotFoundError(f"{dst.parent} is not a folder; create it, or write {dst.name} elsewhere")


def find_library(name: str) -> Library:
    if name not in LIBRARIES:
        raise WeightsError(f"unknown source {name!r}; {did_you_mean(name, LIBRARIES)}")
    return LIBRARIES[name]


def difference_on_random_images(ours: Network, theirs: Network, channels: int) -> tuple[float, float]:
    """The largest absolute difference of two networks' logits for two random images, and the largest logit."""
    images = torch.randn(2, channels, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = ours(images).double(), theirs(images).double()
    return (a - b).abs().max().item(), b.abs().max().item()
