"""Each task of building and explaining accepts its solution, and says what is wrong with anything else."""

from pathlib import Path

import pytest

from resnet_core.cli.errors import DIFFERENT
from resnet_core.exercises import TASKS, grade
from resnet_core.exercises.tasks import text_of

SOLUTIONS = Path(__file__).with_name("solutions")

# Mistakes that people make: what to exchange in a solution, and where the grade must see it.
MISTAKES = [
    ("block", "return (out + self.shortcut(x)).relu()", "return out.relu() + self.shortcut(x)", "Block(8, 8, 1)"),
    ("block", "padding=1, bias=False)\n        self.norm2", "padding=1)\n        self.norm2", "Block(8, 8, 1)"),
    ("block", "if stride > 1 or", "if stride > 2 and", "Block(8, 16, 2)"),
    ("stride", "(1, 2, 2, 2)", "(2, 2, 2, 2)", "STRIDES"),
    ("stride", '"conv1"', '"conv3"', "V1"),
    ("stride", "18, 18", "9, 9", "CONV4_X"),
    ("parameters", " + 1000\n", "\n", "parameters((3, 4, 6, 3))"),
    ("parameters", "    total = ", "    return 25_557_032\n    total = ", "parameters((3, 4, 23, 3))"),
    ("resnext", '"width_per_group": 4', '"width_per_group": 64', "ARGUMENTS"),
    ("resnext", "32 * 3", "3", "WEIGHTS"),
    ("decay", " / (1 - momentum)", "", "coupled(2.048, 0.875, 0.0005)"),
    ("decay", "/ 5e-4", "/ 1e-4", "FACTOR"),
    ("ranks", "batch.chunk(num_ranks)", "batch.chunk(1)", "normalize(batch, 2)"),
    ("ranks", ", correction=0", "", "normalize(batch, 1)"),
    ("ranks", "RUNNING_MEANS = False", "RUNNING_MEANS = True", "RUNNING_MEANS"),
]


def test_every_task_has_a_solution():
    assert {path.stem for path in SOLUTIONS.glob("*.py")} == set(TASKS)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_solution_is_right_and_the_file_with_gaps_is_not(name, tmp_path, cli):
    finished = cli("grade", SOLUTIONS / f"{name}.py")
    assert (finished.returncode, finished.stdout.splitlines()[1:]) == (0, []), finished.stdout

    handed_out = tmp_path / f"task_{name}.py"
    written = cli("exercise", "--task", name, "--out", handed_out)
    assert written.stdout == f"{handed_out}: fill it in, then run `resnet-core grade {handed_out}`\n"
    assert handed_out.read_text() == text_of(name, str(handed_out))
    finished = cli("grade", handed_out)
    assert finished.returncode in (DIFFERENT, 2), finished
    assert finished.stdout.startswith(f"{handed_out} is not right yet\n") or finished.stderr


@pytest.mark.parametrize(("name", "right", "wrong", "where"), MISTAKES, ids=[f"{m[0]}: {m[3]}" for m in MISTAKES])
def test_a_mistake_is_named_where_it_is(name, right, wrong, where, tmp_path):
    solution = (SOLUTIONS / f"{name}.py").read_text()
    assert right in solution
    file = tmp_path / "mine.py"
    file.write_text(solution.replace(right, wrong))
    assert next(difference.where for difference in grade(file)) == where


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path, cli):
    assert "did you mean block" in cli("exercise", "--task", "blok").stderr
    file = tmp_path / "mine.py"
    file.write_text('TASK = "blok"\n')
    with pytest.raises(ValueError, match="did you mean block"):
        grade(file)
