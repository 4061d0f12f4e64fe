"""What the mistakes of hand-written ResNets are called: edits of one kind become one mistake with its scope.

"no ReLU after the addition" is missing in every block, "no ReLU after the addition in layer3" in those of one stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from resnet_core.comparison.edits import Differences, Edit, Place
from resnet_core.comparison.layers import Layer, count
from resnet_core.comparison.structure import Block, Structure
from resnet_core.comparison.words import JOINED, described, name_of, number

# The best known of them, as the exercises and the plants call them.
MISTAKES: tuple[str, ...] = (
    "stride on the first 1x1",
    "stride 2 on the first stage only",
    "no stride in layer2",
    "no stride in layer3",
    "no stride in layer4",
    "SAME padding in the stem",
    "SAME padding in the max-pool",
    "SAME padding in the strided 3x3",
    "3x3 stem",
    "no stem BatchNorm",
    "no stem ReLU",
    "max-pool without padding",
    "no max-pool",
    "2x2 max-pool",
    "average pool in the stem",
    "ReLU before the addition",
    "no ReLU after the addition",
    "no ReLU inside the block",
    "ReLU on the projected shortcut",
    "shortcut halved",
    "branch and shortcut averaged",
    "no shortcut",
    "no BatchNorm in the shortcut",
    "projection on every block",
    "average-pool shortcut",
    "identity shortcut without projection",
    "pre-activation order",
    "biased convolutions",
    "BatchNorm eps 1e-3",
    "BatchNorm eps 1.001e-5",
    "BatchNorm momentum 0.9",
    "dropout before the head",
    "max-pool at the head",
    "softmax in the output",
    *(f"{groups} groups in the 3x3" for groups in (1, 2, 4, 8, 16, 32, 64)),
    "3x3 twice as wide",
    "3x3 half as wide",
    "last stage not wider",
    "expansion 2",
    *(f"one block too {what} in layer{stage}" for what in ("many", "few") for stage in (1, 2, 3, 4)),
)


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
    Published("SE-{}", frozenset({"squeeze-and-excitation"}), "Hu et al. 2018, arXiv:1709.01507"),
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
    found = [*depths(left)]
    blocks = other_shortcuts(left, differences)
    found += strides(left, differences)
    found += scoped_to_layers(left, theirs, differences)
    found += in_stem(left, ours)
    found += in_head(left, ours)
    found += scoped_to_blocks(left, blocks, differences, theirs)
    for edit in left:
        found.append(Mistake(in_words(edit), (edit,)))
    return merged(sorted(found, key=lambda each: min(order[id(edit)] for edit in each.edits)))


def merged(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Mistakes of one name as one."""
    names: dict[str, tuple[Edit, ...]] = {}
    for each in mistakes:
        names[each.name] = (*names.get(each.name, ()), *each.edits)
    return [Mistake(name, edits) for name, edits in names.items()]


def take(left: list[Edit], chosen: list[Edit]) -> list[Edit]:
    """Removes the chosen edits from those that are left, and returns them."""
    left[:] = [edit for edit in left if edit not in chosen]
    return chosen


# The whole network: depths and strides.


def depths(left: list[Edit]) -> Iterator[Mistake]:
    edits = take(left, [edit for edit in left if edit.kind == "block"])
    for action, what in (("extra", "many"), ("missing", "few")):
        chosen = [edit for edit in edits if edit.action == action]
        for stage in sorted({edit.place.stage for edit in chosen}):
            here = tuple(edit for edit in chosen if edit.place.stage == stage)
            blocks = "one block" if len(here) == 1 else f"{len(here)} blocks"
            yield Mistake(f"{blocks} too {what} in layer{stage}", here)


def strides(left: list[Edit], differences: Differences) -> Iterator[Mistake]:
    """Strides of whole stages, with the shortcuts that follow them."""
    found: dict[int, tuple[int, int, list[Edit]]] = {}
    for block, other in differences.blocks:
        if block.stride == other.stride:
            continue

        def is_stride(edit: Edit, block: Block = block, other: Block = other) -> bool:
            if edit.place.block != (other.stage, other.number) or edit.place.part not in ("branch", "shortcut"):
                return False
            if edit.setting in ("stride", "step") or edit.kind == "subsample":
                return True
            necessary = edit.place.part == "shortcut" and not other.shortcut and block.stride > 1
            return necessary and edit.action == "extra" and edit.kind in ("conv", "norm")

        edits = take(left, [edit for edit in left if is_stride(edit)])
        if not edits:
            continue
        if other.number == 0:
            found[other.stage] = block.stride, other.stride, edits
        else:
            yield Mistake(f"stride {block.stride} in {other.name}", tuple(edits))

    ours = {stage: values[0] for stage, values in found.items()}
    firsts = {other.stage: block.stride for block, other in differences.blocks if other.number == 0}
    if {**firsts, **ours} == {1: 2, 2: 1, 3: 1, 4: 1}:
        yield Mistake("stride 2 on the first stage only", tuple(edit for each in found.values() for edit in each[2]))
        return
    for stage, (stride, _, edits) in found.items():
        yield Mistake(f"{'no stride' if stride == 1 else f'stride {stride}'} in layer{stage}", tuple(edits))


