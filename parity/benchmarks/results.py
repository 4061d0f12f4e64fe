"""`python -m parity.benchmarks.results RUN...`: finished runs as a table, one row for runs that differ only in seed.

docs/results/runs.jsonl holds the runs that docs/results.md reports: `--add` adds runs to it, and without any run the
command prints that file's table. `--recipes` prints what the recipes' sources published beside what was reached here,
`--gpu` the rates that `make gpu` found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parity.report import table_line
from resnet_core.foundation.atomic import replace_file
from resnet_core.recipes import RECIPES, SOURCES
from resnet_core.recipes.recipe import Recipe
from resnet_core.runs.folder import RunFolder, differences_of
from resnet_core.train.report import read_records

RECORD = Path(__file__).parents[2] / "docs" / "results" / "runs.jsonl"
KEYS = ("command", "seed", "device", "cpu_capability", "world_size")  # that distinguish one run from another
HEADER = ("command", "seeds", "top-1 of each, %", "mean", "spread", "minutes", "images/s", "computed on")
NOT_SHOWN = ("seed", "data.path")  # settings that a row leaves out


def record_of(folder: Path) -> dict[str, Any]:
    """What a finished run's folder says, as one flat line. Raises ValueError for any other folder."""
    run = RunFolder(folder)
    recipe, result = run.read_recipe(), run.read_result()
    if result is None:
        raise ValueError(f"{folder} holds no result.json: its run is not finished")
    environment = run.read_environment()
    program = (
        "python -m parity.benchmarks.results_peer" if Path(environment["command"][0]).stem == "results_peer" else None
    )
    return {
        "command": program or command_of(recipe),
        "seed": recipe.seed,
        **{key: result[key] for key in ("top1", "count", "steps", "seconds", "images_per_second")},
        **{key: environment[key] for key in ("torch", "device", "cpu_capability", "threads", "world_size")},
    }


def command_of(recipe: Recipe) -> str:
    """The command that trains this recipe: the nearest named one, and the settings that differ from it."""
    changes = {
        name: [change for change in differences_of(recipe, named) if change[0] not in NOT_SHOWN]
        for name, named in RECIPES.items()
    }
    name = min(changes, key=lambda name: len(changes[name]))
    flags = [f"--{key.replace('_', '-')} {words(value)}" for key, value, _ in changes[name]]
    return " ".join(["resnet-core train", name, *flags])


def words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row for each command and machine, in the order of the records."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        cores = f"{record['world_size']} x {record['threads']} threads, {record['cpu_capability']}"
        on_cpu = record["device"] == "cpu"
        several = f" --processes {record['world_size']}" if on_cpu and record["world_size"] > 1 else ""
        groups.setdefault((record["command"] + several, cores if on_cpu else record["device"]), []).append(record)
    return [
        row(command, machine, sorted(runs, key=lambda run: run["seed"])) for (command, machine), runs in groups.items()
    ]


def row(command: str, machine: str, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    scores = [100 * run["top1"] for run in runs]
    minutes = statistics.median(run["seconds"] for run in runs) / 60
    spread = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return (
        f"`{command}`",
        ", ".join(str(run["seed"]) for run in runs),
        ", ".join(f"{score:.2f}" for score in scores),
        f"{statistics.mean(scores):.2f}",
        spread,
        f"{minutes:.{0 if minutes >= 1 else 1}f}",
        f"{statistics.median(run['images_per_second'] for run in runs):,.0f}",
        machine,
    )


def runs_table(records: Iterable[dict[str, Any]]) -> str:
    return markdown_table(HEADER, rows(records))


def recipes_table() -> str:
    """For each recipe its source, what that published, and what was reached here."""
    lines = [
        (
            f"`{name}`",
            source.name,
            source.published or "none",
            f"{source.reached}, `{source.command}`" if source.reached else "not run here",
        )
        for name, source in SOURCES.items()
    ]
    return markdown_table(("recipe", "source", "published top-1", "reached here"), lines)


def gpu_table() -> str:
    """The rates in docs/results/gpu-*.json, of every form and card."""
    lines = []
    for path in sorted(RECORD.parent.glob("gpu-*.json")):
        record = json.loads(path.read_text())
        card = record["environment"]["card"]
        for part in record["parts"]:
            if part["record"] and "rates" in part["record"]:
                lines += [gpu_row(card, part["record"], rate) for rate in part["record"]["rates"]]
    return markdown_table(
        ("card", "ResNet-50, 224 pixels", "batch", "images/s", "to torchvision", "of the ceiling"), lines
    )


def gpu_row(card: str, record: dict[str, Any], rate: dict[str, Any]) -> tuple[str, ...]:
    what = f"{record['what']}, {rate['form']}"
    if rate["images_per_second"] is None:
        return card, what, str(record["batch"]), f"not run: {rate['reason']}", "", ""
    ratio = f"{rate['ratio']:.2f}" if rate["ratio"] else ""
    share = f"{rate['ceiling_share']:.0%}"
    return card, what, str(record["batch"]), f"{rate['images_per_second']:,.0f}", ratio, share


def markdown_table(header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    return "\n".join([table_line(header), "|---" * len(header) + "|", *map(table_line, lines)])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity.benchmarks.results", description="Print finished runs as a table."
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--add", action="store_true", help="add them to docs/results/runs.jsonl, and print all")
    parser.add_argument("--recipes", action="store_true", help="print the recipes, what was published and reached")
    parser.add_argument("--gpu", action="store_true", help="print the rates in docs/results/gpu-*.json")
    arguments = parser.parse_args()
    if arguments.recipes or arguments.gpu:
        print(recipes_table() if arguments.recipes else gpu_table())
        return 0

    try:
        records = [record_of(folder) for folder in arguments.runs]
    except ValueError as error:
        parser.error(str(error))

    # The recorded runs, of which a new one replaces its predecessor.
    if arguments.add or not records:
        kept = [*read_records(RECORD, KEYS), *records]
        records = list({tuple(each[key] for key in KEYS): each for each in kept}.values())
    if arguments.add:
        replace_file(RECORD, "".join(json.dumps(record) + "\n" for record in records).encode())
    print(runs_table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
