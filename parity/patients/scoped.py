"""A ResNet whose stem, blocks and head each make their own choices, so that a mistake can be in one of them alone.

`CHANGES` are the mistakes: which choices they change, and where they can be made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def max_pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, 1)


def average_pool() -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How one part of the network is made; these defaults are right."""

    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    act: Callable[[], nn.Module] = nn.ReLU
    bias: bool = False
    projection_bias: bool = False
    # Of a block.
    inner_act: bool = True
    end: Literal["add, act", "act, add", "add", "mean, act"] = "add, act"
    shortcut: Literal["B", "A", "A both", "average", "plain", "rectified", "half", "none", "always"] = "B"
    norm_after_act: bool = False
    dilation: int = 1
    kernel: int = 3
    groups: int = 1
    stride_first: bool = False
    same_padding: bool = False
    gate: bool = False
    dropout: float = 0.0
    # Of the stem.
    stem: tuple[int, int, int] = (7, 2, 3)
    deep: bool = False
    stem_norm: bool = True
    stem_act: bool = True
    pool: Callable[[], nn.Module] = max_pool
    normalise: bool = False
    # Of the head.
    head_pool: Callable[[], nn.Module] = average_pool
    head_dropout: float = 0.0
    head_bias: bool = True
    hidden: int = 0
    output: Callable[[], nn.Module] = nn.Identity