# Settings of many layers.

LAYER_SETTINGS = {
    "conv": ("bias", "padding_mode", "weight"),
    "norm": ("type", "eps", "momentum", "affine", "statistics", "tracked", "groups"),
    "act": ("name", "negative_slope", "alpha", "approximate"),
}


def scoped_to_layers(left: list[Edit], theirs: Structure, differences: Differences) -> Iterator[Mistake]:
    everywhere = {kind: [*places(theirs, kind)] for kind in LAYER_SETTINGS}

    # A norm without running statistics has only those of each batch.
    untracked = {id(edit.layer) for edit in left if edit.setting == "tracked" and not edit.ours}
    take(left, [edit for edit in left if edit.setting == "statistics" and id(edit.layer) in untracked])

    # Another kind of norm or activation is one edit, whatever its settings.
    by_name: dict[tuple[str, str], list[Edit]] = {}
    for edit in left:
        if edit.action == "setting" and edit.setting in LAYER_SETTINGS.get(edit.kind, ()):
            by_name.setdefault((edit.kind, setting_name(edit)), []).append(edit)
        elif edit.action == "missing" and edit.kind == "norm" and not is_moved(edit, left):
            by_name.setdefault(("norm", f"no {name_of(edit.reference)}"), []).append(edit)
    for (kind, name), edits in by_name.items():
        take(left, edits)
        lost = {edit.place for edit in differences.edits if edit.action == "missing" and edit.kind == kind}
        lost -= {edit.place for edit in edits}
        without = {
            other.place.block for other in differences.edits if (other.action, other.kind) == ("missing", "shortcut")
        }
        there = [
            place
            for place in everywhere[kind]
            if place not in lost and not (place.part == "shortcut" and place.block in without)
        ]
        scope = layer_scope({edit.place for edit in edits}, there, edits)
        yield Mistake(with_scope(name, scope), tuple(edits))


def is_moved(edit: Edit, left: Sequence[Edit]) -> bool:
    """Whether a missing layer stands a little further on."""
    return any(
        other.action == "extra" and other.kind == edit.kind and other.place == edit.place
        for other in left
        if other is not edit
    )


def setting_name(edit: Edit) -> str:
    ours: dict[str, Any] = dict(edit.layer.settings) if edit.layer else {}
    theirs: dict[str, Any] = dict(edit.reference.settings) if edit.reference else {}
    if edit.kind == "act":
        return f"{described(edit.layer)} instead of {described(edit.reference)}"
    if edit.kind == "norm" and ours["type"] != theirs["type"]:
        groups = f" of {ours['groups']} groups" if "groups" in ours else ""
        return f"{ours['type']}{groups} instead of {theirs['type']}"
    if edit.setting == "weight":
        return "convolutions with computed weights"
    if edit.setting == "bias":
        return "biased convolutions" if edit.ours else "convolutions without bias"
    if edit.setting == "affine":
        return f"{ours['type']} {'with' if edit.ours else 'without'} scale and shift"
    if edit.setting == "statistics":
        frozen = edit.ours == "running"
        which = "running statistics in training" if frozen else "the statistics of each batch in evaluation"
        return f"{ours['type']} with {which}"
    if edit.setting == "tracked":
        return f"{ours['type']} {'with' if edit.ours else 'without'} running statistics"
    if edit.setting == "padding_mode":
        return f"convolutions padded by {edit.ours}"
    return f"{ours['type']} {edit.setting} {number(edit.ours)}"


SPECIAL_SCOPES = {
    ("no BatchNorm", "in the stem"): "no stem BatchNorm",
    ("no BatchNorm", "in the shortcuts"): "no BatchNorm in the shortcut",
}


