"""Checkpoints: what was saved comes back, and damage is found and named."""

import json
import os

import pytest
import torch

from resnet_core.train import CheckpointError, load_checkpoint, save_checkpoint
from resnet_core.train.checkpoint import list_checkpoints

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


def test_the_newest_two_are_kept_and_leftovers_of_a_crash_removed(tmp_path):
    (tmp_path / ".step-00000002.part").mkdir()
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def test_a_step_saved_again_replaces_the_first(tmp_path):
    save_checkpoint(tmp_path, 5, {"model": {}}, {"step": 0})
    assert load_checkpoint(save(tmp_path)).state["step"] == 5
    assert len(list_checkpoints(tmp_path)) == 1


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
