"""What ends a training, and what does not get lost: docs/reliability.md has a row for each test here."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from resnet_core.distributed.signals import STOPPED
from resnet_core.recipes import make_loaders
from resnet_core.runs.folder import read_recipe
from resnet_core.train import World
from resnet_core.train.checkpoint import find_newest, list_checkpoints, load_checkpoint, save_checkpoint
from tests.conftest import wait_for_checkpoint
from tests.faults.harness import (
    PHASES,
    STEPS,
    Training,
    by_hand,
    flip_a_bit,
    hold_data_back,
    limit_file_size,
    lose_the_loss,
    signal_while_starting,
    slow,
    small_images,
    stop_when_met,
    tally,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks trainings, and reads Linux's /proc")

SEED = 0


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return small_images(tmp_path_factory.mktemp("faults") / "images")


@pytest.fixture(scope="session")
def undisturbed(images, tmp_path_factory):
    """Processes -> the digest of an undisturbed training."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trainings = {size: Training(folder / f"run-{size}", images, processes=size) for size in (1, 2)}
    for training in trainings.values():
        training.finish()
    return {size: training.digest() for size, training in trainings.items()}


# Once in each phase; and in each phase on 1 and on 2 processes.
@pytest.mark.parametrize("kills", [len(PHASES), pytest.param(2 * len(PHASES), marks=pytest.mark.slow)])
def test_killed_anywhere_a_run_ends_with_the_same_bits(tmp_path, kills):
    result = tally(kills, SEED, tmp_path, say=print)
    print(f"seed {SEED}: {result.to_json()}")
    assert result.deviations == []
    assert set(result.kills) >= set(PHASES)


