"""The doctor's confusion table: every change of `parity.patients.scoped` in each scope, alone and with others.

`python -m parity.sweep` writes docs/report/doctor.md. It takes some minutes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from parity.drop_in import images
from parity.patients.scoped import CHANGES, FAMILIES, Plant, build, draw, plants
from resnet_core.comparison.diagnosis import Examined, diagnose
from resnet_core.foundation.atomic import replace_file
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet

PAGE = Path(__file__).parents[1] / "docs" / "report" / "doctor.md"
MANY = {2: 30, 3: 30, 4: 30}
"""How many plants at once -> how many networks of each family."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was planted, what the doctor named, and how that went."""

    family: str
    planted: tuple[str, ...]
    named: tuple[str, ...] | None
    error: str = ""

    @property
    def explained(self) -> bool:
        return self.named is not None and sorted(self.named) == sorted(self.planted)

    @property
    def wrong(self) -> tuple[str, ...]:
        """Names of what was not planted."""
        return tuple(name for name in self.named or () if name not in self.planted)


@cache
def reference(family: str) -> Examined:
    torch.manual_seed(1)
    chosen = FAMILIES[family]
    if family == "CIFAR":
        return Examined(CifarResNet(chosen.depths[0], 7, shortcut="B"), images(size=32))
    block = Bottleneck if chosen.wide else BasicBlock
    return Examined(ResNet(block, chosen.depths, num_classes=7), images(size=32))


def judged(family: str, chosen: Sequence[Plant]) -> Result | None:
    """The doctor's verdict on the family's network with these plants; None where that network does not run at all."""
    torch.manual_seed(3)
    patient = build(FAMILIES[family], chosen)
    inputs = images(size=32)
    planted = tuple(plant.name for plant in chosen)
    try:
        with torch.no_grad():
            patient.eval()(inputs)
    except (RuntimeError, ValueError):
        return None
    try:
        return Result(family=family, planted=planted, named=diagnose(patient, reference(family), inputs).mistakes)
    except Exception as error:  # a crash is what the table is to show
        return Result(family=family, planted=planted, named=None, error=f"{type(error).__name__}: {error}")


def alone() -> Iterator[tuple[str, list[Plant]]]:
    """Each change in each family: in the first place of each scope."""
    for family, chosen in FAMILIES.items():
        for name in CHANGES:
            yield from ((family, [places[0]]) for places in plants(name, chosen).values())


def together() -> Iterator[tuple[str, list[Plant]]]:
    for family, chosen in FAMILIES.items():
        for count, networks in MANY.items():
            yield from ((family, draw(seed, chosen, count)) for seed in range(networks))


def page(results: Sequence[Result], minutes: float) -> str:
    explained = sum(result.explained for result in results)
    wrong = sum(bool(result.wrong) for result in results)
    crashed = sum(bool(result.error) for result in results)
    lines = [
        "# What the doctor calls planted mistakes",
        "",
        f"Made by `make doctor-sweep` in {minutes:.0f} minutes; "
        "[Prove it: the doctor](../parity.md#the-doctor) explains it.",
        "The networks are those of `parity/patients/scoped.py`, on two images of 32 pixels.",
        "",
        f"{len(results)} networks: {explained} fully explained ({explained / len(results):.1%}), "
        f"{wrong} with a name that was not planted, {crashed} crashes.",
        "",
        "| network | mistakes at once | networks | fully explained |",
        "|---|---|---|---|",
    ]
    counts = Counter((result.family, len(result.planted)) for result in results)
    right = Counter((result.family, len(result.planted)) for result in results if result.explained)
    lines += [f"| {family} | {many} | {count} | {right[family, many]} |" for (family, many), count in counts.items()]

    lines += ["", "| planted | scopes and families | named so |", "|---|---|---|"]
    for name in CHANGES:
        single = [result for result in results if len(result.planted) == 1 and is_of(result.planted[0], name)]
        lines.append(f"| {name} | {len(single)} | {sum(result.explained for result in single)} |")
    if missed := [result for result in results if not result.explained]:
        lines += ["", "| network | planted | named |", "|---|---|---|"]
        for result in missed:
            named = result.error or ", ".join(result.named or ("not all explained",))
            lines.append(f"| {result.family} | {', '.join(result.planted)} | {named} |")
    return "\n".join([*lines, ""])


def is_of(planted: str, name: str) -> bool:
    """Whether a planted name is that of the change, with a scope."""
    longer = [other for other in CHANGES if other.startswith(name) and other != name]
    return planted.startswith(name) and not any(planted.startswith(other) for other in longer)


def main() -> None:
    began = time.monotonic()
    results = []
    for family, chosen in (*alone(), *together()):
        result = judged(family, chosen)
        if result is not None:
            results.append(result)
            if not result.explained:
                print(result, flush=True)
    text = page(results, (time.monotonic() - began) / 60)
    replace_file(PAGE, text.encode())
    print(text.splitlines()[5])


if __name__ == "__main__":
    main()
