"""Commands on folders of images."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from resnet_core.cli.errors import SOME_FAILED
from resnet_core.cli.options import check_at_least, unset
from resnet_core.data.check import CheckReport, check_exclude, check_images, write_exclude
from resnet_core.data.resize import resize_images
from resnet_core.foundation.errors import printable


@dataclass(frozen=True)
class DataCheck:
    """Decode every image of a folder; list unusable images, and those both in training and in validation data.

    It also writes DIR/.resnet-core-hashes.csv, by which a run that is continued knows its images again.

    Example: `resnet-core data check photos --write-exclude bad.txt`
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder of images, with class folders or without, or a CSV list."""
    write_exclude: Annotated[Path | None, unset("FILE")] = None
    """Write the images that were found into this file; training leaves them out with --data.exclude FILE."""
    bits: int = 0
    """How many bits the values of 16-bit files fill, 1 to 16; 0 takes what each file states."""
    workers: int = os.cpu_count() or 1
    """Number of processes that decode. By default one for each core; 0 decodes in this process."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_at_least(0, bits=self.bits, workers=self.workers)

    def __call__(self) -> int:
        if self.write_exclude:
            check_exclude(self.write_exclude)
        with bar_of_images() as advance:
            report = check_images(self.path, bits=self.bits, workers=self.workers, advance=advance)

        print(json.dumps(asdict(report), indent=2) if self.json else as_text(report))
        if self.write_exclude:
            write_exclude(self.write_exclude, report.problems)
            if not self.json:
                count, path = len(report.problems), self.write_exclude
                print(f"{path} lists {count:,}: train with --data.exclude {shlex.quote(str(path))}")
        elif report.problems and not self.json:
            again = f"resnet-core data check {shlex.quote(str(self.path))} --write-exclude exclude.txt"
            print(f"to leave them out of a training: {again}")
        return SOME_FAILED if report.problems else 0


@dataclass(frozen=True)
class DataResize:
    """Make a smaller copy of a folder of images, from which training loads faster.

    Each image becomes an upright JPEG file. Images that are smaller keep their size. Run the same command again to
    continue an interrupted copy.

    Example: `resnet-core data resize photos photos-256 --shorter-side 256`
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A folder of images in any layout, which the copy keeps."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """A new folder for the copy."""
    shorter_side: Annotated[int, tyro.conf.arg(metavar="PIXELS")]
    """The shorter side of an image in the copy. Evaluation at 224 pixels resizes to 256."""
    quality: int = 90
    """Quality of the JPEG files, 1 to 100."""
    workers: int = os.cpu_count() or 1
    """Number of processes that resize. By default one for each core; 0 resizes in this process."""

    def __post_init__(self) -> None:
        check_at_least(1, shorter_side=self.shorter_side)
        check_at_least(0, workers=self.workers)

    def __call__(self) -> int:
        with bar_of_images() as advance:
            report = resize_images(
                self.source,
                self.destination,
                shorter_side=self.shorter_side,
                quality=self.quality,
                workers=self.workers,
                advance=advance,
            )

        for line in (*report.unreadable, *report.notes):
            print(printable(line))
        kept = f", {report.kept:,} were there already" if report.kept else ""
        print(
            f"{self.destination}: {report.written:,} images written with a shorter side of {self.shorter_side} pixels "
            f"at most, JPEG quality {self.quality}{kept}; {len(report.unreadable):,} cannot be read"
        )
        return SOME_FAILED if report.unreadable else 0


@contextmanager
def bar_of_images() -> Iterator[Callable[[int, int], None]]:
    """A progress bar, where there is a terminal, and what to call with the number of images done and of all."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def as_text(report: CheckReport) -> str:
    """Each problem in one line, and then the sums."""
    lines = [printable(problem.reason) for problem in report.problems]
    if report.skipped:
        lines.append(f"skipped: {report.skipped}")
    unreadable, duplicates = len(report.unreadable), len(report.duplicates)
    lines.append(f"{report.images:,} images, decoded by {report.decoder}: {unreadable:,} cannot be used")
    if duplicates:
        lines.append(f"{duplicates:,} {'image is' if duplicates == 1 else 'images are'} in the data more than once")
    return "\n".join(lines)
