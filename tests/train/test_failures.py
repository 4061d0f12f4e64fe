"""What ends a run of several processes is reported in one line, by the process that knows, and nothing is lost."""

import os
import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from resnet_core.classifier.losses import LOSSES
from resnet_core.cli.errors import as_exit_status
from resnet_core.cli.main import main
from resnet_core.distributed.rendezvous import agree_on_start_name
from resnet_core.train import join_world
from tests.forks import launched

ABSURD = 2**60  # bytes


@as_exit_status
def run_out_of_memory():
    """Every rank at once."""
    with join_world("cpu") as world:
        world.sum({"joined": 1})
        torch.empty(ABSURD, dtype=torch.uint8)
    return 0


@as_exit_status
def refuse_on_main():
    def refuse():
        raise OSError("the disk is full")

    with join_world("cpu") as world:
        world.run_on_rank_0(refuse)
    return 0


@as_exit_status
def fail_on_rank_1(error):
    """Rank 0 waits for the other in vain."""
    with join_world("cpu") as world:
        if world.rank == 1:
            raise error
        world.sum({"wait": 1})
    return 0


def raise_before_joining(error):
    if os.environ["RANK"] == "1":
        raise error
    with join_world("cpu"):
        pass
    return 0


OUT_OF_MEMORY = (
    r"resnet-core: out of memory \(.*can't allocate memory.*\); use smaller images or batches, or fewer "
    r"workers. In training, also a smaller --data.global-batch, more processes, --train.precision bf16, or "
    r"--train.accumulation N, which keeps the global batch but computes BatchNorm over each of its N parts"
)


@pytest.mark.parametrize(
    ("function", "arguments", "status", "line"),
    [
        (run_out_of_memory, (), 1, OUT_OF_MEMORY + r"( \(rank 1\))?"),
        (refuse_on_main, (), 2, "resnet-core: the disk is full"),
        (fail_on_rank_1, (ValueError("not a whole image"),), 2, r"resnet-core: not a whole image \(rank 1\)"),
    ],
    ids=["on all ranks", "agreed on", "on one"],
)
def test_a_failure_is_reported_once(function, arguments, status, line):
    failed = launched(function, arguments, 2)
    assert failed.returncode == status
    assert re.fullmatch(line + "\n", failed.stderr)


def test_a_rank_that_fails_before_joining_ends_the_others():
    failed = launched(raise_before_joining, (KeyError("a mistake of ours"),), 2)
    assert failed.returncode == 1
    assert failed.stderr.count("Traceback") == 1
    assert failed.stderr.endswith("KeyError: 'a mistake of ours'\n")


def test_memory_that_python_lacks_is_reported(capsys):
    def fail():
        raise MemoryError

    assert as_exit_status(fail)() == 1
    assert capsys.readouterr().err.startswith("resnet-core: out of memory (MemoryError); use smaller images")


def test_memory_that_ends_in_a_step_is_reported_and_the_run_stays(monkeypatch, capsys, tmp_path):
    whole = LOSSES["cross_entropy"]
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--train.epochs", "1", "--schedule.warmup-epochs", "0"]
    monkeypatch.setitem(LOSSES, "cross_entropy", lambda *_, **__: torch.empty(ABSURD, dtype=torch.uint8))
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(OUT_OF_MEMORY, line)
    monkeypatch.setitem(LOSSES, "cross_entropy", whole)
    assert main(words) == 0


@pytest.fixture
def started_by_hand(monkeypatch):
    """Sets the environment that torchrun or a person gives to one process of two."""

    def set_environment(**environment):
        for key, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", **environment}.items():
            monkeypatch.setenv(key, str(value))

    return set_environment


