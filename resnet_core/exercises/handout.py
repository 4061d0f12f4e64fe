"""What a student gets: our own source with one mistake. It imports only torch, so the file works on its own."""

from __future__ import annotations

import inspect

from resnet_core.exercises.catalog import EXERCISES, LEGEND
from resnet_core.models import resnet

HEADER = """\
# Exercise {number} of resnet_core: a ResNet with one mistake. The comments and docstrings are right; the code is not.
#
# Networks of {blocks} show it: {symptom}.
#
# {legend}
#
# Fix the mistake in this file. Keep the names and the order in which layers are built. Then run
#
#     resnet-core grade {filename}
#
# It shows where the networks of this file first differ from the right ones. With --tell it names the mistake.

"""


def handout(number: int, filename: str) -> str:
    """The task of exercise `number` (from 1), and below it the broken source.

    `filename` is the file in which it will be saved. Raises ValueError for a number that is not an exercise's.
    """
    if not 1 <= number <= len(EXERCISES):
        raise ValueError(f"exercises are numbered from 1 to {len(EXERCISES)}, got {number}; choose one of these")

    mistake, exercise = list(EXERCISES.items())[number - 1]
    header = HEADER.format(
        number=number,
        blocks=" and ".join(exercise.blocks),
        symptom=exercise.symptom,
        legend="\n# ".join(LEGEND),
        filename=filename,
    )
    return header + broken_source(mistake)


def broken_source(mistake: str) -> str:
    """The source of our `resnet.py` with a mistake of EXERCISES."""
    source = inspect.getsource(resnet)
    for old, new in EXERCISES[mistake].edits:
        assert source.count(old) == 1, f"{mistake}: {old!r} must occur once in resnet.py"
        source = source.replace(old, new)
    return source
