"""Checkpoints: what was saved comes back, and damage is found and named."""

import json
import os
import shutil
import tempfile
import threading
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnet_core.train import CheckpointError, load_checkpoint, save_checkpoint
from resnet_core.train import checkpoint as checkpoint_module
from resnet_core.train.checkpoint import CheckpointWriter, find_newest, list_checkpoints

TENSORS = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)},
    "optimizer": {"weight/momentum": torch.tensor([float("nan"), -0.0])},
}


def save(folder, step=5):
    return save_checkpoint(folder, step, TENSORS, {"step": step, "seconds": 1.5})


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    checkpoint = load_checkpoint(save(tmp_path))
    assert checkpoint.state == {"step": 5, "seconds": 1.5}
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for group, values in TENSORS.items():
        assert checkpoint.tensors[group].keys() == values.keys()
        for name, value in values.items():
            assert checkpoint.tensors[group][name].numpy().tobytes() == value.numpy().tobytes()


def steps_in(folder):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


def test_the_newest_three_are_kept_and_leftovers_of_a_crash_removed(tmp_path):
    (tmp_path / ".step-00000002.part").mkdir()
    for step in (1, 2, 3, 10, 100_000_000):
        save(tmp_path, step)
    assert steps_in(tmp_path) == [3, 10, 100_000_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010", "step-100000000"]


@given(
    scores=st.lists(st.none() | st.floats(0, 1) | st.sampled_from([0.25, 0.5]), min_size=1, max_size=8),
    keep=st.integers(1, 3),
)
def test_the_newest_and_the_best_are_kept(scores, keep):
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(checkpoint_module, "sync"):
        for step, score in enumerate(scores):
            save_checkpoint(folder, step, {}, {"score": score}, keep=keep)
        steps = list(range(len(scores)))
        scored = [step for step in steps if scores[step] is not None]
        best = max(scored, key=lambda step: scores[step], default=steps[-1])  # of equals the first
        assert steps_in(folder) == sorted({*steps[-keep:], best})


def test_pruning_counts_from_the_step_that_was_saved_and_leaves_later_ones(tmp_path):
    for step in (600, 630, 660, 330):
        save_checkpoint(tmp_path, step, {}, {}, keep=1)
    assert steps_in(tmp_path) == [330, 660]


def test_a_checkpoint_is_never_replaced(tmp_path):
    save(tmp_path)
    with pytest.raises(CheckpointError, match=r"step-00000005 exists and is not replaced; remove it first"):
        save_checkpoint(tmp_path, 5, {"model": {}}, {"step": 0})
    assert load_checkpoint(tmp_path / "step-00000005").state["step"] == 5


@pytest.mark.parametrize("name", ["step-7", "step-0000000x", ".step-00000007.part", "step-00000007.old"])
def test_what_is_not_named_as_a_checkpoint_is_none(tmp_path, name):
    (tmp_path / name).mkdir()
    assert find_newest(tmp_path) == (None, {})


def test_the_newest_whole_one_is_found_and_newer_ones_are_reported(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"")
    (tmp_path / "step-00000002" / "checkpoint.json").unlink()
    newest, damaged = find_newest(tmp_path)
    assert newest == tmp_path / "step-00000001"
    assert [path.name for path in damaged] == ["step-00000003", "step-00000002"]
    (newest / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged: .*step-00000003.*step-00000001"):
        find_newest(tmp_path)


def test_saving_in_the_background_writes_the_state_of_its_moment(tmp_path):
    weight = torch.arange(1000.0)
    writer = CheckpointWriter(tmp_path)
    for step in range(5):
        writer.save(step, {"model": {"weight": weight}}, {"step": step})
        weight += 1
    writer.wait()
    for path in list_checkpoints(tmp_path):
        checkpoint = load_checkpoint(path)
        assert torch.equal(checkpoint.tensors["model"]["weight"], torch.arange(1000.0) + checkpoint.state["step"])


def test_one_save_at_a_time_and_its_failure_is_raised_by_the_next(tmp_path, monkeypatch):
    begun, has_begun, go_on = [], threading.Event(), threading.Event()

    def slow_and_full(folder, step, *_, **__):
        begun.append(step)
        has_begun.set()
        go_on.wait()
        raise OSError("the disk is full")

    monkeypatch.setattr(checkpoint_module, "save_checkpoint", slow_and_full)
    writer = CheckpointWriter(tmp_path)
    writer.save(1, TENSORS, {})
    assert has_begun.wait(60)
    threading.Timer(0.1, go_on.set).start()  # while the next save waits
    with pytest.raises(OSError, match="the disk is full"):
        writer.save(2, TENSORS, {})
    assert begun == [1]


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    kept = save(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=39))
    with pytest.raises(OSError, match=r"step 6 was not .* \(No space left on device\); it needs 40 bytes, 39 are free"):
        save(tmp_path, step=6)
    assert list(tmp_path.iterdir()) == [kept]


def test_every_flipped_bit_of_a_weights_file_is_found(tmp_path):
    path = save(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole) * 8, 7):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"model.safetensors is damaged.*remove .*step-00000005"):
            load_checkpoint(path.parent)


@pytest.mark.parametrize("damage", ["truncate", "delete", "garble", "drop the hashes"])
@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json"])
def test_damage_is_named_with_the_remedy(tmp_path, name, damage):
    path = save(tmp_path) / name
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "drop the hashes" and name == "checkpoint.json":
        path.write_text(json.dumps({"state": {}}))
    else:
        path.write_bytes(b"\xff" * 10)
    with pytest.raises(CheckpointError, match=f"{name}.*; remove .*step-00000005 to continue"):
        load_checkpoint(path.parent)


def test_a_failed_save_leaves_the_checkpoints_and_no_leftovers(tmp_path, monkeypatch):
    kept = save(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, step=6)
    assert list(tmp_path.iterdir()) == [kept]
    assert load_checkpoint(kept).state["step"] == 5
