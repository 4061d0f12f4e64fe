"""Which of two networks is in question, and the cause of their differences in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from resnet_core.comparison.chain import EntangledError
from resnet_core.comparison.diagnosis import (
    Diagnosis,
    Difference,
    Examined,
    as_difference,
    explain,
    healthy_like,
    is_healthy,
    mistakes_between,
    name_of,
    reference_for,
)
from resnet_core.comparison.imports import with_place
from resnet_core.comparison.mistakes import Mistake
from resnet_core.comparison.operations import Operation
from resnet_core.comparison.recorder import SAME
from resnet_core.comparison.structure import Structure, structure_of
from resnet_core.comparison.trace import copied, trace
from resnet_core.comparison.twins import Twins, agree


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison says beyond its rungs."""

    cause: str | None = None
    mistakes: tuple[str, ...] | None = None
    differences: tuple[Difference, ...] = ()
    reference: str | None = None
    """The healthy network that the differences are from, where that is not the second one."""


def judge_networks(twins: Twins, failed: set[str]) -> Verdict:
    """The differences of the first network from the second.

    Those of the second from the first where only the first is a healthy ResNet; where neither is one, those of both
    from the healthy one that is nearest.
    """
    if (place := first_random(twins)) is not None:
        return Verdict(cause=f"the first network is not deterministic in eval mode: {place}")

    try:
        theirs = Examined(twins.b, twins.inputs)
        ours = Examined(twins.a, twins.inputs, like=theirs.evaluation)
        healthy = is_healthy(ours.evaluation), is_healthy(theirs.evaluation)
        if healthy == (True, False):
            diagnosis = explain(Examined(twins.b, twins.inputs, like=ours.evaluation), ours)
        else:
            diagnosis = explain(ours, theirs)
    except EntangledError as error:
        return Verdict(cause=f"unknown: {error}")
    except Exception as error:  # the rungs above are worth more than a traceback
        return Verdict(cause=f"unknown: the doctor failed, and should not have; please report {with_place(error)}")

    cuts = [*without_gradient(twins, failed)]
    if diagnosis.healthy:
        others = [*other_reasons(twins, failed)]
        reasons = [*in_words_of(cuts), *others]
        same = "no operation differs on these images, in evaluation and in training"
        if low := [cast for cast in twins.casts if cast.function != "float32"]:
            same = f"a network asks for {low[0].function} ({low[0].place}); in float64 no layer differs"
        return Verdict(
            cause=f"{same}; {'; '.join(reasons) or 'what differs stands in the rungs above'}",
            mistakes=None if others or not cuts else tuple(each.name for each in cuts),
            differences=tuple(cuts),
        )
    verdict = judged(ours, theirs, diagnosis, healthy)
    return replace(
        verdict,
        cause="; ".join([verdict.cause or "", *in_words_of(cuts)]),
        mistakes=verdict.mistakes and (*verdict.mistakes, *(each.name for each in cuts)),
        differences=(*verdict.differences, *cuts),
    )


def judged(ours: Examined, theirs: Examined, diagnosis: Diagnosis, healthy: tuple[bool, bool]) -> Verdict:
    """The verdict on two networks whose layers differ."""
    names = name_of(ours.evaluation), name_of(theirs.evaluation)
    if healthy == (True, True) and all(names) and names[0] != names[1]:
        words = f"the first network has the convolutions of a {names[0]}, the second of a {names[1]}"
        return Verdict(cause=words, differences=diagnosis.differences)
    if healthy == (True, False):
        return Verdict(
            cause=f"the first network is a healthy {names[0] or 'ResNet'}, so the second is judged: {diagnosis}",
            mistakes=diagnosis.mistakes,
            differences=of_second(diagnosis.differences),
            reference=f"{reference_for(ours.evaluation)}, the first network",
        )
    both = beside_the_healthy(ours, theirs, diagnosis) if healthy == (False, False) else None
    return both or Verdict(cause=str(diagnosis), mistakes=diagnosis.mistakes, differences=diagnosis.differences)