@pytest.mark.parametrize(
    ("processes", "to"),
    [(1, "the launcher"), (1, "all"), (2, "the launcher"), (2, "all"), (2, "the last rank")],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_a_step_and_the_run_continues_to_the_same_bits(
    images, undisturbed, tmp_path, processes, to, number
):
    training = Training(tmp_path / "run", images, processes=processes, workers=1)
    started = training.start(slow)
    started.wait_for("eval")
    for _ in range(2):  # the second does no damage
        if to == "all":
            started.kill(number)
        else:
            os.kill(started.pid if to == "the launcher" else started.ranks()[-1], number)
        time.sleep(0.05)
    assert started.wait(seconds=30) == STOPPED
    said = started.said().splitlines()[-1]
    stopped = re.fullmatch(rf"resnet-core: stopped after step (\d+) of {STEPS}, saved; the same .* continues .*", said)
    assert stopped, started.said()
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{int(stopped[1]):08}"
    assert f"continuing from step {stopped[1]}/{STEPS}" in training.finish()
    assert training.digest() == undisturbed[processes]


@pytest.mark.parametrize(("ranks", "start"), [((0, 1), 9), ((0,), 9), ((1,), 8)])
def test_a_signal_while_data_do_not_come_ends_the_run_and_says_where_it_continues(
    images, undisturbed, tmp_path, ranks, start
):
    """Rank 0 saves the last step, unless it waits inside the next one for the gradients of a rank without data."""
    training = Training(tmp_path / "run", images, processes=2)
    started = training.start(partial(hold_data_back, 10, ranks))
    started.wait_for("waiting for data")
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(20) == STOPPED, started.said()
    said = f"stopped after step 9 of {STEPS}, saved; the same command continues the run"
    if start == 8:
        said = f"stopped in step 10 of {STEPS}: its data did not come; the same command continues from step 8 (rank 1)"
    assert [line for line in started.said().splitlines() if "resnet-core:" in line] == [f"resnet-core: {said}"]

    assert f"continuing from step {start}/{STEPS}" in training.finish()
    assert training.digest() == undisturbed[2]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_in_an_evaluation_saves_and_the_evaluation_is_made_up_for(images, undisturbed, tmp_path, processes):
    training = Training(tmp_path / "run", images, processes=processes)
    started = training.start(partial(slow, "evaluation"))
    started.wait_for("evaluating")
    started.kill(signal.SIGTERM)
    assert started.wait(seconds=30) == STOPPED
    assert "eval " not in started.said()
    assert training.finish().count("eval ") == 3
    assert training.digest() == undisturbed[processes]


@pytest.mark.parametrize("taken_by", [min, max], ids=["the main thread", "the store's thread"])
def test_before_the_first_step_there_is_nothing_to_save(images, tmp_path, taken_by):
    """Whichever thread of the launcher Linux gives the signal to."""
    training = Training(tmp_path / "run", images, processes=2)
    started = training.start(partial(slow, "start"))
    started.wait_for("starting\nstarting")
    time.sleep(0.2)  # the launcher waits
    threads = list(map(int, os.listdir(f"/proc/{started.pid}/task")))
    assert len(threads) > 1
    os.kill(taken_by(threads), signal.SIGTERM)
    assert started.wait(seconds=30) == STOPPED
    assert started.said().splitlines()[-1] == "resnet-core: stopped before there was anything to save"


def test_every_flipped_bit_and_every_cut_of_a_checkpoint_is_found(tmp_path):
    """1,000 flips and 100 cuts, over all files of one checkpoint alike."""
    tensors = {group: {"conv1.weight": torch.randn(500)} for group in ("model", "optimizer", "average")}
    newest = save_checkpoint(tmp_path, 6, tensors, {"step": 6, "scores": {"top1": 0.5}, "recipe": "seed = 0"})
    whole = {path: path.read_bytes() for path in sorted(newest.iterdir())}
    assert {path.name for path in whole} == {
        "checkpoint.json", "model.safetensors", "optimizer.safetensors", "average.safetensors"
    }  # fmt: skip
    draw = random.Random(SEED)
    found = {"flips": 0, "cuts": 0}
    for kind, times in (("flips", 1000), ("cuts", 100)):
        for _ in range(times):
            path = draw.choice(list(whole))
            damaged = bytearray(whole[path])
            if kind == "flips":
                bit = draw.randrange(8 * len(damaged))
                damaged[bit // 8] ^= 1 << bit % 8
            else:
                del damaged[draw.randrange(len(damaged)) :]
            path.write_bytes(damaged)
            try:
                load_checkpoint(newest)
            except ValueError:
                found[kind] += 1
            path.write_bytes(whole[path])
    load_checkpoint(newest)
    print(f"seed {SEED}: found {found}")
    assert found == {"flips": 1000, "cuts": 100}


def damage(checkpoint):
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def stopped_half_way(training):
    started = training.start(slow)
    started.wait_for(" step  6/")
    started.kill(signal.SIGTERM)
    assert started.wait() == STOPPED


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_newest_checkpoint_is_reported_set_aside_and_the_one_before_is_used(
    images, undisturbed, tmp_path, processes
):
    training = Training(tmp_path / "run", images, processes=processes)
    stopped_half_way(training)
    before, newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-2:]
    damage(newest)
    said = training.finish()
    assert f"{newest / 'model.safetensors'} is damaged: its SHA-256 is not the one written with it; it was set" in said
    assert f"continuing from step {int(before.name[5:])}/{STEPS}" in said
    assert (newest.parent / f"damaged-{newest.name}").is_dir()
    assert training.digest() == undisturbed[processes]


def test_where_all_checkpoints_are_damaged_the_run_is_refused_and_nothing_is_touched(images, tmp_path):
    training = Training(tmp_path / "run", images)
    stopped_half_way(training)
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    for checkpoint in checkpoints:
        damage(checkpoint)
    started = training.start()
    assert started.wait() == 2
    line = started.said().splitlines()[-1]
    assert line.startswith(f"resnet-core: every checkpoint in {checkpoints[0].parent} is damaged: ")
    assert all(str(checkpoint) in line for checkpoint in checkpoints)
    assert list_checkpoints(checkpoints[0].parent) == checkpoints


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_reported_with_the_bytes_needed_and_leaves_what_was_there(
    images, undisturbed, tmp_path, processes
):
    training = Training(tmp_path / "run", images, processes=processes)
    stopped_half_way(training)
    before = {path.name: load_checkpoint(path).state["step"] for path in list_checkpoints(tmp_path / "run/checkpoints")}
    started = training.start(partial(limit_file_size, 500_000))
    assert started.wait() == 2
    line = started.said().splitlines()[-1]
    assert re.search(
        r"the checkpoint of step \d+ was not written to .*\(File too large\); it needs [\d,]{9,} bytes, ", line
    )
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == set(before)
    training.finish()
    assert training.digest() == undisturbed[processes]


def test_a_second_job_in_the_folder_is_refused_and_names_the_first(images, undisturbed, tmp_path):
    training = Training(tmp_path / "run", images)
    started = training.start(slow)
    started.wait_for("eval")
    second = Training(tmp_path / "run", images).start()
    second_said = f"{tmp_path / 'run'} is in use by process {started.pid} on {socket.gethostname()}; wait until it ends"
    assert second.wait() == 2
    assert second_said in second.said()
    started.kill()
    started.wait()
    training.finish()  # the kernel let go of the lock
    assert training.digest() == undisturbed[1]


def test_a_signal_while_the_launcher_starts_its_ranks_reaches_them_all(images, tmp_path):
    started = Training(tmp_path / "run", images, processes=2).start(signal_while_starting)
    assert started.wait(seconds=30) == STOPPED


def test_a_rank_that_is_silent_from_the_start_is_named(images, tmp_path):
    training = Training(tmp_path / "run", images, processes=2, settings={"run.timeout-seconds": 2})
    started = training.start(stop_when_met)
    started.wait_for("resnet-core: rank 1 gave no sign of life for 2 s")
    assert started.wait(seconds=10) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_other_within_the_time_limit_and_is_named(images, tmp_path, rank):
    training = Training(tmp_path / "run", images, processes=2, settings={"run.timeout-seconds": 3})
    started = training.start(slow)
    started.wait_for("eval")
    os.kill(started.ranks()[rank], signal.SIGSTOP)
    began = time.monotonic()
    started.wait_for("gave no sign of life")
    assert time.monotonic() - began < 3 + 2
    assert started.wait(seconds=10) == 1
    assert (
        f"resnet-core: rank {rank} gave no sign of life for 3 s: stopped, gone or cut off; the same" in started.said()
    )
    assert started.gone()


def test_a_job_that_was_stopped_as_a_whole_goes_on(images, undisturbed, tmp_path):
    training = Training(tmp_path / "run", images, processes=2, settings={"run.timeout-seconds": 2})
    started = training.start(slow)
    started.wait_for("eval")
    started.kill(signal.SIGSTOP)
    time.sleep(4)
    started.kill(signal.SIGCONT)
    assert started.wait() == 0
    assert training.digest() == undisturbed[2]


def test_a_killed_launcher_leaves_no_rank_alive(images, tmp_path):
    settings = {"train.epochs": 1000, "run.eval-every-epochs": 1000}  # nothing but steps, which need no launcher
    started = Training(tmp_path / "run", images, processes=2, workers=1, settings=settings).start(slow)
    wait_for_checkpoint(tmp_path / "run")
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert started.gone(seconds=3)
    assert "Traceback" not in started.said()


def test_a_process_started_by_hand_ends_with_one_line_when_another_is_gone(images, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    training = Training(tmp_path / "run", images)
    first, second = (
        training.start(partial(by_hand, meeting | {"RANK": rank, "LOCAL_RANK": rank}), name=f"rank{rank}")
        for rank in ("0", "1")
    )
    wait_for_checkpoint(tmp_path / "run")
    second.kill()
    assert first.wait() == 1
    (line,) = re.findall("^resnet-core: (?!note).*$", first.said(), flags=re.M)
    assert line.startswith("resnet-core: another process has failed or is gone; its own output says why. The same")
    assert "Traceback" not in first.said()


@pytest.mark.parametrize(("processes", "odd"), [(2, "ranks 0 and 1 of 2"), (4, "rank 1 of 4")])
@pytest.mark.parametrize(("checkpoint_every", "found_after"), [(0, 9), (2, 8)], ids=["in time", "before a save"])
def test_a_flipped_bit_of_a_replica_is_found_and_the_run_continues_before_it(
    images, undisturbed, tmp_path, processes, odd, checkpoint_every, found_after
):
    settings = {"run.compare-replicas-every-steps": 3, "run.checkpoint-every-steps": checkpoint_every}
    training = Training(tmp_path / "run", images, processes=processes, settings=settings)
    started = training.start(partial(flip_a_bit, rank=1, step=7))
    assert started.wait() == 1
    line = started.said().splitlines()[-1]
    found = f"resnet-core: after step {found_after} of {STEPS} the replicas differ: {odd} in conv1.weight, where all "
    assert line.startswith(found), line
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert load_checkpoint(newest).state["step"] == 6
    training.finish()
    assert processes == 4 or training.digest() == undisturbed[processes]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_lost_loss_stops_all_ranks_at_one_step_and_names_the_samples(images, undisturbed, tmp_path, processes):
    training = Training(tmp_path / "run", images, processes=processes)
    started = training.start(partial(lose_the_loss, rank=processes - 1, step=9))
    assert started.wait() == 1
    (line,) = [line for line in started.said().splitlines() if "the loss is" in line]
    assert line.startswith(f"resnet-core: the loss is nan at step 9 of {STEPS}: training stopped before that update; ")
    assert line.endswith(f"; its samples are in {tmp_path / 'run' / 'lost_batch.json'}")
    lost = json.loads((tmp_path / "run" / "lost_batch.json").read_text())
    recipe = read_recipe(tmp_path / "run")
    _, loader, _ = make_loaders(recipe, World())
    _, _, samples = loader.keys(epoch=1)[2]
    assert lost == {
        "step": 9,
        "epoch": 1,
        "position": 2,
        "samples": [sample for sample, _ in samples],
        "files": [str(loader.batches.split.path(sample)) for sample, _ in samples],
    }
    assert load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]).state["step"] == 8
    training.finish()
    assert training.digest() == undisturbed[processes]