def with_scope(name: str, scope: str) -> str:
    if (name, scope) in SPECIAL_SCOPES:
        return SPECIAL_SCOPES[name, scope]
    return name if not scope else f"{name}{scope}" if scope.startswith(",") else f"{name} {scope}"


def places(structure: Structure, kind: str) -> Iterator[Place]:
    """Where the layers of a kind stand."""
    parts: list[tuple[Place, Sequence[Layer]]] = [(Place("stem"), structure.stem), (Place("head"), structure.head)]
    for block in structure.blocks:
        parts += [
            (Place("branch", 0, block.stage, block.number), block.branch),
            (Place("shortcut", 0, block.stage, block.number), block.shortcut or ()),
            (Place("after", 0, block.stage, block.number), block.after),
        ]
    for place, layers in parts:
        slot = 0
        for layer in layers:
            slot += layer.kind == "conv"
            if layer.kind == kind:
                yield Place(place.part, slot, place.stage, place.number)


def plain(places: Iterable[Place]) -> set[Place]:
    """Where layers stand, without their order in the stem."""
    return {replace(place, slot=0) if place.part == "stem" else place for place in places}


def layer_scope(found: Iterable[Place], whole: Iterable[Place], edits: Sequence[Edit]) -> str:
    """Which of a kind's layers have it: "" for all, "in layer3", ", all but the stem's"."""
    found, universe = plain(found), plain(whole) | plain(found)
    stages = sorted({place.stage for place in universe} - {0})
    blocks = sorted({place.block for place in universe if place.stage})
    tests: list[tuple[str, Callable[[Place], bool]]] = [
        ("", lambda place: True),
        ("in the stem", lambda place: place.part == "stem"),
        (", all but the stem's", lambda place: place.part != "stem"),
        ("in the shortcuts", lambda place: place.part == "shortcut"),
        (", all but the shortcuts'", lambda place: place.part != "shortcut"),
        ("in the branches", lambda place: place.part == "branch"),
        ("after the additions", lambda place: place.part == "after"),
        ("in the head", lambda place: place.part == "head"),
        ("in the stem and the shortcuts", lambda place: place.part in ("stem", "shortcut")),
        *((f"in layer{stage}", lambda place, stage=stage: place.stage == stage) for stage in stages),
        *(
            (
                f"in the {part}s of layer{stage}",
                lambda place, stage=stage, part=part: place.stage == stage and place.part == part,
            )
            for part in ("branch", "shortcut")
            for stage in stages
        ),
        *(
            (
                f"after the additions of layer{stage}",
                lambda place, stage=stage: place.stage == stage and place.part == "after",
            )
            for stage in stages
        ),
        *(
            (
                f"at the {ORDINALS[slot]} convolution of each block",
                lambda place, slot=slot: place.part == "branch" and place.slot == slot,
            )
            for slot in (1, 2, 3)
        ),
        *((f"in layer{block[0]}.{block[1]}", lambda place, block=block: place.block == block) for block in blocks),
        *(
            (f"from layer{stage} on", lambda place, stage=stage: place.stage >= stage or place.part == "head")
            for stage in stages[1:]
        ),
    ]
    for words, test in tests:
        if found == {place for place in universe if test(place)}:
            return words.replace("branchs", "branches")
    where = [edit.layer.operation.path or edit.layer.operation.place for edit in edits if edit.layer]
    more = f" and {len(where) - 1} more" if len(where) > 1 else ""
    return f"in {where[0]}{more}" if where else ""


ORDINALS = ("", "first", "second", "third", "fourth", "fifth")


# The stem and the head.


