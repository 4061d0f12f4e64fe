"""Checkpoints that are whole or absent, whatever crashes: safetensors and JSON, hashed, written aside, then renamed.

    checkpoints/step-00000660/  model.safetensors  optimizer.safetensors  checkpoint.json

There is no pickle, so reading a checkpoint executes nothing. A file with one changed bit is not read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from resnet_core.foundation.atomic import sync
from resnet_core.foundation.errors import without_remedy

KEEP = 3  # newest checkpoints
NAME = re.compile(r"step-\d{8,}")
RECORD = "checkpoint.json"

Tensors = Mapping[str, Mapping[str, Tensor]]


class CheckpointError(ValueError):
    """A checkpoint is damaged, or does not fit this run."""


@dataclass(frozen=True)
class Checkpoint:
    """Named groups of named tensors, and a dictionary of plain values."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: str | Path, step: int, tensors: Tensors, state: Mapping[str, Any], *, keep: int = KEEP
) -> Path:
    """Writes the state after `step` steps into `folder`, then removes all but the newest `keep` and the best.

    The best is the one with the highest `state["score"]`, if there are scores. Whatever ends the process, the
    checkpoint is either whole or absent. Raises OSError when it cannot be written, and CheckpointError when a
    checkpoint of that step exists; the other checkpoints then stay.
    """
    folder = Path(folder)
    path = path_of(folder, step)
    if path.exists():
        raise CheckpointError(f"{path} exists and is not replaced; remove it first")

    needed = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    aside = folder / f".{path.name}.part"
    try:
        remove_leftovers(folder)
        aside.mkdir(parents=True)
        if shutil.disk_usage(aside).free < needed:
            raise OSError("No space left on device")
        write(aside, tensors, state)
        aside.rename(path)
        sync(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} was not written to {folder} ({error.strerror or error}); it needs "
            f"{needed:,} bytes{_free(folder)}. Earlier checkpoints stay: make room, and run the same command again"
        ) from error
    prune(path, keep)
    return path


def path_of(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step-{step:08d}"


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f", {shutil.disk_usage(folder).free:,} are free"
    return ""


def write(folder: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint's files; they are on the disk when this returns."""
    hashes = {}
    for group, values in tensors.items():
        data = save({name: value.detach().cpu().contiguous() for name, value in values.items()})
        hashes[f"{group}.safetensors"] = hashlib.sha256(data).hexdigest()
        (folder / f"{group}.safetensors").write_bytes(data)

    (folder / RECORD).write_bytes(sealed({"state": state, "sha256": hashes}))
    for file in [*folder.iterdir(), folder]:
        sync(file)


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON that ends in the SHA-256 of everything before it."""
    seal = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps({**record, "seal": seal}, indent=2).encode()


def prune(newest: Path, keep: int) -> None:
    """Removes all checkpoints up to `newest` except the last `keep` and the one with the best score."""
    checkpoints = list_checkpoints(newest.parent)
    checkpoints = checkpoints[: checkpoints.index(newest) + 1]

    scores = {path: score for path in checkpoints if (score := _score(path)) is not None}
    best = max(scores, key=lambda path: scores[path], default=None)

    for old in checkpoints[:-keep]:
        if old != best:
            with suppress(OSError):  # one that stays does no harm
                # Half removed, it must not look like a checkpoint.
                shutil.rmtree(old.rename(old.with_name(f".{old.name}.part")))


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process had half written or half removed."""
    for cut_off in folder.glob(".step-*.part"):
        shutil.rmtree(cut_off)


def _score(path: Path) -> float | None:
    with suppress(CheckpointError):
        score: float | None = read_record(path)["state"].get("score")
        return score
    return None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint after checking its hashes. Raises CheckpointError naming the damaged file and the remedy."""
    path = Path(path)

    record = read_record(path)
    tensors = {}
    for name, expected in record["sha256"].items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read ({error.strerror}); {_remedy(path)}") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise CheckpointError(
                f"{path / name} is damaged: its SHA-256 is not the one written with it; {_remedy(path)}"
            )
        tensors[name.removesuffix(".safetensors")] = load(data)
    return Checkpoint(tensors, record["state"])


def read_record(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON. Raises CheckpointError unless it is, byte for byte, what was written."""
    file = path / RECORD
    try:
        data = file.read_bytes()
        record = json.loads(data)
        del record["seal"]
        whole = sealed(record) == data
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); {_remedy(path)}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False

    if not whole:
        raise CheckpointError(f"{file} is damaged: it is not what was written; {_remedy(path)}")
    return record


def _remedy(path: Path) -> str:
    return f"remove {path} to continue from the checkpoint before it"


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; none if the folder does not exist."""
    found = [path for path in Path(folder).glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def find_newest(folder: str | Path) -> tuple[Path | None, dict[Path, CheckpointError]]:
    """The newest whole checkpoint, or None if the folder has none, and newer damaged ones with what is wrong.

    Raises CheckpointError if there are checkpoints and all are damaged: a run never starts over silently.
    """
    damaged: dict[Path, CheckpointError] = {}
    for path in reversed(list_checkpoints(folder)):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            damaged[path] = error
        else:
            return path, damaged

    if damaged:
        reasons = "; ".join(map(without_remedy, damaged.values()))
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged: {reasons}. Put back a copy of one, or start over in another "
            "folder"
        )

    put_away = [path for path in Path(folder).glob("*-step-*") if NAME.fullmatch(path.name.partition("-")[2])]
    if put_away:
        raise CheckpointError(
            f"all checkpoints in {folder} were set aside: {', '.join(sorted(path.name for path in put_away))}; rename "
            "one to step-NUMBER to continue from it, or start over in another folder"
        )
    return None, {}


def set_aside(checkpoints: Iterable[Path], why: str) -> None:
    """Renames checkpoints that a run must not continue from: `damaged-step-00000660`."""
    for path in checkpoints:
        aside = path.with_name(f"{why}-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


class CheckpointWriter:
    """Saves in the background, one checkpoint at a time: `save` returns once the state is copied to host memory."""

    def __init__(self, folder: str | Path, *, keep: int = KEEP) -> None:
        self.folder, self.keep = Path(folder), keep
        self.copies: dict[str, dict[str, Tensor]] = {}
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[Path] | None = None

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Starts what `save_checkpoint` does. Raises what the save before it raised."""
        self.wait()
        self.copies = {group: self._copied(values, self.copies.get(group, {})) for group, values in tensors.items()}
        self.pending = self.thread.submit(save_checkpoint, self.folder, step, self.copies, {**state}, keep=self.keep)

    @torch.no_grad()
    def _copied(self, values: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the host, in the memory of the copies `before` if there are any.

        They are contiguous, so that writing them computes nothing: torch's threads belong to training.
        """
        copies = {
            name: before[name]
            if name in before
            else torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            for name, value in values.items()
        }

        for name, value in values.items():
            copies[name].copy_(value, non_blocking=True)
        if any(value.is_cuda for value in values.values()):
            torch.cuda.synchronize()
        return copies

    def failed(self) -> bool:
        """Whether the last save has ended with an error."""
        return self.pending is not None and self.pending.done() and self.pending.exception() is not None

    def wait(self) -> None:
        """Waits for the last save. Raises what it raised."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def finish(self) -> None:
        """Waits for the last save and ignores its error, because another one is on its way."""
        if self.pending:
            self.pending.exception()
