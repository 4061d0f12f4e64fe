"""A traced network as a ResNet: the layers of its stem, its blocks and its head.

A structure can be run, so that it can be held to what its network computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from torch import Tensor

from resnet_core.comparison.chain import EntangledError, layers_of
from resnet_core.comparison.grouping import is_gate
from resnet_core.comparison.layers import Layer, count, keys, run, whole
from resnet_core.comparison.operations import Trace


@dataclass(frozen=True)
class Block:
    """A residual block: what is added to its shortcut, the shortcut, and what follows the addition."""

    branch: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] | None
    """None: the block has no shortcut."""
    join: Layer | None
    after: tuple[Layer, ...]
    shared: int = 0
    """How many of the branch's first layers the shortcut reads through, as the projections of pre-activation do."""
    stage: int = 1
    number: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        shortcut = None if self.shortcut is None else keys(self.shortcut)
        join = self.join.settings if self.join else {}
        return keys(self.branch), shortcut, tuple(sorted(join.items())), keys(self.after), self.shared

    @property
    def name(self) -> str:
        return f"layer{self.stage}.{self.number}"

    @property
    def channels(self) -> int:
        """What the block writes."""
        return next((layer.settings["out"] for layer in reversed(self.branch) if layer.kind == "conv"), 0)

    @property
    def stride(self) -> int:
        return math.prod(whole(layer.settings["stride"]) for layer in self.branch if "stride" in layer.settings)

    def layers(self) -> Iterator[Layer]:
        yield from (*self.branch, *(self.shortcut or ()), *self.after)

    def __call__(self, x: Tensor) -> Tensor:
        if self.join is None:
            return run((*self.branch, *self.after), x)
        return run(self.after, self.join(run(self.branch[: self.shared], x)))


@dataclass(frozen=True)
class Structure:
    """A network from its images to its logits."""

    stem: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    head: tuple[Layer, ...]

    @property
    def depths(self) -> tuple[int, ...]:
        stages = [block.stage for block in self.blocks]
        return tuple(stages.count(stage) for stage in sorted(set(stages)))

    def layers(self) -> Iterator[Layer]:
        yield from self.stem
        for block in self.blocks:
            yield from block.layers()
        yield from self.head

    def __call__(self, images: Tensor) -> Tensor:
        x = run(self.stem, images)
        for block in self.blocks:
            x = block(x)
        return run(self.head, x)


def is_residual(layer: Layer) -> bool:
    by = layer.settings.get("by")
    joins = by in ("add", "sub", "maximum") or (by == "cat" and () in layer.arms)
    return layer.kind == "join" and joins and len(layer.arms) == 2 and any(count(arm, "conv") for arm in layer.arms)


def goes_around_blocks(layer: Layer) -> bool:
    """Whether a layer adds ways of which one has a block in it. What a gate joins is none."""
    parts = [part for arm in layer.arms for part in arm if not is_gate(part)]
    return any(is_residual(part) or goes_around_blocks(part) for part in parts)


def structure_of(trace: Trace, like: Structure | None = None) -> Structure:
    """The network's stem, blocks and head. Blocks without shortcut are taken to be as long as those of `like`."""
    runs: list[list[Layer]] = [[]]
    joins: list[Layer] = []
    for layer in layers_of(trace):
        if layer.settings.get("by") in ("add", "sub", "cat", "maximum") and goes_around_blocks(layer):
            raise EntangledError(
                f"the shortcut that ends at {layer.operation.place} goes around whole blocks; the doctor judges "
                "networks of blocks, each with one shortcut around it"
            )
        if is_residual(layer):
            joins.append(layer)
            runs.append([])
        else:
            runs[-1].append(layer)

    length = count(like.blocks[0].branch, "conv") if like and like.blocks else 2
    *before, last = runs
    last, head = without_head(last)
    head = [*map(as_linear, head)]
    runs = [*before, last]

    # The stem, and blocks without shortcut that follow it.
    stem, plain = stem_and_rest(runs[0], length)
    blocks = plain_blocks(plain, length)
    shared: list[Layer] = []
    if joins and completes(plain, joins[0], length):
        blocks, shared = [], plain
    elif joins and not blocks:
        stem, shared = without_prelude(stem, stem, joins[0])

    # Each join ends a block; what follows it is its own, the next one's, or blocks without shortcut.
    for join, following, upcoming in zip(joins, runs[1:], [*joins[1:], None], strict=False):
        branch, shortcut = sorted(join.arms, key=lambda arm: (count(arm, "conv"), len(arm)), reverse=True)
        start = next((number for number, layer in enumerate(following) if layer.kind == "conv"), len(following))
        after, plain = following[:start], following[start:]
        here, shared = shared, []
        if upcoming is None:
            after, rest = without_last_norm(after, branch, head, branch)
            head = [*rest, *head] if not plain else head
        elif completes(plain, upcoming, length):
            plain, shared = [], plain
        elif plain:
            plain, shared = without_prelude(plain, plain, upcoming)
        else:
            after, shared = without_prelude(after, branch, upcoming)
        blocks.append(Block((*here, *branch), shortcut, join, tuple(after), shared=len(here)))
        blocks += plain_blocks(plain, length)
    return Structure(tuple(stem), tuple(numbered(blocks)), tuple(head))


