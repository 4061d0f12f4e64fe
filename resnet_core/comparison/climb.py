"""The ladder climbed: the lowest rungs on two networks as they start, the others on both with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from resnet_core.comparison.networks import with_place
from resnet_core.comparison.pair import Pair, in_order
from resnet_core.comparison.rungs import RUNGS, SLOW, NotRun, Outcome, Run, Rung, Status, judge
from resnet_core.comparison.trace import copied, in_float64, trace
from resnet_core.comparison.twins import Twins, agree, numbered, with_weights
from resnet_core.foundation.precision import same_bits, same_distribution

STARTING_RUNGS = ("names and shapes", "parameters", "seeded initialisation")
HIGHER_RUNGS = ("activations", *RUNGS)
ALL_RUNGS = (*STARTING_RUNGS, *HIGHER_RUNGS)
DEFAULT_RUNGS = tuple(name for name in ALL_RUNGS if name not in SLOW)


def starting_rungs(pair: Pair, names: Collection[str]) -> Iterator[Rung]:
    """The rungs of these names on the networks as they start; different shapes show whatever the names are."""
    first = (names_and_shapes(pair), parameters(pair))
    yield from (rung for rung in first if rung.name in names or not rung.passed)
    if "seeded initialisation" in names:
        yield initialisation(pair) if pair.comparable else not_run("seeded initialisation")


def higher_rungs(twins: Twins, names: Collection[str]) -> Iterator[Rung]:
    """The rungs of these names on networks with the same weights, lowest first."""
    if not twins.comparable:
        yield from (not_run(name) for name in HIGHER_RUNGS if name in names)
        return
    if "activations" in names:
        yield activations(twins)
    yield from (outcomes(twins, name, *runs) for name, runs in RUNGS.items() if name in names)


def not_run(name: str) -> Rung:
    """The rung of two networks that cannot share weights."""
    return Rung(name=name, status="not run", detail="shapes differ")


def names_and_shapes(pair: Pair) -> Rung:
    name = "names and shapes"
    if pair.unmatched:
        more = f" and {len(pair.unmatched) - 3} more" if len(pair.unmatched) > 3 else ""
        detail = f"without counterpart: {', '.join(pair.unmatched[:3])}{more}"
        if pair.only_heads_differ:
            detail += "; give both heads the same number of classes"
        return Rung(name=name, status="differs", detail=detail)

    note = f"{len(pair.renamed)} modules have other names" if pair.renamed else ""
    return Rung(name=name, status="equal", detail=note)


def parameters(pair: Pair) -> Rung:
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (pair.a, pair.b)]
    detail = f"{counts[0]:,}" if counts[0] == counts[1] else f"{counts[0]:,} and {counts[1]:,}"
    if pair.unused:
        detail += f"; never run: {', '.join(pair.unused)}"
    return Rung(name="parameters", status="equal" if counts[0] == counts[1] else "differs", detail=detail)


def initialisation(pair: Pair) -> Rung:
    """The weights that both functions give after `torch.manual_seed(0)`."""
    name = "seeded initialisation"
    if pair.generators is None:
        return Rung(name=name, status="not run", detail="give functions that build the networks")

    ours, theirs = starting_weights(pair)
    for key in sorted(ours.keys() ^ theirs.keys()):
        owner = "first" if key in ours else "second"
        return Rung(name=name, status="differs", detail=f"{key}: only the {owner} network has one")

    if all(same_bits(ours[key], theirs[key]) for key in theirs):
        if torch.equal(*pair.generators):
            return Rung(name=name, status="equal", largest_difference=0.0)
        return Rung(name=name, status="alike", detail="the random generators differ afterwards")

    unlike = [key for key in theirs if not same_distribution(ours[key], theirs[key])]
    if not unlike:
        return Rung(name=name, status="alike", detail="other draws of the same distributions")
    first = unlike[0]
    values = (f"mean {each[first].mean():.3g} std {each[first].std(correction=0):.3g}" for each in (ours, theirs))
    detail = f"{len(unlike)} parameters, such as {first}: the first's {next(values)}, the second's {next(values)}"
    return Rung(name=name, status="differs", detail=f"{detail}; skip this rung where that is meant")


def starting_weights(pair: Pair) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters of both networks by the second one's names."""
    theirs: dict[str, Tensor] = dict(pair.b.named_parameters())
    ours = {}
    for name, value in pair.a.named_parameters():
        counterpart = pair.tensor_names.get(name, name)
        like = theirs.get(counterpart, value)
        ours[counterpart] = in_order(value, pair.orders.get(name), like)
    return ours, theirs


