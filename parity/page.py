"""Writes what `resnet-core compare people.py:...` prints into docs/parity.md: `python -m parity.page`."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

from resnet_core.cli.main import main
from resnet_core.foundation.atomic import replace_file

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
PEOPLE = Path(__file__).parent / "patients"
COMMAND = re.compile(r"^\$ resnet-core (compare people\.py.*)\n(?:(?!```).*\n)*", re.MULTILINE)


def with_output(command: re.Match[str]) -> str:
    """The command and what it prints today, without the lines whose numbers another machine may round differently."""
    printed = io.StringIO()
    with contextlib.chdir(PEOPLE), contextlib.redirect_stdout(printed):
        main(shlex.split(command[1]))
    lines = ["..." if "errors against" in line else line for line in printed.getvalue().splitlines()]
    text = "\n".join([f"$ resnet-core {command[1]}", *lines, ""])
    return re.sub(r"(\.\.\.\n)+", "...\n", text)


if __name__ == "__main__":
    replace_file(PAGE, COMMAND.sub(with_output, PAGE.read_text()).encode())
