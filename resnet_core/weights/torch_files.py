"""The forms of torch.save's files, read by our own unpickler: zips, the streams and tars before them, TorchScript.

And the folders of torch.distributed.checkpoint, whose tensors are small zips inside of larger files.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections import namedtuple
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from resnet_core.weights.header import INDEX_LIMIT, WeightsError, check_file
from resnet_core.weights.pickles import (
    DTYPES,
    Budget,
    Inert,
    Storage,
    Storages,
    Stream,
    Unpickler,
    module_tensors,
    sizes,
    tensor,
)  # fmt: skip

INFLATION = 4  # times that compressed members may be larger than their file

# The zip format's records, by PKWARE's APPNOTE.
ZIP_END = struct.Struct("<4sHHHHIIH")
ZIP_END64 = struct.Struct("<4sQHHIIQQQQ")
ZIP_LOCATOR = struct.Struct("<4sIQI")
ZIP_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
ZipEntry = namedtuple(
    "ZipEntry",
    "signature made_by needed flags method time date crc32 stored_size size name_length extra_length comment_length "
    "disk internal external offset",
)
ZIP_LOCAL = struct.Struct("<4sHHHHHIIIHH")


class Member(NamedTuple):
    offset: int
    stored: int
    size: int
    method: int
    crc32: int


class Zip:
    """A zip's members by name, each read once. Sizes are checked against the file's before memory is taken.

    Raises ValueError for a directory that contradicts itself or the file: zip readers that find different members in
    one file see different weights.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.size = size
        self.left, self.left_inflated = size, INFLATION * size
        self.members = read_directory(file, size)
        found = [name for name in self.members if re.fullmatch(r"([^/]*/)?data\.pkl", name)]
        if len(found) > 1:
            raise ValueError("the zip has more than one data.pkl")
        self.prefix = found[0].removesuffix("data.pkl") if found else None

    def has(self, start: str) -> bool:
        return any(name.startswith(f"{self.prefix}{start}") for name in self.members)

    def find_member(self, name: str) -> Member:
        """The member of this name under the archive's own folder, after its sizes were checked."""
        member = self.members.get(f"{self.prefix}{name}")
        if member is None:
            raise ValueError(f"the zip's member {name[:80]!a} is missing")
        self.left -= member.stored
        self.left_inflated -= member.size
        if self.left < 0 or self.left_inflated < 0 or (member.method == 0 and member.stored != member.size):
            raise ValueError(f"the zip's members claim more bytes than it has, such as {name[:80]!a}")

        # The header before the member's bytes, whose name has to be the directory's.
        self.file.seek(min(member.offset, self.size))
        header = ZIP_LOCAL.unpack(self.file.read(ZIP_LOCAL.size))
        local_name = self.file.read(header[9])
        if header[0] != b"PK\3\4" or local_name.decode("utf-8", "replace") != f"{self.prefix}{name}":
            raise ValueError(f"the zip's member {name[:80]!a} is not where the zip's directory says")
        self.file.seek(header[10], 1)
        return member

    def read_into(self, name: str, memory: memoryview | None = None) -> bytes | memoryview:
        """A member's bytes, in `memory` where that is given and has their size."""
        member = self.find_member(name)
        if memory is not None and len(memory) != member.size:
            raise ValueError(f"the zip's member {name[:80]!a} has {member.size} bytes instead of {len(memory)}")
        data: bytes | memoryview
        if member.method == 0 and memory is not None:
            if self.file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
                raise ValueError("the zip is cut off")
            data = memory
        else:
            data = self.file.read(member.stored)
            if member.method == 8:
                data = zlib.decompressobj(-15).decompress(data, member.size + 1)
            if len(data) != member.size:
                raise ValueError(f"the zip's member {name[:80]!a} has {len(data)} bytes instead of {member.size}")
            if memory is not None:
                memory[:] = data
        if member.crc32 and zlib.crc32(data) != member.crc32:  # 0 where torch was set to leave it out
            raise ValueError(f"the zip's member {name[:80]!a} does not have the checksum that was written with it")
        return data


