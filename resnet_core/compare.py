"""Two networks, rung by rung: how equal they are, where they first differ, and what the likely cause is.

    result = compare(my_resnet50, resnet_core.resnet50, torch.randn(2, 3, 64, 64))
    print(result)         # the ladder
    assert result         # falsy where a rung differs

Names may differ: modules are matched by execution order, shapes and sources. Both get the first network's weights, with
noise where a parameter is one constant, as in new norms; the networks given are not changed.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from resnet_core.alignment import Call, Fingerprint, align, carry, fingerprint, recording, shake, trace
from resnet_core.doctor import as_resnet, calibrate, diagnose, first_unknown
from resnet_core.ladder import RUNGS, SLOW, NotRun, Outcome, Run, Rung, judge, timed
from resnet_core.mistakes import INITIALISATIONS
from resnet_core.models import MODELS, get_model
from resnet_core.rounding import same_bits, same_distribution
from resnet_core.suggestions import did_you_mean

Network = nn.Module | Callable[[], nn.Module]

FIRST_RUNGS = ("names and shapes", "parameters", "seeded initialisation", "activations")
ALL_RUNGS = (*FIRST_RUNGS, *RUNGS)
DEFAULT_RUNGS = tuple(name for name in ALL_RUNGS if name not in SLOW)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ladder of two networks. True where no rung differs."""

    rungs: tuple[Rung, ...]
    first_divergence: str | None = None
    """Path of the second network's module whose result the first one never has."""
    values: tuple[str, str] | None = None
    """What both networks have there, in words."""
    likely_cause: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    """The first network's modules -> the second's, where names differ."""

    def __bool__(self) -> bool:
        return all(rung.passed for rung in self.rungs)

    def to_json(self) -> str:
        return json.dumps({"equal": bool(self), **asdict(self)}, indent=2)

    def __str__(self) -> str:
        lines = [f"{'rung':<24}{'result':<10}{'difference':>12}"]
        for rung in self.rungs:
            difference = "" if rung.largest_difference is None else f"{rung.largest_difference:.2e}"
            errors = "errors against float64 {:.1e} and {:.1e}".format(*rung.errors) if rung.errors else ""
            notes = "; ".join(note for note in (rung.detail, errors) if note)
            lines.append(f"{rung.name:<24}{rung.status:<10}{difference:>12}  {notes}".rstrip())
        if self.first_divergence:
            lines.append(f"first divergence: {self.first_divergence}")
        if self.values:
            lines += [f"  first network:  {self.values[0]}", f"  second network: {self.values[1]}"]
        if self.likely_cause:
            lines.append(f"likely cause: {self.likely_cause}")
        return "\n".join(lines)


def compare(
    a: Network,
    b: Network,
    inputs: Tensor,
    *,
    rungs: Collection[str] = DEFAULT_RUNGS,
    diagnosis_seconds: float = 60.0,
) -> Comparison:
    """The ladder of `a`, the network in question, and `b`, the reference, on `inputs` `[N, C, H, W]`, N at least 2.

    Each is a module, or a function that builds one: with functions the weights that a seed gives are compared, too.
    `rungs` are names of ALL_RUNGS; by default all but the slow ones. They run on the inputs' device. Where a rung
    differs and `b` is a ResNet of this package or of torchvision's form, the known mistakes are simulated for at most
    `diagnosis_seconds`. Raises what the networks raise on these inputs, TypeError for what is no network, ValueError
    for an unknown rung.
    """
    for name in rungs:
        if name not in ALL_RUNGS:
            raise ValueError(f"unknown rung {name!r}; {did_you_mean(name, ALL_RUNGS)}")
    with exact_arithmetic(), torch.random.fork_rng():
        pair = Pair(a, b, inputs)
        found = tuple(timed(pair.rungs(rungs)))
        failed = {rung.name for rung in found if not rung.passed}
        path, values, causes = None, None, []
        if failed - {"seeded initialisation", *SLOW}:
            path, values = pair.first_divergence()
            causes.append(pair.diagnosis(diagnosis_seconds))
        causes.append(pair.cause_of_weights)
    return Comparison(
        rungs=found,
        first_divergence=path,
        values=values,
        likely_cause="; ".join(cause for cause in causes if cause) or None,
        renamed=pair.renamed,
    )