def cause_of_initialisation(pair: Pair) -> str | None:
    """The known initialisation that gives weights like the first network's."""
    ours, theirs = starting_weights(pair)
    if ours.keys() != theirs.keys():
        return None
    for name, initialise in INITIALISATIONS.items():
        network = copied(pair.b)
        initialise(network)
        if all(same_distribution(ours[key], value) for key, value in network.named_parameters()):
            return f"{name}: the reference with this start has weights like those of the first network"
    return None


# Other weights to start from: what a network computes stays, what training makes of it does not.


def default_initialisation(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()


def zero_last_norms(model: nn.Module) -> None:
    """The last norm of each block, which has two or three of them itself."""
    for block in model.modules():
        norms = [each for each in block.children() if isinstance(each, nn.BatchNorm2d)]
        if len(norms) > 1:
            nn.init.zeros_(norms[-1].weight)


def kaiming_over_fan_in(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


INITIALISATIONS: dict[str, Callable[[nn.Module], None]] = {
    "PyTorch's default initialisation": default_initialisation,
    "last BatchNorm of each block starts at zero": zero_last_norms,
    "Kaiming's normal over fan_in": kaiming_over_fan_in,
}


def activations(twins: Twins) -> Rung:
    """What every module with parameters writes, beside its counterpart: in float32, and in float64."""
    place, _ = twins.first_divergence()
    if place is not None:
        return Rung(name="activations", status="differs", detail=f"first at {place}")

    ours, theirs = (trace(model.eval(), twins.inputs, exact=False).operations for model in (twins.a, twins.b))
    written = {key: each.written for key, each in twins.counterparts(ours).items()}
    others = numbered(with_weights(theirs))
    equal = all(written.get(key) == each.written for key, each in others.items())
    return Rung(name="activations", status="equal" if equal else "rounding", detail=f"{len(written)} modules")


def outcomes(twins: Twins, name: str, ours: Run, theirs: Run) -> Rung:
    """The rung of what the two networks do, or of the errors that they raise."""
    failed: Exception | None = None
    if name in ("bfloat16", "float16") and twins.casts:
        cast = twins.casts[0]
        return Rung(name=name, status="not run", detail=f"a network asks for {cast.function} ({cast.place})")
    try:
        outcome = run_copy(ours, twins.a, twins)
    except NotRun as reason:
        return Rung(name=name, status="not run", detail=str(reason))
    except Exception as error:  # anything that a network which runs in float32 raises here
        failed = error

    # An error of both says nothing about either.
    try:
        reference = run_copy(theirs, twins.b, twins)
    except Exception as error:
        status: Status = "differs" if failed is None else "not run"
        detail = f"{'the second network raises' if failed is None else 'both raise'} {with_place(error)}"
        return Rung(name=name, status=status, detail=detail)
    if failed is not None:
        return Rung(name=name, status="differs", detail=f"the first network raises {with_place(failed)}")

    renamed = {}
    for key, value in outcome.items():
        counterpart = key._replace(tensor=twins.tensor_names.get(key.tensor, key.tensor))
        if key.tensor and counterpart in reference:
            value = in_order(value, twins.orders.get(key.tensor), reference[counterpart])
        renamed[counterpart] = value

    def exact() -> Outcome:
        with in_float64():
            return run_copy(theirs, copied(twins.b).double(), twins)

    rung = judge(name, renamed, reference, exact)

    if name == "training logits" and rung.passed:
        first, second = twins.in_float64
        if not agree(first.trained, second.trained):
            return replace(rung, status="differs", detail="in float64")
    return rung


def run_copy(run: Run, model: nn.Module, twins: Twins) -> Outcome:
    """What happens to a copy of the model; random layers draw the same numbers each time."""
    torch.manual_seed(1)
    form = torch.channels_last if twins.channels_last else torch.preserve_format
    model = copied(model).to(memory_format=form)
    dtype = next((parameter.dtype for parameter in model.parameters()), twins.inputs.dtype)
    return run(model, twins.inputs.to(dtype, copy=True, memory_format=form), twins.labels)
