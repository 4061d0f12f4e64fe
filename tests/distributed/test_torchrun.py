"""Processes that torchrun starts: on two machines, killed and restarted, stopped."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_core.train.checkpoint import list_checkpoints
from tests.conftest import PATIENCE, SHORT, wait_for_checkpoint, weights_hash

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
HERE = "127.0.0.1"


def free_port():
    with socket.create_server((HERE, 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def start():
    """Starts a command with pipes for its output; at the end of the test all its processes are killed."""
    started = []

    def start_one(*words, **environment):
        process = subprocess.Popen(
            list(map(str, words)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        end(process)


def children(pid):
    """Of all its threads (Linux)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (thread / "children").read_text().split())


def family(pid):
    return [pid] + [each for child in children(pid) for each in family(child)]


def end(process):
    """Kills it and what it started; stopped first, it starts nothing while we look."""
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        for pid in family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.communicate()


PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text().replace("\\\n", "")


def page_command(holding, changes):
    """The page's torchrun command that holds these words, shortened, with some of its values replaced."""
    (line,) = re.findall(rf"^torchrun .*{holding}.*$", PAGE, flags=re.MULTILINE)
    for old, new in changes.items():
        assert old in line
        line = line.replace(old, str(new))
    return [*TORCHRUN, *shlex.split(line)[1:], *SHORT]


def test_two_machines_train_the_same_weights_as_one_and_speak_once(start, short_run, tmp_path):
    command = page_command(
        "--nnodes 2",
        {
            "--nproc-per-node 8": f"--nproc-per-node 1 --local-addr {HERE}",
            "node0:29500": f"{HERE}:{free_port()}",
            "/shared/runs/digits": tmp_path / "run",
        },
    )
    agents = [start(*command) for _ in range(2)]
    outputs, errors = zip(*(agent.communicate(timeout=PATIENCE) for agent in agents), strict=True)
    assert [agent.returncode for agent in agents] == [0, 0], errors
    assert weights_hash(tmp_path / "run") == weights_hash(short_run)
    output = "".join(outputs)
    assert output.count("66 steps, 2 processes on cpu\n") == 1
    assert output.count("\neval ") == 3
    assert output.count(" is finished: ") == 1


def test_torchrun_restarts_a_killed_process_and_passes_on_sigterm_and_the_run_ends_with_the_same_weights(
    start, program, short_run, tmp_path
):
    folder = tmp_path / "run"
    agent = start(*page_command("--max-restarts", {"--nproc-per-node 8": "--nproc-per-node 2", "runs/digits": folder}))
    wait_for_checkpoint(folder)
    os.kill(max(children(agent.pid)), signal.SIGKILL)
    output = ""
    while "continuing from step " not in output:
        line = agent.stdout.readline()
        assert line, agent.stderr.read()
        output += line
    agent.send_signal(signal.SIGTERM)
    rest, errors = agent.communicate(timeout=PATIENCE)
    assert agent.returncode == 1  # torchrun's own
    assert (output + rest).count("continuing from step ") == 1
    assert "exitcode: -9" in errors
    (stopped,) = re.findall(
        r"^resnet-core: stopped after step (\d+) of 66, saved; the same command continues", errors, re.M
    )
    assert list_checkpoints(folder / "checkpoints")[-1].name == f"step-{int(stopped):08}"

    continued = program("train", "digits", "--processes", 2, "--out", folder, *SHORT)
    assert f"continuing from step {stopped}/66" in continued.stdout
    assert weights_hash(folder) == weights_hash(short_run)
