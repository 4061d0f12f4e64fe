"""Commands on broken ResNets: hand them out, and grade their repair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resnet_core.cli.errors import DIFFERENT
from resnet_core.cli.options import unset
from resnet_core.exercises import EXERCISES, LEGEND, TASKS, grade, handout
from resnet_core.exercises.tasks import task_of, text_of


@dataclass(frozen=True)
class Exercise:
    """List the broken ResNets with their symptoms, the easiest first, and the tasks of building and explaining.

    With a NUMBER, write that broken ResNet to a file; with --task NAME, that task.

    Example: `resnet-core exercise 7`
    """

    number: Annotated[tyro.conf.Positional[str], unset("[NUMBER]")] = "list"
    """The exercise to write. By default all are listed."""
    out: Annotated[Path | None, unset("FILE")] = None
    """The file to write. By default exercise_07.py for number 7, and task_block.py for the task block."""
    task: Annotated[str | None, unset("NAME")] = None
    """The task to write, in place of a broken ResNet."""

    def __call__(self) -> None:
        if self.number == "list" and self.task is None:
            if self.out is not None:
                raise ValueError(f"--out {self.out} needs the exercise's number before it, or --task")
            print_exercises()
            return
        if self.number != "list" and self.task is not None:
            raise ValueError(f"exercise takes a number or --task, got {self.number} and {self.task}; leave one out")
        if not self.number.isdecimal() and self.task is None:
            remedy = f"--task {self.number}` writes that task" if self.number in TASKS else "list` shows them"
            raise ValueError(f"{self.number!r} is not the number of an exercise; `resnet-core exercise {remedy}")

        if self.task is None:
            out = self.out or Path(f"exercise_{int(self.number):02}.py")
            text, goal = handout(int(self.number), str(out)), "fix its mistake"
        else:
            out = self.out or Path(f"task_{self.task}.py")
            text, goal = text_of(self.task, str(out)), "fill it in"
        try:
            with out.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise ValueError(f"{out} already exists and may hold your work; choose another file with --out") from error
        print(f"{out}: {goal}, then run `resnet-core grade {out}`")


def print_exercises() -> None:
    """Prints a line for each exercise and task, and the commands that write one."""
    print(f"{'':<4}{'block':<12}what one sees")
    for number, exercise in enumerate(EXERCISES.values(), 1):
        block = exercise.blocks[0] if len(exercise.blocks) == 1 else "both"
        print(f"{number:>2}  {block:<12}{exercise.symptom}")
    print("\n".join(LEGEND))
    print("`resnet-core exercise 1` writes the first one to exercise_01.py, for you to fix.\n")

    print(f"{'task':<12}what one does")
    for name, task in TASKS.items():
        print(f"{name:<12}{task.title}")
    print("`resnet-core exercise --task block` writes the first one to task_block.py, for you to fill in.")


@dataclass(frozen=True)
class Grade:
    """Say whether an exercise is fixed and, if not, where its networks first differ from ours; or if a task is right.

    This runs the file.

    Example: `resnet-core grade exercise_07.py`
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The exercise: a Python file with ResNet, BasicBlock, Bottleneck and TABLE_1."""
    tell: bool = False
    """Name the mistake. This takes some seconds for each of the two blocks."""

    def __call__(self) -> int:
        differences = grade(self.file, tell=self.tell)
        if task_of(self.file):
            print(f"{self.file} is {'not right yet' if differences else 'right'}")
            print(*differences, sep="\n", end="\n" if differences else "")
            return DIFFERENT if differences else 0
        if not differences:
            print(f"{self.file} is fixed: its networks compute what ours do, and the same seed gives the same weights")
            return 0
        print(f"{self.file} is not fixed yet; it first differs at")
        print("\n".join(map(str, differences)))
        return DIFFERENT
