"""What a run tells: `metrics.jsonl` is the record, one object a line; a bar or plain lines are for people."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_core.durable import replace_file

FORMATS = {
    "epoch": "{:.4g}",
    "loss": "{:.4f}",
    "lr": "{:.4f}",
    "top1": "{:.2%}",
    "top5": "{:.2%}",
    "gradient_norm": "{:.3g}",
    "samples_per_second": "{:,.0f}",
    "data_wait": "{:.0%}",
    "communication_wait": "{:.0%}",
    "peak_memory_gib": "{:.2f}",
}
SECONDS_BETWEEN_LINES = 30


class Report:
    """The record of one run, kept by rank 0; with `folder=None` (the other ranks) everything here does nothing.

    Use as a context manager. On a terminal a bar shows the progress; elsewhere there is a line for each evaluation
    and, between distant evaluations, one every 30 seconds.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.path = Path(folder) / "metrics.jsonl" if folder else None
        self.console = Console(quiet=folder is None, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            disable=folder is None or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("")
        self.last_line = time.monotonic()

    def __enter__(self) -> Report:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, step: int, total_steps: int) -> None:
        """Goes on after `step`; records of later steps, of a run that was cut off, are dropped."""
        if self.path:
            kept = [record for record in read_records(self.path) if record["step"] <= step]
            replace_file(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self.bar.update(self.task, completed=step, total=total_steps)

    def record(self, event: str, *, step: float, **values: float) -> None:
        """Appends one record and shows it."""
        if not self.path:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        text = "  ".join(f"{key} {FORMATS.get(key, '{}').format(value)}" for key, value in values.items())
        self.bar.update(self.task, completed=step, description=text)
        due = self.bar.disable and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES
        if event == "eval" or due:
            total = f"{self.bar.tasks[self.task].total:.0f}"
            self.say(f"{event:<5}  step {step:>{len(total)}}/{total}  {text}")

    def say(self, text: str) -> None:
        """One line to people."""
        self.last_line = time.monotonic()
        self.console.print(text, markup=False)
        sys.stdout.flush()


def read_records(path: Path) -> Iterable[dict[str, Any]]:
    """The records of a metrics.jsonl in order; a last line that a crash cut short is passed over.

    Raises ValueError naming any other line that is not JSON.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON ({error}); mend or remove that line") from error


# Title, scale of the vertical axis, label -> (event, key) of the records.
PANELS: list[tuple[str, str, dict[str, tuple[str, str]]]] = [
    ("loss (cross entropy)", "log", {"training": ("train", "loss"), "test": ("eval", "loss")}),
    ("accuracy on the test data", "linear", {"top-1": ("eval", "top1"), "top-5": ("eval", "top5")}),
    ("learning rate", "linear", {"learning rate": ("train", "lr")}),
]


def plot(folder: str | Path) -> Path:
    """Draws a run's loss, accuracy and learning rate into its `curves.png`.

    Raises ValueError where nothing is recorded yet, and without matplotlib (the extra `plot`).
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("plotting needs matplotlib: pip install 'resnet-core[plot]'") from error

    folder = Path(folder)
    records = list(read_records(folder / "metrics.jsonl"))
    if not records:
        raise ValueError(f"{folder / 'metrics.jsonl'} holds no records yet: train first")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, scale, lines) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for label, (event, key) in lines.items():
            points = [(record["epoch"], record[key]) for record in records if record["event"] == event]
            axes.plot([epoch for epoch, _ in points], [value for _, value in points], label=label)
        axes.set(xlabel="epoch", title=title, yscale=scale)
        axes.grid(alpha=0.3)
        axes.legend()
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path