def test_a_port_in_use_is_reported_with_the_remedy(started_by_hand, capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started_by_hand(RANK=0, LOCAL_RANK=0, MASTER_PORT=port)
        assert main(["train", "digits", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"resnet-core: the processes cannot meet at 127.0.0.1:{port} (")
    assert "address already in use); MASTER_ADDR must be rank 0's machine and MASTER_PORT a free port of it" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK": 0, "WORLD_SIZE": 2},
            "cannot meet at None:None .*MASTER_ADDR expected, but not set.*torchrun --standalone",
        ),
        ({"WORLD_SIZE": 2}, "cannot meet at None:None .*RANK expected, but not set.*torchrun --standalone"),
        (
            {"RANK": 0, "WORLD_SIZE": "two"},
            "variable WORLD_SIZE is 'two' and should be a number from 1 on: torchrun sets",
        ),
        ({"LOCAL_RANK": "x"}, "variable LOCAL_RANK is 'x' and should be a number from 0 on: torchrun sets it"),
        ({"RANK": ""}, "variable RANK is '' and should be a number from 0 on"),
        ({"LOCAL_WORLD_SIZE": 0}, "variable LOCAL_WORLD_SIZE is '0' and should be a number from 1 on"),
    ],
)
def test_an_environment_that_says_too_little_is_reported_with_the_remedy(
    environment, message, cli, monkeypatch, tmp_path
):
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    (line,) = cli("train", "digits", "--out", tmp_path / "run").stderr.splitlines()
    assert re.search(message, line), line
    assert not list(tmp_path.iterdir())


def test_a_rank_that_does_not_know_how_many_there_are_is_alone(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    printed = cli("train", "digits", "--out", tmp_path / "run", "--dry-run").stdout
    assert "batch          1 process x 64 samples" in printed


@pytest.mark.parametrize("words", ["train digit", "train digits --train.epochs 0", "train digits --optimizer.lrr 1"])
def test_a_mistake_on_the_command_line_is_reported_by_one_process(words, started_by_hand, capsys):
    def lines(rank):
        started_by_hand(RANK=rank, LOCAL_RANK=rank)
        try:
            status = main(words.split())
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        return capsys.readouterr().err

    assert lines(rank=0)
    assert not lines(rank=1)


def test_a_second_machine_reports_what_only_it_lacks(started_by_hand, capsys):
    started_by_hand(RANK=1, LOCAL_RANK=0)
    assert main(["train", "digits", "--config", "nowhere.toml"]) == 2
    assert "nowhere.toml cannot be read" in capsys.readouterr().err


def test_processes_do_not_meet_under_the_name_of_an_earlier_start():
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [dist.TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(2)]
    stores[0].set("start", "earlier")
    stores[0].set("earlier/1", "dead")
    stores[0].set("earlier/1/dead", "answer")
    names = {}
    threads = [
        threading.Thread(target=lambda rank=rank: names.update({rank: agree_on_start_name(stores[rank], rank, 2)}))
        for rank in (1, 0)
    ]
    for thread in threads:
        thread.start()
        thread.join(timeout=0.5)  # the first has read the earlier name before the second draws one
    for thread in threads:
        thread.join(timeout=30)
    assert names[0] == names[1] != "earlier"


def folder_of_images(folder, test_images):
    """Four training images of each of two classes, and as many to test on."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", test_images)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def test_a_damaged_image_that_rank_1_reads_is_named_and_once_fixed_one_process_continues(program, tmp_path, capsys):
    folder_of_images(tmp_path / "images", test_images=1)
    damaged: Path = tmp_path / "images" / "test" / "dog" / "0.png"  # of two test images the second is rank 1's
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60])
    words = ["train", "digits", "--out", tmp_path / "run", "--optimizer.lr", 0.01, "--data.name", "image_folder"]
    words += ["--data.path", tmp_path / "images", "--data.global-batch", 4, "--data.crop-padding", 0]
    words += ["--data.train-size", 8, "--data.eval-size", 8, "--data.eval-resize", 8]
    words += ["--train.epochs", 2, "--schedule.warmup-epochs", 0, "--run.eval-every-epochs", 2]
    failed = program(*words, "--processes", 2)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"resnet-core: {damaged} is not a whole image ")
    damaged.write_bytes(whole)  # rank 0 has reported rank 1's error: an evaluation shares them
    assert main(list(map(str, words))) == 2
    assert "holds a run on other data (1 file is changed: test/dog/0.png)" in capsys.readouterr().err
    assert main([*map(str, words), "--allow-changes"]) == 0
    printed = capsys.readouterr().out
    assert "continuing, but not bit for bit: world_size was 2, is 1" in printed
    assert "continuing from step 2/4" in printed