def assert_parity(a: Network, b: Network, inputs: Tensor, *, rungs: Collection[str] = DEFAULT_RUNGS) -> None:
    """Raises AssertionError with the ladder where a rung differs; for tests."""
    comparison = compare(a, b, inputs, rungs=rungs)
    if not comparison:
        raise AssertionError(f"the networks differ\n{comparison}")


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Within it a GPU computes float32 as float32, not as TF32, and cuDNN takes the same algorithm each time."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class Pair:
    """Two networks of which each module has its counterpart, and which share their weights once `rungs` ran."""

    def __init__(self, a: Network, b: Network, inputs: Tensor) -> None:
        self.inputs = inputs.float()
        self.labels = torch.arange(len(inputs), device=inputs.device)
        self.both_built = not isinstance(a, nn.Module) and not isinstance(b, nn.Module)
        self.a, self.generator_a = owned(a, self.inputs)
        self.b, self.generator_b = owned(b, self.inputs)
        calls = (trace(shake(copy.deepcopy(model)), self.inputs) for model in (self.a, self.b))
        self.pairs, self.alone = align(*calls)
        self.renamed = {ours: theirs for ours, theirs in self.pairs.items() if ours != theirs}
        self.cause_of_weights: str | None = None

    def rungs(self, names: Collection[str]) -> Iterator[Rung]:
        """The rungs of these names, lowest first."""
        yield from (rung for rung in (self.names_and_shapes(), self.parameters()) if rung.name in names)
        if self.alone:
            self.share_weights()
            higher = (name for name in ALL_RUNGS[2:] if name in names)
            yield from (Rung(name=name, status="not run", detail="shapes differ") for name in higher)
            return
        if "seeded initialisation" in names:
            yield self.initialisation()
        self.share_weights()
        if "activations" in names:
            yield self.activations()
        yield from (self.judged(name, *runs) for name, runs in RUNGS.items() if name in names)

    def share_weights(self) -> None:
        calibrate(shake(self.a), self.inputs)
        carry(self.a, self.b, self.pairs)

    @cached_property
    def exact(self) -> tuple[tuple[list[Call], Fingerprint], tuple[list[Call], Fingerprint]]:
        """The calls of both, and what they return, in float64."""
        return self.in_float64(self.a), self.in_float64(self.b)

    @torch.no_grad()
    def in_float64(self, model: nn.Module) -> tuple[list[Call], Fingerprint]:
        model = copy.deepcopy(model).double().eval()
        with recording(model) as calls:
            return calls, fingerprint(model(self.inputs.double()))

    def names_and_shapes(self) -> Rung:
        if self.alone:
            more = f" and {len(self.alone) - 3} more" if len(self.alone) > 3 else ""
            detail = f"without counterpart: {', '.join(self.alone[:3])}{more}"
            if all("Linear" in each for each in self.alone):
                detail += "; give both heads the same number of classes"
            return Rung(name="names and shapes", status="differs", detail=detail)
        note = f"{len(self.renamed)} modules have other names" if self.renamed else ""
        return Rung(name="names and shapes", status="equal", detail=note)

    def parameters(self) -> Rung:
        counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (self.a, self.b)]
        detail = f"{counts[0]:,}" if counts[0] == counts[1] else f"{counts[0]:,} and {counts[1]:,}"
        return Rung(name="parameters", status="equal" if counts[0] == counts[1] else "differs", detail=detail)

    def initialisation(self) -> Rung:
        """The weights that both functions give after `torch.manual_seed(0)`."""
        name = "seeded initialisation"
        if not self.both_built:
            return Rung(name=name, status="not run", detail="give functions that build the networks")
        ours: Outcome = {self.translated(key): value for key, value in self.a.named_parameters()}
        theirs: Outcome = dict(self.b.named_parameters())
        if all(same_bits(ours[key], theirs[key]) for key in theirs):
            if torch.equal(self.generator_a, self.generator_b):
                return Rung(name=name, status="equal", largest_difference=0.0)
            return Rung(name=name, status="alike", detail="the random generators differ afterwards")
        unlike = [key for key in theirs if not same_distribution(ours[key], theirs[key])]
        if not unlike:
            return Rung(name=name, status="alike", detail="other draws of the same distributions")
        self.cause_of_weights = self.initialisation_cause(ours)
        first = unlike[0]
        values = " and ".join(f"mean {each[first].mean():.3g} std {spread(each[first]):.3g}" for each in (ours, theirs))
        return Rung(name=name, status="differs", detail=f"{len(unlike)} parameters, the first {first}: {values}")

    def activations(self) -> Rung:
        """What every module with parameters writes, beside its counterpart: in float32, and in float64."""
        place = self.first_divergence()[0]
        if place is not None:
            return Rung(name="activations", status="differs", detail=f"first at {place}")
        ours, theirs = (trace(model.eval(), self.inputs) for model in (self.a, self.b))
        written = {self.pairs[call.path]: call.written for call in ours if call.path in self.pairs}
        equal = all(written[call.path] == call.written for call in theirs if call.path in written)
        return Rung(name="activations", status="equal" if equal else "rounding", detail=f"{len(written)} modules")

    def judged(self, name: str, ours: Run, theirs: Run) -> Rung:
        try:
            outcome = {self.translated(key): value for key, value in self.run(ours, self.a).items()}
        except NotRun as reason:
            return Rung(name=name, status="not run", detail=str(reason))
        except Exception as error:  # whatever a network that runs in float32 raises here
            return Rung(name=name, status="differs", detail=f"the first network raises {in_short(error)}")
        try:
            reference = self.run(theirs, self.b)
        except Exception as error:
            return Rung(name=name, status="not run", detail=f"the second network raises {in_short(error)}")
        return judge(name, outcome, reference, lambda: self.run(theirs, copy.deepcopy(self.b).double()))

    def run(self, run: Run, model: nn.Module) -> Outcome:
        """What happens to a copy of the model; random layers draw the same numbers each time."""
        model = copy.deepcopy(model)
        torch.manual_seed(1)
        return run(model, self.inputs.to(next(model.parameters()).dtype), self.labels)

    def translated(self, name: str) -> str:
        """The second network's name of one of the first's tensors."""
        path, _, tensor = name.rpartition(".")
        return f"{self.pairs[path]}.{tensor}" if path in self.pairs else name

    def first_divergence(self) -> tuple[str | None, tuple[str, str] | None]:
        """The second network's first module that computes what the first never does, in float64, and both values.

        That is a module with parameters whose counterpart writes something else, or, where already what it reads
        differs, the first module before it whose result the first network does not have.
        """
        (calls, logits), (theirs, their_logits) = self.exact
        ours = {self.pairs[call.path]: call for call in calls if call.path in self.pairs}
        since = 0
        for number, call in enumerate(theirs):
            if not call.shapes:
                continue
            if call.path not in ours:
                return call.path, (f"nothing of shape {list(call.written.shape)}", written(call))
            counterpart = ours[call.path]
            if not counterpart.written.matches(call.written):
                if counterpart.read.matches(call.read):
                    return call.path, (written(counterpart), written(call))
                place = min(since + first_unknown(theirs[since:number], calls), number)
                return theirs[place].path, (read(counterpart), read(call))
            since = number + 1
        if theirs and not logits.matches(their_logits):
            return theirs[-1].path, (f"its end, {logits}", f"its end, {their_logits}")
        return None, None

    def diagnosis(self, seconds: float) -> str | None:
        """The mistake that explains the first network, in words; None where the second is no reference to try it on."""
        reference = as_resnet(self.b)
        if seconds <= 0 or reference is None:
            return None
        diagnosis = diagnose(self.a, reference, self.inputs, seconds=seconds)
        model = lookalike(self.a) if diagnosis.mistakes is None and self.alone else None
        return f"its convolutions have the shapes of a {model}'s" if model else str(diagnosis)

    def initialisation_cause(self, ours: Outcome) -> str | None:
        """The known initialisation that gives weights like the first network's."""
        reference = as_resnet(self.b)
        if reference is None:
            return None
        for name, initialise in INITIALISATIONS.items():
            network = copy.deepcopy(reference)
            initialise(network)
            if all(same_distribution(ours[key], value) for key, value in network.named_parameters()):
                return f"{name}: with that, the reference starts from weights like its own"
        return None


