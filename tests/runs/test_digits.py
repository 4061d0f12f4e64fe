"""The first training, end to end: what README promises of `resnet-core train digits`."""

import json
import os
import re
import signal
import subprocess
import tomllib

import pytest
from safetensors.torch import load_file

import resnet_core
from resnet_core.foundation.toml import to_toml
from resnet_core.recipes import RECIPES
from resnet_core.runs.training import load_run
from tests.conftest import COMMAND, SHORT, wait_for_checkpoint, weights_hash


def test_two_processes_reach_99_percent(digits_run):
    folder, _ = digits_run
    result = json.loads((folder / "result.json").read_text())
    assert result["top1"] >= 0.99
    assert result["count"] == 360
    assert result["steps"] == 30 * (1437 // 64)
    assert result["top5"] <= 1
    assert result["images_per_second"] == pytest.approx(result["steps"] * 64 / result["seconds"])


def test_the_run_folder_is_complete(digits_run):
    folder, _ = digits_run
    assert {path.name for path in folder.iterdir()} >= {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "model.safetensors",
        "result.json",
    }
    assert (folder / "recipe.toml").read_text() == to_toml(RECIPES["digits"])
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["threads"] == 1
    weights = load_file(folder / "model.safetensors")
    resnet_core.cifar_resnet20(in_channels=1).load_state_dict(weights, strict=True)


def test_one_rank_speaks_in_plain_lines_where_there_is_no_terminal(digits_run):
    folder, finished = digits_run
    lines = finished.stdout.splitlines()
    assert len([line for line in lines if line.startswith("eval")]) == 30
    assert len(lines) == 36
    assert lines[:4] == [
        "cifar_resnet20 on digits: 660 steps, 2 processes on cpu",
        "data        1,437 images of 10 classes to train on, 360 images of 10 classes to evaluate on",
        "classes     139 to 146 images each to train on: 8 has the fewest, 1 the most",
        "left over   29 of the 1,437 images in each epoch, different ones each time: an epoch has only full batches",
    ]
    assert lines[-2].startswith(f"{folder} is finished: top-1 ")
    assert finished.stderr == ""
    assert "\x1b" not in finished.stdout


def test_the_same_command_finds_the_run_finished(program, digits_run):
    folder, _ = digits_run
    before = weights_hash(folder)
    again = program("train", "digits", "--processes", 2, "--out", folder)
    assert again.returncode == 0
    assert again.stdout.startswith(f"{folder} was finished before: top-1 ")
    assert weights_hash(folder) == before


def test_evaluate_counts_every_test_image_once(cli, digits_run):
    folder, _ = digits_run
    result = json.loads((folder / "result.json").read_text())
    evaluated = cli("evaluate", folder, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads(evaluated.stdout)
    assert {key: scores[key] for key in ("top1", "top5", "count")} == {
        key: result[key] for key in ("top1", "top5", "count")
    }
    printed = cli("evaluate", folder).stdout
    assert printed == f"top-1 {scores['top1']:.2%} ({round(scores['top1'] * 360)} of 360), top-5 100.00% (360 of 360)\n"


def test_plot_draws_the_curves(cli, digits_run):
    folder, _ = digits_run
    plotted = cli("plot", folder)
    assert plotted.stdout == f"{folder / 'curves.png'}\n", plotted.stderr
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_loads_as_a_model(digits_run):
    folder, _ = digits_run
    trainer = load_run(folder)
    result = json.loads((folder / "result.json").read_text())
    assert trainer.evaluate()["top1"] == result["top1"]


def started(folder, *options):
    """A training on two processes in a process group of its own, as a terminal would start it."""
    words = [*COMMAND, "train", "digits", "--processes", "2", "--out", folder, *options]
    return subprocess.Popen(
        list(map(str, words)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_run_continues_to_the_same_weights(program, short_run, tmp_path):
    folder = tmp_path / "run"
    process = started(folder, *SHORT)
    wait_for_checkpoint(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists()

    continued = program("train", "digits", "--processes", 2, "--out", folder, *SHORT)
    assert continued.returncode == 0, continued.stderr
    assert "continuing from step" in continued.stdout
    assert weights_hash(folder) == weights_hash(short_run)


def test_a_lost_loss_stops_all_ranks_and_names_the_step(program, tmp_path):
    lost = program("train", "digits", "--processes", 2, "--out", tmp_path / "run", "--optimizer.lr", "1e20")
    assert lost.returncode == 1
    assert "Traceback" not in lost.stderr
    (line,) = lost.stderr.splitlines()
    assert re.match(
        r"resnet-core: (the loss|the gradients' norm) is (nan|inf) at step \d+ of 660: training stopped", line
    )
    assert not (tmp_path / "run" / "result.json").exists()


def test_recipe_file_is_toml_that_tomllib_reads(digits_run):
    folder, _ = digits_run
    values = tomllib.loads((folder / "recipe.toml").read_text())
    assert values["optimizer"]["lr"] == RECIPES["digits"].optimizer.lr
