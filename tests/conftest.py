"""What several tests share: the command line as a person calls it, and one full run of the digits recipe."""

import hashlib
import os
import subprocess
import sys
import time

import pytest

from resnet_core.train.checkpoint import list_checkpoints

COMMAND = (sys.executable, "-m", "resnet_core")


def call(*arguments, under=COMMAND, timeout=240):
    """Runs a command in a process of its own, with one thread for each of its processes."""
    return subprocess.run(
        [*under, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def cli():
    return call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The folder of `resnet-core train digits --processes 2`, and what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    finished = call("train", "digits", "--processes", 2, "--out", folder)
    assert finished.returncode == 0, finished.stderr
    return folder, finished


SHORT = ("--train.epochs", 3, "--schedule.warmup-epochs", 1)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """A short uninterrupted run on two processes, to compare with."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    finished = call("train", "digits", "--processes", 2, "--out", folder, *SHORT)
    assert finished.returncode == 0, finished.stderr
    return folder


def weights_hash(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def wait_for_checkpoint(folder, seconds=120):
    deadline = time.monotonic() + seconds
    while not list_checkpoints(folder / "checkpoints"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