def in_stem(left: list[Edit], ours: Structure) -> Iterator[Mistake]:
    edits = take(left, [edit for edit in left if edit.place.part == "stem"])
    if not edits:
        return
    first = next((number for number, layer in enumerate(ours.stem) if layer.kind == "conv"), 0)
    before = [layer for layer in ours.stem[:first] if layer.kind in ("shift", "scale")]
    before = [layer for layer in before if "random" not in layer.settings.values()]

    def is_normalisation(edit: Edit) -> bool:
        return edit.action == "extra" and any(edit.layer is layer for layer in before)

    if normalising := take(edits, [edit for edit in edits if is_normalisation(edit)]):
        yield Mistake("normalised input", tuple(normalising))
    if count(ours.stem, "conv") == 3 and {layer.settings["kernel"] for layer in ours.stem if layer.kind == "conv"} == {
        3
    }:
        deep = take(
            edits, [edit for edit in edits if edit.kind in ("conv", "norm", "act") and edit.action != "missing"]
        )
        if deep:
            yield Mistake("deep stem of three 3x3", tuple(deep))

    # TensorFlow's padding: before a layer that then has none.
    for kind, name in (("conv", "the stem"), ("pool", "the max-pool")):
        pads = [edit for edit in edits if is_same_padding(edit, ours.stem, kind)]
        if pads:
            chosen = take(
                edits, [edit for edit in edits if edit in pads or (edit.kind == kind and edit.setting == "padding")]
            )
            yield Mistake(f"SAME padding in {name}", tuple(chosen))

    convolution = take(edits, [edit for edit in edits if edit.kind == "conv" and edit.action == "setting"])
    if convolution:
        yield from stem_convolution(convolution)
    pools = take(edits, [edit for edit in edits if edit.kind == "pool"])
    if pools:
        yield Mistake(stem_pool(pools), tuple(pools))
    for edit in edits:
        name = in_words(edit, "stem")
        if edit.layer and edit.action == "extra" and edit.kind in ON_IMAGES:
            name = ON_IMAGES[edit.kind].format(described(edit.layer))
        if edit.action == "missing" and edit.reference and edit.kind == "act":
            name = f"no stem {edit.reference.settings['name']}"
        yield Mistake(name, (edit,))


ON_IMAGES = {"channels": "the images' {}", "resize": "images resized", "shift": "{} on the images"}


def is_same_padding(edit: Edit, layers: tuple[Layer, ...], before: str) -> bool:
    """Whether an extra padding is TensorFlow's, one more behind than before, and stands before a layer of that kind."""
    if edit.action != "extra" or edit.kind != "pad" or edit.layer is None:
        return False
    sides, following = edit.layer.settings["sides"], layers[layers.index(edit.layer) + 1 :]
    if not following or following[0].kind != before:
        return False
    return isinstance(sides, tuple) and sides[1] == sides[0] + 1 and sides[:2] == sides[2:]


def stem_convolution(edits: Sequence[Edit]) -> Iterator[Mistake]:
    changed = {edit.setting: edit for edit in edits}
    settings = edits[0].layer.settings if edits[0].layer else {}
    size = settings["kernel"]
    usual = settings["padding"] == (size - 1) // 2 * settings["dilation"] if isinstance(size, int) else False
    if "kernel" in changed:
        words = f"{size}x{size} stem" if isinstance(size, int) else f"{size[0]}x{size[1]} stem"
        if "stride" in changed:
            words += f" of stride {settings['stride']}"
        if not usual:
            words += f", padding {settings['padding']}"
        rest = [edit for edit in edits if edit.setting not in ("kernel", "stride", "padding")]
        yield Mistake(words, tuple(edit for edit in edits if edit not in rest))
        edits = rest
    for edit in edits:
        word = {"out": f"stem of {edit.ours} channels", "bias": "biased stem" if edit.ours else "stem without bias"}
        yield Mistake(word.get(edit.setting, f"{edit.setting} {edit.ours} in the stem's convolution"), (edit,))


def stem_pool(edits: Sequence[Edit]) -> str:
    first = edits[0]
    if first.action == "missing":
        return f"no {first.reference.settings['type']}-pool" if first.reference else "no max-pool"
    settings = first.layer.settings if first.layer else {}
    if first.action == "extra":
        return f"{described(first.layer)} in the stem" if first.layer else "pool in the stem"
    changed = {edit.setting: edit.ours for edit in edits}
    if "type" in changed:
        rest = [f"{name} {value}" for name, value in changed.items() if name not in ("type", "ceil_mode")]
        return ", ".join([f"{changed['type']} pool in the stem", *rest])
    if settings.get("ceil_mode") and changed.get("padding") == 0 and changed.keys() <= {"padding", "ceil_mode"}:
        return "SAME padding in the max-pool"
    if changed.keys() <= {"kernel", "padding"} and changed.get("kernel") == 2 and settings["padding"] == 0:
        return "2x2 max-pool"
    if changed == {"padding": 0}:
        return "max-pool without padding"
    return f"max-pool with {', '.join(f'{name} {value}' for name, value in changed.items())}"


