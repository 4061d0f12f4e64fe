"""What several tests share: the command line, in this process and as a program, and runs of the digits recipe."""

import hashlib
import json
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from resnet_core.cli.main import main
from resnet_core.recipes.experiment import load
from resnet_core.runs.folder import RunFolder
from resnet_core.train.checkpoint import list_checkpoints
from tests import forks

COMMAND = (sys.executable, "-m", "resnet_core")
PATIENCE = 600  # seconds until a process hangs: what takes some ten takes minutes where others share the cores


def call(*arguments, under=COMMAND, timeout=PATIENCE):
    """Runs a command in a process of its own: our program's is forked, and need not import torch again."""
    if under == COMMAND:
        return forks.command(*arguments, timeout=timeout)
    return subprocess.run([*under, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def program():
    return call


@pytest.fixture
def cli(capsys):
    """Runs a command in this process, which has torch already; returns what `program` returns."""

    def run(*arguments):
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as stop:  # so tyro ends its help, and what is wrong with options
            status = stop.code
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def train_once(tmp_path_factory, worker_id):
    """Trains digits under a name. The first worker that asks does it; the others wait for what came of it."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent

    def train(name, *options):
        folder, record = shared / name, shared / f"{name}.json"
        with FileLock(shared / f"{name}.lock"):
            if not record.exists():
                finished = call("train", "digits", "--processes", 2, "--out", folder, *options)
                record.write_text(json.dumps(vars(finished)))
        finished = subprocess.CompletedProcess(**json.loads(record.read_text()))
        assert finished.returncode == 0, finished.stderr
        return folder, finished

    return train


@pytest.fixture(scope="session")
def digits_run(train_once):
    """The folder of `resnet-core train digits --processes 2`, and what the command printed."""
    return train_once("digits")


def claim(recipe, out, processes=1):
    """Makes `out` the folder of the recipe's run, as the launcher does before it starts processes."""
    with RunFolder(out) as folder:
        folder.claim(load(recipe), processes)


SHORT = ("--train.epochs", 3, "--schedule.warmup-epochs", 1)


@pytest.fixture(scope="session")
def short_run(train_once):
    """A short uninterrupted run on two processes, to compare with."""
    return train_once("short", *SHORT)[0]


def weights_hash(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def wait_for_checkpoint(folder):
    deadline = time.monotonic() + PATIENCE
    while not list_checkpoints(folder / "checkpoints"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
