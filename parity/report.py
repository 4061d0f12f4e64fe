"""The report: models by rungs by oracles, the ledger, the mutations, the doctor's diagnoses, the error budget.

A report is a list of sections; each section is a table that is printed row by row while it is measured.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision

import resnet_core
from parity import error_budget
from parity.diagnoses import table as diagnoses_table
from parity.drop_in import DROP_IN, images, judge
from parity.oracles import ORACLES, Oracle
from parity.oracles.ledger import LEDGER
from parity.planted import CATALOGUE, rungs_that_catch
from resnet_core.comparison.compare import ALL_RUNGS, DEFAULT_RUNGS, compare
from resnet_core.comparison.rungs import RUNGS, Rung, timed
from resnet_core.comparison.rungs import judge as judge_outcomes
from resnet_core.foundation.atomic import replace_file

IMAGE_SIZE, BUDGET_SIZE = 64, 224  # pixels
QUICK_MODELS = ("resnet18", "resnet50", "resnext50_32x4d")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is compared, and where."""

    quick: bool = False
    device: str = "cpu"
    oracles: tuple[str, ...] = tuple(ORACLES)

    def rungs(self, oracle: Oracle) -> tuple[str, ...]:
        """All rungs beside torchvision. Only our network is compiled and exported, so once is enough."""
        if oracle.build is None:
            return ("logits",)
        return ALL_RUNGS if oracle.package == "torchvision" and not self.quick else DEFAULT_RUNGS

    def models(self, oracle: Oracle) -> list[str]:
        return [name for name in oracle.models if not self.quick or name in QUICK_MODELS]


@dataclass
class Section:
    """One table of the report."""

    title: str
    intro: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    """The same as plain values, for parity.json."""

    def add(self, row: tuple[str, ...], record: dict[str, Any], failures: list[str]) -> None:
        self.rows.append(row)
        self.records.append(record)
        self.failures += failures

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.intro, "", table_line(self.header), "|---" * len(self.header) + "|"]
        return "\n".join([*lines, *map(table_line, self.rows), ""])


def table_line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def environment(settings: Settings) -> dict[str, str]:
    """What the figures depend on."""
    packages = ["torch", *(ORACLES[name].package for name in settings.oracles if ORACLES[name].is_installed())]
    processor = torch.cuda.get_device_name() if settings.device != "cpu" else cpu_name()
    return {
        "date": date.today().isoformat(),
        "resnet_core": resnet_core.__version__,
        **{name: version(name) for name in dict.fromkeys(packages)},
        "python": platform.python_version(),
        "device": f"{settings.device} ({processor})",
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "images": f"2 x 3 x {IMAGE_SIZE} x {IMAGE_SIZE}",
    }


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def climb(oracle: Oracle, name: str, settings: Settings) -> tuple[Rung, ...]:
    """The ladder of our model and an oracle's; only the logits if their network has no torch modules."""
    if oracle.build is None:
        return tuple(timed(only_logits(oracle, name)))
    ours, theirs = partial(resnet_core.get_model, name, **oracle.config), partial(oracle.build, name)
    inputs = images(size=IMAGE_SIZE).to(settings.device)
    return compare(ours, theirs, inputs, rungs=settings.rungs(oracle), diagnosis_seconds=0).rungs


def only_logits(oracle: Oracle, name: str) -> Iterator[Rung]:
    torch.manual_seed(0)
    ours, theirs = oracle.networks(name)
    inputs, labels = images(), torch.arange(2)
    run = RUNGS["logits"][0]
    outcomes = (run(ours, inputs, labels), run(theirs, inputs, labels))
    yield judge_outcomes("logits", *outcomes, lambda: run(ours.double(), inputs.double(), labels))


def ladder(name: str, oracle: Oracle, settings: Settings) -> Section:
    rungs = settings.rungs(oracle)
    asked = ", ".join(f"{key}={value}" for key, value in oracle.config.items())
    section = Section(
        f"Ours beside {name}", f"Ours is built with {asked}." if asked else "Ours is built as it is.", ("model", *rungs)
    )

    print_row(section.header)
    for model in settings.models(oracle):
        found = climb(oracle, model, settings)
        row = (
            f"`{model}`",
            *(f"known ({oracle.known[each.name]})" if known(each, oracle) else cell(each) for each in found),
        )

        record = {"oracle": name, "model": model, "rungs": [asdict(rung) for rung in found]}
        wrong = [rung for rung in found if rung.passed == (rung.name in oracle.known)]
        section.add(row, record, [f"{name} {model}, {rung.name}: {rung.status} {rung.detail}" for rung in wrong])
        print_row(row)
    return section


def known(rung: Rung, oracle: Oracle) -> bool:
    """Whether a rung differs for a reason that stands in the ledger."""
    return not rung.passed and rung.name in oracle.known


def drop_in(settings: Settings) -> Section:
    section = Section(
        "In the place of torchvision's",
        "What its users rely on beyond what a network computes.",
        ("model", *DROP_IN),
    )
    print_row(section.header)
    for model in settings.models(ORACLES["torchvision"]):
        builders = partial(resnet_core.get_model, model), partial(torchvision.models.get_model, model)
        found = [judge(name, check(*builders)) for name, check in DROP_IN.items()]
        row = (f"`{model}`", *map(cell, found))
        record = {"model": model, "rungs": [asdict(rung) for rung in found]}
        section.add(row, record, [f"{model}, {rung.name}: {rung.detail}" for rung in found if not rung.passed])
        print_row(row)
    return section


