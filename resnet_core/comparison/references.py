"""Which of our models a network is meant to be: `nearest(network)` is `resnet18(num_classes=10)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from resnet_core.comparison.chain import layers_of
from resnet_core.comparison.grouping import parts_of
from resnet_core.comparison.layers import Layer
from resnet_core.comparison.pair import Network, built
from resnet_core.comparison.trace import copied, trace
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import MODELS, on_meta
from resnet_core.models.resnet import WIDER, BasicBlock, Bottleneck

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A network of ours by its arguments. Calling it builds it."""

    network: type[nn.Module]
    arguments: tuple[Any, ...]
    """A block and the depths of its four stages, or a CIFAR network's n."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that differ from the class's own."""

    def __call__(self) -> nn.Module:
        return self.network(*self.arguments, **self.config)

    @property
    def small_images(self) -> bool:
        """Whether it was made for images of 32 pixels."""
        return self.network is CifarResNet or bool(self.config.get("small_images"))

    def __str__(self) -> str:
        """As Python builds it: `resnet18(num_classes=10)`."""
        for name, model in MODELS.items():
            if (model.network, model.arguments) == (self.network, self.arguments) and model.config == self.width:
                return f"{name}({written({key: self.config[key] for key in self.config if key not in model.config})})"
        if self.network is CifarResNet:
            return f"CifarResNet({written({'n': self.arguments[0], **self.config})})"
        block, depths = self.arguments
        return f"ResNet({block.__name__}, {list(depths)}, {written(self.config)})".replace(", )", ")")

    @property
    def width(self) -> dict[str, Any]:
        """The arguments that make a ResNeXt or a Wide ResNet of it."""
        return {key: value for key, value in self.config.items() if key in ("groups", "width_per_group")}


def written(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in config.items())


# The nearest model, by the shapes of weights.


def nearest(network: nn.Module, num_classes: int | None = None, images: Tensor | None = None) -> Reference:
    """The model of ours that has most of the network's convolutions: its block, depth, width, channels, classes, stem.

    `num_classes` is the number of logits, by default that of the last linear layer. `images` are some that the network
    takes: they show its channels, and convolutions that are written as products. Depths that differ from a model's
    in one stage, or add up to its blocks, are meant to be that model's; others are kept. Raises ValueError for a
    network without convolutions of images.
    """
    convolutions = convolutions_of(network, images)
    if not convolutions:
        raise ValueError(
            "the network holds no convolution of images, so it is nearest to no ResNet; put its layers into an "
            "nn.ModuleList if they are in a plain list, which torch does not look into, or name a reference"
        )

    if num_classes is None:
        heads = [len(parameter) for parameter in network.parameters() if parameter.dim() == 2]
        num_classes = heads[-1] if heads else None
    stem = convolutions[0]
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    small = stem[2:] == (3, 3) and (first is None or first.stride == (1, 1))

    channels = stem[1] if images is None else images.shape[1]
    usual = as_wide_as_usual(convolutions)
    candidates = [
        for_images(each, channels, num_classes, small) for each in (*candidates_of(convolutions), *candidates_of(usual))
    ]
    return min(
        candidates, key=lambda candidate: least_distance(convolutions, usual, convolutions_of(on_meta(candidate)))
    )


def refuse_volumes(network: nn.Module) -> None:
    if any(parameter.dim() == 5 for parameter in network.parameters()):
        raise ValueError(
            f"{type(network).__name__} has 3-D convolutions; compare takes networks for images, and networks for "
            "volumes and video are out of scope"
        )


def for_images(reference: Reference, channels: int, num_classes: int | None, small: bool) -> Reference:
    """The reference for these images and classes."""
    usual = 10 if reference.network is CifarResNet else 1000
    config = dict(reference.config)
    if num_classes not in (None, usual):
        config["num_classes"] = num_classes
    if channels != 3:
        config["in_channels"] = channels
    if small and reference.network is Backbone:
        config["small_images"] = True
    return replace(reference, config=config)


