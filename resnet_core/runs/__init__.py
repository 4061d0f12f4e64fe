"""A run's folder: claim it, train into it, continue it, read it, draw its curves, look into it."""

from resnet_core.runs.curves import plot
from resnet_core.runs.folder import read_recipe, read_result
from resnet_core.runs.report import write_report
from resnet_core.runs.training import load_run, run

__all__ = ["load_run", "plot", "read_recipe", "read_result", "run", "write_report"]
