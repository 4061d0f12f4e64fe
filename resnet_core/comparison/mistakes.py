"""What the mistakes of hand-written ResNets are called: edits of one kind become one mistake with its scope.

"no ReLU after the addition" is missing in every block, "no ReLU after the addition in layer3" in those of one stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from resnet_core.comparison.edits import Differences, Edit, Part, Place
from resnet_core.comparison.layers import Layer, count
from resnet_core.comparison.parts import Named, alone, in_block, in_head, in_stem, take
from resnet_core.comparison.structure import Block, Structure
from resnet_core.comparison.words import ORDINALS, and_more, described, name_of, number


@dataclass(frozen=True)
class Published:
    """A network that somebody published, as what sets it apart from the reference."""

    name: str
    """With {} for the reference's name."""
    marks: frozenset[str]
    source: str
    optional: frozenset[str] = frozenset()


PUBLISHED = (
    Published(
        "{} for CIFAR in kuangliu's form",
        frozenset({"3x3 stem of stride 1", "no max-pool"}),
        "github.com/kuangliu/pytorch-cifar",
        frozenset({"the head's pool fixed to 4x4 pixels"}),
    ),
    Published("{} v1", frozenset({"stride on the first 1x1"}), "He et al. 2015, arXiv:1512.03385"),
    Published("{}-C", frozenset({"deep stem of three 3x3"}), "He et al. 2018, arXiv:1812.01187"),
    Published(
        "{}-D",
        frozenset({"deep stem of three 3x3", "average-pool shortcut"}),
        "He et al. 2018, arXiv:1812.01187",
    ),
    Published(
        "pre-activation {}",
        frozenset({"pre-activation order"}),
        "He et al. 2016, arXiv:1603.05027",
        frozenset(
            {
                "BatchNorm and ReLU before the head's pool",
                "projections read the first activation",
                "no stem BatchNorm",
                "no stem ReLU",
                "3x3 stem of stride 1",
                "no max-pool",
                "the head's pool fixed to 4x4 pixels",
            }
        ),
    ),
    Published(
        "Fixup-{}",
        frozenset({"no BatchNorm", "learned numbers added", "branch times a learned number"}),
        "Zhang et al. 2019, arXiv:1901.09321",
    ),
    Published(
        "{} with SkipInit",
        frozenset({"no BatchNorm", "branch times a learned number"}),
        "De & Smith 2020, arXiv:2002.10444",
    ),
    Published("SE-{}", frozenset({"squeeze-and-excitation"}), "Hu et al. 2018, arXiv:1709.01507"),
    Published("ECA-{}", frozenset({"efficient channel attention"}), "Wang et al. 2020, arXiv:1910.03151"),
    Published(
        "CBAM-{}",
        frozenset({"channel attention by average and max pools", "spatial attention"}),
        "Woo et al. 2018, arXiv:1807.06521",
    ),
)


def published(names: Iterable[str]) -> Published | None:
    """The published network that has all these differences from the reference and no others."""
    found = frozenset(names)
    return next((each for each in PUBLISHED if each.marks <= found <= each.marks | each.optional), None)


@dataclass(frozen=True)
class Mistake:
    """Edits that are one mistake, and what it is called."""

    name: str
    edits: tuple[Edit, ...]


def name_mistakes(differences: Differences, ours: Structure, theirs: Structure) -> list[Mistake]:
    """The mistakes that the edits are, in the order in which they begin in the network."""
    left = [*differences.edits]
    order = {id(edit): number for number, edit in enumerate(left)}
    found = [*depths(left, theirs)]
    by_block = other_shortcuts(left, differences) | other_lengths(left, differences)
    found += strides(left, differences)
    found += scoped_to_layers(left, theirs, differences)
    for name, edits in (*in_stem(take(left, part="stem"), ours), *in_head(take(left, part="head"), ours)):
        found += [Mistake(name, tuple(edits))] if edits else []
    found += scoped_to_blocks(left, by_block, differences, theirs)
    found += [Mistake(alone(edit), (edit,)) for edit in left]

    # Mistakes of one name are one.
    names: dict[str, tuple[Edit, ...]] = {}
    for each in sorted(found, key=lambda each: min(order[id(edit)] for edit in each.edits)):
        names[each.name] = (*names.get(each.name, ()), *each.edits)
    return [Mistake(name, edits) for name, edits in names.items()]


