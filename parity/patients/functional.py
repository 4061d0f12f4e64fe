"""A ResNet in functional style, into which any one of MISTAKES can be planted by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def keep(x: Tensor) -> Tensor:
    return x


def padded_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **options)


class SameConv(nn.Conv2d):
    """TensorFlow's padding for an even image: what does not divide evenly goes after, not before."""

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        return super().forward(F.pad(x, (total // 2, total - total // 2) * 2))


def stem_max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, 1)


def stem_same_max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)


def stem_small_max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 2)


def stem_average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 2, 1)


def add_then_relu(branch: Tensor, shortcut: Tensor) -> Tensor:
    return F.relu(branch + shortcut)


def relu_then_add(branch: Tensor, shortcut: Tensor) -> Tensor:
    return F.relu(branch) + shortcut


def add_only(branch: Tensor, shortcut: Tensor) -> Tensor:
    return branch + shortcut


def add_half(branch: Tensor, shortcut: Tensor) -> Tensor:
    return F.relu(branch + 0.5 * shortcut)


def average(branch: Tensor, shortcut: Tensor) -> Tensor:
    return F.relu((branch + shortcut) / 2)


def mean_of_map(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def maximum_of_map(x: Tensor) -> Tensor:
    return F.adaptive_max_pool2d(x, 1).flatten(1)


def probabilities(x: Tensor) -> Tensor:
    return F.softmax(x, dim=1)


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, design: Design) -> None:
        super().__init__()
        self.match_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=design.bias)
        self.match_norm = design.norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.match_norm(self.match_conv(x))


class RectifiedProjection(Projection):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class PooledProjection(Projection):
    def __init__(self, inputs: int, outputs: int, stride: int, design: Design) -> None:
        super().__init__(inputs, outputs, 1, design)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(x, self.stride, self.stride))


class PlainProjection(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, design: Design) -> None:
        super().__init__()
        self.match_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=design.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.match_conv(x)


class ZeroPaddedIdentity(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, design: Design) -> None:
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


class Unit(nn.Module):
    """conv-norm-relu, and the shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int, design: Design) -> None:
        super().__init__()
        outputs = planes * design.expansion
        layers = design.layers(inputs, planes, stride)
        self.design = design
        convs = [make(*sizes, bias=design.bias, groups=groups) for make, sizes, groups in layers]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(design.norm(self.normed(conv)) for conv in convs)
        needed = stride != 1 or inputs != outputs or design.project_always
        self.bridge = design.projection(inputs, outputs, stride, design) if needed else None

    def normed(self, conv: nn.Conv2d) -> int:
        return conv.out_channels

    def branch(self, x: Tensor) -> Tensor:
        activations = [self.design.first_activation, F.relu][: len(self.convs) - 1]
        for conv, norm, activation in zip(self.convs, self.norms, [*activations, keep], strict=True):
            x = activation(norm(conv(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.design.join(self.branch(x), x if self.bridge is None else self.bridge(x))


class PreActivatedUnit(Unit):
    """norm-relu-conv, and the shortcut."""

    def normed(self, conv: nn.Conv2d) -> int:
        return conv.in_channels

    def branch(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(F.relu(norm(x)))
        return x


@dataclass(frozen=True, kw_only=True)
class Design:
    """Every choice that a mistake can get wrong; what stands here is right."""

    depths: tuple[int, ...]
    bottleneck: bool
    expansion: int
    groups: int
    inner: int  # width of the 3x3 in the first stage, all groups together
    extra_blocks: tuple[int, ...] = (0, 0, 0, 0)
    planes: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    widening: int = 1
    stride_on_first: bool = False
    bias: bool = False
    eps: float = 1e-5
    momentum: float = 0.1
    stem_kernel: int = 7
    stem_conv: Callable[..., nn.Conv2d] = padded_conv
    stem_normed: bool = True
    stem_activation: Callable[[Tensor], Tensor] = F.relu
    stem_pool: Callable[[Tensor], Tensor] = stem_max_pool
    unit: type[Unit] = Unit
    conv3x3: Callable[..., nn.Conv2d] = padded_conv
    first_activation: Callable[[Tensor], Tensor] = F.relu
    projection: type[nn.Module] = Projection
    project_always: bool = False
    join: Callable[[Tensor, Tensor], Tensor] = add_then_relu
    head_pool: Callable[[Tensor], Tensor] = mean_of_map
    head_dropout: float = 0.0
    output: Callable[[Tensor], Tensor] = keep

    def norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, self.eps, self.momentum)

    def layers(self, inputs: int, planes: int, stride: int) -> list[tuple[Callable[..., nn.Conv2d], Any, int]]:
        """A unit's convolutions: constructor, (inputs, outputs, kernel, stride), groups."""
        if not self.bottleneck:
            return [(self.conv3x3, (inputs, planes, 3, stride), 1), (self.conv3x3, (planes, planes, 3, 1), 1)]
        inner = planes // 64 * self.inner * self.widening
        first, second = (stride, 1) if self.stride_on_first else (1, stride)
        return [
            (padded_conv, (inputs, inner, 1, first), 1),
            (self.conv3x3, (inner, inner, 3, second), self.groups),
            (padded_conv, (inner, planes * self.expansion, 1, 1), 1),
        ]


