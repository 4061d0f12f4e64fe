"""How two structures differ, layer by layer: the edits that make one network's layers of the other's.

Layers are aligned within the stem, within each block and within the head, so the cost grows with the networks' length
and not with the number of mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from resnet_core.comparison.layers import Layer
from resnet_core.comparison.structure import Block, Structure

Part = Literal["stem", "branch", "shortcut", "join", "after", "head", "block"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Place:
    """Where in a ResNet a layer stands, in the reference's terms."""

    part: Part
    slot: int = 0
    """How many convolutions of the part come before it, itself included."""
    stage: int = 0
    """0 outside the blocks."""
    number: int = 0

    @property
    def block(self) -> tuple[int, int]:
        return self.stage, self.number


@dataclass(frozen=True, eq=False)
class Edit:
    """One elementary difference: a setting, or a layer, shortcut or block that only one network has."""

    action: Literal["setting", "missing", "extra"]
    place: Place
    kind: str
    """The layer's, or "shortcut" or "block"."""
    setting: str = ""
    ours: Any = None
    theirs: Any = None
    layer: Layer | None = None
    """In the first network; where it lacks the layer, what stands before the gap."""
    reference: Layer | None = None


@dataclass(frozen=True)
class Differences:
    """All edits between two structures, and which blocks stand for which."""

    edits: tuple[Edit, ...]
    blocks: tuple[tuple[Block, Block], ...]
    """Ours and theirs."""
    cost: float


def compare_structures(ours: Structure, theirs: Structure) -> Differences:
    edits = [*of_layers(ours.stem, theirs.stem, Place("stem"))]
    costs: dict[Any, float] = {}

    def cost(block: Block, other: Block) -> float:
        key = block.key, other.key
        if key not in costs:
            costs[key] = sum(map(weight, of_blocks(block, other)))
            if alike(block, other):
                costs[key] = min(costs[key], BLOCK_GAP)
        return costs[key]

    blocks = []
    seen: set[tuple[str, ...]] = set()
    own = len({*map(weights, theirs.layers())} - {()}) == sum(bool(weights(layer)) for layer in theirs.layers())
    before = next(iter(theirs.blocks), None)
    for block, other in aligned(ours.blocks, theirs.blocks, cost, BLOCK_GAP):
        if block is not None and other is not None:
            edits += of_blocks(block, other)
            edits += shared_layers(block, other, seen) if own else ()
            blocks.append((block, other))
        elif block is not None:
            # A block too many belongs to the stage with its channels, or to that of the block before it.
            same = next((each for each in theirs.blocks if each.channels == block.channels), before)
            stage = same.stage if same and block.stage <= theirs.blocks[-1].stage else block.stage
            place = Place("block", 0, stage, block.number)
            edits.append(Edit("extra", place, "block", layer=block.branch[0] if block.branch else None))
        elif other is not None:
            last = blocks[-1][0].branch[-1] if blocks else ours.stem[-1] if ours.stem else None
            place = Place("block", 0, other.stage, other.number)
            edits.append(Edit("missing", place, "block", layer=last, reference=other.branch[0]))
        before = other or before

    edits += of_layers(ours.head, theirs.head, Place("head"))
    return Differences(tuple(edits), tuple(blocks), sum(map(weight, edits)))


def weights(layer: Layer) -> tuple[str, ...]:
    """Names of the weights that a layer uses."""
    return tuple(name for leaf in layer.tensors.values() if not leaf.made for name in leaf.names)


def shared_layers(block: Block, other: Block, seen: set[tuple[str, ...]]) -> Iterator[Edit]:
    """The layers of a block that use the weights of an earlier layer."""
    for layer in block.layers():
        if layer.kind in ("shift", "scale"):
            continue
        if weights(layer) in seen:
            place = Place("branch", 0, other.stage, other.number)
            yield Edit("setting", place, layer.kind, "weights", "shared", "its own", layer, layer)
        seen |= {weights(layer)} - {()}


def alike(block: Block, other: Block) -> bool:
    """Whether two blocks have convolutions of the same widths, whatever stands between them."""
    widths = [[layer.settings["out"] for layer in each.branch if layer.kind == "conv"] for each in (block, other)]
    return widths[0] == widths[1]