# The whole network: depths and strides.


def depths(left: list[Edit], theirs: Structure) -> Iterator[Mistake]:
    edits = take(left, kind="block")
    for action, what in (("extra", "many"), ("missing", "few")):
        chosen = take(edits, action=action)
        for stage in sorted({edit.place.stage for edit in chosen}):
            here = take(chosen, stage=stage)
            blocks = "one block" if len(here) == 1 else f"{len(here)} blocks"
            name = f"{blocks} too {what} in layer{stage}"
            usual = sum(block.stage == stage for block in theirs.blocks)
            if not usual or (action == "missing" and len(here) == usual):
                name = f"no layer{stage}" if usual else f"a stage too many, layer{stage}"
            yield Mistake(name, tuple(here))


def strides(left: list[Edit], differences: Differences) -> Iterator[Mistake]:
    """Strides of whole stages, with the shortcuts that follow them."""
    found: dict[int, list[Edit]] = {}
    ours = {other.stage: block.stride for block, other in differences.blocks if other.number == 0}
    for block, other in differences.blocks:
        if block.stride == other.stride:
            continue
        here: dict[str, Any] = {"stage": other.stage, "number": other.number}
        edits = take(left, **here, part=("branch", "shortcut"), setting=("stride", "step"))
        edits += take(left, **here, part=("branch", "shortcut"), kind="subsample")
        if not other.shortcut and block.stride > 1:  # the shortcut then needs a projection
            edits += take(left, **here, part="shortcut", action="extra", kind=("conv", "norm"))
        if edits and other.number == 0:
            found[other.stage] = edits
        elif edits:
            yield Mistake(f"stride {block.stride} in {other.name}", tuple(edits))

    if found and ours == {1: 2, 2: 1, 3: 1, 4: 1}:
        yield Mistake("stride 2 on the first stage only", tuple(edit for edits in found.values() for edit in edits))
        return
    for stage, edits in found.items():
        word = "no stride" if ours[stage] == 1 else f"stride {ours[stage]}"
        yield Mistake(f"{word} in layer{stage}", tuple(edits))


def other_shortcuts(left: list[Edit], differences: Differences) -> Found:
    """Shortcuts of another kind: zeros where the reference projects, a projection where it has zeros."""
    found: Found = {}
    for block, other in differences.blocks:
        mine, theirs = block.shortcut or (), other.shortcut or ()
        here: dict[str, Any] = {"stage": other.stage, "number": other.number}
        if passed := count(block.branch[: block.shared], "conv"):
            key = f"shortcut from behind the {ORDINALS[passed]} convolution", "all"
            found.setdefault(key, []).append(take(left, **here, part="join") + take(left, **here, part="shortcut"))
            continue
        if count(mine, "new channels") and count(theirs, "conv") and not count(mine, "conv"):
            zeros = next(layer for layer in mine if layer.kind == "new channels").settings
            pooled = next((described(layer) for layer in mine if layer.kind == "pool"), None)
            words = [", zeros on both sides" if zeros["before"] else "", f", {pooled}" if pooled else ""]
            key = "identity shortcut without projection" + "".join(words), "projected"
        elif count(mine, "conv") and count(theirs, "new channels"):
            key = "projection in place of the zeros of shortcut A", "padded"
        elif count(mine, "copies") and count(theirs, "new channels"):
            key = "copies of the channels in place of the zeros of shortcut A", "padded"
        elif count(mine, "copies") and count(theirs, "conv"):
            key = "copies of the channels without projection", "projected"
        elif block.shortcut == () and count(theirs, "conv"):
            key = "no projection", "projected"
        else:
            continue
        if edits := take(left, **here, part="shortcut"):
            found.setdefault(key, []).append(edits)
    return found


