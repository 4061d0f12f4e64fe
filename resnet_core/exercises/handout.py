"""What a student gets: our own source, which imports torch alone and so stands alone, with one mistake."""

from __future__ import annotations

import inspect

from resnet_core.exercises.catalog import EXERCISES, LEGEND
from resnet_core.models import resnet

HEADER = """\
# Exercise {number} of resnet_core: a ResNet with one mistake. The comments and docstrings are right, the code is not.
#
# What is seen, in networks of {blocks}: {symptom}.
# {legend}
#
# Mend it here, keep names and the order of construction, and have it graded:
#
#     resnet-core grade {filename}
#
# That says where its networks first differ from right ones; with --tell it names the mistake.

"""


def handout(number: int, filename: str) -> str:
    """What a student gets: the task, and below it the broken source of exercise `number` (from 1).

    `filename` is where it will be saved. Raises ValueError for a number that is none.
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
    """Our `resnet.py` with the mistake, a name of EXERCISES."""
    source = inspect.getsource(resnet)
    for old, new in EXERCISES[mistake].edits:
        assert source.count(old) == 1, f"{mistake}: {old!r} must occur once in resnet.py"
        source = source.replace(old, new)
    return source
