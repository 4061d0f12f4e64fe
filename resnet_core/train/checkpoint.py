"""Checkpoints that a crash cannot halve: safetensors and JSON, hashed, written aside and then renamed.

    checkpoints/step-00000660/  model.safetensors  optimizer.safetensors  checkpoint.json

No pickle: reading a checkpoint executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from resnet_core.durable import sync

KEEP = 2  # the newest and one before it


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted."""


@dataclass(frozen=True)
class Checkpoint:
    """Named groups of named tensors, and a small dictionary of plain values."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: str | Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
) -> Path:
    """Writes the state after `step` steps into `folder`; older checkpoints but one are removed afterwards.

    Whatever ends the process, the checkpoint is either whole or not there. Raises OSError when it cannot be written.
    """
    folder = Path(folder)
    path = folder / f"step-{step:08d}"
    aside = folder / f".{path.name}.part"
    for cut_off in folder.glob(".step-*.part"):
        shutil.rmtree(cut_off)
    aside.mkdir(parents=True)
    hashes = {}
    try:
        for group, values in tensors.items():
            data = save({name: value.detach().cpu().contiguous() for name, value in values.items()})
            hashes[f"{group}.safetensors"] = hashlib.sha256(data).hexdigest()
            (aside / f"{group}.safetensors").write_bytes(data)
        (aside / "checkpoint.json").write_text(json.dumps({"state": state, "sha256": hashes}, indent=2))
        for file in aside.iterdir():
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(folder)
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint after verifying its hashes. Raises CheckpointError naming the damaged file and the remedy."""
    path = Path(path)
    remedy = f"remove {path} to continue from the checkpoint before it"
    try:
        record = json.loads((path / "checkpoint.json").read_bytes())
        hashes, state = record["sha256"], record["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'checkpoint.json'} cannot be read ({error}); {remedy}") from error
    tensors = {}
    for name, expected in hashes.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read ({error}); {remedy}") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the one written with it; {remedy}")
        tensors[name.removesuffix(".safetensors")] = load(data)
    return Checkpoint(tensors, state)


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(Path(folder).glob("step-*"))