def other_lengths(left: list[Edit], differences: Differences) -> Found:
    """Blocks with another number of convolutions, with the norms and activations that come with these."""
    found: Found = {}
    for block, other in differences.blocks:
        ours, theirs = (count(each.branch, "conv") for each in (block, other))
        if ours == theirs:
            continue
        here: dict[str, Any] = {"stage": other.stage, "number": other.number, "part": "branch"}
        here["action"] = "extra" if ours > theirs else "missing"
        edits = take(left, **here, kind="conv")
        for kind in ("norm", "act"):
            chosen = take(left, **here, kind=kind)
            edits += chosen[: abs(ours - theirs)]
            left += chosen[abs(ours - theirs) :]
        convolutions = "1 convolution" if ours == 1 else f"{ours} convolutions"
        found.setdefault((f"{convolutions} in the block instead of {theirs}", "all"), []).append(edits)
    return found


# Settings of many layers.

LAYER_SETTINGS = {
    "conv": ("bias", "padding_mode", "weight", "held", "separable"),
    "norm": ("type", "eps", "momentum", "affine", "statistics", "tracked", "groups", "weight", "held"),
    "act": ("name", "negative_slope", "alpha", "approximate"),
}


LAYERS = {"conv": "convolutions", "norm": "norms"}


def scoped_to_layers(left: list[Edit], theirs: Structure, differences: Differences) -> Iterator[Mistake]:
    # A norm without running statistics has only those of each batch, as has one that no module puts into evaluation.
    untracked = {id(edit.layer) for edit in left if edit.setting in ("tracked", "held") and not edit.ours}
    take(left, setting="statistics", where=lambda edit: id(edit.layer) in untracked)

    # Another kind of norm or activation is one edit, whatever its settings.
    by_name: dict[tuple[str, str], list[Edit]] = {}
    for edit in left:
        if edit.action == "setting" and edit.setting in LAYER_SETTINGS.get(edit.kind, ()):
            by_name.setdefault((edit.kind, setting_name(edit)), []).append(edit)
        elif edit.action == "missing" and edit.kind == "norm" and not is_moved(edit, left):
            by_name.setdefault(("norm", f"no {name_of(edit.reference)}"), []).append(edit)
    if numbers := take(left, kind="shift", where=adds_a_number):
        yield Mistake("learned numbers added", tuple(numbers))

    matched = {(other.stage, other.number) for _, other in differences.blocks} | {(0, 0)}
    without = {edit.place.block for edit in differences.edits if (edit.action, edit.kind) == ("missing", "shortcut")}
    for (kind, name), edits in by_name.items():
        left[:] = [edit for edit in left if edit not in edits]
        lost = {edit.place for edit in differences.edits if edit.action == "missing" and edit.kind == kind}
        lost -= {edit.place for edit in edits}
        present = {
            place
            for place in places(theirs, kind)
            if place.block in matched
            and place not in lost
            and not (place.part == "shortcut" and place.block in without)
        }
        yield Mistake(with_scope(name, layer_scope({edit.place for edit in edits}, present, edits)), tuple(edits))


def adds_a_number(edit: Edit) -> bool:
    return edit.layer is not None and edit.layer.settings["by"] == "a learned number"


def is_moved(edit: Edit, left: Sequence[Edit]) -> bool:
    """Whether a missing layer stands a little further on: behind another one, or behind the addition."""
    same = [each for each in left if (each.action, each.kind) == ("extra", edit.kind)]
    return any(each.place in (edit.place, replace(edit.place, part="after", slot=0)) for each in same)


