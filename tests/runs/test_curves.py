"""Pictures of runs: their labels, and files that must not be overwritten."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from resnet_core.cli.main import main
from resnet_core.foundation.toml import to_toml
from resnet_core.recipes import RECIPES
from resnet_core.runs.curves import PALETTE, draw, plot, records_of, run_labels
from resnet_core.train import RunConfig
from resnet_core.train.optimizers import OptimizerConfig

DIGITS = RECIPES["digits"]


def run(folder, recipe=DIGITS, loss=1.0):
    """A run's folder as far as it is drawn."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(recipe))
    records = [
        {"event": "train", "step": 10, "epoch": 0.5, "loss": loss, "lr": 0.1},
        {"event": "train", "step": 20, "epoch": 1.0, "loss": loss / 2, "lr": 0.05},
        {"event": "eval", "step": 20, "epoch": 1.0, "top1": 0.5, "top5": 1.0, "loss": loss / 3, "count": 360},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def learning_rate(lr, **changes):
    return replace(DIGITS, optimizer=replace(DIGITS.optimizer, lr=lr), **changes)


@pytest.mark.parametrize(
    ("recipes", "labels"),
    [
        ([DIGITS, learning_rate(0.05)], ["optimizer.lr 0.1", "optimizer.lr 0.05"]),
        (
            [learning_rate(0.05, seed=1), DIGITS, replace(DIGITS, seed=1)],
            ["optimizer.lr 0.05, seed 1", "optimizer.lr 0.1, seed 0", "optimizer.lr 0.1, seed 1"],
        ),
        ([DIGITS, learning_rate(0.05), DIGITS], ["optimizer.lr 0.1 (0)", "optimizer.lr 0.05", "optimizer.lr 0.1 (2)"]),
        ([DIGITS, replace(DIGITS, run=RunConfig(log_every_steps=1))], ["0", "1"]),
        ([DIGITS, RECIPES["imagenet_card"]], ["0", "1"]),
    ],
)
def test_runs_are_told_apart_by_what_their_recipes_differ_in_or_by_name(recipes, labels, tmp_path):
    assert run_labels([run(tmp_path / str(number), recipe) for number, recipe in enumerate(recipes)]) == labels


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [run(tmp_path / parent / "digits") for parent in ("a", "b")]
    assert run_labels(folders) == list(map(str, folders))


@pytest.mark.parametrize("count", [1, 2, PALETTE + 2])
def test_each_run_is_drawn_in_a_colour_of_its_own_with_a_label(count, tmp_path):
    folders = [run(tmp_path / f"run {number}", loss=1.0 + number) for number in range(count)]
    figure = draw({folder.name: records_of(folder) for folder in folders})
    drawn = [line for line in figure.axes[0].get_lines() if len(line.get_xdata())]
    values = [list(line.get_ydata()) for line in drawn]
    assert values[:count] == [[1.0 + number, (1.0 + number) / 2] for number in range(count)]
    assert values[count:] == [[(1.0 + number) / 3] for number in range(count)]
    colours = [to_hex(line.get_color()) for line in drawn]
    assert colours[:count] == colours[count:]
    assert len(set(colours)) == count
    assert max(line.get_linewidth() for line in drawn[:count]) < min(line.get_linewidth() for line in drawn[count:])
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert legends == [["training", "evaluation"], ["top-1", "top-5"], ["learning rate"]]
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels == ([] if count == 1 else [folder.name for folder in folders])


def test_labels_stay_inside_the_picture(tmp_path):
    recipes = [
        replace(DIGITS, optimizer=OptimizerConfig(lr=0.1 / number, weight_decay=number / 1e5), seed=number)
        for number in range(1, 6)
    ]
    folders = [run(tmp_path / str(number), recipe) for number, recipe in enumerate(recipes)]
    figure = draw(dict(zip(run_labels(folders), map(records_of, folders), strict=True)))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert (box.x0 >= 0, box.x1 <= figure.bbox.x1, box.y0 >= 0) == (True, True, True)
    assert all(box.y1 <= axes.get_tightbbox().y0 for axes in figure.axes)


def test_a_run_that_was_not_evaluated_yet_is_drawn(tmp_path):
    folder = run(tmp_path / "run")
    first = (folder / "metrics.jsonl").read_text().splitlines()[0]
    (folder / "metrics.jsonl").write_text(first + "\n")
    assert plot([folder]) == folder / "curves.png"


def test_one_run_is_drawn_into_its_folder_and_several_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        run(tmp_path / name)
    assert main(["plot", "a"]) == main(["plot", "a", "b"]) == 0
    assert capsys.readouterr().out.split() == ["a/curves.png", "curves.png"]


@pytest.mark.parametrize("name", ["x.png", "x.PNG", "x.pdf", "x.svg"])
def test_a_picture_of_ours_is_drawn_anew_and_another_file_is_left(name, tmp_path):
    folder, path = run(tmp_path / "run"), tmp_path / name
    assert plot([folder], path) == plot([folder], path) == path
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists and was not drawn by `plot`; choose another file with --out"):
        plot([folder], path)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "plot needs the folder of at least one run"),
        ("run nowhere", "nowhere is not a run's folder"),
        ("run begun", r"begun/metrics.jsonl holds no records yet; train first"),
        ("run --out x.jpg", r"x.jpg cannot be drawn; name a file that ends in .png or .pdf or .svg"),
        ("run --out no/x.png", r"no/x.png cannot be written \(No such file or directory\); choose another file with"),
        ("run --out folder.png", r"folder.png cannot be written \(Is a directory\)"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run")
    (run(tmp_path / "begun") / "metrics.jsonl").unlink()
    Path("folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["plot", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert sorted(tmp_path.rglob("*")) == before
