"""Commands on files of weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from resnet_core.cli.options import unset
from resnet_core.weights.convert import convert
from resnet_core.weights.inspect import inspect_weights


@dataclass(frozen=True, kw_only=True)
class FileChoices:
    """Rarely needed: what a weights file leaves open."""

    model: Annotated[str | None, unset("NAME")] = None
    """The model that the weights must be of. By default it is found from the shapes."""
    key: Annotated[str | None, unset("KEY")] = None
    """Key of the network's state dict, as `inspect` prints it under "at". Needed only in a file of several networks."""
    prefix: Annotated[str | None, unset("PREFIX")] = None
    """Prefix of the network's tensor names, as `inspect` prints it. Needed only in a file of several prefixes."""
    ignore: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], unset("PATTERN")] = ()
    """Leave out tensors whose name matches this shell pattern (* and ?), such as '*.extra'. May be repeated."""
    stride_in_1x1: bool = False
    """The weights are of a v1 network, with a Bottleneck's stride on its first 1x1. A file cannot show that."""
    allow_pickle: bool = False
    """Accepted for older scripts; has no effect. Nothing in a pickle is executed."""

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `load_model` and `convert`."""
        chosen = ("model", "key", "prefix", "ignore", "stride_in_1x1")
        return {name: getattr(self, name) for name in chosen}


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """What the commands that load weights have in common."""

    file: tyro.conf.OmitArgPrefixes[FileChoices] = field(default_factory=FileChoices)


@dataclass(frozen=True)
class Inspect:
    """Show what is in a weights file: the networks, their keys and prefixes, and the command that loads them.

    Example: `resnet-core inspect checkpoint.pth.tar`
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A weights file of any library, or a folder that a library saved."""
    ignore: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], unset("PATTERN")] = ()
    """Leave out tensors whose name matches this shell pattern (* and ?), such as '*.extra'. May be repeated."""
    stride_in_1x1: bool = False
    """The weights are of a v1 network, with a Bottleneck's stride on its first 1x1. A file cannot show that."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        found = inspect_weights(self.path, ignore=self.ignore, stride_in_1x1=self.stride_in_1x1)
        print(json.dumps(found.to_json(), indent=2) if self.json else found)


@dataclass(frozen=True)
class Convert(FromFile):
    """Convert another library's weights to ours, after comparing the outputs with another implementation's.

    Example: `resnet-core convert pytorch_model.bin resnet50.safetensors --source timm`
    """

    src: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A weights file of any library, or a folder that a library saved."""
    dst: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The .safetensors file to write."""
    source: Annotated[str | None, unset("LIBRARY")] = None
    """Compare with this library's own network: timm, transformers, keras, composer or torchvision."""
    resize_size: Annotated[int | None, unset("PIXELS")] = None
    """Size to which `predict` resizes an image's shorter side. Recorded in the file."""
    crop_size: Annotated[int | None, unset("PIXELS")] = None
    """Height and width of the crop that `predict` then takes. Recorded in the file."""

    def __post_init__(self) -> None:
        if (self.resize_size is None) != (self.crop_size is None):
            raise ValueError("--resize-size and --crop-size go together: give both or neither")

    def __call__(self) -> None:
        sizes = None
        if self.resize_size is not None and self.crop_size is not None:
            sizes = (self.resize_size, self.crop_size)
        convert(
            self.src,
            self.dst,
            source=self.source,
            sizes=sizes,
            **self.file.arguments(),
            report=print,
        )