def setting_name(edit: Edit) -> str:
    ours: dict[str, Any] = dict(edit.layer.settings) if edit.layer else {}
    theirs: dict[str, Any] = dict(edit.reference.settings) if edit.reference else {}
    if edit.kind == "act":
        return f"{described(edit.layer)} instead of {described(edit.reference)}"
    if edit.kind == "norm" and ours["type"] != theirs["type"]:
        groups = f" of {ours['groups']} group{'s' * (ours['groups'] > 1)}" if "groups" in ours else ""
        return f"{ours['type']}{groups} instead of {theirs['type']}"
    with_or_without = "with" if edit.ours else "without"
    match edit.setting:
        case "weight":
            return f"{LAYERS.get(edit.kind)} with computed weights"
        case "held":
            return f"{LAYERS.get(edit.kind)} that no module holds"
        case "separable":
            return "depthwise separable convolutions"
        case "bias":
            return "biased convolutions" if edit.ours else "convolutions without bias"
        case "affine":
            return f"{ours['type']} {with_or_without} scale and shift"
        case "tracked":
            return f"{ours['type']} {with_or_without} running statistics"
        case "statistics" if edit.ours == "running":
            return f"{ours['type']} with running statistics in training"
        case "statistics":
            return f"{ours['type']} with the statistics of each batch in evaluation"
        case "padding_mode":
            return f"convolutions padded by {edit.ours}"
    return f"{ours['type']} {edit.setting} {number(edit.ours)}"


SPECIAL_SCOPES = {
    ("no BatchNorm", "in the stem"): "no stem BatchNorm",
    ("no BatchNorm", "in the shortcuts"): "no BatchNorm in the shortcut",
}


def with_scope(name: str, scope: str) -> str:
    name = name.removesuffix(" on every block") if scope else name
    between = "" if not scope or scope.startswith(",") else " "
    return SPECIAL_SCOPES.get((name, scope), f"{name}{between}{scope}")


def places(structure: Structure, kind: str) -> Iterator[Place]:
    """Where the layers of a kind stand."""
    parts: list[tuple[Place, Sequence[Layer]]] = [(Place("stem"), structure.stem), (Place("head"), structure.head)]
    for block in structure.blocks:
        of_block: dict[Part, Sequence[Layer]] = {"branch": block.branch, "after": block.after}
        of_block["shortcut"] = block.shortcut or ()
        parts += [(Place(part, 0, block.stage, block.number), layers) for part, layers in of_block.items()]
    for place, layers in parts:
        for end, layer in enumerate(layers, 1):
            if layer.kind == kind:
                yield replace(place, slot=count(layers[:end], "conv"))


def plain(places: Iterable[Place]) -> set[Place]:
    """Where layers stand, without their order in the stem."""
    return {replace(place, slot=0) if place.part == "stem" else place for place in places}


def layer_scope(found: Iterable[Place], whole: Iterable[Place], edits: Sequence[Edit]) -> str:
    """Which of a kind's layers have it: "" for all, "in layer3", ", all but the stem's"."""
    chosen = plain(found)
    for words, scope in scopes(plain(whole) | chosen):
        if chosen == scope:
            return words
    where = [edit.layer.operation.where for edit in edits if edit.layer]
    return f"in {where[0]}{and_more(len(where))}" if where else ""


PARTS = {"shortcut": "in the shortcuts", "branch": "in the branches", "after": "after the additions"}


def scopes(whole: set[Place]) -> Iterator[tuple[str, set[Place]]]:
    """The sets of places that have a name, in words, the largest first."""

    def at(**fields: Any) -> set[Place]:
        return {place for place in whole if all(getattr(place, name) == value for name, value in fields.items())}

    yield "", whole
    yield "in the stem", at(part="stem")
    yield ", all but the stem's", whole - at(part="stem")
    yield "in the shortcuts", at(part="shortcut")
    yield ", all but the shortcuts'", whole - at(part="shortcut")
    yield "in the branches", at(part="branch")
    yield "after the additions", at(part="after")
    yield ", all but those after the additions", whole - at(part="after")
    yield "in the head", at(part="head")
    yield "in the stem and the shortcuts", at(part="stem") | at(part="shortcut")

    stages = sorted({place.stage for place in whole} - {0})
    yield from ((f"in layer{stage}", at(stage=stage)) for stage in stages)
    for part, words in PARTS.items():
        yield from ((f"{words} of layer{stage}", at(stage=stage, part=part)) for stage in stages)
    for slot in (1, 2, 3):
        yield f"at the {ORDINALS[slot]} convolution of each block", at(part="branch", slot=slot)
    for block in sorted({place.block for place in whole if place.stage}):
        yield "in layer{}.{}".format(*block), at(block=block)
    for stage in stages[1:]:
        yield f"from layer{stage} on", {place for place in whole if place.stage >= stage or place.part == "head"}


