"""Broken ResNets to repair: `resnet.py` with one known mistake each, and the grade of a repair.

print(handout(7, "mine.py"))  # the source of exercise 7, to be repaired in mine.py
grade(Path("mine.py"))        # () once it is repaired, until then where it differs from ours
"""

from resnet_core.exercises.catalog import EXERCISES, LEGEND
from resnet_core.exercises.grader import grade
from resnet_core.exercises.handout import handout
from resnet_core.exercises.tasks import TASKS

__all__ = ["EXERCISES", "LEGEND", "TASKS", "grade", "handout"]
