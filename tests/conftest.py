"""What several tests share: the command line as a person calls it, and one full run of the digits recipe."""

import os
import subprocess
import sys

import pytest

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
