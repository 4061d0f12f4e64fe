"""What a run tells: `metrics.jsonl` is the record, one object a line; a bar or plain lines are for people.

TensorBoard (the extra `tensorboard`) is shown the same record.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_core.foundation.atomic import replace_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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
    and, between distant evaluations, one every 30 seconds. With `tensorboard` the record is in that folder's
    `tensorboard/`, too.
    """

    def __init__(self, folder: str | Path | None, *, tensorboard: bool = False) -> None:
        self.path = Path(folder) / "metrics.jsonl" if folder else None
        self.events = open_events(self.path.parent / "tensorboard") if self.path and tensorboard else None
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
        if self.events:
            self.events.close()

    def start(self, step: int, total_steps: int, *, evaluated: bool = True) -> None:
        """Goes on after `step`; records of what will be done again, by a run that was cut off, are dropped.

        These are those of later steps and, where it was not `evaluated`, of this step's evaluation.
        """
        if self.path:
            done = {"train": step, "eval": step if evaluated else step - 1}
            kept = [record for record in read_records(self.path) if record["step"] <= done.get(record["event"], step)]
            replace_file(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())
            for record in kept:
                self._show_tensorboard(**record)
        self.bar.update(self.task, completed=step, total=total_steps)

    def record(self, event: str, *, step: float, **values: float) -> None:
        """Appends one record and shows it."""
        if not self.path:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}); make room, and the same command continues the run"
            ) from error
        self._show_tensorboard(event, step, **values)
        text = "  ".join(f"{key} {FORMATS.get(key, '{}').format(value)}" for key, value in values.items())
        self.bar.update(self.task, completed=step, description=text)
        due = self.bar.disable and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES
        if event == "eval" or due:
            total = f"{self.bar.tasks[self.task].total:.0f}"
            self.say(f"{event:<5}  step {step:>{len(total)}}/{total}  {text}")

    def _show_tensorboard(self, event: str, step: float, **values: float) -> None:
        if self.events:
            for key, value in values.items():
                self.events.add_scalar(f"{event}/{key}", value, step)

    def say(self, text: str) -> None:
        """One line to people."""
        self.last_line = time.monotonic()
        with suppress(SystemExit):  # what rich makes of a reader that has gone, as in `| head -1`: training goes on
            self.console.print(text, markup=False)
            sys.stdout.flush()


def check_tensorboard() -> None:
    """Raises ValueError with the remedy where TensorBoard's library is missing."""
    if find_spec("tensorboard") is None:
        raise ValueError("run.tensorboard needs TensorBoard: pip install 'resnet-core[tensorboard]', or leave it out")


def open_events(folder: Path) -> SummaryWriter:
    """A writer of new event files in `folder`, in place of those that are there: they are written from the record."""
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    # The purge tells a TensorBoard that has read the old files to forget them.
    return SummaryWriter(str(folder), purge_step=0, flush_secs=10)


def read_records(path: Path, keys: Collection[str] = ("event", "step")) -> Iterable[dict[str, Any]]:
    """The records of a metrics.jsonl, which have those keys; a last line that a crash cut short is passed over.

    Raises ValueError naming any other line that is no record.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not record.keys() >= set(keys):
                raise ValueError(f"it has not {' and '.join(keys)}")
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is no record ({error}); mend or remove that line") from error
        else:
            yield record
