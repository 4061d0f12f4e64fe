"""What edits of the stem, of the head and of one block are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from resnet_core.comparison.edits import Edit
from resnet_core.comparison.grouping import is_gate, parts_of
from resnet_core.comparison.layers import LEARNED, Layer, by, count
from resnet_core.comparison.structure import Block, Structure
from resnet_core.comparison.words import JOINED, ORDINALS, described, name_of, number


def take(left: list[Edit], where: Callable[[Edit], bool] | None = None, **fields: Any) -> list[Edit]:
    """Removes from `left` the edits with these values of an edit or its place, and returns them.

    A tuple stands for any of its values.
    """

    def is_chosen(edit: Edit) -> bool:
        for name, value in fields.items():
            if getattr(edit if hasattr(edit, name) else edit.place, name) not in (
                value if isinstance(value, tuple) else (value,)
            ):
                return False
        return where is None or where(edit)

    chosen = [edit for edit in left if is_chosen(edit)]
    left[:] = [edit for edit in left if edit not in chosen]
    return chosen


# The stem and the head.

DEEP = {2: "two", 3: "three", 4: "four"}


def in_stem(edits: list[Edit], ours: Structure) -> Iterator[tuple[str, list[Edit]]]:
    first = next((number for number, layer in enumerate(ours.stem) if layer.kind == "conv"), 0)
    before = [layer for layer in ours.stem[:first] if "random" not in layer.settings.values()]
    yield "normalised input", take(edits, kind=("shift", "scale"), where=lambda edit: edit.layer in before)

    kernels = [layer.settings["kernel"] for layer in ours.stem if layer.kind == "conv"]
    if len(kernels) in DEEP and {*kernels} == {3}:
        deep = take(edits, kind=("conv", "norm", "act"), action=("extra", "setting"))
        yield f"deep stem of {DEEP[len(kernels)]} 3x3", deep

    # TensorFlow's padding: before a layer that then has none.
    for kind, name in (("conv", "the stem"), ("pool", "the max-pool")):
        pads = take(edits, where=partial(is_same_padding, layers=ours.stem, before=kind))
        yield f"SAME padding in {name}", [*pads, *(take(edits, kind=kind, setting="padding") if pads else [])]

    if convolution := take(edits, kind="conv", action="setting"):
        yield from stem_convolution(convolution)
    yield from moved(edits, ours)
    if pools := take(edits, kind="pool"):
        yield stem_pool(pools), pools
    yield from ((alone(edit), [edit]) for edit in edits)


def moved(edits: list[Edit], ours: Structure) -> Iterator[tuple[str, list[Edit]]]:
    """A layer of the stem that stands before the norm, or behind it."""
    for kind in ("act", "pool"):
        pair = (
            take(edits, kind=kind)
            if {edit.action for edit in edits if edit.kind == kind} == {"extra", "missing"}
            else []
        )
        if pair and [layer.kind for layer in ours.stem].index(kind) < [layer.kind for layer in ours.stem].index("norm"):
            yield f"{name_of(next(edit.layer for edit in pair if edit.action == 'extra'))} before the stem's norm", pair


def is_same_padding(edit: Edit, layers: tuple[Layer, ...], before: str) -> bool:
    """Whether an extra padding is TensorFlow's, one more behind than before, and stands before a layer of that kind."""
    if edit.action != "extra" or edit.kind != "pad" or edit.layer is None:
        return False
    sides, following = edit.layer.settings["sides"], layers[layers.index(edit.layer) + 1 :]
    if not following or following[0].kind != before:
        return False
    return isinstance(sides, tuple) and sides[1] == sides[0] + 1 and sides[:2] == sides[2:]


