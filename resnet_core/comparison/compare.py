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
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_core.comparison.diagnosis import Diagnosis, as_resnet, calibrate, diagnose, first_unknown
from resnet_core.comparison.matching import (
    Call,
    Fingerprint,
    align,
    carry,
    fingerprint,
    matching_tensors,
    own_shapes,
    recording,
    shake,
    trace,
)
from resnet_core.comparison.mistakes import INITIALISATIONS
from resnet_core.comparison.rungs import RUNGS, SLOW, NotRun, Outcome, Run, Rung, Status, judge, timed
from resnet_core.foundation.precision import same_bits, same_distribution
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import MODELS, build

Network = nn.Module | Callable[[], nn.Module]

FIRST_RUNGS = ("names and shapes", "parameters", "seeded initialisation", "activations")
ALL_RUNGS = (*FIRST_RUNGS, *RUNGS)
DEFAULT_RUNGS = tuple(name for name in ALL_RUNGS if name not in SLOW)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ladder of two networks. True where rungs were climbed and none differs."""

    rungs: tuple[Rung, ...]
    first_divergence: str | None = None
    """Path of the second network's module whose result the first one never has."""
    values: tuple[str, str] | None = None
    """What both networks have there, in words."""
    likely_cause: str | None = None
    mistakes: tuple[str, ...] | None = None
    """The known mistakes that explain the first network, names of `resnet_core.comparison.mistakes.MISTAKES`."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The first network's modules -> the second's, where names differ."""

    def __bool__(self) -> bool:
        return all(rung.passed for rung in self.rungs) and any(rung.status != "not run" for rung in self.rungs)

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
    skip: Collection[str] = (),
    diagnosis_seconds: float = 60.0,
) -> Comparison:
    """The ladder of `a`, the network in question, and `b`, the reference, on `inputs` `[N, C, H, W]`, N at least 2.

    Each is a module, or a function that builds one: with functions the weights that a seed gives are compared, too.
    `rungs` are names of ALL_RUNGS, by default all but the slow ones, without those of `skip`. They run on the inputs'
    device. Where a rung differs and `b` is a ResNet of this package or of torchvision's form, each known mistake is
    simulated, then pairs for `diagnosis_seconds`; 0: none. Raises TypeError for what is no network, RuntimeError for
    one that does not run on these inputs, ValueError for inputs that prove nothing and for an unknown rung.
    """
    if len(inputs) < 2 or not inputs.isfinite().all():
        raise ValueError(f"inputs must be finite and at least 2 images, got {list(inputs.shape)}")
    for name in (*rungs, *skip):
        if name not in ALL_RUNGS:
            raise ValueError(f"unknown rung {name!r}; {did_you_mean(name, ALL_RUNGS)}")
    with exact_arithmetic(), torch.random.fork_rng():
        pair = Pair(a, b, inputs)
        found = tuple(timed(pair.rungs([name for name in rungs if name not in skip])))
        failed = {rung.name for rung in found if not rung.passed}
        path, values, causes, diagnosis = None, None, [], None
        if failed - {"seeded initialisation", *SLOW} and not pair.crowded:
            path, values = pair.first_divergence()
            diagnosis = pair.diagnosis(diagnosis_seconds)
            causes.append(pair.in_words(diagnosis, diagnosis_seconds))
        causes.append(pair.cause_of_weights)
    return Comparison(
        rungs=found,
        first_divergence=path,
        values=values,
        likely_cause="; ".join(cause for cause in causes if cause) or None,
        mistakes=diagnosis.mistakes if diagnosis and not diagnosis.healthy else None,
        renamed=pair.renamed,
    )


def assert_parity(
    a: Network,
    b: Network,
    inputs: Tensor,
    *,
    rungs: Collection[str] = DEFAULT_RUNGS,
    skip: Collection[str] = (),
    diagnosis_seconds: float = 60.0,
) -> None:
    """Raises AssertionError with the ladder where a rung differs; for tests. Else as `compare`."""
    __tracebackhide__ = True  # pytest shows the ladder alone
    comparison = compare(a, b, inputs, rungs=rungs, skip=skip, diagnosis_seconds=diagnosis_seconds)
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


class Exact(NamedTuple):
    """What a network computes in float64."""

    calls: list[Call]
    logits: Fingerprint
    trained: Fingerprint
    """Logits in training."""


