"""What people see: a bar on a terminal, plain lines elsewhere, and nothing from other ranks."""

import os
import pty
import subprocess
import sys

from resnet_core.train.report import Report, read_records

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


def test_a_pipe_gets_plain_lines(tmp_path):
    spoken = subprocess.run([sys.executable, "-c", SPEAK, tmp_path], capture_output=True, text=True, check=True)
    assert spoken.stdout == "eval   step 10/10  epoch 1  top1 50.00%\n"


def test_other_ranks_are_silent(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Report(None) as report:
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