@pytest.fixture
def two_machines():
    """Two network namespaces with a cable between them: a function that gives the words to run something in one."""
    names, cable = ("faults-a", "faults-b"), ("faults0", "faults1")

    def ip(words):
        return subprocess.run(["ip", *words.split()], capture_output=True, text=True)

    if shutil.which("ip") is None or ip(f"netns add {names[0]}").returncode != 0:
        pytest.skip("needs the right to make network namespaces, as root has; a stopped process is tested above")
    try:
        ip(f"netns add {names[1]}")
        ip(f"link add {cable[0]} netns {names[0]} type veth peer {cable[1]} netns {names[1]}")
        for number, (name, end) in enumerate(zip(names, cable, strict=True), 1):
            for words in (f"addr add 10.77.0.{number}/24 dev {end}", f"link set {end} up", "link set lo up"):
                done = ip(f"-n {name} {words}")
                assert done.returncode == 0, done.stderr
        yield names, lambda: ip(f"-n {names[0]} link set {cable[0]} down")
    finally:
        for name in names:
            ip(f"netns delete {name}")


def test_a_cut_network_ends_both_sides_within_the_time_limit_and_names_the_other(two_machines, images, tmp_path):
    names, cut = two_machines
    training = Training(tmp_path / "run", images, settings={"run.timeout-seconds": 4, "train.epochs": 1000})
    meeting = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    ranks = []
    for rank, name in enumerate(names):
        own = {"RANK": str(rank), "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": f"faults{rank}"}
        ranks.append(training.start(partial(by_hand, meeting | own, namespace=name), name=f"rank{rank}"))
    try:
        wait_for_checkpoint(tmp_path / "run")
        cut()
        began = time.monotonic()
        assert [rank.wait(30) for rank in ranks] == [1, 1]
        assert time.monotonic() - began < 4 + 2
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (rank.said() for rank in ranks)
    assert "resnet-core: rank 1 gave no sign of life for 4 s: stopped, gone or cut off" in first
    assert re.search(r"resnet-core: (rank 0|the process through which all met) gave no sign of life for 4 s", second)
    assert find_newest(tmp_path / "run" / "checkpoints")[0] is not None