class Pair:
    """Two networks of which each module has its counterpart, and which share their weights once `rungs` ran."""

    def __init__(self, a: Network, b: Network, inputs: Tensor) -> None:
        self.inputs = inputs.float().clone()
        self.both_built = not isinstance(a, nn.Module) and not isinstance(b, nn.Module)
        self.a, self.generator_a, _ = owned("first", a, self.inputs)
        self.b, self.generator_b, logits = owned("second", b, self.inputs)
        self.labels = torch.arange(len(inputs), device=inputs.device) % logits.shape[-1]
        calls = [trace(shake(copy.deepcopy(model)), self.inputs) for model in (self.a, self.b)]
        self.pairs, self.alone = align(*calls)
        self.crowded = [path or "itself" for path in map(crowd, (self.a, self.b)) if path is not None]
        self.idle = [
            path
            for model, run in zip((self.a, self.b), calls, strict=True)
            for path, module in model.named_modules()
            if own_shapes(module) and path not in {call.path for call in run}
        ]
        self.tensors = {
            join(path, name): join(counterpart, their_name)
            for path, counterpart in self.pairs.items()
            for name, their_name in matching_tensors(
                self.a.get_submodule(path), self.b.get_submodule(counterpart)
            ).items()
        }
        self.renamed = {ours: theirs for ours, theirs in self.pairs.items() if ours != theirs}
        self.cause_of_weights: str | None = None

    def rungs(self, names: Collection[str]) -> Iterator[Rung]:
        """The rungs of these names, lowest first."""
        first = (self.names_and_shapes(), self.parameters())
        yield from (rung for rung in first if rung.name in names or not rung.passed)
        if self.alone or self.crowded:
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
    def exact(self) -> tuple[Exact, Exact]:
        return self.in_float64(self.a), self.in_float64(self.b)

    @torch.no_grad()
    def in_float64(self, model: nn.Module) -> Exact:
        model = copy.deepcopy(model).double().eval()
        try:
            with recording(model) as calls:
                logits = fingerprint(model(self.inputs.double()))
            torch.manual_seed(1)
            return Exact(calls, logits, fingerprint(model.train()(2 * self.inputs.double() + 1)))
        except RuntimeError as error:
            raise RuntimeError(
                f"a {type(model).__name__} runs in float32 and not in float64 ({in_short(error)}): a list of blocks "
                "must be an nn.ModuleList, and a tensor made in forward must take the input's dtype"
            ) from error

    def names_and_shapes(self) -> Rung:
        if self.crowded:
            detail = f"a module holds several weights, or weights and layers: {', '.join(self.crowded)}"
            return Rung(name="names and shapes", status="differs", detail=f"{detail}; give each weight its own module")
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
        if self.idle:
            detail += f"; never run: {', '.join(self.idle)}"
        return Rung(name="parameters", status="equal" if counts[0] == counts[1] else "differs", detail=detail)

    def initialisation(self) -> Rung:
        """The weights that both functions give after `torch.manual_seed(0)`."""
        name = "seeded initialisation"
        if not self.both_built:
            return Rung(name=name, status="not run", detail="give functions that build the networks")
        ours: Outcome = {self.translated(key): value for key, value in self.a.named_parameters()}
        theirs: Outcome = dict(self.b.named_parameters())
        for key in sorted(ours.keys() ^ theirs.keys()):
            owner = "first" if key in ours else "second"
            return Rung(name=name, status="differs", detail=f"{key}: only the {owner} network has one")
        if all(same_bits(ours[key], theirs[key]) for key in theirs):
            if torch.equal(self.generator_a, self.generator_b):
                return Rung(name=name, status="equal", largest_difference=0.0)
            return Rung(name=name, status="alike", detail="the random generators differ afterwards")
        unlike = [key for key in theirs if not same_distribution(ours[key], theirs[key])]
        if not unlike:
            return Rung(name=name, status="alike", detail="other draws of the same distributions")
        self.cause_of_weights = self.initialisation_cause(ours)
        first = unlike[0]
        values = (f"mean {each[first].mean():.3g} std {spread(each[first]):.3g}" for each in (ours, theirs))
        detail = f"{len(unlike)} parameters, such as {first}: the first's {next(values)}, the second's {next(values)}"
        return Rung(name=name, status="differs", detail=f"{detail}; skip this rung where that is meant")

    def activations(self) -> Rung:
        """What every module with parameters writes, beside its counterpart: in float32, and in float64."""
        place = self.first_divergence()[0]
        if place is not None:
            return Rung(name="activations", status="differs", detail=f"first at {place}")
        ours, theirs = (trace(model.eval(), self.inputs) for model in (self.a, self.b))
        written = {(self.pairs[call.path], call.time): call.written for call in ours if call.path in self.pairs}
        equal = all(written.get((call.path, call.time)) == call.written for call in theirs if call.shapes)
        return Rung(name="activations", status="equal" if equal else "rounding", detail=f"{len(written)} modules")

    def judged(self, name: str, ours: Run, theirs: Run) -> Rung:
        try:
            outcome = {self.translated(key): value for key, value in self.run(ours, self.a).items()}
        except NotRun as reason:
            return Rung(name=name, status="not run", detail=str(reason))
        except Exception as error:  # whatever a network that runs in float32 raises here
            failed: Exception | None = error
        else:
            failed = None
        try:
            reference = self.run(theirs, self.b)
        except Exception as error:
            status: Status = "differs" if failed is None else "not run"
            detail = f"{'the second network raises' if failed is None else 'both raise'} {in_short(error)}"
            return Rung(name=name, status=status, detail=detail)
        if failed is not None:
            return Rung(name=name, status="differs", detail=f"the first network raises {in_short(failed)}")
        rung = judge(name, outcome, reference, lambda: self.run(theirs, copy.deepcopy(self.b).double()))
        if name == "training logits" and rung.passed and not self.exact[0].trained.matches(self.exact[1].trained):
            return replace(rung, status="differs", detail="in float64")
        return rung

    def run(self, run: Run, model: nn.Module) -> Outcome:
        """What happens to a copy of the model; random layers draw the same numbers each time."""
        model = copy.deepcopy(model)
        torch.manual_seed(1)
        dtype = next((parameter.dtype for parameter in model.parameters()), self.inputs.dtype)
        return run(model, self.inputs.to(dtype, copy=True), self.labels)

    def translated(self, name: str) -> str:
        """The second network's name of one of the first's tensors, also where more words stand around it."""
        return " ".join(self.tensors.get(word, word) for word in name.split(" "))

    def first_divergence(self) -> tuple[str | None, tuple[str, str] | None]:
        """The second network's first module that computes what the first never does, in float64, and both values.

        That is a module with parameters whose counterpart writes something else, or, where already what it reads
        differs, the first module before it whose result the first network does not have.
        """
        calls, theirs = (each.calls for each in self.exact)
        ours = {(self.pairs[call.path], call.time): call for call in calls if call.path in self.pairs}
        since = 0
        for number, call in enumerate(theirs):
            if not call.shapes:
                continue
            if (call.path, call.time) not in ours:
                return call.path, (f"nothing of shape {list(call.written.shape)}", written(call))
            counterpart = ours[call.path, call.time]
            if not counterpart.written.matches(call.written):
                if counterpart.read.matches(call.read):
                    return call.path, (written(counterpart), written(call))
                place = min(since + first_unknown(theirs[since:number], calls), number)
                return theirs[place].path, (read(counterpart), read(call))
            since = number + 1
        ends = [each.logits for each in self.exact]
        if theirs and not ends[0].matches(ends[1]):
            return theirs[-1].path, (f"its end, {ends[0]}", f"its end, {ends[1]}")
        return None, None

    def diagnosis(self, seconds: float) -> Diagnosis | None:
        """The mistakes that explain the first network; None where the second is no reference to try them on."""
        reference = as_resnet(self.b)
        if seconds <= 0 or reference is None:
            return None
        return diagnose(self.a, reference, self.inputs, seconds=seconds)

    def in_words(self, diagnosis: Diagnosis | None, seconds: float) -> str | None:
        """The likely cause, or why none is known."""
        if diagnosis is None:
            return "not looked for: the second network is no ResNet; give the reference second" if seconds > 0 else None
        if diagnosis.healthy:
            return "no known mistake: it computes what the reference does; what differs stands in the rungs above"
        models = [lookalike(model) for model in (self.a, self.b)] if diagnosis.mistakes is None else []
        if all(models) and len(set(models)) == 2:
            return f"the first network has the convolutions of a {models[0]}, the second of a {models[1]}"
        if diagnosis.mistakes is None and self.is_random():
            return "the first network gives other logits each time: does its dropout know self.training?"
        return str(diagnosis)

    @torch.no_grad()
    def is_random(self) -> bool:
        """Whether the first network's logits change from run to run in evaluation."""
        return not same_bits(*(self.a.eval()(self.inputs) for _ in range(2)))

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


