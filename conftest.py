"""How the tests are shared among processes, with one thread in each, and which ones `make quick` leaves out."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the processes that tests start inherit it

settings.register_profile("no hurry", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no hurry")  # an example is slow where others use the cores

# What trains whole runs, starts programs, compiles, or diagnoses: `--quick` runs everything else.
LONG = (
    "parity",
    "tests/comparison/test_compare.py",
    "tests/comparison/test_diagnosis.py",
    "tests/comparison/test_field.py",
    "tests/comparison/test_kinds.py",
    "tests/comparison/test_patients.py",
    "tests/comparison/test_people.py",
    "tests/comparison/test_references.py",
    "tests/comparison/test_sweep.py",
    "tests/distributed",
    "tests/exercises",
    "tests/faults",
    "tests/inference/test_export.py",
    "tests/inference/test_exported.py",
    "tests/inference/test_over_images.py",
    "tests/models/test_backbone.py",
    "tests/models/test_describe.py",
    "tests/recipes/test_recipes.py",
    "tests/runs",
    "tests/test_readme.py",
    "tests/train/test_failures.py",
    "tests/train/test_trainer.py",
    "tests/train/test_worlds.py",
    "tests/weights/test_convert.py",
    "tests/weights/test_download.py",
    "tests/weights/test_files.py",
    "tests/weights/test_inspect.py",
    "tests/weights/test_pretrained.py",
    "tests/weights/test_remedies.py",
)
PROGRAMS = {"program", "train_once", "digits_run", "short_run"}  # fixtures that start a program


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what trains, starts programs or compiles")
    parser.addoption("--write-outputs", action="store_true", help="write what the pages show anew (make docs-output)")


def pytest_configure(config):
    missing = [name for name in LONG if not (config.rootpath / name).exists()]
    if missing:
        raise pytest.UsageError(f"conftest.py: LONG names {', '.join(missing)}, which does not exist; correct it")


def pytest_ignore_collect(collection_path: Path, config):
    if collection_path == config.rootpath / "tests" / "site":
        return True  # needs a browser and the built site: `make site-test` names the folder
    if config.getoption("quick") and any(collection_path.is_relative_to(config.rootpath / name) for name in LONG):
        return True
    return None


def pytest_collection_modifyitems(config, items):
    if config.getoption("quick"):
        long = [item for item in items if PROGRAMS & set(item.fixturenames)]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_xdist_auto_num_workers(config):
    """One more than the cores, since some tests wait. A selection runs in this process, for -s and debuggers."""
    everything = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    return (os.cpu_count() or 1) + 1 if everything else 0
