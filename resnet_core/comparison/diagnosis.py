"""Why two networks differ: the differences of their layers, held to what the network computes.

The reference is changed until it has the network's layers. Each change is a difference. Nothing is guessed: with all of
them, and with the network's weights, it must compute in float64 what the network does, in evaluation and in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resnet_core.comparison.edits import Differences, Edit, compare_structures
from resnet_core.comparison.imports import with_place
from resnet_core.comparison.layers import count
from resnet_core.comparison.mistakes import Mistake, Published, name_mistakes, published
from resnet_core.comparison.operations import Trace, fingerprint
from resnet_core.comparison.references import Reference, for_images, on_meta
from resnet_core.comparison.structure import Block, Structure, structure_of
from resnet_core.comparison.trace import calibrate, copied, in_float64, perturb_constants, trace
from resnet_core.comparison.words import and_more, as_code, described
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import MODELS
from resnet_core.models.resnet import BasicBlock, Bottleneck

MANY = 8
"""How many differences a sentence names."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that the first network does differently, and how to repair it."""

    name: str
    operation: str
    """What kind of layer it is about: "conv", "norm", "act"."""
    path: str
    """The first module that it is about."""
    file: str | None
    line: int | None
    """Where the user's code runs it."""
    ours: str
    theirs: str
    repair: str
    places: int = 1
    """How many layers have it."""
    network: Literal["first", "second"] = "first"
    """Which of the two networks has it."""

    def __str__(self) -> str:
        line = f"{Path(self.file).name}:{self.line}" if self.file else ""
        where = ", ".join(filter(None, (self.path, line)))
        whose = "in the second network, " if self.network == "second" else ""
        return (
            f"{whose}{self.name} ({where}{and_more(self.places)}): {self.ours}; reference: {self.theirs}; {self.repair}"
        )


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is different about a network: nothing, some mistakes, or something that the grammar does not hold."""

    mistakes: tuple[str, ...] | None
    """What the differences are called; empty for a healthy network, None where they do not explain all of it."""
    differences: tuple[Difference, ...] = ()
    rest: str | None = None
    """The first operation that the differences do not explain."""
    publication: Published | None = None
    """The published network that it is."""
    reference_name: str = "the reference"

    @property
    def healthy(self) -> bool:
        return self.mistakes == ()

    def __str__(self) -> str:
        if self.healthy:
            return "healthy: it computes what the reference does on these images, in evaluation and in training"
        names = " and ".join(each.name for each in self.differences[:MANY])
        if len(self.differences) > MANY:
            names += f" and {len(self.differences) - MANY} more differences, as between two architectures"
        if self.mistakes is None:
            found = f"found so far: {names}; the rest" if names else "unknown: what differs"
            return f"{found} begins at {self.rest}"
        made = "this mistake" if len(self.mistakes) == 1 else "these mistakes"
        known = ""
        if self.publication is not None:
            known = f"; this is {self.publication.name.format(self.reference_name)} ({self.publication.source})"
        return f"{names}: the reference with {made} computes exactly what this network does{known}"


def diagnose(patient: nn.Module, reference: nn.Module | Examined, inputs: Tensor) -> Diagnosis:
    """The differences that make `reference` compute what `patient` does; neither network is changed.

    A small input is enough: `[2, 3, 64, 64]`. An error that the patient raises on these inputs is passed on. To
    compare many networks with one reference, examine that once: `Examined(reference, inputs)`.
    """
    with torch.random.fork_rng():
        theirs = reference if isinstance(reference, Examined) else Examined(reference, inputs)
        return explain(Examined(patient, inputs, like=theirs.evaluation), theirs)


class Examined:
    """A network's layers, in evaluation and in training, and whether they compute what it does."""

    def __init__(self, network: nn.Module, inputs: Tensor, like: Structure | None = None) -> None:
        self.inputs, self.like = inputs.double(), like
        self.network = perturb_constants(copied(network)).double()
        torch.manual_seed(0)
        with in_float64(), suppress(ValueError, RuntimeError):  # of a network that runs in evaluation only
            calibrate(self.network, self.inputs)
        self.network.eval()
        self.trace = trace(self.network, self.inputs, every=False)
        self.evaluation = resized(structure_of(self.trace, like), self.network, self.inputs, like)

    @cached_property
    def trained(self) -> tuple[Trace, Structure, dict[str, Tensor]] | Exception:
        """The forward in training on other images, its layers, and the buffers that it leaves; or what it raises."""
        with restored_buffers(self.network):
            # With the images that the statistics come from, no momentum would show.
            try:
                run = trace(self.network.train(), 2 * self.inputs + 1, seed=1, every=False)
            except Exception as error:  # whatever the network raises in training
                return error
            finally:
                self.network.eval()
            left = {name: value.clone() for name, value in self.network.named_buffers()}
        structure = structure_of(run, self.like)
        return run, structure if fixed_sizes(self.evaluation) else without_fixed_pools(structure), left

    @cached_property
    def unexplained(self) -> str | None:
        """The first layer that computes something else than the operations it stands for; None if there is none."""
        if (place := first_unfaithful(self.evaluation, self.trace, self.inputs)) is not None:
            return place
        if isinstance(self.trained, Exception):
            return None
        run, structure, left = self.trained
        with restored_buffers(self.network):
            place = first_unfaithful(structure, run, 2 * self.inputs + 1)
            tracked = {name for each in run.on_the_way if "norm" in each.function for name in each.tensors.values()}
            for name, value in self.network.named_buffers():
                if name in tracked and not fingerprint(value).matches(fingerprint(left[name])):
                    return place or f"the statistics {name} after training"
        return place


