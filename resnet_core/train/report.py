"""What a run reports: `metrics.jsonl` is the record, one object a line; people see a progress bar or plain lines.

TensorBoard (the extra `tensorboard`) shows the same record.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from resnet_core.foundation.atomic import replace_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# How people see a value. On a narrow terminal the bar shows the first ones of this table.
FORMATS = {
    "loss": "loss {:.4f}",
    "samples_per_second": "images/s {:,.0f}",
    "top1": "top1 {:.2%}",
    "epoch": "epoch {:.4g}",
    "lr": "lr {:.4f}",
    "gradient_norm": "gradient_norm {:.3g}",
    "data_wait": "data_wait {:.0%}",
    "communication_wait": "communication_wait {:.0%}",
    "peak_memory_gib": "peak_memory_gib {:.2f}",
    "top5": "top5 {:.2%}",
}
SECONDS_BETWEEN_LINES = 30
NARROWEST_BAR = 10
TIME_LEFT = len("100:00:00")


class Report:
    """The record of one run, kept by rank 0. Without a folder nothing is recorded; a `quiet` report shows nothing.

    Inside its context a terminal and a notebook show a progress bar. Each evaluation is printed as a line; where there
    is no bar, and evaluations are far apart, so is a step every 30 seconds. With `tensorboard` the record is also
    written to the folder's `tensorboard/`. Values of `hidden` keys are recorded but not shown.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        quiet: bool = False,
        tensorboard: bool = False,
        hidden: Collection[str] = (),
    ) -> None:
        self.path = Path(folder) / "metrics.jsonl" if folder else None
        self.events = open_events(self.path.parent / "tensorboard") if self.path and tensorboard else None
        self.hidden = hidden

        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        shows_bar = self.console.is_terminal or (self.console.is_jupyter and find_spec("ipywidgets"))
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TimeRemainingColumn(),
            ValuesColumn(self.console),
            console=self.console,
            transient=True,
            expand=True,
            disable=quiet or not shows_bar,
        )
        self.task = self.bar.add_task("", values={})

        self.latest: dict[str, Mapping[str, float]] = {}  # event -> its last record
        self.last_line = time.monotonic()

    def __enter__(self) -> Report:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.events:
            self.events.close()

    def start(self, step: int, total_steps: int, *, evaluated: bool = True) -> None:
        """Continues after `step`; drops what the record has of later steps, which an interrupted run had done.

        Unless `evaluated`, this step's evaluation is dropped as well: it is made again.
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
        if self.path:
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
            except OSError as error:
                raise OSError(
                    f"{self.path} cannot be written ({error.strerror}); make room, and the same command continues the "
                    "run"
                ) from error
        self._show_tensorboard(event, step, **values)

        shown = {key: value for key, value in values.items() if key not in self.hidden}
        self.latest[event] = shown
        # After an evaluation its scores join the last values of training, whose loss stays.
        values = {**self.latest.get("eval", {}), **self.latest.get("train", {})}
        self.bar.update(self.task, completed=step, values=values)

        line_due = self.bar.disable and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES
        if event == "eval" or line_due:
            total = f"{self.bar.tasks[self.task].total:.0f}"
            text = "  ".join(formatted(key, value) for key, value in shown.items())
            self.say(f"{event:<5}  step {step:>{len(total)}}/{total}  {text}")

    def _show_tensorboard(self, event: str, step: float, **values: float) -> None:
        if self.events:
            for key, value in values.items():
                self.events.add_scalar(f"{event}/{key}", value, step)

    def say(self, text: str) -> None:
        """Prints one line."""
        self.last_line = time.monotonic()
        # rich raises SystemExit when a reader is gone, as in `| head -1`; training goes on.
        with suppress(SystemExit):
            self.console.print(text, markup=False)
            sys.stdout.flush()


class ValuesColumn(ProgressColumn):
    """The values of a task that fit into the terminal beside step, bar and time left, the important ones first."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self.console = console

    def render(self, task: Task) -> Text:
        """One line of text."""
        steps = len(f"step {task.total:.0f}/{task.total:.0f}")
        room = self.console.width - steps - NARROWEST_BAR - TIME_LEFT - len("    ")
        values = task.fields["values"]
        text = ""
        for key in [*FORMATS, *(key for key in values if key not in FORMATS)]:
            longer = f"{text}  {formatted(key, values[key])}" if key in values else text
            if len(longer.strip()) > room:
                break
            text = longer
        return Text(text.strip())


def formatted(key: str, value: float) -> str:
    return FORMATS.get(key, f"{key} {{}}").format(value)


def check_tensorboard() -> None:
    """Raises ValueError if TensorBoard's library is missing."""
    if find_spec("tensorboard") is None:
        raise ValueError("run.tensorboard needs TensorBoard: pip install 'resnet-core[tensorboard]', or leave it out")


def open_events(folder: Path) -> SummaryWriter:
    """A writer of new event files in `folder`. Old ones are deleted: all events are written again from the record."""
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    # With this purge step a TensorBoard that has read the old files forgets them.
    return SummaryWriter(str(folder), purge_step=0, flush_secs=10)


def read_records(path: Path, keys: Collection[str] = ("event", "step")) -> Iterable[dict[str, Any]]:
    """The records of a metrics.jsonl, each of which has these keys. A last line that a crash cut short is skipped.

    Raises ValueError naming any other line that is not a record.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not record.keys() >= set(keys):
                raise ValueError(f"it lacks {' or '.join(keys)}")
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not a record ({error}); fix or remove that line") from error
        else:
            yield record