def of_blocks(ours: Block, theirs: Block) -> list[Edit]:
    def place(part: Part) -> Place:
        return Place(part, 0, theirs.stage, theirs.number)

    start = ours.branch[0] if ours.branch else None
    edits = [*of_layers(ours.branch, theirs.branch, place("branch"), start)]
    if ours.shortcut is None or theirs.shortcut is None:
        if ours.shortcut is not theirs.shortcut:
            action: Any = "missing" if ours.shortcut is None else "extra"
            edits.append(Edit(action, place("join"), "shortcut", layer=ours.join or start, reference=theirs.join))
    else:
        edits += of_layers(ours.shortcut, theirs.shortcut, place("shortcut"), start)
        if ours.shared != theirs.shared:
            numbers = ours.shared, theirs.shared
            edits.append(Edit("setting", place("join"), "shortcut", "shared", *numbers, ours.join, theirs.join))
        mine, other = (each.join.settings if each.join else {} for each in (ours, theirs))
        if mine != other:
            edits.append(Edit("setting", place("join"), "join", "times", mine, other, ours.join, theirs.join))
    return [*edits, *of_layers(ours.after, theirs.after, place("after"), ours.join or start)]


def of_layers(
    ours: Sequence[Layer], theirs: Sequence[Layer], where: Place, before: Layer | None = None
) -> Iterator[Edit]:
    """The edits between two sequences of layers. `before` is the layer of ours that comes before them."""
    slot = 0
    for layer, other in aligned(ours, theirs, unlikeness, 1.0):
        counted = other if other is not None else layer
        slot += counted is not None and counted.kind == "conv"
        place = Place(where.part, slot, where.stage, where.number)
        if layer is None and other is not None:
            yield Edit("missing", place, other.kind, layer=before, reference=other)
        elif layer is not None and other is None:
            yield Edit("extra", place, layer.kind, layer=layer)
        elif layer is not None and other is not None:
            for name in compared_settings(layer, other):
                values = layer.settings.get(name), other.settings.get(name)
                if values[0] != values[1]:
                    yield Edit("setting", place, layer.kind, name, *values, layer, other)
            for arm, their_arm in zip(layer.arms, other.arms, strict=False):
                yield from of_layers(arm, their_arm, place, layer)
        before = layer or before


def compared_settings(layer: Layer, other: Layer) -> list[str]:
    """The names of the settings that two layers may differ in: for another norm or activation, only that it is one."""
    for name in ("type", "name"):
        if layer.kind in ("norm", "act") and layer.settings.get(name) != other.settings.get(name):
            return [name]
    return sorted({*layer.settings, *other.settings})


BLOCK_GAP = 6.0
DIFFERENT_SETTING = {"kernel": 0.4, "type": 0.4, "name": 0.4}


def unlikeness(layer: Layer, other: Layer) -> float:
    """Below 1 for the same kind of layer, less for a convolution, on which a block hangs; above two gaps for others."""
    if layer.kind != other.kind or (layer.kind == "join" and len(layer.arms) != len(other.arms)):
        return 3.0
    if layer.kind == "other" and layer.settings["function"] != other.settings["function"]:
        return 3.0
    names = {*layer.settings, *other.settings}
    different = [name for name in names if layer.settings.get(name) != other.settings.get(name)]
    cost = min(0.9, sum(DIFFERENT_SETTING.get(name, 0.1) for name in different))
    return cost - 0.5 if layer.kind == "conv" else cost


def weight(edit: Edit) -> float:
    if edit.kind == "block":
        return BLOCK_GAP
    return 1.0 if edit.action != "setting" else DIFFERENT_SETTING.get(edit.setting, 0.5)


def aligned(
    ours: Sequence[Item], theirs: Sequence[Item], cost: Callable[[Item, Item], float], gap: float
) -> list[tuple[Item | None, Item | None]]:
    """Both sequences side by side at the least cost (Needleman and Wunsch 1970), None where one has nothing."""
    rows, columns = len(ours), len(theirs)
    best = [[(row + column) * gap for column in range(columns + 1)] for row in range(rows + 1)]
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            together = best[row - 1][column - 1] + cost(ours[row - 1], theirs[column - 1])
            best[row][column] = min(together, best[row - 1][column] + gap, best[row][column - 1] + gap)

    pairs: list[tuple[Item | None, Item | None]] = []
    row, column = rows, columns
    while row or column:
        value = best[row][column]
        if row and column and value == best[row - 1][column - 1] + cost(ours[row - 1], theirs[column - 1]):
            row, column = row - 1, column - 1
            pairs.append((ours[row], theirs[column]))
        elif column and value == best[row][column - 1] + gap:
            column -= 1
            pairs.append((None, theirs[column]))
        else:
            row -= 1
            pairs.append((ours[row], None))
    return pairs[::-1]