def owned(which: str, network: Network, inputs: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of our own in evaluation mode, the random generator's state after its making, and its logits.

    Raises TypeError for what is no network, or gives anything but a tensor of logits; RuntimeError where it fails.
    """
    torch.manual_seed(0)
    model = network() if callable(network) and not isinstance(network, nn.Module) else network
    generator = torch.get_rng_state()
    if not isinstance(model, nn.Module):
        raise TypeError(f"compare takes networks or functions that build them, got a {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # of torch.compile's
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"the {which} network is a TorchScript program; give the network that it was made from")
    model = copy.deepcopy(model).to(inputs.device).float().eval()
    try:
        with torch.no_grad():
            output = model(inputs.clone())
    except RuntimeError as error:
        shape = " x ".join(map(str, inputs.shape))
        raise RuntimeError(f"the {which} network does not run on images of {shape}: {in_short(error)}") from error
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{type(model).__name__} returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            "returns the logits"
        )
    return model, generator, output


def crowd(model: nn.Module) -> str | None:
    """The first module that holds more than one weight of its own, or one beside modules with weights."""
    for path, module in model.named_modules():
        weights = [shape for shape in own_shapes(module).values() if len(shape) > 1]
        inside = any(own_shapes(child) for child in module.modules() if child is not module)
        if len(weights) > 1 or (weights and inside):
            return path
    return None


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def lookalike(model: nn.Module) -> str | None:
    """The model of ours whose convolutions have the same shapes."""
    shapes = convolution_shapes(model)
    with torch.device("meta"):
        return next((name for name in MODELS if convolution_shapes(build(name)) == shapes), None)


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
    """An error's first line, and the line that raised it outside torch."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "torch" not in Path(each.filename).parts]
    inside = [each for each in frames if each.filename != __file__]
    place = f", at {inside[-1].filename}:{inside[-1].lineno}" if inside else ""
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}{place}"