class Keep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class ZeroPadded(nn.Module):
    def __init__(self, stride: int, new: int, both: bool) -> None:
        super().__init__()
        self.stride, self.sides = stride, (new // 2, new - new // 2) if both else (0, new)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :: self.stride, :: self.stride]
        before, after = (x.new_zeros(len(x), side, *x.shape[2:]) for side in self.sides)
        return torch.cat([before, x, after], 1)


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class Unit(nn.Module):
    def __init__(self, ins: int, planes: int, stride: int, wide: bool, choices: Choices) -> None:
        super().__init__()
        outs = planes * 4 if wide else planes
        self.choices = choices
        sizes = (1, choices.kernel, 1) if wide else (choices.kernel, choices.kernel)
        widths = (ins, planes, planes, outs) if wide else (ins, planes, outs)
        strided = 1 if wide and not choices.stride_first else 0
        self.layers = nn.ModuleList()
        for number, size in enumerate(sizes):
            step = stride if number == strided else 1
            self.layers.append(self.convolution(widths[number], widths[number + 1], size, step))
            act = number < len(sizes) - 1 and (choices.inner_act or number > 0)
            rest = [choices.norm(widths[number + 1]), *([choices.act()] if act else [])]
            self.layers.extend(rest[::-1] if choices.norm_after_act and act else rest)
        if choices.dropout:
            self.layers.append(nn.Dropout(choices.dropout))
        if choices.gate:
            self.layers.append(Gate(outs))
        self.skip = self.make_skip(ins, outs, stride)
        self.act = choices.act()

    def convolution(self, ins: int, outs: int, size: int, stride: int) -> nn.Module:
        dilation = self.choices.dilation if size > 1 else 1
        groups = self.choices.groups if size > 1 else 1
        layer = partial(nn.Conv2d, ins, outs, size, stride, dilation=dilation, groups=groups, bias=self.choices.bias)
        if self.choices.same_padding and size == 3 and stride == 2:
            return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer())
        return layer(padding=size // 2 * dilation)

    def make_skip(self, ins: int, outs: int, stride: int) -> nn.Module:
        kind, needed = self.choices.shortcut, stride != 1 or ins != outs
        if kind == "none" or not (needed or kind == "always"):
            return Keep()
        if kind in ("A", "A both"):
            return ZeroPadded(stride, outs - ins, kind == "A both")
        pooled = kind == "average" and stride > 1
        bias = self.choices.bias or self.choices.projection_bias
        layers: list[nn.Module] = [nn.AvgPool2d(stride, stride)] if pooled else []
        layers.append(nn.Conv2d(ins, outs, 1, 1 if pooled else stride, bias=bias))
        if kind != "plain":
            layers.append(self.choices.norm(outs))
        return nn.Sequential(*layers, *([nn.ReLU()] if kind == "rectified" else []))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        if self.choices.shortcut == "none":
            return self.act(y)
        x = self.skip(x) * (0.5 if self.choices.shortcut == "half" else 1)
        match self.choices.end:
            case "act, add":
                return self.act(y) + x
            case "add":
                return y + x
            case "mean, act":
                return self.act((y + x) / 2)
        return self.act(y + x)


class Network(nn.Module):
    """`parts` gives the choices of "stem", "head" and of each (stage, number)."""

    def __init__(self, depths: Sequence[int], wide: bool, parts: Callable[[Any], Choices], width: int = 64) -> None:
        super().__init__()
        stem, head = parts("stem"), parts("head")
        size, stride, padding = stem.stem
        first: list[nn.Module] = [nn.Conv2d(3, width, size, stride, padding, bias=stem.bias)]
        if stem.deep:
            first = [nn.Conv2d(3, 32, 3, 2, 1, bias=stem.bias), stem.norm(32), stem.act()]
            first += [nn.Conv2d(32, 32, 3, 1, 1, bias=stem.bias), stem.norm(32), stem.act()]
            first += [nn.Conv2d(32, 64, 3, 1, 1, bias=stem.bias)]
        first += [stem.norm(width)] if stem.stem_norm else []
        first += [stem.act()] if stem.stem_act else []
        self.normalise = stem.normalise
        self.stem = nn.Sequential(*first, stem.pool())

        units, ins = [], width
        for stage, depth in enumerate(depths, 1):
            planes = width * 2 ** (stage - 1)
            for number in range(depth):
                step = 2 if number == 0 and stage > 1 else 1
                units.append(Unit(ins, planes, step, wide, parts((stage, number))))
                ins = planes * 4 if wide else planes
        self.units = nn.ModuleList(units)

        self.pool = head.head_pool()
        self.drop = nn.Dropout(head.head_dropout) if head.head_dropout else Keep()
        layers: list[nn.Module] = [nn.Linear(ins, head.hidden), nn.ReLU()] if head.hidden else []
        self.head = nn.Sequential(*layers, nn.Linear(head.hidden or ins, 7, bias=head.head_bias), head.output())

    def forward(self, x: Tensor) -> Tensor:
        if self.normalise:
            x = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.25
        x = self.stem(x)
        for unit in self.units:
            x = unit(x)
        return self.head(self.drop(torch.flatten(self.pool(x), 1)))


Scope = Literal["everywhere", "stage", "block"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mistake: its choices, and what excludes it."""

    choices: dict[str, Any]
    group: str
    """Words; changes that share one are not made together."""
    where: Literal["stem", "head", "blocks", "all"] = "blocks"
    """"all" is everywhere in the network; in one stage or block as well."""
    wide: bool | None = None
    """Whether only Bottlenecks, or only BasicBlocks, can have it."""
    first_only: bool = False
    """Whether only the first block of a stage can have it: of layer2 to layer4 in BasicBlocks."""
    strided: bool = False
    """Whether only blocks with a stride can have it."""
    rest: dict[str, str] = field(default_factory=dict)
    """Scope -> the name, where it is not the usual one."""


def norm(**settings: Any) -> dict[str, Any]:
    return {"norm": partial(nn.BatchNorm2d, **settings)}


STEM: dict[str, Any] = {"where": "stem"}
HEAD: dict[str, Any] = {"where": "head"}
CHANGES: dict[str, Change] = {
    "BatchNorm eps 2e-5": Change(choices=norm(eps=2e-5), group="norm", where="all"),
    "BatchNorm eps 1e-3": Change(choices=norm(eps=1e-3), group="norm", where="all"),
    "BatchNorm momentum 0.01": Change(choices=norm(momentum=0.01), group="norm", where="all"),
    "BatchNorm without scale and shift": Change(choices=norm(affine=False), group="norm", where="all"),
    "BatchNorm without running statistics": Change(choices=norm(track_running_stats=False), group="norm", where="all"),
    "GroupNorm of 8 groups instead of BatchNorm": Change(
        choices={"norm": partial(nn.GroupNorm, 8)}, group="norm", where="all"
    ),
    "InstanceNorm instead of BatchNorm": Change(choices={"norm": nn.InstanceNorm2d}, group="norm", where="all"),
    "no BatchNorm": Change(choices={"norm": lambda channels: nn.Identity()}, group="norm", where="all"),
    "LeakyReLU negative_slope 0.2 instead of ReLU": Change(
        choices={"act": partial(nn.LeakyReLU, 0.2)}, group="act", where="all"
    ),
    "GELU instead of ReLU": Change(choices={"act": nn.GELU}, group="act", where="all"),
    "SiLU instead of ReLU": Change(choices={"act": nn.SiLU}, group="act", where="all"),
    "ReLU6 instead of ReLU": Change(choices={"act": nn.ReLU6}, group="act", where="all"),
    "biased convolutions": Change(choices={"bias": True}, group="bias", where="all"),
    "no ReLU inside the block": Change(choices={"inner_act": False}, group="inner"),
    "BatchNorm after ReLU behind the first convolution": Change(
        choices={"norm_after_act": True}, group="inner norm", wide=False
    ),
    "ReLU before the addition": Change(choices={"end": "act, add"}, group="end"),
    "no ReLU after the addition": Change(choices={"end": "add"}, group="end"),
    "branch and shortcut averaged": Change(choices={"end": "mean, act"}, group="end"),
    "identity shortcut without projection": Change(choices={"shortcut": "A"}, group="shortcut", first_only=True),
    "identity shortcut without projection, zeros on both sides": Change(
        choices={"shortcut": "A both"}, group="shortcut", first_only=True
    ),
    "average-pool shortcut": Change(choices={"shortcut": "average"}, group="shortcut", first_only=True, strided=True),
    "no BatchNorm in the shortcut": Change(
        choices={"shortcut": "plain"},
        group="shortcut norm",
        first_only=True,
        rest={"stage": "no BatchNorm in the shortcuts of layer{}"},
    ),
    "ReLU on the projected shortcut": Change(choices={"shortcut": "rectified"}, group="shortcut", first_only=True),
    "shortcut halved": Change(choices={"shortcut": "half"}, group="shortcut"),
    "no shortcut": Change(choices={"shortcut": "none"}, group="shortcut end"),
    "stride on the first 1x1": Change(
        choices={"stride_first": True}, group="stride", wide=True, first_only=True, strided=True
    ),
    "dilation 2 in the 3x3": Change(choices={"dilation": 2}, group="conv", wide=True),
    "5x5 instead of the 3x3": Change(choices={"kernel": 5}, group="conv", wide=True),
    "2 groups in the 3x3": Change(choices={"groups": 2}, group="conv", wide=True),
    "SAME padding in the strided 3x3": Change(
        choices={"same_padding": True}, group="conv", first_only=True, strided=True
    ),
    "squeeze-and-excitation": Change(choices={"gate": True}, group="gate"),
    "dropout 0.3 inside the block": Change(choices={"dropout": 0.3}, group="dropout"),
    "3x3 stem": Change(choices={"stem": (3, 2, 1)}, group="stem", **STEM),
    "3x3 stem of stride 1": Change(choices={"stem": (3, 1, 1)}, group="stem", **STEM),
    "5x5 stem": Change(choices={"stem": (5, 2, 2)}, group="stem", **STEM),
    "padding 2 in the stem's convolution": Change(choices={"stem": (7, 2, 2)}, group="stem", **STEM),
    "deep stem of three 3x3": Change(choices={"deep": True}, group="stem", **STEM),
    "no stem BatchNorm": Change(choices={"stem_norm": False}, group="stem norm", **STEM),
    "no stem ReLU": Change(choices={"stem_act": False}, group="stem act", **STEM),
    "no max-pool": Change(choices={"pool": nn.Identity}, group="pool", **STEM),
    "2x2 max-pool": Change(choices={"pool": partial(nn.MaxPool2d, 2)}, group="pool", **STEM),
    "max-pool without padding": Change(choices={"pool": partial(nn.MaxPool2d, 3, 2)}, group="pool", **STEM),
    "average pool in the stem": Change(choices={"pool": partial(nn.AvgPool2d, 3, 2, 1)}, group="pool", **STEM),
    "SAME padding in the max-pool": Change(
        choices={"pool": partial(nn.MaxPool2d, 3, 2, ceil_mode=True)}, group="pool", **STEM
    ),
    "normalised input": Change(choices={"normalise": True}, group="input", **STEM),
    "max-pool at the head": Change(choices={"head_pool": partial(nn.AdaptiveMaxPool2d, 1)}, group="head pool", **HEAD),
    "dropout before the head": Change(choices={"head_dropout": 0.5}, group="head dropout", **HEAD),
    "dropout 0.2 before the head": Change(choices={"head_dropout": 0.2}, group="head dropout", **HEAD),
    "head without bias": Change(choices={"head_bias": False}, group="head", **HEAD),
    "head of 2 linear layers": Change(choices={"hidden": 16}, group="head", **HEAD),
    "softmax in the output": Change(choices={"output": partial(nn.Softmax, 1)}, group="output", **HEAD),
    "log-softmax in the output": Change(choices={"output": partial(nn.LogSoftmax, 1)}, group="output", **HEAD),
    "sigmoid in the output": Change(choices={"output": nn.Sigmoid}, group="output", **HEAD),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one kind: their depths, blocks and width, and what is right in them."""

    depths: tuple[int, ...]
    wide: bool = False
    width: int = 64
    right: Choices = Choices()
    without: frozenset[str] = frozenset()
    """Groups of changes that make no sense here."""


FAMILIES = {
    "BasicBlock": Family(depths=(2, 1, 2, 1)),
    "Bottleneck": Family(depths=(1, 2, 1, 1), wide=True),
    "CIFAR": Family(
        depths=(2, 2, 2),
        width=16,
        right=Choices(stem=(3, 1, 1), pool=nn.Identity),
        without=frozenset({"stem", "pool"}),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A change made somewhere, and what it is called there."""

    name: str
    change: Change
    parts: frozenset[Any]
    """"stem", "head" and (stage, number)."""


def plants(name: str, family: Family) -> dict[Scope, list[Plant]]:
    """The change in every place of each scope."""
    change, depths = CHANGES[name], family.depths
    excluded = not family.without.isdisjoint(change.group.split())
    if excluded or change.wide not in (None, family.wide):
        return {}
    if change.where in ("stem", "head"):
        return {"everywhere": [Plant(name=name, change=change, parts=frozenset({change.where}))]}

    blocks = [(stage, number) for stage, depth in enumerate(depths, 1) for number in range(depth)]
    if change.first_only:
        blocks = [each for each in blocks if each[1] == 0 and (each[0] > 1 or (family.wide and not change.strided))]
    everywhere = frozenset({*blocks, *(("stem",) if change.where == "all" else ())})
    found: dict[Scope, list[Plant]] = {"everywhere": [Plant(name=name, change=change, parts=everywhere)]}

    stage_name = change.rest.get("stage", name + " in layer{}")
    for stage in sorted({stage for stage, _ in blocks}):
        here = frozenset(each for each in blocks if each[0] == stage)
        found.setdefault("stage", []).append(Plant(name=stage_name.format(stage), change=change, parts=here))
        if depths[stage - 1] > 1 and not change.first_only:
            for at in sorted(here):
                plant = Plant(name=f"{name} in layer{stage}.{at[1]}", change=change, parts=frozenset({at}))
                found.setdefault("block", []).append(plant)
    return found


def build(family: Family, chosen: Sequence[Plant]) -> Network:
    """The network with these plants."""

    def parts(place: Any) -> Choices:
        choices = family.right
        for plant in chosen:
            if place in plant.parts:
                choices = replace(choices, **plant.change.choices)
        return choices

    return Network(family.depths, family.wide, parts, family.width)


def draw(seed: int, family: Family, count: int) -> list[Plant]:
    """That many plants that can be made together, drawn at random."""
    generator = random.Random(seed)
    chosen: list[Plant] = []
    for name in generator.sample(list(CHANGES), len(CHANGES)):
        scopes = plants(name, family)
        taken = {word for plant in chosen for word in plant.change.group.split()}
        if scopes and taken.isdisjoint(CHANGES[name].group.split()) and len(chosen) < count:
            chosen.append(generator.choice(scopes[generator.choice(list(scopes))]))
    return chosen