def owned(network: Network, inputs: Tensor) -> tuple[nn.Module, Tensor]:
    """A network of our own on the inputs' device in evaluation mode, and the random generator's state after its making.

    Raises TypeError for what is no network, or gives anything but a tensor of logits.
    """
    torch.manual_seed(0)
    model = copy.deepcopy(network) if isinstance(network, nn.Module) else network() if callable(network) else network
    generator = torch.get_rng_state()
    if not isinstance(model, nn.Module):
        raise TypeError(f"compare takes networks or functions that build them, got a {type(model).__name__}")
    model = model.to(inputs.device).float().eval()
    with torch.no_grad():
        output = model(inputs)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{type(model).__name__} returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            "returns the logits"
        )
    return model, generator


def lookalike(model: nn.Module) -> str | None:
    """The model of ours whose convolutions have the same shapes."""
    shapes = convolution_shapes(model)
    with torch.device("meta"):
        return next((name for name in MODELS if convolution_shapes(get_model(name)) == shapes), None)


def convolution_shapes(model: nn.Module) -> Counter[torch.Size]:
    return Counter(parameter.shape for parameter in model.parameters() if parameter.dim() == 4)


def spread(tensor: Tensor) -> float:
    """The standard deviation."""
    return tensor.std(correction=0).item()


def written(call: Call) -> str:
    return f"{call.path} writes {call.written}"


def read(call: Call) -> str:
    return f"{call.path} reads {call.read}"


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
