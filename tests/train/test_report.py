"""What people see: a bar on a terminal, plain lines elsewhere, and nothing from other ranks."""

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from io import StringIO

import pytest
from rich.console import Console
from torch import nn

from resnet_core.cli.main import main
from resnet_core.foundation.toml import to_toml
from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.runs.folder import read_recipe
from resnet_core.train import RunConfig, TrainConfig
from resnet_core.train import report as report_module
from resnet_core.train.metrics import scores_to_hide
from resnet_core.train.report import Report, read_records
from resnet_core.train.schedules import ScheduleConfig

SPEAK = """
import sys
from resnet_core.train.report import Report
with Report(sys.argv[1]) as report:
    report.start(0, 10)
    report.record("train", step=5, epoch=0.5, loss=1.25)
    report.bar.refresh()
    report.record("eval", step=10, epoch=1, top1=0.5)
"""


def test_a_terminal_gets_a_bar(tmp_path):
    primary, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", SPEAK, tmp_path], stdout=terminal, env=environment, check=True)
    os.close(terminal)
    shown = b""
    while len(chunk := read(primary)) > 0:
        shown += chunk
    assert b"5/10" in shown
    assert "━".encode() in shown
    assert b"loss 1.2500" in shown
    assert b"eval   step 10/10  epoch 1  top1 50.00%" in shown


def read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's end of a closed terminal
        return b""


@pytest.mark.parametrize("width", [80, 100, 110, 120, 200])
@pytest.mark.parametrize("total", [660, 450_360])
def test_step_bar_time_left_loss_and_speed_fit_on_any_terminal_from_80_columns_on(tmp_path, monkeypatch, width, total):
    screen = StringIO()
    terminal = Console(width=width, file=screen, force_terminal=True, force_interactive=False, color_system=None)
    monkeypatch.setattr(report_module, "Console", lambda **_: terminal)
    report = Report(tmp_path)
    report.start(0, total)
    report.record("eval", step=total // 2, epoch=45, top1=0.75, top5=0.9, loss=0.5, count=50_000)
    waits = {"data_wait": 0.01, "communication_wait": 0.02, "peak_memory_gib": 12.34}
    step = {"step": total // 2 + 1, "epoch": 45.02, "loss": 12.3456, "lr": 0.1, "gradient_norm": 1.5}
    report.record("train", **step, samples_per_second=12_345.6, **waits)
    screen.truncate(0)
    terminal.print(report.bar.get_renderable())
    (line,) = screen.getvalue().strip("\0\n").splitlines()
    assert len(line.rstrip()) <= width
    step, bar, left = rf"step {total // 2 + 1}/{total}", r"━[━╸ ]{9,}", r"(-:--:--|\d+:\d\d:\d\d)"
    assert re.match(f"{step} {bar} {left} loss 12.3456  images/s 12,346", line), line
    everything = "top1 75.00%  epoch 45.02  lr 0.1000  gradient_norm 1.5  data_wait 1%  communication_wait 2%"
    assert (everything in line) == (width == 200)


def test_a_score_that_no_network_can_miss_is_recorded_and_not_shown(tmp_path, capsys):
    assert scores_to_hide(num_classes=6) == ()
    with Report(tmp_path, hidden=scores_to_hide(num_classes=5)) as report:
        report.start(0, 10)
        report.record("eval", step=10, epoch=1, top1=0.5, top5=1.0)
    assert capsys.readouterr().out == "eval   step 10/10  epoch 1  top1 50.00%\n"
    assert [record["top5"] for record in read_records(tmp_path / "metrics.jsonl")] == [1.0]


def test_a_pipe_gets_plain_lines(tmp_path):
    spoken = subprocess.run([sys.executable, "-c", SPEAK, tmp_path], capture_output=True, text=True, check=True)
    assert spoken.stdout == "eval   step 10/10  epoch 1  top1 50.00%\n"


@pytest.mark.parametrize(("widgets", "shows_bar"), [(ModuleSpec("ipywidgets", None), True), (None, False)])
def test_a_notebook_gets_a_bar_if_it_has_widgets(monkeypatch, widgets, shows_bar):
    monkeypatch.setattr(report_module, "Console", partial(Console, force_jupyter=True))
    monkeypatch.setattr(report_module, "find_spec", lambda name: widgets)
    assert Report().bar.disable is not shows_bar
    assert Report(quiet=True).bar.disable


@pytest.mark.parametrize("quiet", [False, True])
def test_fit_of_a_trainer_without_a_folder_prints_each_epoch_unless_it_is_quiet(tmp_path, capsys, monkeypatch, quiet):
    monkeypatch.chdir(tmp_path)
    recipe = replace(RECIPES["digits"], train=TrainConfig(epochs=2), schedule=ScheduleConfig())
    make_trainer(recipe, build=lambda **_: nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 10)), quiet=quiet).fit()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  top1")[0] for line in lines] == (
        [] if quiet else ["eval   step 22/44  epoch 1", "eval   step 44/44  epoch 2"]
    )
    assert not list(tmp_path.iterdir())


def test_a_quiet_report_is_silent(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Report(quiet=True) as report:
        report.start(0, 10)
        report.record("eval", step=10, epoch=1, top1=0.5)
        report.say("hush")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_record_of_a_later_step_is_dropped_where_a_run_goes_on(tmp_path):
    with Report(tmp_path) as report:
        for step in (1, 2, 3):
            report.record("train", step=step, loss=1.0)
        report.start(2, 10)
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2]


def test_tensorboard_is_asked_for_before_any_work_where_it_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    assert main(["train", "digits", "--run.tensorboard", "True", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("needs TensorBoard: pip install 'resnet-core[tensorboard]', or leave it out")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_version_that_had_no_tensorboard_is_read(tmp_path):
    recipe = replace(RECIPES["digits"], run=RunConfig(log_every_steps=3))
    (tmp_path / "recipe.toml").write_text(to_toml(recipe).replace("tensorboard = false\n", ""))
    assert read_recipe(tmp_path) == recipe


@pytest.mark.interop
def test_tensorboard_shows_the_record_also_where_a_run_went_back_to_its_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Report(tmp_path) as report:  # the first part of the run without it
        report.start(0, 10)
        report.record("train", step=1, loss=4.0, lr=0.1)
    for begin in (1, 2):
        with Report(tmp_path, tensorboard=True) as report:
            report.start(begin, 10)
            for step in (2, 3):
                report.record("train", step=step, loss=begin / step, lr=0.1)
            report.record("eval", step=3, epoch=1, top1=0.5)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = {}
    for record in read_records(tmp_path / "metrics.jsonl"):
        event, step = record.pop("event"), record.pop("step")
        for key, value in record.items():
            expected.setdefault(f"{event}/{key}", []).append((step, pytest.approx(value)))
    assert {
        tag: [(each.step, each.value) for each in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]
    } == expected
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
