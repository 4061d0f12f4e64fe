"""Commands on folders of images."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from resnet_core.cli.errors import SOME_FAILED
from resnet_core.cli.weights import unset
from resnet_core.data.check import CheckReport, check_images, write_exclude


@dataclass(frozen=True)
class DataCheck:
    """Decode every image of a folder, and list those that cannot be used and those that are in two parts."""

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder of images in any layout, or a CSV list."""
    write_exclude: Annotated[Path | None, unset("FILE")] = None
    """Write the images that were found into this file; training leaves them out with --data.exclude FILE."""
    bits: int = 0
    """How many bits the values of 16-bit files fill, such as 12; 0 takes what each file states."""
    workers: int = os.cpu_count() or 1
    """Number of processes that decode. By default one for each core; 0 decodes in this process."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> int:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("images", total=None)
            report = check_images(
                self.path,
                bits=self.bits,
                workers=self.workers,
                advance=lambda done, total: bar.update(task, completed=done, total=total),
            )

        if self.write_exclude:
            write_exclude(self.write_exclude, report.problems)
        if self.json:
            print(json.dumps(report.as_dict(), indent=2))
        else:
            print_report(report, self.write_exclude)
        return SOME_FAILED if report.problems else 0


def print_report(report: CheckReport, excluded: Path | None) -> None:
    """Prints each problem in one line, and then the sums."""
    for problem in report.problems:
        print(problem.reason)
    if report.skipped:
        print(f"skipped: {report.skipped}")
    unreadable, duplicates = len(report.unreadable), len(report.duplicates)
    print(f"{report.images:,} images, decoded by {report.decoder}: {unreadable:,} cannot be used")
    if duplicates:
        noun = "image to train on is" if duplicates == 1 else "images to train on are"
        print(f"{duplicates:,} {noun} also in another part")
    if excluded:
        print(f"{excluded} lists {len(report.problems):,}: train with --data.exclude {excluded}")