# The blocks.

Found = dict[tuple[str, str], list[list[Edit]]]
"""What a mistake is called, and which blocks can have it -> its edits, block by block."""

BLOCKS: dict[str, Callable[[Block], bool]] = {
    "all": lambda block: True,
    "projected": lambda block: count(block.shortcut or (), "conv") > 0,
    "identity": lambda block: not block.shortcut,
    "padded": lambda block: count(block.shortcut or (), "new channels") > 0,
    "strided": lambda block: block.stride > 1,
}
"""Which blocks can have a mistake."""


def scoped_to_blocks(left: list[Edit], found: Found, differences: Differences, theirs: Structure) -> Iterator[Mistake]:
    last = theirs.blocks[-1].stage if theirs.blocks else 0
    channels = {other.stage: block.channels for block, other in differences.blocks}
    not_wider = last if channels.get(last) == channels.get(last - 1) else 0
    for block, other in differences.blocks:
        edits = take(left, stage=other.stage, number=other.number)
        for name, kind, chosen in (*in_block(edits, block, other), *widths(edits, other, not_wider)):
            found.setdefault((name, kind), []).append(chosen)
        left += edits
    for (name, kind), groups in found.items():
        edits = [edit for group in groups for edit in group]
        can_have = {"last": lambda block: block.stage == last, **BLOCKS}[kind]
        blocks = [other for _, other in differences.blocks if can_have(other)]
        yield Mistake(with_scope(name, block_scope({edit.place.block for edit in edits}, blocks)), tuple(edits))


def widths(edits: list[Edit], theirs: Block, not_wider: int) -> Iterator[Named]:
    """The channels of a block's convolutions, as the choices that lead to them."""
    last = count(theirs.branch, "conv")
    inner = take(edits, setting="out", part="branch", where=lambda edit: edit.place.slot < last)
    outer = take(edits, setting="out")
    ratios = [{edit.ours / edit.theirs for edit in each} for each in (inner, outer)]
    if last == 3 and len(ratios[0]) == 1 and ratios[0] != ratios[1]:
        yield f"3x3 {wide(ratios[0].pop())}", "all", inner
        inner = []
    if last == 3 and not inner and len(ratios[1]) == 1:
        yield f"expansion {4 * ratios[1].pop():g}", "all", outer
    elif inner or outer:
        ratio = (outer or inner)[0].ours / (outer or inner)[0].theirs
        ends = theirs.stage == not_wider and ratio == 0.5
        yield "last stage not wider" if ends else f"stage {wide(ratio)}", "last" if ends else "all", [*inner, *outer]


def wide(ratio: float) -> str:
    return {2: "twice as wide", 0.5: "half as wide"}.get(ratio, f"{ratio:g} times as wide")


def block_scope(found: set[tuple[int, int]], blocks: Sequence[Block]) -> str:
    """Which blocks have it: "" for all that could, "in layer3", "in layer3.0"."""
    all_of = {(block.stage, block.number) for block in blocks} | found
    if found == all_of:
        return ""
    stages = sorted({stage for stage, _ in found})
    if found == {each for each in all_of if each[0] in stages}:
        return "in " + " and ".join(f"layer{stage}" for stage in stages)
    if len(found) > 1 and found == {each for each in all_of if each[1] == 0}:
        return "in the first block of each stage"
    if len(found) > 1 and found == {each for each in all_of if each[1] > 0}:
        return "in all blocks but the first of each stage"
    names = [f"layer{stage}.{number}" for stage, number in sorted(found)]
    return (
        f"in {' and '.join(names)}"
        if len(names) < 4
        else f"in {len(names)} of {len(all_of)} blocks, first in {names[0]}"
    )