def stem_convolution(edits: list[Edit]) -> Iterator[tuple[str, list[Edit]]]:
    changed = {edit.setting for edit in edits}
    settings = edits[0].layer.settings if edits[0].layer else {}
    size = settings["kernel"]
    usual = settings["padding"] == (size - 1) // 2 * settings["dilation"] if isinstance(size, int) else False
    if "kernel" in changed:
        stride = f" of stride {settings['stride']}" if "stride" in changed else ""
        padding = "" if usual else f", padding {settings['padding']}"
        yield f"{by(size)} stem{stride}{padding}", take(edits, setting=("kernel", "stride", "padding"))
    for edit in edits:
        word = {"out": f"stem of {edit.ours} channels", "bias": "biased stem" if edit.ours else "stem without bias"}
        yield word.get(edit.setting, f"{edit.setting} {edit.ours} in the stem's convolution"), [edit]


def stem_pool(edits: Sequence[Edit]) -> str:
    first, changed = edits[0], {edit.setting: edit.ours for edit in edits}
    if first.action == "missing" and first.reference:
        return f"no {first.reference.settings['type']}-pool"
    if first.action == "extra" or first.layer is None:
        return f"{described(first.layer)} in the stem"
    if "type" in changed:
        rest = [f"{name} {value}" for name, value in changed.items() if name not in ("type", "ceil_mode")]
        return ", ".join([f"{changed['type']} pool in the stem", *rest])
    if first.layer.settings["ceil_mode"] and changed in ({"padding": 0}, {"padding": 0, "ceil_mode": True}):
        return "SAME padding in the max-pool"
    if changed in ({"kernel": 2}, {"kernel": 2, "padding": 0}) and first.layer.settings["padding"] == 0:
        return "2x2 max-pool"
    return "max-pool without padding" if changed == {"padding": 0} else f"max-pool with {listed(changed)}"


def listed(changed: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in changed.items())


def in_head(edits: list[Edit], ours: Structure) -> Iterator[tuple[str, list[Edit]]]:
    linear = [edit for edit in edits if edit.kind == "linear" and edit.action == "extra"]
    if linear:
        last = max(layer.operation.number for layer in ours.head if layer.kind == "linear")
        kinds = ("linear", "act", "norm", "dropout")
        inner = take(edits, action="extra", kind=kinds, where=lambda edit: number_of(edit) <= last)
        yield f"head of {len(linear) + 1} linear layers", [*inner, *take(edits, kind="linear", setting="out")]
    if norms := [edit for edit in edits if edit.kind == "norm" and edit.action == "extra"]:
        following = edits[edits.index(norms[0]) + 1 :][:1]
        chosen = [*norms, *(edit for edit in following if edit.kind == "act" and edit.action == "extra")]
        names = " and ".join(name_of(edit.layer) for edit in chosen)
        pooled = [layer.operation.number for layer in ours.head if layer.kind == "pool"]
        layer = "pool" if not pooled or number_of(norms[0]) < pooled[0] else "linear layer"
        yield f"{names} before the head's {layer}", take(edits, where=lambda edit: edit in chosen)
    if {(edit.action, edit.kind) for edit in edits} >= {("extra", "conv"), ("missing", "linear")}:
        yield (
            "1x1 convolution before the head's pool, in place of the linear layer",
            take(edits, kind=("conv", "linear")),
        )
    if pools := take(edits, kind="pool"):
        yield head_pool(pools), pools
    yield from ((alone(edit), [edit]) for edit in edits)


def number_of(edit: Edit) -> float:
    """When the first network's layer ran."""
    return edit.layer.operation.number if edit.layer else float("inf")


def head_pool(edits: Sequence[Edit]) -> str:
    first, changed = edits[0], {edit.setting: edit.ours for edit in edits}
    if first.action == "missing":
        return "no pool at the head"
    if first.action == "extra":
        return f"{described(first.layer)} at the head"
    words = [f"{changed['type']}-pool at the head"] if "type" in changed else []
    if str(changed.get("kernel")).startswith("to "):
        words.append(f"pool {changed['kernel']} pixels at the head")
    if changed.get("fixed"):
        words.append(f"the head's pool fixed to {by(changed['fixed'])} pixels")
    return ", ".join(words) or f"pool of the head with {listed(changed)}"


# One block.