def in_head(left: list[Edit], ours: Structure) -> Iterator[Mistake]:
    edits = take(left, [edit for edit in left if edit.place.part == "head"])
    linear = [edit for edit in edits if edit.kind == "linear" and edit.action == "extra"]
    if linear:
        last = max(layer.operation.number for layer in ours.head if layer.kind == "linear")
        inner = [edit for edit in edits if edit.layer and edit.layer.operation.number <= last]
        kinds = ("linear", "act", "norm", "dropout")
        layers = take(edits, [edit for edit in inner if edit.action == "extra" and edit.kind in kinds])
        layers += take(edits, [edit for edit in edits if edit.kind == "linear" and edit.setting == "out"])
        yield Mistake(f"head of {len(linear) + 1} linear layers", tuple(layers))
    norms = [edit for edit in edits if edit.kind == "norm" and edit.action == "extra"]
    if norms:
        place = edits.index(norms[0])
        acts = [edit for edit in edits[place + 1 : place + 2] if edit.kind == "act" and edit.action == "extra"]
        names = " and ".join(
            str(edit.layer.settings.get("type", edit.layer.settings.get("name")))
            for edit in (*norms, *acts)
            if edit.layer
        )
        chosen = take(edits, [edit for edit in edits if edit in norms or edit in acts])
        yield Mistake(f"{names} before the head's pool", tuple(chosen))

    pools = take(edits, [edit for edit in edits if edit.kind == "pool"])
    if pools:
        yield Mistake(head_pool(pools), tuple(pools))
    for edit in edits:
        name = in_words(edit, "head")
        settings = edit.layer.settings if edit.layer else {}
        if edit.kind == "dropout" and edit.action == "extra":
            usual = settings["probability"] == 0.5
            name = "dropout before the head" if usual else f"dropout {settings['probability']:g} before the head"
        elif edit.kind == "act" and edit.action == "extra":
            name = f"{settings['name']} in the output"
        elif edit.kind == "linear" and edit.setting == "out":
            name = f"{edit.ours} classes instead of {edit.theirs}"
        elif edit.kind == "linear" and edit.setting == "weight":
            name = "head with a computed weight"
        elif edit.kind == "linear" and edit.setting == "bias":
            name = "head with bias" if edit.ours else "head without bias"
        yield Mistake(name, (edit,))


def head_pool(edits: Sequence[Edit]) -> str:
    first = edits[0]
    if first.action == "missing":
        return "no pool at the head"
    if first.action == "extra" and first.layer:
        return f"{described(first.layer)} at the head"
    changed = {edit.setting: edit.ours for edit in edits}
    words = [f"{changed['type']}-pool at the head"] if "type" in changed else []
    if changed.get("fixed"):
        words.append("the head's pool fixed to {}x{} pixels".format(*changed["fixed"]))
    return (
        ", ".join(words) or f"pool of the head with {', '.join(f'{name} {value}' for name, value in changed.items())}"
    )


# The blocks.

Found = dict[tuple[str, str], list[list[Edit]]]
"""What a mistake is called, and which blocks can have it -> its edits, block by block."""


def scoped_to_blocks(left: list[Edit], found: Found, differences: Differences, theirs: Structure) -> Iterator[Mistake]:
    for block, other in differences.blocks:
        edits = take(
            left, [edit for edit in left if edit.place.stage > 0 and edit.place.block == (other.stage, other.number)]
        )
        for name, kind, chosen in in_block(edits, block, other):
            found.setdefault((name, kind), []).append(chosen)
    found = widths(found, theirs)
    for (name, kind), groups in found.items():
        edits = [edit for group in groups for edit in group]
        blocks = [block for block in theirs.blocks if BLOCKS[kind](block)]
        scope = block_scope({edit.place.block for edit in edits}, blocks)
        yield Mistake(with_scope(name, scope), tuple(edits))


BLOCKS: dict[str, Callable[[Block], bool]] = {
    "all": lambda block: True,
    "projected": lambda block: count(block.shortcut or (), "conv") > 0,
    "identity": lambda block: not block.shortcut,
    "padded": lambda block: count(block.shortcut or (), "new channels") > 0,
    "strided": lambda block: block.stride > 1,
}


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


Named = tuple[str, str, list[Edit]]


def in_block(edits: list[Edit], ours: Block, theirs: Block) -> Iterator[Named]:
    """The mistakes of one block: name, which blocks can have it, and its edits."""
    if shared := take(edits, [edit for edit in edits if edit.setting == "weights"]):
        yield f"{name_of(shared[0].layer)} shared by several places", "all", shared
    yield from in_shortcut(edits, ours, theirs)
    yield from at_the_end(edits, ours)
    yield from in_branch(edits, ours, theirs)
    for edit in edits:
        yield in_words(edit), "all", [edit]