def ledger() -> Section:
    section = Section(
        "The ledger: what is known to differ",
        "Each entry is measured: the difference while it is ignored, and once ours is asked for it.",
        ("implementation", "what differs", "there", "ours", "to get theirs", "ignored", "allowed for"),
    )
    for key, entry in LEDGER.items():
        if entry.missing:
            print_row((key, f"skipped: {', '.join(entry.missing)} is not installed"))
            continue

        found = entry.measure()
        row = (
            entry.implementation,
            f"{entry.what} ({entry.source})",
            entry.there,
            entry.ours,
            entry.asked,
            f"{found.ignored:.2g} {found.unit}",
            f"{found.allowed:.2g} {found.unit}",
        )
        record = {"deviation": key, **asdict(found)}
        section.add(row, record, [] if found.holds else [f"the ledger's {key!r} does not hold"])
        print_row((key, *row[-2:]))
    return section


def mutations(quick: bool) -> Section:
    section = Section(
        "Known mistakes made in ours",
        "The rungs at which a small ResNet of ours with that mistake differs from torchvision's"
        + (": only the first." if quick else "."),
        ("mistake", "found by"),
    )
    for mistake in CATALOGUE:
        catching = rungs_that_catch(mistake)
        names = [rung.name for rung in ([next(catching, None)] if quick else catching) if rung is not None]
        row = (mistake, ", ".join(names) or "NOTHING")
        section.add(row, {"mistake": mistake, "rungs": names}, [] if names else [f"{mistake!r} survives"])
        print_row(row)
    return section


def diagnoses() -> Section:
    section = Section(
        "Known mistakes made in others' networks",
        "Planted in this repository's own ResNets of other styles (`parity/patients/`), and the doctor's names.",
        ("planted", "named"),
    )
    for planted, named, right in diagnoses_table():
        section.add((planted, named), {"planted": planted, "named": named}, [] if right else [f"{planted}: {named}"])
        print_row((planted, named))
    return section


def budgets(settings: Settings) -> Section:
    section = Section(
        "Error budget",
        f"Largest error of the logits of 2 images of {BUDGET_SIZE} pixels against a float64 run, ours / torchvision's, "
        "in units of the largest logit.",
        ("model", *error_budget.ARITHMETICS),
    )
    for model in error_budget.MODELS:
        found = {name: error_budget.errors(model, name, BUDGET_SIZE) for name in error_budget.ARITHMETICS}
        row = (f"`{model}`", *(f"{ours:.1e} / {theirs:.1e}" for ours, theirs in found.values()))
        section.add(row, {"model": model, "errors": found}, [])
        print_row(row)
    return section


def cell(rung: Rung) -> str:
    if rung.status == "rounding" and rung.largest_difference is not None:
        return f"rounding {rung.largest_difference:.1e}"
    return rung.status.upper() if not rung.passed else rung.status


def print_row(row: tuple[str, ...]) -> None:
    print("  ".join(f"{each.strip('`'):<18}" for each in row).rstrip(), flush=True)


def make(settings: Settings) -> Iterator[Section]:
    """The sections one after the other, each printed as it is measured."""
    for name in settings.oracles:
        if not ORACLES[name].is_installed():
            print(f"\n{name} is not installed: `make report` has it")
            continue
        print(f"\nours beside {name}")
        yield ladder(name, ORACLES[name], settings)

    print("\nin the place of torchvision's")
    yield drop_in(settings)
    print("\nthe ledger")
    yield ledger()

    print("\nknown mistakes made in ours, and the rungs that find them")
    yield mutations(settings.quick)
    print("\nknown mistakes made in others' networks, and what the doctor calls them")
    yield diagnoses()

    if not settings.quick:
        print("\nerror budget")
        yield budgets(settings)


def summary(sections: list[Section]) -> str:
    """How many comparisons ended how, and which rung took longest."""
    rungs = [
        (f"{record['model']} beside {record.get('oracle', 'torchvision')}", rung)
        for section in sections
        for record in section.records
        for rung in record.get("rungs", ())
        if isinstance(rung, dict)
    ]
    counts = ", ".join(f"{count} {status}" for status, count in Counter(rung["status"] for _, rung in rungs).items())
    where, slowest = max(rungs, key=lambda item: item[1]["seconds"])
    failures = sum(len(section.failures) for section in sections)
    return (
        f"{len(rungs)} comparisons: {counts}; {failures} failures\n"
        f"slowest rung: {slowest['name']} of {where}, {slowest['seconds']:.0f} s"
    )


def write(folder: Path, command: str, settings: Settings, sections: list[Section], seconds: float) -> None:
    """Writes parity.md and parity.json."""
    facts = environment(settings) | {"minutes": f"{seconds / 60:.1f}"}
    failures = [failure for section in sections for failure in section.failures]

    lines = [
        "# Parity report",
        "",
        f"Made by `{command}`; [Prove it](../parity.md) explains it.",
        "",
        "| | |",
        "|---|---|",
        *(table_line(item) for item in facts.items()),
        "",
        summary(sections).replace("\n", ".\n").capitalize() + ".",
        "",
        *(f"- FAILED: {failure}" for failure in failures),
        *(section.markdown() for section in sections),
    ]

    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "parity.md", "\n".join(lines).encode())
    record = {
        "environment": facts,
        "failures": failures,
        "sections": {section.title: section.records for section in sections},
    }
    replace_file(folder / "parity.json", json.dumps(record, indent=1).encode())