Named = tuple[str, str, list[Edit]]
"""A mistake of a block: its name, which blocks can have it, and the edits."""


def in_block(edits: list[Edit], ours: Block, theirs: Block) -> Iterator[Named]:
    if shared := take(edits, setting="weights"):
        yield f"{name_of(shared[0].layer)} shared by several places", "all", shared
    yield from in_shortcut(edits, ours, theirs)
    yield from at_the_end(edits, ours)
    yield from in_branch(edits, ours, theirs)
    yield from ((alone(edit), "all", [edit]) for edit in take(edits, where=lambda edit: edit.setting != "out"))


def in_shortcut(edits: list[Edit], ours: Block, theirs: Block) -> Iterator[Named]:
    for edit in take(edits, kind="shortcut"):
        yield alone(edit), "projected" if edit.setting == "shared" else "all", [edit]
    for edit in take(edits, part="join"):
        joined, times = edit.ours["by"], edit.ours.get("times", 1)
        yield (
            f"shortcut times {times}" if joined == "add" else f"{JOINED[joined]} instead of the addition",
            "all",
            [edit],
        )

    mine, other = ours.shortcut or (), theirs.shortcut or ()
    kind = "projected" if count(other, "conv") else "padded" if count(other, "new channels") else "identity"
    here = take(edits, part="shortcut", where=lambda edit: edit.setting != "out")
    if here and count(mine, "conv") and not other:
        norm = "" if count(mine, "norm") else "without BatchNorm "
        yield f"projection {norm}on every block", kind, take(here, kind=("conv", "norm"))
    if zeros := take(here, kind="new channels", action="setting"):
        settings = zeros[0].layer.settings if zeros[0].layer else {}
        where = "behind" if not settings["before"] else "before" if not settings["after"] else "on both sides of"
        yield f"zeros of shortcut A {where} the channels", kind, zeros
    if any(edit.kind == "pool" and edit.action == "extra" for edit in here):
        pools = take(here, kind="pool")
        type = next((edit.layer.settings["type"] for edit in pools if edit.layer), "average")
        pools += take(here, kind="conv", setting="stride") + take(here, kind="subsample")
        yield f"{type}-pool shortcut", "strided" if theirs.stride > 1 else kind, pools
    if kernels := take(here, setting="kernel"):
        take(here, setting="padding")
        yield f"{by(kernels[0].ours)} instead of {by(kernels[0].theirs)} in the shortcut", kind, kernels
    for edit in here:
        name = alone(edit)
        name = f"{name} on the {'projected ' * (kind == 'projected')}shortcut" if edit.kind == "act" else name
        yield name, "all" if edit.kind == "scale" else kind, [edit]


def at_the_end(edits: list[Edit], ours: Block) -> Iterator[Named]:
    """The addition, and the norm or the activation that moves to the other side of it."""
    if late := take(edits, part="after", action="extra", kind="norm"):
        gaps = take(edits, part="branch", action="missing", kind="norm", slot=count(ours.branch, "conv"))
        where = "after the addition" if gaps else "too many after the addition"
        yield f"{name_of(late[0].layer)} {where}", "all", [*gaps, *late]

    missing = take(edits, part="after", action="missing", kind="act")
    early = take(edits, part="branch", action="extra", kind="act", slot=count(ours.branch, "conv"))
    if missing and early:
        # Where the whole block has another activation, that is a mistake of its own.
        same = sum(layer.kind == "act" and name_of(layer) == name_of(early[0].layer) for layer in ours.branch) > 1
        name = name_of(missing[0].reference if same else early[0].layer)
        yield f"{name} before the addition", "all", [*missing, *early]
    elif missing:
        yield f"no {name_of(missing[0].reference)} after the addition", "all", missing
    elif early:
        yield f"{name_of(early[0].layer)} on the branch", "all", early
    yield from ((alone(edit), "all", [edit]) for edit in take(edits, part="after"))