def other_shortcuts(left: list[Edit], differences: Differences) -> Found:
    """Shortcuts of another kind: zeros where the reference projects, a projection where it has zeros."""
    found: Found = {}
    for block, other in differences.blocks:
        mine, theirs = block.shortcut or (), other.shortcut or ()
        if count(mine, "new channels") and count(theirs, "conv") and not count(mine, "conv"):
            zeros = next(layer for layer in mine if layer.kind == "new channels").settings
            pooled = next((described(layer) for layer in mine if layer.kind == "pool"), None)
            words = [", zeros on both sides" if zeros["before"] else "", f", {pooled}" if pooled else ""]
            key = "identity shortcut without projection" + "".join(words), "projected"
        elif count(mine, "conv") and count(theirs, "new channels"):
            key = "projection in place of the zeros of shortcut A", "padded"
        else:
            continue
        where = "shortcut", (other.stage, other.number)
        if edits := take(left, [edit for edit in left if (edit.place.part, edit.place.block) == where]):
            found.setdefault(key, []).append(edits)
    return found


def in_shortcut(edits: list[Edit], ours: Block, theirs: Block) -> Iterator[Named]:
    joins = take(edits, [edit for edit in edits if edit.kind == "shortcut"])
    for edit in joins:
        if edit.setting == "shared":
            yield (
                ("projections read the first activation" if edit.ours else "projections read the block's input"),
                "projected",
                [edit],
            )
        else:
            yield ("no shortcut" if edit.action == "missing" else "a shortcut too many"), "all", [edit]
    for edit in take(edits, [edit for edit in edits if edit.place.part == "join"]):
        by, times = edit.ours["by"], edit.ours.get("times", 1)
        yield f"shortcut times {times}" if by == "add" else f"{JOINED[by]} instead of the addition", "all", [edit]

    mine, other = ours.shortcut or (), theirs.shortcut or ()
    here = take(edits, [edit for edit in edits if edit.place.part == "shortcut"])
    kind = "projected" if count(other, "conv") else "padded" if count(other, "new channels") else "identity"
    if not here:
        return
    if count(mine, "conv") and not other:
        norm = "" if count(mine, "norm") else "without BatchNorm "
        taken = take(here, [edit for edit in here if edit.kind in ("conv", "norm")])
        yield f"projection {norm}on every block", kind, taken
    if zeros := take(here, [edit for edit in here if edit.kind == "new channels" and edit.action == "setting"]):
        settings = zeros[0].layer.settings if zeros[0].layer else {}
        where = "behind" if not settings["before"] else "before" if not settings["after"] else "on both sides of"
        yield f"zeros of shortcut A {where} the channels", kind, zeros
    if [edit for edit in here if edit.kind == "pool" and edit.action == "extra"]:
        pools = take(
            here, [edit for edit in here if edit.kind == "pool" or (edit.kind == "conv" and edit.setting == "stride")]
        )
        type = next((edit.layer.settings["type"] for edit in pools if edit.kind == "pool" and edit.layer), "average")
        yield f"{type}-pool shortcut", "strided" if theirs.stride > 1 else kind, pools
    if kernels := [edit for edit in here if edit.setting == "kernel"]:
        take(here, [edit for edit in here if edit.setting == "padding"])
        here.remove(kernels[0])
        kernel, usual = kernels[0].ours, kernels[0].theirs
        yield f"{kernel}x{kernel} instead of {usual}x{usual} in the shortcut", kind, kernels
    for edit in here:
        settings = edit.layer.settings if edit.layer and edit.action == "extra" else {}
        if edit.kind == "act" and edit.action == "extra":
            projected = kind == "projected"
            yield f"{settings['name']} on the {'projected ' if projected else ''}shortcut", kind, [edit]
        elif edit.kind == "scale" and edit.action == "extra":
            factor = settings["factor"]
            yield ("shortcut halved" if factor == 0.5 else f"shortcut times {number(factor)}"), "all", [edit]
        elif edit.setting == "out":
            yield "width out", kind, [edit]
        elif edit.kind == "conv" and edit.action == "setting":
            yield f"{edit.setting} {edit.ours} in the shortcut", kind, [edit]
        else:
            yield in_words(edit, "shortcut"), kind, [edit]