def beside_the_healthy(ours: Examined, theirs: Examined, diagnosis: Diagnosis) -> Verdict | None:
    """What both networks have beside the healthy one that is nearest to the second; None if both have the same."""
    healthy = healthy_like(theirs.evaluation)
    if healthy is None:
        return None
    found = [mistakes_between(each.evaluation, healthy) for each in (ours, theirs)]
    names = [{each.name for each in mistakes} for mistakes in found]
    first = tuple(as_difference(each) for each in found[0] if each.name not in names[1])
    second = of_second(as_difference(each) for each in found[1] if each.name not in names[0])
    if not first and not second:
        return None

    name = name_of(theirs.evaluation) or "ResNet"
    words = f"neither network is a healthy {name}: beside it, the first has {in_words(found[0])}, and the second has "
    words += in_words(found[1])
    if diagnosis.mistakes is None:
        words += f"; what is left begins at {diagnosis.rest}"
    return Verdict(
        cause=words,
        mistakes=None if diagnosis.mistakes is None else tuple(each.name for each in (*first, *second)),
        differences=(*first, *second),
        reference=f"{reference_for(theirs.evaluation)}, the healthy one that is nearest",
    )


def of_second(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    return tuple(replace(each, network="second") for each in differences)


def in_words(mistakes: Sequence[Mistake]) -> str:
    return " and ".join(each.name for each in mistakes) or "no difference"


def first_random(twins: Twins) -> str | None:
    """The first operation of the first network that computes something else when it runs again."""
    runs = [trace(twins.a.eval(), twins.inputs, seed=seed).operations for seed in (0, 1)]
    for one, other in zip(*runs, strict=False):
        if agree(one.written, other.written):
            continue
        if any(leaf.unregistered for leaf in one.leaves.values()):
            return f"{one.function} uses a layer that is made in forward, random and untrained each time ({one.place})"
        return f"{one.function} gives something else each time ({one.place}); check that dropout respects self.training"
    return None


def without_gradient(twins: Twins, failed: set[str]) -> Iterator[Difference]:
    """What keeps a gradient from parameters: their own setting, or a cut in the forward."""
    if twins.comparable and not failed & {"loss and gradients", "3 optimizer steps"}:
        return
    networks: tuple[tuple[Literal["first", "second"], nn.Module], ...] = ("first", twins.a), ("second", twins.b)
    for which, model in networks:
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        cuts: dict[str, list[Operation]] = {}
        with suppress(Exception):  # of a network that runs in evaluation only
            run = trace(copied(model).train(), twins.inputs, exact=False, fingerprints=False, gradients=True)
            for each in (each for each in run.on_the_way if each.cut):
                name = each.function if each.function in SAME else "torch.no_grad()"
                cuts.setdefault({"__get__": ".data"}.get(name, name), []).append(each)

        if frozen:
            setting = {"name": "requires_grad=False", "ours": "requires_grad=False", "repair": "set it to True"}
            yield Difference(
                **GRADIENT, **setting, path=frozen[0], file=None, line=None, places=len(frozen), network=which
            )
        for name, (first, *others) in cuts.items():
            yield Difference(
                **GRADIENT,
                name=f"no gradient because of {name}",
                ours=name,
                repair=f"remove {name}",
                path=first.path,
                file=first.file,
                line=first.line,
                places=1 + len(others),
                network=which,
            )


GRADIENT = {"operation": "gradient", "theirs": "a gradient"}


def in_words_of(cuts: Sequence[Difference]) -> list[str]:
    """Where no gradient goes, in the words of a cause."""
    return [f"the {each.network} network's {each.path or 'forward'} has {each.name}" for each in cuts]


def other_reasons(twins: Twins, failed: Collection[str]) -> Iterator[str]:
    """What makes rungs differ where every operation is the same."""
    if "names and shapes" in failed:
        yield "the weights are kept in other shapes"
    if twins.unused and "parameters" in failed:
        yield f"weights that never run: {', '.join(twins.unused[:3])}"
    if "other shapes" in failed and (found := on_other_images(twins)):
        yield found


def on_other_images(twins: Twins) -> str | None:
    """The difference that only a single image, or one of another size, shows."""
    height, width = twins.inputs.shape[-2] + 13, twins.inputs.shape[-1] + 6
    wide = torch.nn.functional.interpolate(twins.inputs, size=(height, width), mode="bilinear")
    for images, words in ((twins.inputs[:1], "a single image"), (wide, f"images of {height} x {width}")):
        structures: list[Structure] = []
        for model in (twins.a, twins.b):
            try:
                structures.append(structure_of(trace(model.eval(), images, fingerprints=False)))
            except Exception as error:  # whatever a network raises on another size
                return f"on {words}, a network raises {type(error).__name__}"
        if found := mistakes_between(structures[0], structures[1]):
            return f"on {words}: {in_words(found)}"
    return None