@contextmanager
def restored_buffers(network: nn.Module) -> Iterator[None]:
    """Inside this context a network may change its buffers; afterwards they are as before."""
    kept = {name: value.clone() for name, value in network.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in network.named_buffers():
                value.copy_(kept[name])


@torch.no_grad()
def first_unfaithful(structure: Structure, run: Trace, inputs: Tensor) -> str | None:
    """The place of the first layer whose result is not what was traced there; None if the logits agree."""
    try:
        logits = structure(inputs.clone())
    except (RuntimeError, ValueError, TypeError, KeyError, StopIteration) as error:
        return f"{run.operations[run.output].place}: its layers do not run by themselves ({type(error).__name__})"
    if run.logits is None or fingerprint(logits.reshape(run.logits.shape)).matches(run.logits):
        return None
    return run.operations[run.output].place


def resized(structure: Structure, network: nn.Module, inputs: Tensor, like: Structure | None) -> Structure:
    """The structure, in which a pool over the whole map is fixed only where other images show that it is."""
    if not fixed_sizes(structure):
        return structure
    larger = torch.nn.functional.interpolate(inputs, scale_factor=2)
    try:
        again = structure_of(trace(network, larger, fingerprints=False), like)
    except Exception:  # whatever the network raises on another size
        return structure
    return structure if fixed_sizes(again) in ([], fixed_sizes(structure)) else without_fixed_pools(structure)


def fixed_sizes(structure: Structure) -> list[Any]:
    """The sizes of the head's pools that have the size of the map."""
    return [layer.settings["fixed"] for layer in structure.head if layer.settings.get("fixed")]


def without_fixed_pools(structure: Structure) -> Structure:
    """The structure, in which the head's pools take maps of any size."""
    head = [
        replace(layer, settings={**layer.settings, "fixed": None}) if layer.settings.get("fixed") else layer
        for layer in structure.head
    ]
    return replace(structure, head=tuple(head))


def explain(ours: Examined, theirs: Examined) -> Diagnosis:
    """The differences of two examined networks, and whether they are all."""
    found = mistakes_between(ours.evaluation, theirs.evaluation)
    rest = ours.unexplained or theirs.unexplained
    others: list[Difference] = []
    if not isinstance(ours.trained, Exception) and not isinstance(theirs.trained, Exception):
        known = {each.name for each in found}
        in_training = mistakes_between(ours.trained[1], theirs.trained[1], training=True)
        found += [each for each in in_training if each.name not in known]
        others = [*other_outputs(ours.trained[0], theirs.trained[0])]
    elif isinstance(ours.trained, Exception) and not isinstance(theirs.trained, Exception):
        rest = rest or f"the forward in training ({with_place(ours.trained)})"

    # What has no name is where the rest begins.
    strange = [each for each in found if any(edit.kind == "other" for edit in each.edits)]
    rest = rest or "; ".join(str(as_difference(each)) for each in strange[:3]) or None
    names = (*(each.name for each in found), *(each.name for each in others))
    name = name_of(theirs.evaluation)
    return Diagnosis(
        mistakes=None if rest else names,
        differences=(*(as_difference(each) for each in found if each not in strange), *others),
        rest=rest,
        publication=published(names) if name and not rest else None,
        reference_name=name or "the reference",
    )


def other_outputs(ours: Trace, theirs: Trace) -> Iterator[Difference]:
    """Outputs in training beside the logits, such as those of auxiliary heads."""
    if ours.returned != theirs.returned:
        last = ours.operations[ours.output]
        yield Difference(
            name=f"a {ours.returned} returned in training",
            operation="output",
            path=last.path,
            file=last.file,
            line=last.line,
            ours=f"a {ours.returned}",
            theirs=f"a {theirs.returned}",
            repair="return the logits alone, or compare a module that does",
        )


def mistakes_between(ours: Structure, theirs: Structure, training: bool = False) -> list[Mistake]:
    """The mistakes that make the first network of the second, as both are in evaluation, or in training."""
    differences = compare_structures(ours, theirs)
    if not differences.edits:
        return []
    best: tuple[float, list[Mistake], Differences, Structure] = (differences.cost, [], differences, theirs)

    # A change of the whole network first, where it leaves less to explain.
    for name, changed in whole_changes(ours, theirs, training):
        left = compare_structures(ours, changed)
        if left.cost + 2 < best[0]:
            in_blocks = [edit for edit in differences.edits if edit.place.stage]
            first = next((edit for edit in in_blocks if edit.layer), [*in_blocks, *differences.edits][0])
            best = (left.cost + 2, [Mistake(name, (first,))], left, changed)
    _, before, differences, theirs = best
    return [*before, *name_mistakes(differences, ours, theirs)]


def whole_changes(ours: Structure, theirs: Structure, training: bool) -> Iterator[tuple[str, Structure]]:
    """The reference with all of its blocks changed, and what that is called."""
    if theirs.blocks and theirs.blocks[0].branch and theirs.blocks[0].branch[0].kind == "conv":
        yield "pre-activation order", pre_activated(theirs)

    lengths = [count(block.branch, "conv") for structure in (ours, theirs) for block in structure.blocks[:1]]
    if len(lengths) == 2 and set(lengths) == {2, 3}:
        kind = Bottleneck if lengths[0] == 3 else BasicBlock
        other = healthy_like(theirs, kind, training)
        if other is not None:
            before = BasicBlock if kind is Bottleneck else Bottleneck
            yield f"{kind.__name__}s instead of {before.__name__}s", other


def pre_activated(structure: Structure) -> Structure:
    """Norm, activation, convolution, in this order; nothing after the addition, no norm on the shortcut."""

    def changed(block: Block) -> Block:
        norm = next(layer for layer in block.branch if layer.kind == "norm")
        act = next((layer for layer in (*block.branch, *block.after) if layer.kind == "act"), None)
        branch = [each for layer in block.branch if layer.kind == "conv" for each in (norm, act, layer) if each]
        shortcut = block.shortcut and tuple(layer for layer in block.shortcut if layer.kind != "norm")
        return replace(block, branch=tuple(branch), shortcut=shortcut, after=())

    if not all(any(layer.kind == "norm" for layer in block.branch) for block in structure.blocks):
        return structure
    return replace(structure, blocks=tuple(map(changed, structure.blocks)))


# The healthy network that is nearest to a structure.


def healthy_like(
    structure: Structure, block: type[nn.Module] | None = None, training: bool = False
) -> Structure | None:
    """The structure of our network with these depths and widths; None where no network of ours has them."""
    reference = reference_for(structure, block)
    if reference is None:
        return None
    try:
        network = on_meta(reference)
    except (ValueError, NotImplementedError):  # no network has these settings
        return None
    size = 32 if reference.small_images else 64
    images = torch.empty(2, channels_in(structure), size, size, device="meta")
    return structure_of(trace(network.train(training), images, exact=False, fingerprints=False))


def channels_in(structure: Structure) -> int:
    layer = next((layer for layer in structure.layers() if layer.kind == "conv"), None)
    return int(layer.tensors["weight"].value.shape[1] * layer.settings["groups"]) if layer else 3


def reference_for(structure: Structure, block: type[nn.Module] | None = None) -> Reference | None:
    """Our network with a structure's depths and widths, with other blocks where these are given."""
    linear = [layer for layer in structure.head if layer.kind == "linear"]
    stem = [layer for layer in structure.stem if layer.kind == "conv"]
    first = [layer.settings for block in structure.blocks[:1] for layer in block.branch if layer.kind == "conv"]
    if not first or not linear or not stem:
        return None
    kind = block or (Bottleneck if len(first) == 3 else BasicBlock)

    config: dict[str, Any] = {}
    if first[0]["out"] == 16 and kind is BasicBlock:
        projects = any(count(each.shortcut or (), "conv") for each in structure.blocks)
        config = {"shortcut": "B"} if projects else {}
        reference = Reference(network=CifarResNet, arguments=(max(structure.depths),), config=config)
    else:
        if kind is Bottleneck and len(first) == 3:
            groups, width = first[1]["groups"], first[1]["out"] // first[1]["groups"]
            config = ({"groups": groups} if groups != 1 else {}) | ({"width_per_group": width} if width != 64 else {})
        reference = Reference(network=Backbone, arguments=(kind, structure.depths), config=config)
    small = (stem[0].settings["kernel"], stem[0].settings["stride"], count(structure.stem, "pool")) == (3, 1, 0)
    return for_images(reference, channels_in(structure), linear[-1].settings["out"], small)


def is_healthy(structure: Structure) -> bool:
    """Whether a network of ours, or of torchvision's, has just these layers."""
    healthy = healthy_like(structure)
    return healthy is not None and not compare_structures(structure, healthy).edits


def name_of(structure: Structure) -> str | None:
    """The name of our model with these depths and widths."""
    name = str(reference_for(structure)).partition("(")[0]
    return name if name in MODELS else None


GATE = "a gate on the branch", "no gate", "remove the gate"
IN_WORDS = {
    "pre-activation order": (
        "norm, activation, convolution",
        "convolution, norm, activation",
        "write each block in the reference's order, with an activation after the addition",
    ),
    "projections read the first activation": (
        "the projection reads what the block's first activation writes",
        "the projection reads the block's input",
        "give the projection the block's input",
    ),
    "shortcut from behind": (
        "the shortcut begins behind a convolution",
        "it begins at the block's input",
        "add the block's input",
    ),
    "squeeze-and-excitation": GATE,
    "channel attention": GATE,
    "efficient channel attention": GATE,
    "spatial attention": GATE,
    "deep stem": (
        "several 3x3 convolutions",
        "a single convolution",
        "write a single convolution, norm and activation",
    ),
    "normalised input": ("the network normalises the images", "it takes them as they are", "normalise them before it"),
    "identity shortcut without projection": (
        "zeros in the new channels",
        "a projection",
        "write the projection, a 1x1 convolution and a norm",
    ),
    "copies of the channels": (
        "copies of the channels",
        "zeros, or a projection",
        "write the reference's shortcut",
    ),
    "no projection": ("identity", "a projection", "write the projection, a 1x1 convolution and a norm"),
    "projection on every block": ("a projection", "identity where the shapes agree", "write nn.Identity()"),
}
"""The beginning of a mistake's name -> what both have and the repair, where one layer does not say it."""


def as_difference(mistake: Mistake) -> Difference:
    # A layer that moved is extra in one place and missing in another: the first is shown, and the repair has both.
    extra = [edit for edit in mistake.edits if edit.action == "extra" and edit.layer]
    gaps = [edit for edit in mistake.edits if edit.action == "missing"]
    kinds = {(edit.kind, edit.action) for edit in mistake.edits}
    moved = bool(extra) and kinds == {(extra[0].kind, "extra"), (extra[0].kind, "missing")}
    shown = extra if moved else mistake.edits

    edit = shown[0]
    words = next((words for start, words in IN_WORDS.items() if mistake.name.startswith(start)), None)
    ours, theirs, repair = words or (of_moved(edit, gaps[0]) if moved else of_edit(edit))
    layer = edit.layer or edit.reference
    return Difference(
        name=mistake.name,
        operation=edit.kind,
        path=layer.operation.path if layer else "",
        file=edit.layer.operation.file if edit.layer else None,
        line=edit.layer.operation.line if edit.layer else None,
        ours=ours,
        theirs=theirs,
        repair=repair,
        places=len({id(each.reference if each.action == "missing" else each.layer) for each in shown}),
    )


Words = tuple[str, str, str]
"""What the network in question has, what the reference has, and the repair."""


def of_moved(edit: Edit, gap: Edit) -> Words:
    """The words for a layer that stands in another place than in the reference, which has it at the gap."""
    assert edit.layer is not None
    before = gap.layer.operation if gap.layer else None
    behind = f" behind {f'{Path(before.file).name}:{before.line}' if before.file else before.path}" if before else ""
    return described(edit.layer), "none here", f"move {as_code(edit.layer)}{behind}"


def of_edit(edit: Edit) -> Words:
    """The words for one edit."""
    layer, reference = edit.layer, edit.reference
    if edit.setting == "weights":
        return "the weights of another place", "its own", "give each place a layer of its own"
    if edit.kind in ("block", "shortcut") and edit.action != "setting":
        if edit.action == "missing":
            return f"no {edit.kind}", f"a {edit.kind}", f"add the {edit.kind}"
        return f"a {edit.kind}", f"no {edit.kind}", f"remove the {edit.kind}"

    ours = "nothing" if edit.action == "missing" or layer is None else described(layer)
    theirs = "nothing" if edit.action == "extra" or reference is None else described(reference)
    if ours == theirs:
        ours, theirs = f"{ours}, {edit.setting} {edit.ours}", f"{edit.setting} {edit.theirs}"
    if edit.setting == "held":
        return ours, theirs, "put it into an nn.ModuleList, or make it in __init__"
    if edit.action == "extra" and layer is not None:
        return ours, theirs, f"remove {as_code(layer)}"
    if reference is None:
        return ours, theirs, "as in the reference"
    return ours, theirs, f"{'add' if edit.action == 'missing' else 'write'} {as_code(reference)}"