def without_head(layers: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """What stands before the pool over the whole map, or the first linear layer, and the rest."""
    for number, layer in enumerate(layers):
        if (
            layer.kind == "conv"
            and layer.settings["kernel"] == 1
            and [each.kind for each in layers[number + 1 :]] == ["pool"]
        ):
            return layers[:number], layers[number:]  # a convolution in place of the linear layer
        whole_map = layer.kind == "pool" and str(layer.settings["kernel"]).startswith(("global", "to "))
        if whole_map or layer.kind in ("linear", "dropout"):
            return layers[:number], layers[number:]
    acts = next((number for number, layer in enumerate(layers) if layer.kind not in ("act", "scale")), len(layers))
    return (layers, []) if count(layers, "conv") else (layers[:acts], layers[acts:])


def as_linear(layer: Layer) -> Layer:
    """A 1x1 convolution of one pixel is a linear layer."""
    if layer.kind != "conv" or layer.settings["kernel"] != 1 or layer.operation.read_shape[2:] != (1, 1):
        return layer
    return replace(layer, kind="linear", settings={k: v for k, v in layer.settings.items() if k in LINEAR})


LINEAR = ("out", "bias", "weight")


def stem_and_rest(layers: list[Layer], length: int) -> tuple[list[Layer], list[Layer]]:
    """The stem ends with its pool, or with its last convolution: the only one, or the last of a deep stem."""
    pools = [number for number, layer in enumerate(layers) if layer.kind == "pool"]
    places = [number for number, layer in enumerate(layers) if layer.kind == "conv"]
    if pools:
        end = pools[0] + 1
    else:
        widths = [layers[place].settings["out"] for place in places]
        deep = len(set(widths)) > 1 and len(places) <= 3
        blocks = 0 if deep or len(places) <= length else (len(places) - 1) // length
        first = len(places) - blocks * length
        end = places[first] if blocks else len(layers)
    end = end if any(layer.kind == "conv" for layer in layers[end:]) else len(layers)
    return layers[:end], layers[end:]


def without_prelude(layers: Sequence[Layer], before: Sequence[Layer], join: Layer) -> tuple[list[Layer], list[Layer]]:
    """The layers before, and from, the norm that belongs to the pre-activated block that ends with `join`."""
    branch = max(join.arms, key=lambda arm: (count(arm, "conv"), len(arm)))
    if [layer.kind for layer in branch if layer.kind in ("norm", "conv")][:1] != ["conv"]:
        return [*layers], []
    return without_last_norm(layers, before, branch, branch)


def without_last_norm(
    layers: Sequence[Layer], before: Sequence[Layer], behind: Sequence[Layer], branch: Sequence[Layer]
) -> tuple[list[Layer], list[Layer]]:
    """The layers before, and from, the last norm, where the branch's last convolution has none.

    All stay together where that norm stands in the code with what comes before, not with what comes behind.
    """
    norms = [number for number, layer in enumerate(layers) if layer.kind == "norm"]
    kinds = [layer.kind for layer in branch if layer.kind in ("norm", "conv")]
    if not norms or "norm" not in kinds or kinds[-1] != "conv":
        return [*layers], []
    norm = layers[norms[-1]]
    apart = [modules_between(norm, around) for around in (before[::-1], behind)]
    split = norms[-1] if apart[0] >= apart[1] else len(layers)
    return [*layers[:split]], [*layers[split:]]


def modules_between(layer: Layer, others: Sequence[Layer]) -> int:
    """How many modules hold only one of a layer and the first of others that has weights."""
    other = next((each for each in others if each.kind in ("conv", "linear")), layer)
    paths = [each.operation.path.split(".")[:-1] for each in (layer, other)]
    both = takewhile(lambda pair: pair[0] == pair[1], zip(*paths, strict=False))
    return sum(map(len, paths)) - 2 * sum(1 for _ in both)


def completes(layers: Sequence[Layer], join: Layer, length: int) -> bool:
    """Whether these layers are what the branch of `join` lacks: its shortcut then begins behind them."""
    branch = max(count(arm, "conv") for arm in join.arms)
    return branch < length == branch + count(layers, "conv")


def plain_blocks(layers: Sequence[Layer], length: int) -> list[Block]:
    """Blocks without shortcut, each of `length` convolutions and what follows them."""
    places = [number for number, layer in enumerate(layers) if layer.kind == "conv"]
    blocks: list[Block] = []
    if not places:
        return blocks
    for start, end in zip([0, *places[length::length]], [*places[length::length], len(layers)], strict=False):
        part = layers[start:end]
        close = max(number for number, layer in enumerate(part) if layer.kind not in ("act", "scale")) + 1
        blocks.append(Block(tuple(part[:close]), None, None, tuple(part[close:])))
    return blocks


def numbered(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks with their stages: a new one begins where the channels or the resolution change."""
    stage, number, channels = 1, 0, None
    for block in blocks:
        if channels is not None and (block.channels != channels or block.stride != 1):
            stage, number = stage + 1, 0
        yield replace(block, stage=stage, number=number)
        channels, number = block.channels, number + 1
