"""What other people's code relies on, compared with a record: tests/public_surface.json.

A change of the record is a change for users, so it needs a line in CHANGELOG.md.
"""

import inspect
import io
import json
import re
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, fields
from pathlib import Path

import resnet_core
from resnet_core.cli.main import COMMANDS, main
from resnet_core.comparison.compare import ALL_RUNGS, DEFAULT_RUNGS, Comparison
from resnet_core.data import DataConfig, dataset_of, loaders_of
from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.runs.training import load_run
from resnet_core.weights import LoadReport, WeightsInfo, load_weights

RECORD = Path(__file__).with_name("public_surface.json")


def parameters(function):
    """Each parameter as it is written, without its annotation and without the address of a function."""
    return [
        re.sub(r"=<function .*", "=<function>", str(parameter.replace(annotation=inspect.Parameter.empty)))
        for parameter in inspect.signature(function).parameters.values()
    ]


def methods(kind):
    return {
        name: parameters(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and method.__module__.startswith("resnet_core")
    }


def flags(command, *arguments):
    """The options that a command's help lists."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        main([*command.split(), *arguments, "--help"])
    return sorted(set(re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", printed.getvalue())))


def keys(mapping):
    return {key: keys(value) if isinstance(value, dict) else "" for key, value in mapping.items()}


def first_batch(loader):
    images, labels = next(iter(loader))
    return [[list(each.shape), str(each.dtype)] for each in (images, labels)]


def batches():
    """The first batches of the digits, to train and to evaluate on: shapes and types."""
    config = RECIPES["digits"].data
    train_loader, eval_loader = loaders_of(config, dataset_of(config), epochs=1, seed=0)
    return {"train": first_batch(train_loader.epoch(0)), "evaluate": first_batch(eval_loader)}


def surface():
    public = {name: getattr(resnet_core, name) for name in sorted(resnet_core.__all__)}
    return {
        "package": {name: parameters(value) for name, value in public.items()},
        "methods": {name: methods(value) for name, value in public.items() if inspect.isclass(value)},
        "rooms": {
            room: sorted(getattr(resnet_core, room).__all__) for room in ("data", "train", "weights", "recipes", "runs")
        },
        "commands": {name: flags(name) for name in COMMANDS if name != "train"} | {"train": flags("train", "digits")},
        "rungs": {"all": list(ALL_RUNGS), "by default": list(DEFAULT_RUNGS)},
        "comparison": [each.name for each in fields(Comparison)],
        "recipes": {name: keys(asdict(recipe)) for name, recipe in RECIPES.items() if name == "digits"},
        "names of recipes": list(RECIPES),
        "DataConfig": {each.name: str(each.type) for each in fields(DataConfig)},
        "functions": {
            each.__name__: parameters(each) for each in (dataset_of, loaders_of, load_weights, load_run, make_trainer)
        },
        "batches": batches(),
        "LoadReport": [each.name for each in fields(LoadReport)],
        "WeightsInfo": [each.name for each in fields(WeightsInfo)],
    }


def test_what_others_rely_on_is_as_recorded():
    recorded = json.loads(RECORD.read_text())
    found = json.loads(json.dumps(surface()))
    for part in found:
        assert found[part] == recorded[part], part


def test_a_run_leaves_the_files_and_keys_that_are_recorded(digits_run):
    folder, _ = digits_run
    recorded = json.loads(RECORD.read_text())["run"]
    assert run_files(folder) == recorded


def run_files(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    checkpoint = max((folder / "checkpoints").iterdir())
    return {
        "files": sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.suffix != ".png"),
        "result.json": list(json.loads((folder / "result.json").read_text())),
        "metrics.jsonl": {
            event: list(next(record for record in records if record["event"] == event)) for event in ("train", "eval")
        },
        "environment.json": list(json.loads((folder / "environment.json").read_text())),
        "checkpoint": sorted(path.name for path in checkpoint.iterdir()),
        "checkpoint.json": list(json.loads((checkpoint / "checkpoint.json").read_text())["state"]),
    }