def at_the_end(edits: list[Edit], ours: Block) -> Iterator[Named]:
    """The addition, and the activation that moves to before it."""
    last = count(ours.branch, "conv")
    missing = take(
        edits,
        [edit for edit in edits if edit.place.part == "after" and edit.action == "missing" and edit.kind == "act"],
    )
    early = take(
        edits,
        [
            edit
            for edit in edits
            if (
                edit.place.part == "branch"
                and edit.action == "extra"
                and edit.kind == "act"
                and edit.place.slot == last
            )
        ],
    )
    if missing and early:
        # Where the whole block has another activation, that is a mistake of its own.
        same = sum(layer.kind == "act" and name_of(layer) == name_of(early[0].layer) for layer in ours.branch) > 1
        name = name_of(missing[0].reference if same else early[0].layer)
        yield f"{name} before the addition", "all", [*missing, *early]
    elif missing:
        yield f"no {name_of(missing[0].reference)} after the addition", "all", missing
    elif early:
        yield f"{name_of(early[0].layer)} on the branch", "all", early
    for edit in take(edits, [edit for edit in edits if edit.place.part == "after"]):
        settings = edit.layer.settings if edit.layer else {}
        if edit.kind == "scale" and edit.action == "extra":
            half = settings["factor"] == 0.5
            name = (
                "branch and shortcut averaged"
                if half
                else f"sum of branch and shortcut times {number(settings['factor'])}"
            )
            yield name, "all", [edit]
        else:
            yield in_words(edit, "addition"), "all", [edit]


def in_branch(edits: list[Edit], ours: Block, theirs: Block) -> Iterator[Named]:
    # The order of norm and activation.
    for edit in [edit for edit in edits if edit.action == "missing" and edit.kind in ("norm", "act")]:
        again = [
            other
            for other in edits
            if other.action == "extra" and other.kind == edit.kind and other.place == edit.place
        ]
        if again and edit.reference:
            take(edits, [each for each in edits if each is edit or each is again[0]])
            slot = edit.place.slot
            yield f"BatchNorm after ReLU behind the {ORDINALS[min(slot, 5)]} convolution", "all", [edit, again[0]]

    # TensorFlow's padding.
    for pad in [edit for edit in edits if is_same_padding(edit, ours.branch, "conv")]:
        slot = pad.place.slot + 1
        chosen = take(
            edits, [edit for edit in edits if edit is pad or (edit.setting == "padding" and edit.place.slot == slot)]
        )
        yield "SAME padding in the strided 3x3", "strided", chosen

    # Strides that move inside the block.
    if moved := take(edits, [edit for edit in edits if edit.place.part == "branch" and edit.setting == "stride"]):
        slot = next((edit.place.slot for edit in moved if edit.ours > edit.theirs), 0)
        sizes = [layer.settings["kernel"] for layer in ours.branch if layer.kind == "conv"]
        size = sizes[slot - 1] if 0 < slot <= len(sizes) else 0
        which = f"{ORDINALS[slot]} " if sizes.count(size) > 1 else ""
        where = f"on the {which}{size}x{size}" if size else "inside the block"
        yield f"stride {where}", "strided", moved

    yield from branch_convolutions(edits, theirs)
    for edit in take(edits, [edit for edit in edits if edit.place.part == "branch"]):
        yield branch_name(edit), "all", [edit]


def branch_name(edit: Edit) -> str:
    settings = edit.layer.settings if edit.layer else {}
    slot = ORDINALS[min(edit.place.slot, 5)]
    if edit.kind == "act" and edit.action == "missing":
        name = name_of(edit.reference)
        return f"no {name} inside the block" if edit.place.slot == 1 else f"no {name} after the {slot} convolution"
    if edit.action == "extra" and edit.layer:
        if edit.kind == "act":
            return f"{settings['name']} after the {slot} convolution"
        if edit.kind == "scale":
            names = {"learned": "learned scale on the branch", "random": "stochastic depth"}
            return names.get(settings["factor"], f"branch times {number(settings['factor'])}")
        if edit.kind == "dropout":
            return f"dropout {settings['probability']:g} inside the block"
        if edit.kind == "norm":
            return (
                f"{settings['type']} too many after the {slot} convolution"
                if slot
                else f"{settings['type']} before the first convolution"
            )
        if is_gate(edit.layer) and is_squeezing(edit.layer):
            return "squeeze-and-excitation"
    return in_words(edit, "block")


def is_gate(layer: Layer) -> bool:
    """Whether a layer multiplies its input with something that it makes of it."""
    return layer.settings.get("by") == "mul" and len(layer.arms) == 2 and () in layer.arms