def in_branch(edits: list[Edit], ours: Block, theirs: Block) -> Iterator[Named]:
    # The order of norm and activation.
    for edit in [edit for edit in edits if edit.action == "missing" and edit.kind in ("norm", "act")]:
        place = edit.place
        again = [each for each in edits if (each.action, each.kind, each.place) == ("extra", edit.kind, place)][:1]
        if again:
            edits.remove(edit)
            edits.remove(again[0])
            yield f"BatchNorm after ReLU behind the {ordinal(edit)} convolution", "all", [edit, *again]

    # TensorFlow's padding.
    for pad in take(edits, where=lambda edit: is_same_padding(edit, ours.branch, "conv")):
        paddings = take(edits, setting="padding", slot=pad.place.slot + 1)
        yield "SAME padding in the strided 3x3", "strided", [pad, *paddings]

    # Strides that move inside the block.
    if moved := take(edits, part="branch", setting="stride"):
        slot = next((edit.place.slot for edit in moved if edit.ours > edit.theirs), 0)
        where = convolution_at(slot, ours)
        if pools := [] if slot else take(edits, part="branch", action="extra", kind="pool"):
            yield f"{name_of(pools[0].layer)} in place of the stride", "strided", [*moved, *pools]
        else:
            yield f"stride on the {where}" if where else "stride inside the block", "strided", moved

    for slot in sorted({edit.place.slot for edit in edits if edit.kind == "conv"}):
        here = take(edits, kind="conv", action="setting", slot=slot, where=lambda edit: edit.setting != "out")
        yield from branch_convolution(here, convolution_at(slot, theirs))
    yield from (
        (alone(edit), "all", [edit]) for edit in take(edits, part="branch", where=lambda edit: edit.setting != "out")
    )


def convolution_at(slot: int, block: Block) -> str:
    """`second 3x3`, or `3x3` for the only one of this size."""
    sizes = [by(layer.settings["kernel"]) for layer in block.branch if layer.kind == "conv"]
    if not 0 < slot <= len(sizes):
        return ""
    return sizes[slot - 1] if sizes.count(sizes[slot - 1]) == 1 else f"{ORDINALS[min(slot, 5)]} {sizes[slot - 1]}"


def branch_convolution(edits: list[Edit], where: str) -> Iterator[Named]:
    """Kernels, groups, dilations and paddings of one convolution."""
    if groups := take(edits, setting="groups"):
        yield f"{groups[0].ours} groups in the {where}", "all", groups
    changed = {edit.setting: edit.ours for edit in edits}
    if "kernel" in changed:
        yield f"{by(changed['kernel'])} instead of the {where}", "all", edits
    elif "dilation" in changed:
        yield f"dilation {changed['dilation']} in the {where}", "all", edits
    else:
        yield from ((f"{edit.setting} {edit.ours} in the {where}", "all", [edit]) for edit in edits)


def gate_name(gate: Layer) -> str | None:
    """What a gate is called: by how it pools its input, and by the layers that make the factors of that."""
    parts = [*parts_of(gate)]
    pools = {each.settings["type"] for each in parts if each.kind == "pool" and each.settings["kernel"] == "global"}
    functions = {each.settings.get("function", each.kind) for each in parts}
    if "conv1d" in functions and pools:
        return "efficient channel attention"
    if pools and functions & {"linear", "conv"}:
        return "squeeze-and-excitation" if len(pools) == 1 else "channel attention by average and max pools"
    return "spatial attention" if {"conv", "mean"} <= functions else None


# One edit by itself.

WHERE = {"after": "block, after the addition", "branch": "block", "join": "block"}

