"""Grades a student's file: it is repaired, or its networks first differ from ours at a named place."""

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
from resnet_core.exercises.tasks import TASKS, task_of
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models import resnet

NAMES = ("ResNet", *BLOCKS, "TABLE_1")  # what a student's file must define
DEPTHS = (1, 1, 2, 1)  # of the small networks; layer3 has two blocks, so that one can be missing


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place where a student's file differs from ours."""

    where: str
    """A row of TABLE_1, a module, a key of the state dict, or a rung of the comparison."""
    evidence: tuple[str, ...]
    """Both values in words."""
    mistake: str | None = None
    """The diagnosis, if it was asked for."""

    def __str__(self) -> str:
        lines = [*self.evidence, self.mistake] if self.mistake else self.evidence
        return "\n".join([self.where, *(f"  {line}" for line in lines)])


def grade(path: Path, *, tell: bool = False) -> tuple[Difference, ...]:
    """The differences of a student's file, its table and its small networks, from ours; () if it is repaired.

    Of a task's file, what is wrong in it; () if it is right. This runs the file. `tell` searches for the mistake, too.
    Raises ValueError for a file that lacks one of NAMES and, with the line, for one that does not parse, that raises,
    or whose networks do not run.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `resnet-core exercise NUMBER` writes an exercise")
    with errors_naming_the_line_of(path):
        theirs = runpy.run_path(str(path), run_name=path.stem)
    if task := task_of(path):
        if task not in TASKS:
            raise ValueError(f"{path} names the task {task!r}, which does not exist; {did_you_mean(task, TASKS)}")
        with errors_naming_the_line_of(path):
            return tuple(Difference(where=name, evidence=(wrong,)) for name, wrong in TASKS[task].check(theirs))

    for name in NAMES:
        if name not in theirs:
            raise ValueError(f"{path} lacks {name}; {did_you_mean(name, [each for each in theirs if each[0] != '_'])}")

    with errors_naming_the_line_of(path):
        differences = [*table_differences(theirs)]
        for block in BLOCKS:
            differences += network_differences(theirs, block, tell)
    return tuple(differences)


@contextmanager
def errors_naming_the_line_of(path: Path) -> Iterator[None]:
    """Inside this context, errors of the student's file become a ValueError that names the line of the file."""
    try:
        yield
    except (Exception, SystemExit) as raised:
        # The comparison raises errors of its own from those of the student's network.
        error = raised
        while isinstance(error.__cause__, Exception):
            error = error.__cause__

        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)

        place = f"{path}, line {lines[-1]}" if lines else f"{path}"
        what = traceback.format_exception_only(error)[-1].splitlines()[0]
        raise ValueError(f"{place}: {what}; fix that and grade the file again") from raised


Space = Mapping[str, Any]  # a module's names -> what they stand for


def table_differences(theirs: Space) -> Iterator[Difference]:
    """Rows of TABLE_1 that differ from the paper's."""
    yours, ours = rows(theirs), rows(vars(resnet))
    for name in ours | yours:
        values = [each.get(name, "nothing") for each in (yours, ours)]
        if values[0] != values[1]:
            yield Difference(where=f'TABLE_1["{name}"]', evidence=both(*values))


def rows(space: Space) -> dict[str, str]:
    return {name: f"{block.__name__} {tuple(depths)}" for name, (block, depths) in space["TABLE_1"].items()}


def network_differences(theirs: Space, block: str, tell: bool) -> list[Difference]:
    """Where the student's network of these blocks first computes something else, or else has other initial weights."""
    yours, ours = small_network(theirs, block), small_network(vars(resnet), block)
    initial = first_difference(yours.state_dict(), ours.state_dict())

    # The diagnosis computes in float64, and so finds mistakes that the comparison takes for rounding.
    result = compare(yours, ours, images(), diagnosis_seconds=0)
    diagnosis = diagnose(yours, ours, images()) if tell or result else None
    if result and diagnosis and diagnosis.healthy:
        return [] if initial is None else [Difference(where=f"{block}: {initial[0]}", evidence=initial[1])]

    where, evidence = first_place(result)
    return [Difference(where=f"{block}: {where}", evidence=evidence, mistake=str(diagnosis) if tell else None)]


def small_network(space: Space, block: str) -> Any:
    """A network of DEPTHS and 10 classes from seed 0, built with a module's `ResNet` and block."""
    torch.manual_seed(0)
    return space["ResNet"](space[block], DEPTHS, num_classes=10)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def first_place(result: Comparison) -> tuple[str, tuple[str, ...]]:
    """The first difference of a comparison: a module with both values, or a failed rung that no module explains."""
    if result.first_divergence and result.values:
        return result.first_divergence, both(*result.values)
    for rung in result.rungs:
        if not rung.passed:
            errors = rung.errors and both(*(f"error against float64 {error:.1e}" for error in rung.errors))
            return ", ".join(filter(None, (rung.name, rung.detail))), errors or ()
    return "rounding", ("equal up to the rounding of float32, but not the same function in float64",)


def first_difference(yours: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> tuple[str, tuple[str, ...]] | None:
    """The first tensor of two state dicts that differs in a bit, and what both have."""
    for name in {**ours, **yours}:
        if name not in yours or name not in ours:
            return f"state dict, {name}", both(*("present" if name in each else "missing" for each in (yours, ours)))
        if not torch.equal(yours[name], ours[name]):
            norms = (f"norm {each[name].double().norm():.6g}" for each in (yours, ours))
            return f"weights from the same seed, {name}", both(*norms)
    return None


def both(yours: str, ours: str) -> tuple[str, str]:
    return f"yours: {yours}", f"ours:  {ours}"
