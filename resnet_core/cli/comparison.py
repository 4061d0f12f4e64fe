"""Commands on two networks: compare them; hand out broken ones and grade their repair."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from resnet_core.cli.errors import DIFFERENT
from resnet_core.cli.weights import unset
from resnet_core.comparison.compare import ALL_RUNGS, DEFAULT_RUNGS, compare
from resnet_core.comparison.networks import find_network, with_place
from resnet_core.exercises import EXERCISES, LEGEND, grade, handout
from resnet_core.foundation.suggestions import did_you_mean


@dataclass(frozen=True)
class Compare:
    """Compare two networks rung by rung, and find where they first differ and which known mistake explains it.

    A network is a name of `resnet-core models`, torchvision:NAME, timm:NAME, or your.module:function. Your module is
    imported and its function called, so your own code runs.
    """

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NETWORK")]
    """The network in question."""
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REFERENCE")]
    """The network to compare it with."""
    image_size: int = 64
    """Height and width of the random images in pixels."""
    channels: int = 3
    """Channels of the random images."""
    batch: int = 2
    """How many random images, at least 2."""
    all: bool = False
    """Climb the slow rungs too: torch.compile, torch.export and ONNX."""
    skip: tuple[str, ...] = ()
    """Names of rungs to skip, such as "seeded initialisation"."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device on which both networks run."""
    diagnosis_seconds: float = 60.0
    """How long to look for the mistake; 0 does not look."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if min(self.image_size, self.channels, self.batch - 1) < 1:
            raise ValueError("--image-size and --channels must be at least 1, --batch at least 2")

    def __call__(self) -> int:
        sys.path.insert(0, os.getcwd())
        for name in self.skip:
            if name not in ALL_RUNGS:
                raise ValueError(
                    f"--skip {name!r} is not a rung; {did_you_mean(name, ALL_RUNGS)}; quote names with spaces"
                )
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch finds no GPU here; leave it out")

        rungs = [name for name in (ALL_RUNGS if self.all else DEFAULT_RUNGS) if name not in self.skip]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, self.channels, self.image_size, self.image_size, generator=generator)

        with redirect_stdout(sys.stderr):  # what the user's code prints is not part of the result
            a, b = find_network(self.a), find_network(self.b)
            try:
                result = compare(a, b, images.to(self.device), rungs=rungs, diagnosis_seconds=self.diagnosis_seconds)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(str(error)) from error
            except Exception as error:  # anything that the user's networks raise
                raise ValueError(f"{self.a} and {self.b} cannot be compared: {with_place(error)}") from error
        print(result.to_json() if self.json else result)
        return 0 if result else DIFFERENT


@dataclass(frozen=True)
class Exercise:
    """List the broken ResNets with their symptoms, the easiest first. With a NUMBER, write that exercise to a file."""

    number: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="NUMBER")] = 0
    """The exercise to write; 0 lists all of them."""
    out: Annotated[Path | None, unset("FILE")] = None
    """The file to write. By default exercise_07.py for number 7."""

    def __call__(self) -> None:
        if not self.number:
            if self.out is not None:
                raise ValueError(f"--out {self.out} needs the exercise's number before it")
            print(f"{'':<4}{'block':<12}what one sees")
            for number, exercise in enumerate(EXERCISES.values(), 1):
                block = exercise.blocks[0] if len(exercise.blocks) == 1 else "both"
                print(f"{number:>2}  {block:<12}{exercise.symptom}")
            print("\n".join(LEGEND))
            return

        out = self.out or Path(f"exercise_{self.number:02}.py")
        text = handout(self.number, str(out))
        try:
            with out.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise ValueError(f"{out} already exists and may hold your work; choose another file with --out") from error
        print(f"{out}: fix its mistake, then run `resnet-core grade {out}`")


@dataclass(frozen=True)
class Grade:
    """Say whether an exercise is fixed and, if not, where its networks first differ from ours.

    This runs the file.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The exercise: a Python file with ResNet, BasicBlock, Bottleneck and TABLE_1."""
    tell: bool = False
    """Name the mistake. This takes up to a minute for each of the two blocks."""

    def __call__(self) -> int:
        differences = grade(self.file, tell=self.tell)
        if not differences:
            print(f"{self.file} is fixed: its networks compute what ours do, and the same seed gives the same weights")
            return 0
        print(f"{self.file} is not fixed yet; it first differs at")
        print("\n".join(map(str, differences)))
        return DIFFERENT