class ResidualNetwork(nn.Module):
    def __init__(self, design: Design, num_classes: int) -> None:
        super().__init__()
        self.design = design
        self.stem_conv = design.stem_conv(3, 64, design.stem_kernel, 2, bias=design.bias)
        if design.stem_normed:
            self.stem_norm = design.norm(64)
        groups = []
        channels = 64
        depths = map(sum, zip(design.depths, design.extra_blocks, strict=True))
        for planes, stride, depth in zip(design.planes, design.strides, depths, strict=True):
            group = []
            for number in range(depth):
                group.append(design.unit(channels, planes, stride if number == 0 else 1, design))
                channels = planes * design.expansion
            groups.append(nn.Sequential(*group))
        self.groups_of_blocks = nn.ModuleList(groups)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_conv(x)
        x = self.stem_norm(x) if self.design.stem_normed else x
        x = self.design.stem_pool(self.design.stem_activation(x))
        for group in self.groups_of_blocks:
            x = group(x)
        x = F.dropout(self.design.head_pool(x), self.design.head_dropout, self.training)
        return self.design.output(self.classifier(x))


# Each mistake -> the choices that it gets wrong.
CHANGES: dict[str, dict[str, Any]] = {
    "stride on the first 1x1": {"stride_on_first": True},
    "stride 2 on the first stage only": {"strides": (2, 1, 1, 1)},
    "no stride in layer2": {"strides": (1, 1, 2, 2)},
    "no stride in layer3": {"strides": (1, 2, 1, 2)},
    "no stride in layer4": {"strides": (1, 2, 2, 1)},
    "SAME padding in the stem": {"stem_conv": SameConv},
    "SAME padding in the max-pool": {"stem_pool": stem_same_max_pool},
    "SAME padding in the strided 3x3": {"conv3x3": SameConv},
    "no max-pool": {"stem_pool": keep},
    "2x2 max-pool": {"stem_pool": stem_small_max_pool},
    "average pool in the stem": {"stem_pool": stem_average_pool},
    "no stem ReLU": {"stem_activation": keep},
    "no stem BatchNorm": {"stem_normed": False},
    "ReLU before the addition": {"join": relu_then_add},
    "no ReLU after the addition": {"join": add_only},
    "no BatchNorm in the shortcut": {"projection": PlainProjection},
    "projection on every block": {"project_always": True},
    "average-pool shortcut": {"projection": PooledProjection},
    "identity shortcut without projection": {"projection": ZeroPaddedIdentity},
    "biased convolutions": {"bias": True},
    "BatchNorm eps 1e-3": {"eps": 1e-3},
    "BatchNorm eps 1.001e-5": {"eps": 1.001e-5},
    "BatchNorm momentum 0.9": {"momentum": 0.9},
    "wrong groups": {"groups": 2},
    "width doubled": {"widening": 2},
    "last stage not wider": {"planes": (64, 128, 256, 256)},
    "expansion 2": {"expansion": 2},
    "one block too many in layer3": {"extra_blocks": (0, 0, 1, 0)},
    "one block too few in layer3": {"extra_blocks": (0, 0, -1, 0)},
    "3x3 stem": {"stem_kernel": 3},
    "pre-activation order": {"unit": PreActivatedUnit, "projection": PlainProjection, "join": add_only},
    "dropout before the head": {"head_dropout": 0.5},
    "ReLU on the projected shortcut": {"projection": RectifiedProjection},
    "shortcut halved": {"join": add_half},
    "branch and shortcut averaged": {"join": average},
    "max-pool at the head": {"head_pool": maximum_of_map},
    "softmax in the output": {"output": probabilities},
    "no ReLU inside the block": {"first_activation": keep},
}

MISTAKES: tuple[str, ...] = tuple(CHANGES)
NEEDS_BOTTLENECK = frozenset({"stride on the first 1x1", "wrong groups", "width doubled", "expansion 2"})


def build(
    depths: Sequence[int] = (3, 4, 6, 3), bottleneck: bool = True, mistake: str | None = None,
    num_classes: int = 1000, groups: int = 1, width: int = 64,
) -> ResidualNetwork:  # fmt: skip
    """A ResNet with one of MISTAKES, or a healthy one. Raises ValueError for a mistake that it cannot have."""
    if mistake is not None and mistake not in CHANGES:
        raise ValueError(f"mistake must be one of MISTAKES, got {mistake!r}")
    if mistake in NEEDS_BOTTLENECK and not bottleneck:
        raise ValueError(f"{mistake!r} is a bottleneck's mistake: build with bottleneck=True")
    if mistake == "one block too few in layer3" and depths[2] < 2:
        raise ValueError(f"{mistake!r} needs at least 2 blocks there to begin with, got depths={depths}")
    expansion = 4 if bottleneck else 1
    right = Design(
        depths=tuple(depths), bottleneck=bottleneck, expansion=expansion, groups=groups, inner=groups * width
    )
    return ResidualNetwork(replace(right, **CHANGES[mistake]) if mistake else right, num_classes)
