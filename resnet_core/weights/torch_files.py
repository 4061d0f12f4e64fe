"""The forms of torch.save's files, read by our own unpickler: zips, the streams and tars before them, TorchScript.

And the folders of torch.distributed.checkpoint, whose tensors are small zips inside of larger files.
"""

from __future__ import annotations

import math
import re
import struct
import tarfile
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from resnet_core.weights.contents import module_tensors
from resnet_core.weights.header import INDEX_LIMIT, WeightsError, check_file
from resnet_core.weights.pickles import (
    DTYPES,
    Budget,
    Inert,
    Storage,
    Storages,
    Stream,
    Unpickler,
    sizes,
    tensor,
)  # fmt: skip

INFLATION = 4  # times that compressed members may be larger than their file
DIRECTORY_SIZE, DIRECTORY_OFFSET = 5, 6  # places in what zipfile reads of a zip's end


class Zip:
    """A zip's members, each read once. Sizes are checked against the file's before memory is taken.

    Raises ValueError for a directory that contradicts itself or the file: zip readers that find different members in
    one file see different weights.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        end: Any = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end and end[DIRECTORY_SIZE] > INDEX_LIMIT:
            raise ValueError(f"the zip's directory has more than {INDEX_LIMIT} bytes")
        self.archive = zipfile.ZipFile(file, metadata_encoding="utf-8")
        if self.archive.start_dir != end[DIRECTORY_OFFSET]:
            raise ValueError("the zip's directory is not where its end says")

        self.left = INFLATION * size
        self.names = self.archive.namelist()
        twice = [name for name, count in Counter(map(str.lower, self.names)).items() if count > 1]
        if twice:
            raise ValueError(f"the zip has two members of the name {twice[0][:60]!a}")
        found = [name for name in self.names if re.fullmatch(r"([^/]*/)?data\.pkl", name)]
        if len(found) > 1:
            raise ValueError("the zip has more than one data.pkl")
        self.prefix = found[0].removesuffix("data.pkl") if found else None

    def has(self, start: str) -> bool:
        return any(name.startswith(f"{self.prefix}{start}") for name in self.names)

    def find_member(self, name: str) -> zipfile.ZipInfo:
        """The member of this name under the archive's own folder, after its sizes were checked."""
        member = self.archive.getinfo(f"{self.prefix}{name}")
        self.left -= member.file_size
        if self.left < 0 or (member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size):
            raise ValueError(f"the zip's members claim more bytes than it has, such as {name[:80]!a}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"the zip's member {name[:80]!a} is packed as torch packs none")
        member.CRC = member.CRC or None  # type: ignore[assignment]  # 0 where torch was set to leave it out
        return member

    def read(self, name: str) -> bytes:
        return self.archive.read(self.find_member(name))

    def read_into(self, name: str, memory: memoryview) -> None:
        """Reads a member that fills `memory`."""
        member = self.find_member(name)
        if len(memory) != member.file_size:
            raise ValueError(f"the zip's member {name[:80]!a} has {member.file_size} bytes instead of {len(memory)}")
        with self.archive.open(member) as stream:
            if stream.readinto(memory) != len(memory):  # type: ignore[attr-defined]
                raise ValueError("the zip is cut off")


def read_torch_zip(path: Path) -> Any:
    with path.open("rb") as file:
        return unpickle_zip(file, check_file(path))


def unpickle_zip(file: IO[bytes], size: int, budget: Budget | None = None) -> Any:
    """The content of a zip that torch.save wrote, from its `data.pkl`."""
    archive = Zip(file, size)
    order = archive.read("byteorder") if archive.has("byteorder") else b"little"
    if archive.prefix is None or order not in (b"little", b"big"):
        raise ValueError("the zip has no data.pkl, or an unknown byte order")

    def take(key: str, length: int) -> torch.UntypedStorage:
        storage = new_storage(length, archive.left)
        archive.read_into(f"data/{key}", memory_of(storage))
        return storage

    storages = Storages(take)
    pickled = archive.read("data.pkl")
    content = Unpickler(BytesIO(pickled), budget or Budget(len(pickled)), storages).load()
    if order == b"big":
        for storage in storages.found.values():
            if storage.untyped is not None:
                storage.untyped.byteswap(storage.dtype)
    return content


def new_storage(length: int, available: int) -> torch.UntypedStorage:
    """Memory for a storage of the file. Raises ValueError where the file has fewer bytes."""
    if length > available:
        raise ValueError(f"the file claims a storage of {length} bytes, and has {available}")
    return torch.UntypedStorage(length, device="cpu")


def memory_of(storage: torch.UntypedStorage) -> memoryview:
    view: Tensor = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return view.numpy().data


def read_torchscript(path: Path) -> Any:
    """A scripted or traced module; its code is not run."""
    content = read_torch_zip(path)
    if not isinstance(content, Inert) or not module_tensors(content):
        raise WeightsError(
            f"{path} is a TorchScript archive without named weights: torch.jit.freeze makes constants of them; give "
            "the archive, or the checkpoint, from before it was frozen"
        )
    return content


# Streams: torch.save's form before torch 1.6, and pickles without storages.


def read_legacy(path: Path) -> Any:
    """Five pickles: a magic number, a protocol, the machine, the object, and the keys of the storages after them."""
    size = check_file(path)
    with path.open("rb") as file:
        left = size

        def take(key: str, length: int) -> torch.UntypedStorage:
            nonlocal left
            storage = new_storage(length, left)
            left -= length
            return storage

        storages = Storages(take)
        unpickler = Unpickler(Stream(file, size), Budget(size), storages)
        for _ in range(3):
            unpickler.load()
        content, keys = unpickler.load(), unpickler.load()

        if not isinstance(keys, list) or sorted(keys) != sorted(storages.found):
            raise ValueError("the file claims more bytes than it has: the storages that it uses are not those after it")
        for key in keys:
            fill(storages.found[key], file, size)
    return content


def fill(storage: Storage, file: IO[bytes], size: int) -> None:
    """Reads a storage that follows in the file: the number of its values, then the values."""
    (count,) = struct.unpack("<q", file.read(8))
    if count * storage.dtype.itemsize != storage.size or storage.size > size - file.tell():
        raise ValueError(f"the file claims more bytes than it has: {storage.size} for a storage of {count} values")
    if storage.untyped is None:
        file.seek(storage.size, 1)
    else:
        file.readinto(memory_of(storage.untyped))  # type: ignore[attr-defined]


def read_bare_pickle(path: Path) -> Any:
    size = check_file(path)
    with path.open("rb") as file:
        return Unpickler(Stream(file, size), Budget(size)).load()


# torch 0.1: a tar of pickles.


def read_old_tar(path: Path) -> Any:
    """The storages, the tensors that are views of them, and the object that refers to both by number."""
    size = check_file(path)
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        members = {each.name: each for each in archive if not each.issparse()}

        def opened(name: str) -> Unpickler:
            file.seek(members[name].offset_data)
            return Unpickler(Stream(file, members[name].offset_data + members[name].size), budget)

        def take(key: str, length: int) -> torch.UntypedStorage:
            storage = new_storage(length, size - file.tell())
            file.readinto(memory_of(storage))
            return storage

        found: dict[int, Any] = {}
        budget = Budget(size)
        storages, unpickler = Storages(take), opened("storages")
        for _ in range(unpickler.load()):
            key, location, kind = unpickler.load()
            (count,) = struct.unpack("<q", file.read(8))
            found[int(key)] = storages.find(kind.kind, str(key), location, count)
        for key, root, offset, count in unpickler.load():
            found[int(key)] = storages.part(found[int(root)], str(key), offset, count)

        unpickler = opened("tensors")
        for _ in range(unpickler.load()):
            key, storage, _ = unpickler.load()
            rank, _ = struct.unpack("<ii", file.read(8))
            numbers = struct.unpack(f"<{2 * sizes([rank])[0] + 1}q", file.read(16 * rank + 8))
            found[int(key)] = tensor(unpickler, found[int(storage)], numbers[-1], numbers[:rank], numbers[rank:-1])

        def referred(reference: Any) -> Any:
            return reference[0] if isinstance(reference, tuple) else found[int(reference)]

        unpickler = opened("pickle")
        unpickler.storages = referred
        return unpickler.load()


# torch.distributed.checkpoint: `.metadata` says in which file each piece of each tensor lies.


def read_distributed(path: Path) -> dict[Any, Any]:
    """The state that was saved, its tensors put together from their pieces."""
    size = check_file(path / ".metadata")
    with (path / ".metadata").open("rb") as file:
        state = Unpickler(Stream(file, size), Budget(size)).load().state
    pieces: dict[str, list[tuple[Any, Any]]] = {}
    for index, place in state["storage_data"].items():
        pieces.setdefault(as_name(index.state["fqn"]), []).append((index.state.get("offset"), place.state))

    content: dict[Any, Any] = {}
    files = Pieces(path)
    for name, described in state["state_dict_metadata"].items():
        found = [(offset, files.read(place)) for offset, place in pieces.get(as_name(name), [])]
        value = files.assemble(name, described, found) if "size" in (described.state or {}) else found[0][1]

        # Names of nested dicts were joined by dots; their parts are recorded as well.
        *outer, last = (state.get("planner_data") or {}).get(name, (name,))
        inner = content
        for key in outer:
            inner = inner.setdefault(as_name(key), {})
        inner[as_name(last)] = value
    return content


def as_name(value: Any) -> Any:
    if not isinstance(value, str | int):
        raise ValueError("the checkpoint has a name that is neither text nor a number")
    return value


class Pieces:
    """The pieces in a folder's files. All reads together take no more bytes than the files have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = sum(each.stat().st_size for each in folder.iterdir() if each.is_file())
        self.left = self.left_whole = self.size
        self.budget = Budget(self.size)

    def read(self, place: dict[str, Any]) -> Any:
        """What torch.save wrote at a place. Raises ValueError, and WeightsError for one that was transformed."""
        name, offset, length = place["relative_path"], place["offset"], place["length"]
        if place.get("transform_descriptors"):
            raise WeightsError(
                f"{self.folder} is a torch distributed checkpoint whose files are compressed; make one file of it with "
                f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {self.folder} NAME.pth`"
            )
        if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
            raise ValueError(f"the checkpoint names the file {name[:80]!a}, which does not lie in its folder")
        if not (self.folder / name).exists():
            raise WeightsError(f"{self.folder / name} is missing, which the checkpoint lists; fetch it as well")
        self.left -= length
        if length < 0 or self.left < 0 or not 0 <= offset <= check_file(self.folder / name) - length:
            raise ValueError("the checkpoint's pieces claim more bytes than its files have")
        with (self.folder / name).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        return unpickle_zip(BytesIO(data), len(data), self.budget)

    def assemble(self, name: str, described: Inert, pieces: list[tuple[Any, Any]]) -> Tensor:
        """A tensor from its pieces, each with its offsets. Raises ValueError where they do not fill it."""
        shape, dtype = sizes(described.state["size"]), DTYPES[described.state["properties"].state[0].kind]
        self.left_whole -= math.prod(each or 1 for each in shape) * dtype.itemsize
        if self.left_whole < 0:
            raise ValueError(f"the checkpoint's tensor {name[:80]!a} claims more bytes than its files have")

        whole = torch.empty(shape, dtype=dtype, device="cpu")
        filled = torch.zeros(shape, dtype=torch.bool, device="cpu")
        for offsets, piece in pieces:
            start = (0,) * len(shape) if offsets is None else sizes(offsets)
            place = tuple(slice(at, at + count) for at, count in zip(start, piece.shape, strict=True))
            if whole[place].shape != piece.shape or piece.dtype != dtype:
                raise ValueError(f"a piece of the tensor {name[:80]!a} lies outside of it")
            whole[place], filled[place] = piece, True
        if not filled.all():
            raise ValueError(f"pieces of the tensor {name[:80]!a} are missing")
        return whole