# Part, action, kind with setting, and where it matters a value (a factor, a slot, whether a setting is on) -> the name.
NAMES: dict[tuple[Any, ...], str] = {
    ("stem", "missing", "act"): "no stem {name}",
    ("stem", "extra", "norm"): "{name} too many in the stem",
    ("stem", "extra", "channels"): "the images' {layer}",
    ("stem", "extra", "resize"): "images resized",
    ("stem", "extra", "space to depth"): "{layer} in the stem",
    ("stem", "extra", "constants"): "{layer} beside the images, as in CoordConv",
    ("stem", "extra", "shift", "random"): "random noise on the images",
    ("head", "extra", "dropout", 0.5): "dropout before the head",
    ("head", "extra", "dropout"): "{layer} before the head",
    ("head", "extra", "act"): "{name} in the output",
    ("head", "extra", "scale"): "{layer} in the head",
    ("head", "extra", "shift"): "{layer} in the head",
    ("head", "missing", "linear"): "no linear layer in the head",
    ("head", "setting", "linear out"): "{edit.ours} classes instead of {edit.theirs}",
    ("head", "setting", "linear bias", True): "head with bias",
    ("head", "setting", "linear bias", False): "head without bias",
    ("head", "setting", "linear weight"): "head with a computed weight",
    ("head", "setting", "linear held"): "head that no module holds",
    ("head", "setting", "linear parts"): "head of {edit.ours} linear layers side by side",
    ("branch", "extra", "act", 0): "{name} before the first convolution",
    ("join", "setting", "shortcut shared", True): "projections read the first activation",
    ("join", "setting", "shortcut shared", False): "projections read the block's input",
    ("join", "missing", "shortcut"): "no shortcut",
    ("join", "extra", "shortcut"): "a shortcut too many",
    ("shortcut", "extra", "act"): "{name}",
    ("shortcut", "extra", "norm"): "{name} too many in the shortcut",
    ("shortcut", "extra", "scale", 0.5): "shortcut halved",
    ("shortcut", "extra", "scale"): "shortcut times {value}",
    **{
        ("shortcut", "setting", f"conv {setting}"): f"{setting} {{edit.ours}} in the shortcut"
        for setting in ("stride", "padding", "dilation", "groups")
    },
    ("after", "extra", "pool"): "{name} after the addition",
    ("after", "extra", "scale", 0.5): "branch and shortcut averaged",
    ("after", "extra", "scale"): "sum of branch and shortcut times {value}",
    ("branch", "missing", "act", 0): "no {name} before the first convolution",
    ("branch", "missing", "act", 1): "no {name} inside the block",
    ("branch", "missing", "act"): "no {name} after the {slot} convolution",
    ("branch", "extra", "act"): "{name} after the {slot} convolution",
    ("branch", "extra", "scale", LEARNED): "learned scale on the branch",
    ("branch", "extra", "scale", "random"): "stochastic depth",
    ("branch", "extra", "scale"): "branch times {value}",
    ("branch", "extra", "dropout"): "{layer} inside the block",
    ("branch", "extra", "norm", 0): "{name} before the first convolution",
    ("branch", "extra", "norm"): "{name} too many after the {slot} convolution",
}


def ordinal(edit: Edit) -> str:
    return ORDINALS[min(edit.place.slot, 5)]


def alone(edit: Edit) -> str:
    """What an edit is called that is a mistake by itself."""
    layer, part = edit.layer, edit.place.part
    settings = layer.settings if layer else {}
    value = {"scale": settings.get("factor"), "shift": settings.get("by"), "dropout": settings.get("probability")}.get(
        edit.kind, edit.place.slot
    )
    key = part, edit.action, f"{edit.kind} {edit.setting}".rstrip()
    name = NAMES.get((*key, bool(edit.ours) if edit.setting else value)) or NAMES.get(key)
    if name:
        described_layer = name_of(edit.reference if edit.action == "missing" else layer)
        fields = {"name": described_layer, "layer": described(layer), "value": number(value), "slot": ordinal(edit)}
        return name.format(edit=edit, **fields)

    where = WHERE.get(part, part)
    if edit.action == "missing":
        return f"no {described(edit.reference)} in the {where}"
    if edit.action == "extra" and layer:
        if is_gate(layer) and (gate := gate_name(layer)):
            return gate + ("" if part == "branch" else f" in the {where}")
        return f"{described(layer)}{'' if is_gate(layer) else ' too many'} in the {where}"
    return f"{edit.kind} {edit.setting} {edit.ours} instead of {edit.theirs} in the {where}"