def is_squeezing(gate: Layer) -> bool:
    """Whether the gate is made of the pooled input by linear layers or convolutions."""
    arm = max(gate.arms, key=len)
    pooled = any(each.kind == "pool" and each.settings["kernel"] == "global" for each in arm)
    return pooled and count(arm, "linear") + count(arm, "conv") > 0


def branch_convolutions(edits: list[Edit], theirs: Block) -> Iterator[Named]:
    """Kernels, groups, dilations and paddings; widths are named together for all blocks."""
    sizes = [layer.settings["kernel"] for layer in theirs.branch if layer.kind == "conv"]
    for slot in sorted({edit.place.slot for edit in edits if edit.kind == "conv"}):
        here = take(
            edits,
            [edit for edit in edits if edit.kind == "conv" and edit.action == "setting" and edit.place.slot == slot],
        )
        changed = {edit.setting: edit for edit in here}
        size = sizes[slot - 1] if 0 < slot <= len(sizes) else 0
        where = f"{size}x{size}" if sizes.count(size) == 1 else f"{ORDINALS[min(slot, 5)]} {size}x{size}"
        if width := [edit for edit in here if edit.setting == "out"]:
            yield "width out", "all", width
        if groups := [edit for edit in here if edit.setting == "groups"]:
            yield (
                f"{groups[0].ours} group{'s' if groups[0].ours > 1 else ''} in the {where}".replace(
                    "1 group in", "1 groups in"
                ),
                "all",
                groups,
            )
        rest = [edit for edit in here if edit.setting not in ("out", "groups")]
        if "kernel" in changed:
            kernel = changed["kernel"].ours
            yield f"{kernel}x{kernel} instead of the {where}", "all", rest
        elif "dilation" in changed:
            yield f"dilation {changed['dilation'].ours} in the {where}", "all", rest
        else:
            for edit in rest:
                yield f"{edit.setting} {edit.ours} in the {where}", "all", [edit]


def widths(found: Found, theirs: Structure) -> Found:
    """The channels of convolutions, block by block, as the choices that lead to them."""
    edits = [edit for (name, _), groups in found.items() if name == "width out" for group in groups for edit in group]
    rest = {key: groups for key, groups in found.items() if key[0] != "width out"}
    for block in theirs.blocks:
        here = [edit for edit in edits if edit.place.block == (block.stage, block.number)]
        if not here:
            continue
        last = count(block.branch, "conv")
        inner = [edit for edit in here if edit.place.part == "branch" and edit.place.slot < last]
        outer = [edit for edit in here if edit not in inner]
        ratios = {edit.ours / edit.theirs for edit in inner}, {edit.ours / edit.theirs for edit in outer}
        if last == 3 and inner and len(ratios[0]) == 1 and ratios[0] != ratios[1]:
            ratio = next(iter(ratios[0]))
            word = {2: "twice as wide", 0.5: "half as wide"}.get(ratio, f"{ratio:g} times as wide")
            rest.setdefault((f"3x3 {word}", "all"), []).append(inner)
            inner = []
        if last == 3 and outer and not inner and len(ratios[1]) == 1:
            expansion = 4 * next(iter(ratios[1]))
            rest.setdefault((f"expansion {expansion:g}", "all"), []).append(outer)
        elif inner or outer:
            ratio = outer[0].ours / outer[0].theirs if outer else inner[0].ours / inner[0].theirs
            last_stage = block.stage == theirs.blocks[-1].stage and ratio == 0.5
            word = {2: "twice as wide", 0.5: "half as wide"}.get(ratio, f"{ratio:g} times as wide")
            name = "last stage not wider" if last_stage else f"stage {word}"
            rest.setdefault((name, "last" if last_stage else "all"), []).append([*inner, *outer])
    BLOCKS["last"] = lambda block: block.stage == theirs.blocks[-1].stage
    return rest


def in_words(edit: Edit, where: str = "") -> str:
    """An edit that has no name of its own."""
    place = {"": edit.place.part, "addition": "block, after the addition"}.get(where, where)
    if edit.action == "missing" and edit.reference:
        return f"no {described(edit.reference)} in the {place}"
    if edit.action == "extra" and edit.layer:
        return (
            f"{described(edit.layer)} in the {place}"
            if is_gate(edit.layer)
            else f"{described(edit.layer)} too many in the {place}"
        )
    return f"{edit.kind} {edit.setting} {edit.ours} instead of {edit.theirs} in the {place}"
