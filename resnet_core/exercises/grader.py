"""Whether a student's file is repaired, or else where its networks first differ from ours."""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_core.comparison.compare import Comparison, compare
from resnet_core.comparison.diagnosis import diagnose
from resnet_core.exercises.catalog import BLOCKS
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models import resnet

NAMES = ("ResNet", *BLOCKS, "TABLE_1")  # what a student's file must have
DEPTHS = (1, 1, 2, 1)  # of the small networks; one more in layer3, so that one can be missing
SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place where a student's file is not ours."""

    where: str
    """A row of TABLE_1, or a network's module, name or rung of the comparison."""
    evidence: tuple[str, ...]
    """Both values there, in words."""
    mistake: str | None = None
    """The mistake's diagnosis, where it was asked for."""

    def __str__(self) -> str:
        told = [f"  {self.mistake}"] if self.mistake else []
        return "\n".join([self.where, *(f"  {line}" for line in self.evidence), *told])


def grade(path: Path, *, tell: bool = False) -> tuple[Difference, ...]:
    """How the tables and small networks of a student's file differ from ours; nothing where it is mended.

    It runs the file. `tell` has the mistake looked for, for SECONDS in each network at most. Raises ValueError with the
    line where the file does not parse, raises, or its networks do not run; where it lacks one of NAMES.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; `resnet-core exercise NUMBER` writes one")
    with blamed(path):
        theirs = runpy.run_path(str(path), run_name=path.stem)
    for name in NAMES:
        if name not in theirs:
            raise ValueError(f"{path} lacks {name}; {did_you_mean(name, [each for each in theirs if each[0] != '_'])}")
    with blamed(path):
        found = [*table_differences(theirs)]
        for block in BLOCKS:
            found += network_differences(theirs, block, tell)
    return tuple(found)


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Errors of the student's file become a ValueError of one line with the line of the file that they come from."""
    try:
        yield
    except (Exception, SystemExit) as raised:
        error = raised
        while isinstance(error.__cause__, Exception):  # what the comparison was told
            error = error.__cause__
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        place = f"{path}, line {lines[-1]}" if lines else f"{path}"
        what = traceback.format_exception_only(error)[-1].splitlines()[0]
        raise ValueError(f"{place}: {what}; mend that and grade it again") from raised


Space = Mapping[str, Any]  # a module's names -> what they stand for


def table_differences(theirs: Space) -> Iterator[Difference]:
    """Rows of TABLE_1 that are not the paper's."""
    yours, ours = rows(theirs), rows(vars(resnet))
    for name in ours | yours:
        values = [each.get(name, "nothing") for each in (yours, ours)]
        if values[0] != values[1]:
            yield Difference(where=f'TABLE_1["{name}"]', evidence=both(*values))


def rows(space: Space) -> dict[str, str]:
    return {name: f"{block.__name__} {tuple(depths)}" for name, (block, depths) in space["TABLE_1"].items()}


def network_differences(theirs: Space, block: str, tell: bool) -> list[Difference]:
    """Where the student's network of these blocks first computes something else or, if nowhere, starts otherwise."""
    yours, ours = small_network(theirs, block), small_network(vars(resnet), block)
    unlike = first_unlike(yours.state_dict(), ours.state_dict())
    result = compare(yours, ours, images(), diagnosis_seconds=0)
    diagnosis = diagnose(yours, ours, images(), seconds=SECONDS if tell else 0) if tell or result else None
    if result and diagnosis and diagnosis.healthy:
        return [] if unlike is None else [Difference(where=f"{block}: {unlike[0]}", evidence=unlike[1])]
    where, evidence = first_place(result)
    return [Difference(where=f"{block}: {where}", evidence=evidence, mistake=str(diagnosis) if tell else None)]


def small_network(space: Space, block: str) -> Any:
    """A network of depths DEPTHS and 10 classes as a module's names make it, from seed 0."""
    torch.manual_seed(0)
    return space["ResNet"](space[block], DEPTHS, num_classes=10)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def first_place(result: Comparison) -> tuple[str, tuple[str, ...]]:
    """Where a comparison first differs: a module with both values, or a rung that no module explains."""
    if result.first_divergence and result.values:
        return result.first_divergence, both(*result.values)
    for rung in result.rungs:
        if not rung.passed:
            errors = rung.errors and both(*(f"error against float64 {error:.1e}" for error in rung.errors))
            return ", ".join(filter(None, (rung.name, rung.detail))), errors or ()
    return "rounding", ("equal up to float32's rounding, but not the same function in float64",)


def first_unlike(yours: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> tuple[str, tuple[str, ...]] | None:
    """The first entry of two state dicts that is not the same to the bit, with both in words."""
    for name in {**ours, **yours}:
        if name not in yours or name not in ours:
            return f"state dict, {name}", both(*("there" if name in each else "missing" for each in (yours, ours)))
        if not torch.equal(yours[name], ours[name]):
            norms = (f"norm {each[name].double().norm():.6g}" for each in (yours, ours))
            return f"weights from the same seed, {name}", both(*norms)
    return None


def both(yours: str, ours: str) -> tuple[str, str]:
    return f"yours: {yours}", f"ours:  {ours}"
