"""Processes forked by a server that has imported all that a training needs: a start takes milliseconds, not seconds."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from resnet_core.cli.main import run_program
from resnet_core.distributed import launcher
from resnet_core.distributed.launcher import exit_rank

FORKS = sys.platform == "linux"  # elsewhere every process is spawned
SERVER = multiprocessing.get_context("forkserver" if FORKS else "spawn")
SERVER.set_forkserver_preload(["tests.preloaded"])


def fork_ranks() -> None:
    """Lets the launcher fork its ranks, in a process of the server, which has no threads to lose."""
    launcher.START = "fork"  # type: ignore[assignment]
    # More threads, in several processes, would wait for each other spinning. Torch makes its pool of threads anew in a
    # forked process when this is first set there. Two threads that did so at once would abort it, so it is set here.
    torch.set_num_threads(1)
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def write_output_to(folder: Path) -> None:
    """Sends what this process prints to files."""
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)


def _run(
    folder: Path, place: str, environment: dict[str, str], function: Callable[..., int], arguments: tuple[Any, ...]
) -> None:
    write_output_to(folder)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    if FORKS:
        fork_ranks()
    exit_rank(function(*arguments))


def run(
    function: Callable[..., int], *arguments: Any, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Calls a function in a process of its own; its result is the exit status, and what it prints is the output."""
    with tempfile.TemporaryDirectory() as folder:
        process = SERVER.Process(target=_run, args=(Path(folder), os.getcwd(), dict(os.environ), function, arguments))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{function.__name__}{arguments} did not end in {timeout} s")
        said, errors = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, process.exitcode, said, errors)


def _command(words: list[str]) -> NoReturn:
    sys.argv = ["resnet-core", *words]
    run_program()


def command(*words: object, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Does what the program `resnet-core` does."""
    return run(_command, list(map(str, words)), timeout=timeout)


def launched(
    function: Callable[..., int], arguments: tuple[Any, ...], processes: int
) -> subprocess.CompletedProcess[str]:
    """Does what `resnet_core.train.launch` does, and keeps what is printed."""
    return run(launcher.launch, function, arguments, processes)


def launch(function: Callable[..., int], arguments: tuple[Any, ...], processes: int) -> int:
    """Does what `resnet_core.train.launch` does; shows the output if the test fails."""
    finished = launched(function, arguments, processes)
    print(finished.stdout, finished.stderr)
    return finished.returncode