def read_directory(file: IO[bytes], size: int) -> dict[str, Member]:
    """A zip's members by name, from the directory at its end. Raises ValueError."""
    file.seek(max(0, size - 0x10000 - ZIP_END.size))
    tail = file.read(0x10000 + ZIP_END.size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < ZIP_END.size:
        raise ValueError("the zip's end is missing")
    end = ZIP_END.unpack_from(tail, at)
    count, length, offset = end[4:7]
    position = size - len(tail) + at

    # Where the sizes do not fit into the old record, or the writer is torch, they stand in a longer one before it.
    if at >= ZIP_LOCATOR.size and tail[at - ZIP_LOCATOR.size :].startswith(b"PK\6\7"):
        position = ZIP_LOCATOR.unpack_from(tail, at - ZIP_LOCATOR.size)[2]
        file.seek(min(position, size))
        end64 = ZIP_END64.unpack(file.read(ZIP_END64.size))
        count, length, offset = end64[7:]
        if end64[0] != b"PK\6\6":
            raise ValueError("the zip's end is malformed")
    if length > INDEX_LIMIT or offset + length != position or count * ZIP_ENTRY.size > length:
        raise ValueError(f"the zip's directory of {length} bytes is misplaced or has more than {INDEX_LIMIT}")

    file.seek(offset)
    return dict(members_in(file.read(length), count))


def members_in(directory: bytes, count: int) -> Iterator[tuple[str, Member]]:
    """The names and places that a zip's directory lists. Raises ValueError."""
    position, seen = 0, set()
    for _ in range(count):
        entry = ZipEntry._make(ZIP_ENTRY.unpack_from(directory, position))
        after_name = position + ZIP_ENTRY.size + entry.name_length
        after_extra = after_name + entry.extra_length
        name = directory[position + ZIP_ENTRY.size : after_name].decode("utf-8", "replace")
        if entry.signature != b"PK\1\2" or entry.flags & 1 or entry.method not in (0, 8):
            raise ValueError(f"the zip's member {name[:60]!a} is encrypted or malformed")
        if name.lower() in seen:
            raise ValueError(f"the zip has two members of the name {name[:60]!a}")
        seen.add(name.lower())

        # Beyond 4 GiB a number stands in the entry's extra fields, in this order.
        places = [entry.size, entry.stored_size, entry.offset]
        wide = wide_numbers(directory[after_name:after_extra])
        size, stored, offset = (next(wide) if number == 0xFFFFFFFF else number for number in places)
        yield name, Member(offset, stored, size, entry.method, entry.crc32)
        position = after_extra + entry.comment_length
    if position != len(directory):
        raise ValueError("the zip's directory has more bytes than entries")


def wide_numbers(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers in a member's extra fields. Raises ValueError where there are no more."""
    while len(extra) >= 4:
        field, length = struct.unpack_from("<HH", extra)
        if field == 1:
            yield from struct.unpack_from(f"<{length // 8}Q", extra, 4)
        extra = extra[4 + length :]
    raise ValueError("the zip's directory lacks the place of a member beyond 4 GiB")


def read_torch_zip(path: Path) -> Any:
    with path.open("rb") as file:
        return unpickle_zip(file, check_file(path))


def unpickle_zip(file: IO[bytes], size: int, budget: Budget | None = None) -> Any:
    """The content of a zip that torch.save wrote, from its `data.pkl`."""
    archive = Zip(file, size)
    order = bytes(archive.read_into("byteorder")) if archive.has("byteorder") else b"little"
    if archive.prefix is None or order not in (b"little", b"big"):
        raise ValueError("the zip has no data.pkl, or an unknown byte order")

    def take(key: str, length: int) -> torch.UntypedStorage:
        storage = new_storage(length, archive.left_inflated)
        archive.read_into(f"data/{key}", memory_of(storage))
        return storage

    storages = Storages(take)
    pickled = bytes(archive.read_into("data.pkl"))
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


def members_of_tar(file: IO[bytes], size: int) -> dict[str, tuple[int, int]]:
    """Where each file of a tar begins and ends, by name. Raises ValueError."""
    members, position = {}, 0
    while position + 512 <= size:
        file.seek(position)
        header = file.read(512)
        name = header[:100].rstrip(b"\0").decode()
        if not name:
            break
        length = int(header[124:136].rstrip(b" \0"), 8)
        members[name] = (position + 512, position + 512 + length)
        position += 512 + -(-length // 512) * 512
        if length < 0 or position > size:
            raise ValueError(f"the tar's member {name!a} is cut off")
    return members


def read_old_tar(path: Path) -> Any:
    """The storages, the tensors that are views of them, and the object that refers to both by number."""
    size = check_file(path)
    with path.open("rb") as file:
        members = members_of_tar(file, size)

        def opened(name: str) -> Unpickler:
            start, end = members[name]
            file.seek(start)
            return Unpickler(Stream(file, end), budget)

        def take(key: str, length: int) -> torch.UntypedStorage:
            storage = new_storage(length, members["storages"][1] - file.tell())
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