def as_wide_as_usual(convolutions: list[Shape]) -> list[Shape]:
    """The shapes that the network would have if its first stage were as wide as ours: 16 with three stages, else 64."""
    widths = [*dict.fromkeys(shape[0] for shape in convolutions[1:] if shape[2:] == (3, 3))]
    doubled = all(2 * narrow == wide for narrow, wide in pairwise(widths))
    if len(widths) not in (3, 4) or not doubled:
        return convolutions
    usual = 16 if len(widths) == 3 and convolutions[0][2:] == (3, 3) else 64
    stem, *rest = [(out * usual // widths[0], *others) for out, *others in convolutions]
    return [tuple(stem), *((out, before * usual // widths[0], *kernel) for out, before, *kernel in rest)]


def least_distance(convolutions: list[Shape], usual: list[Shape], expected: list[Shape]) -> int:
    """How far a network is from the expected one, in its own widths or, for some more, in the usual ones."""
    return min(distance(convolutions, expected), distance(usual, expected) + len(usual))


def candidates_of(convolutions: list[Shape]) -> Iterator[Reference]:
    """One reference of each kind of block and width, of the depths that these weights suggest."""
    yield of_blocks(BasicBlock, {}, [count // 2 for count in per_stage(convolutions[1:], (64, 128, 256, 512))])

    # A Bottleneck begins with a 1x1; what comes before the first is the stem. Widths with all four stages are meant.
    pointwise = next((number for number, shape in enumerate(convolutions) if shape[2:] == (1, 1)), 0)
    found = []
    for config in ({}, *{str(config): config for _, config in WIDER.values()}.values()):
        groups, base = config.get("groups", 1), config.get("width_per_group", 64)
        channels = [planes * base // 64 * groups for planes in (64, 128, 256, 512)]
        found.append((config, per_stage(convolutions[pointwise:], channels)))
    whole = [(config, depths) for config, depths in found if all(depths)]
    yield from (of_blocks(Bottleneck, config, depths) for config, depths in whole or found)

    n = max(1, round(sum(per_stage(convolutions[1:], (16, 32, 64))) / 6))
    for shortcut in ({}, {"shortcut": "B"}):
        yield Reference(network=CifarResNet, arguments=(n,), config=shortcut)


def per_stage(convolutions: Iterable[Shape], channels: Iterable[int]) -> list[int]:
    """How many 3x3 convolutions write these numbers of channels."""
    written = Counter(shape[0] for shape in convolutions if shape[2:] == (3, 3))
    return [written[number] for number in channels]


def of_blocks(block: type[nn.Module], config: Mapping[str, Any], found: list[int]) -> Reference:
    """The model with these blocks whose depths are nearest; with the depths found, where none is near."""
    rows = [
        model.arguments
        for model in MODELS.values()
        if model.network is Backbone and model.arguments[0] is block and dict(model.config) == config
    ]

    def unlike(row: tuple[Any, ...]) -> tuple[int, int]:
        """In how many stages the depths differ, and by how many blocks in all."""
        stages = sum(ours != theirs for ours, theirs in zip(row[1], found, strict=True))
        return stages, abs(sum(row[1]) - sum(found))

    row = min(rows, key=unlike)
    stages, blocks = unlike(row)
    if stages > 1 and blocks > 0:
        row = (block, tuple(max(1, depth) for depth in found))
    return Reference(network=Backbone, arguments=row, config=config)


def convolutions_of(network: nn.Module, images: Tensor | None = None) -> list[Shape]:
    """Shapes of the convolutions' weights, also of those that a parametrization computes.

    With `images`, also of those that are products of matrices.
    """
    if images is not None and holds_kernels(network):
        with suppress(Exception):  # whatever the network raises
            layers = layers_of(trace(copied(network).double(), images, fingerprints=False))
            parts = [part for layer in layers for part in (layer, *parts_of(layer)) if part.kind == "conv"]
            return [tuple(part.tensors["weight"].value.shape) for part in sorted(parts, key=started)]
    shapes = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            shapes.append(tuple(module.weight.shape))
        elif not isinstance(module, nn.Conv1d | nn.Conv3d | ParametrizationList):
            shapes += [tuple(each.shape) for each in module.parameters(recurse=False) if each.dim() == 4]
    return shapes


def holds_kernels(network: nn.Module) -> bool:
    """Whether a module that is no layer of torch's has a kernel, or a matrix of weights."""
    layers = nn.Linear, nn.Conv2d, ParametrizationList
    others = (module for module in network.modules() if not isinstance(module, layers))
    return any(parameter.dim() in (2, 4) for module in others for parameter in module.parameters(recurse=False))


def started(layer: Layer) -> int:
    return layer.operation.number


def distance(found: list[Shape], expected: list[Shape]) -> int:
    """How many convolutions only one of the two has: other kernels make another block, and count most."""
    kernels, channels, shapes = (
        (unmatched(found, expected, part), unmatched(expected, found, part))
        for part in (slice(2, None), slice(0, 2), slice(None))
    )
    return 4 * max(kernels) + 2 * sum(channels) + sum(shapes)


def unmatched(ours: list[Shape], theirs: list[Shape], part: slice) -> int:
    """How many of our shapes have no counterpart, of which this part is looked at."""
    return (Counter(shape[part] for shape in ours) - Counter(shape[part] for shape in theirs)).total()


# What is compared with what, on which images.

SIZES = {True: (32, 64, 224), False: (64, 224, 32)}
"""Pixels to try, by whether the reference was made for small images: some networks run on one size only."""


def complete(a: Network, b: Network | None, inputs: Tensor | None) -> tuple[Network, Tensor, str | None]:
    """The second network, images that both take, and in words what the reference is, where the caller did not say so.

    A second network that was left out is the model of ours that is nearest. Images that were left out get a size on
    which both networks run. Raises ValueError for 3-D networks.
    """
    network = sample(a, inputs)
    refuse_volumes(network)
    if b is None:
        inputs = images_for([network]) if inputs is None else inputs
        logits = output_of(network, inputs)
        classes = logits.shape[1] if isinstance(logits, Tensor) and logits.dim() == 2 else None
        b = nearest(network, classes, inputs)
        return b, inputs, f"{b}, the nearest of our models{in_common(network, b, inputs)}"

    return b, images_for([network, sample(b, inputs)]) if inputs is None else inputs, None


def in_common(network: nn.Module, reference: Reference, images: Tensor) -> str:
    """How few convolutions of the network the reference has; empty where it has half of them."""
    ours = convolutions_of(network, images)
    shared = (Counter(ours) & Counter(convolutions_of(on_meta(reference)))).total()
    return "" if 2 * shared >= len(ours) else f", which has {shared} of the network's {len(ours)} convolutions"


def classes_and_channels(network: Network) -> dict[str, int]:
    """What a model of ours needs to take the same images as the network, and to give as many logits."""
    like: Any = on_meta(complete(network, None, None)[0])
    return {"num_classes": like.fc.out_features, "in_channels": like.conv1.in_channels}


def sample(network: Network, inputs: Tensor | None) -> nn.Module:
    """A copy of the network, in evaluation mode. Lazy layers of the given one get their weights, by a first forward."""
    model = built(network)
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        output_of(model, torch.zeros(2, 3, 64, 64) if inputs is None else inputs)
    return copied(model).eval()


def images_for(networks: list[nn.Module]) -> Tensor:
    """Two random images of the first channels and size that all networks take, or of the first where none is."""
    shapes = convolutions_of(networks[0])
    small = bool(shapes) and nearest(networks[0]).small_images
    channels = dict.fromkeys((*(shape[1] for shape in shapes[:1]), 3, 1))
    generator = torch.Generator().manual_seed(0)
    tried = [torch.randn(2, each, size, size, generator=generator) for each in channels for size in SIZES[small]]
    taken = (images for images in tried if all(output_of(network, images) is not None for network in networks))
    return next(taken, tried[0])


@torch.no_grad()
def output_of(network: nn.Module, inputs: Tensor) -> Any:
    """What the network returns; None where it does not run on these images, for example because they are too small."""
    parameter = next(network.parameters(), inputs)
    try:
        return network(inputs.to(parameter.device, parameter.dtype))
    except Exception:  # whatever a network raises on images that it does not take
        return None
