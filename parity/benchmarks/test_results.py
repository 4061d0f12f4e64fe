"""docs/results.md has what the recorded runs say, and their commands are those that made them."""

import json
import shlex
import statistics
from dataclasses import replace

import pytest

from parity.benchmarks.results import KEYS, RECORD, command_of, gpu_table, main, recipes_table, runs_table
from resnet_core.cli.parse_train import parse_train
from resnet_core.recipes import RECIPES, SOURCES
from resnet_core.runs.folder import differences_of
from resnet_core.runs.training import run
from resnet_core.train.report import read_records

PAGE = RECORD.parent.parent / "results.md"


def test_the_page_shows_the_recorded_runs():
    assert runs_table(read_records(RECORD, KEYS)) in PAGE.read_text()


def test_what_recipes_say_was_reached_is_what_the_recorded_runs_reached():
    scores = {}
    for record in read_records(RECORD, KEYS):
        scores.setdefault(record["command"], []).append(100 * record["top1"])
    for name, source in SOURCES.items():
        command = f"resnet-core train {name}"
        assert (source.reached is None) == (source.command is None) == (command not in scores), name
        if source.reached:
            assert source.command == command
            assert source.reached.startswith(f"{statistics.mean(scores[command]):.1f}%"), name


def test_the_page_keeps_apart_what_was_published_and_what_was_reached():
    assert recipes_table() in PAGE.read_text()


def test_the_page_has_the_rates_of_each_gpu():
    assert gpu_table() in PAGE.read_text()


def changed(name, **sections):
    recipe = RECIPES[name]
    changes = {section: replace(getattr(recipe, section), **values) for section, values in sections.items()}
    return replace(recipe, seed=3, **changes)


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        (changed("digits"), "resnet-core train digits"),
        (changed("cifar10_fast", data={"path": "somewhere"}), "resnet-core train cifar10_fast"),
        (
            changed("cifar10_fast", optimizer={"name": "decoupled_sgd", "weight_decay": 1e-3}),
            "resnet-core train cifar10_fast --optimizer.name decoupled_sgd --optimizer.weight-decay 0.001",
        ),
        (
            changed("digits", optimizer={"nesterov": False}, schedule={"name": "milestones", "milestones": (5.0, 9.0)}),
            "resnet-core train digits --optimizer.nesterov False --schedule.name milestones "
            "--schedule.milestones 5.0 9.0",
        ),
    ],
)
def test_a_recipe_becomes_the_command_that_trains_it(recipe, command):
    assert command_of(recipe) == command
    parsed = parse_train(shlex.split(command)[2:]).recipe
    assert [key for key, *_ in differences_of(recipe, parsed)] == ["seed"]


def test_runs_that_differ_in_their_seed_are_one_row(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    run(changed("digits", train={"epochs": 1}, schedule={"warmup_epochs": 0.0}), folder)
    capsys.readouterr()
    monkeypatch.setattr("parity.benchmarks.results.RECORD", tmp_path / "runs.jsonl")

    other = tmp_path / "other"
    other.mkdir()
    for name in ("recipe.toml", "environment.json", "result.json"):
        (other / name).write_text((folder / name).read_text().replace("seed = 3", "seed = 4"))
    result = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**result, "top1": result["top1"] - 0.02}))

    monkeypatch.setattr("sys.argv", ["results", str(folder), str(other), "--add"])
    assert main() == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].strip("|").split("|")]
    top1 = 100 * result["top1"]
    assert cells[:5] == [
        "`resnet-core train digits --schedule.warmup-epochs 0.0 --train.epochs 1`",
        "3, 4",
        f"{top1:.2f}, {top1 - 2:.2f}",
        f"{top1 - 1:.2f}",
        f"{2**0.5:.2f}",
    ]

    monkeypatch.setattr("sys.argv", ["results"])
    assert main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_folder_without_a_result_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["results", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "is not a run's folder" in capsys.readouterr().err
