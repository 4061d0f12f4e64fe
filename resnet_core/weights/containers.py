"""Files and folders of weights, recognised by their content, never by their ending, and read without running them.

A file that holds no weights is refused by what it is: a Git LFS pointer, a web page, a cut download, another format.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from resnet_core.foundation.errors import first_line, shortened
from resnet_core.weights.header import (
    DIGEST,
    INDEX_LIMIT,
    WeightsError,
    check_file,
    digest,
    read_header,
)
from resnet_core.weights.pickles import (
    Inert,
    Storage,
    Storages,
    Unpickler,
    module_tensors,
    walk,
)

ZIP_LIMIT = 8 << 20  # bytes of a zip's directory; that of a training state has 0.3 million
INFLATION = 4  # times that compressed members may be larger than their file
MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError, EOFError,
    struct.error, zlib.error,
)  # fmt: skip

# The zip format's records, by PKWARE's APPNOTE.
ZIP_END = struct.Struct("<4sHHHHIIH")
ZIP_END64 = struct.Struct("<4sQHHIIQQQQ")
ZIP_LOCATOR = struct.Struct("<4sIQI")
ZIP_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
ZIP_LOCAL = struct.Struct("<4sHHHHHIIIHH")


@dataclass(frozen=True)
class Container:
    """What a file or a folder holds, before anything in it is taken for a network's weights."""

    path: Path
    kind: str
    """In plain words, as "torch zip" or "sharded safetensors"."""
    content: Any
    """Nested dicts, lists, tuples, plain values, tensors and `Inert`; tensors by name where the format has names."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What a safetensors file says about itself."""
    beside: tuple[str, ...] = ()
    """The sorted type names of the inert values in `content`."""


def read_container(path: str | Path) -> Container:
    """Reads a file or a folder of any kind that holds weights. Raises WeightsError, saying what it is and what to do.

    Nothing in it is executed, and memory stays in proportion to its size.
    """
    path = Path(path)
    kind = recognise(path)
    try:
        content, metadata = READERS[kind](path)
    except WeightsError:
        raise
    except MALFORMED as error:
        raise WeightsError(
            f"{path} is a {kind} that is damaged or malformed: {first_line(error)[:200]}; fetch or write it again"
        ) from error
    beside = {value.kind for _, value in walk(content) if isinstance(value, Inert)}
    return Container(path, kind, content, metadata, tuple(sorted(beside)))


# What a file is.


def recognise(path: Path) -> str:
    """The kind of a container, a key of READERS, by its content. Raises WeightsError for anything else."""
    if path.is_dir():
        return recognise_folder(path)
    size = check_file(path)
    with path.open("rb") as file:
        head = file.read(4096)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            return recognise_zip(path, file, size)

    for kind, pattern in STARTS.items():
        if pattern.match(head):
            return kind
    if path.name.endswith(".index.json") and b'"weight_map"' in path.read_bytes()[:INDEX_LIMIT]:
        return "sharded safetensors" if "safetensors" in path.name else "sharded torch files"
    for refusal, pattern in OTHERS.items():
        if pattern.match(head):
            raise WeightsError(refusal.format(path=path))
    if path.suffix.lower() == ".safetensors":
        read_header(path)  # whose refusal says what is wrong with it
    raise WeightsError(
        f"{path} is not a weights file of a known format: it has neither torch.save's forms nor that of safetensors or "
        "HDF5; fetch or write it again"
    )


def recognise_folder(path: Path) -> str:
    if (path / ".metadata").is_file():
        return "torch distributed checkpoint"
    index = index_in(path)
    if index is not None:
        return "sharded safetensors" if "safetensors" in index.name else "sharded torch files"
    if (path / "saved_model.pb").exists():
        raise WeightsError(
            f"{path} is a TensorFlow SavedModel, which is not read; load it in Keras, save it there with "
            "model.save_weights('NAME.weights.h5') and convert that file"
        )
    files = sorted(each.name for each in path.iterdir() if each.is_file())
    raise WeightsError(
        f"{path} is a folder that is neither a distributed checkpoint nor sharded weights; name the weights file in it "
        f"({shortened(files) or 'it has none'})"
    )


def recognise_zip(path: Path, file: IO[bytes], size: int) -> str:
    try:
        archive = Zip(file, size)
    except MALFORMED as error:
        raise WeightsError(
            f"{path} is a zip, as torch.save writes it, that is cut off or damaged: {first_line(error)[:200]}; fetch "
            "it again"
        ) from error
    names = [name.partition("/")[2] or name for name in archive.members]
    if archive.prefix is not None:
        return "TorchScript archive" if "constants.pkl" in names or archive.has("code/") else "torch zip"
    if "model.weights.h5" in names:
        return "Keras archive"

    if names and all(name.endswith(".npy") for name in names):
        raise WeightsError(
            f"{path} is a numpy archive (.npz), which is not read; write it as safetensors: write_weights("
            "'NAME.safetensors', {name: torch.from_numpy(value) for name, value in numpy.load(FILE).items()})"
        )
    if "models/model.json" in names or "serialized_exported_program.json" in names:
        raise WeightsError(
            f"{path} is an exported program of torch.export, which is not read; save its weights with "
            "torch.save(torch.export.load(FILE).state_dict, 'NAME.pth')"
        )
    if "model.json" in names:
        raise WeightsError(
            f"{path} is a TorchScript archive of torch 1.0, which is not read; save its weights with "
            "torch.save(torch.jit.load(FILE).state_dict(), 'NAME.pth')"
        )
    raise WeightsError(
        f"{path} is a zip of other files ({shortened(sorted(archive.members)) or 'none'}); unpack it and give the "
        "weights file that it holds"
    )


STARTS = {
    "safetensors": re.compile(rb".{6}\0\0\{", re.DOTALL),  # first: its length may begin with a pickle's bytes
    "legacy torch file": re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL),
    "HDF5": re.compile(rb"\x89HDF\r\n\x1a\n"),
    "pickle of arrays": re.compile(rb"\x80[\x02-\x05]|\((?:dp?|lp?)\d*\n|c(?:collections|__builtin__)\n"),
}
OTHERS = {
    "{path} is empty; fetch it again": re.compile(rb"\Z"),
    "{path} is not a weights file: it is a Git LFS pointer, which stands for the file; run `git lfs pull` in its "
    "repository, or download the file itself": re.compile(rb"version https://git-lfs"),
    "{path} is not a weights file: it is a web page saved under its name; download it again from the link to the file "
    "itself": re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE),
    "{path} is an ONNX file, which is run and not loaded: give the checkpoint from which it was exported": re.compile(
        rb"\x08[\x03-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]"
    ),
    "{path} is a file of TensorFlow's, which is not read; load it in Keras, save it there with model.save_weights("
    "'NAME.weights.h5') and convert that file": re.compile(
        rb"\x08\x01\x12|.{4}TFL3|\0\0.{0,6}\n?.{0,3}\x08\x01", re.DOTALL
    ),
    "{path} is a numpy array (.npy), which has no names; give the checkpoint that it comes from": re.compile(
        rb"\x93NUMPY"
    ),
    "{path} is compressed or an archive; unpack it with `tar -xf`, `gunzip`, `unzip` or `7z x` and give the weights "
    "file that it holds": re.compile(
        rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar",
        re.DOTALL,
    ),
    "{path} is an image; name it after the weights file": re.compile(
        rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP", re.DOTALL
    ),
    "{path} is a GGUF file, in which no ResNet is published; give the checkpoint that it comes from": re.compile(
        rb"GGUF"
    ),
    "{path} is a JSON file; name the weights file beside it, or the folder": re.compile(rb"\s*[{\[][\s\"]"),
    "{path} is a text file; name the weights file": re.compile(rb"[\t\n\r\x20-\x7e]{16,}\Z|[\t\n\r\x20-\x7e]{256}"),
}


# torch.save's zips, and TorchScript's.


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
            raise ValueError("it has more than one data.pkl")
        self.prefix = found[0].removesuffix("data.pkl") if found else None

    def has(self, start: str) -> bool:
        return any(name.startswith(f"{self.prefix}{start}") for name in self.members)

    def locate(self, name: str) -> Member:
        """The member of this name under the archive's own folder, after its sizes were checked."""
        member = self.members.get(f"{self.prefix}{name}")
        if member is None:
            raise ValueError(f"its member {name[:80]!a} is missing")
        self.left -= member.stored
        self.left_inflated -= member.size
        if self.left < 0 or self.left_inflated < 0 or (member.method == 0 and member.stored != member.size):
            raise ValueError(f"its members claim more bytes than it has, such as {name[:80]!a}")

        # The header before the member's bytes, whose name has to be the directory's.
        self.file.seek(member.offset)
        header = ZIP_LOCAL.unpack(self.file.read(ZIP_LOCAL.size))
        local_name = self.file.read(header[9])
        if header[0] != b"PK\3\4" or local_name.decode("utf-8", "replace") != f"{self.prefix}{name}":
            raise ValueError(f"its member {name[:80]!a} is not where its directory says")
        self.file.seek(header[10], 1)
        return member

    def read_into(self, name: str, memory: memoryview | None = None) -> bytes | memoryview:
        """A member's bytes, in `memory` where that is given and has their size."""
        member = self.locate(name)
        if memory is not None and len(memory) != member.size:
            raise ValueError(f"its member {name[:80]!a} has {member.size} bytes instead of {len(memory)}")
        data: bytes | memoryview
        if member.method == 0 and memory is not None:
            if self.file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
                raise ValueError("it is cut off")
            data = memory
        else:
            data = self.file.read(member.stored)
            if member.method == 8:
                data = zlib.decompressobj(-15).decompress(data, member.size + 1)
            if len(data) != member.size:
                raise ValueError(f"its member {name[:80]!a} has {len(data)} bytes instead of {member.size}")
            if memory is not None:
                memory[:] = data
        if member.crc32 and zlib.crc32(data) != member.crc32:  # torch can be told to write 0
            raise ValueError(f"its member {name[:80]!a} does not have the checksum that was written with it")
        return data


def read_directory(file: IO[bytes], size: int) -> dict[str, Member]:
    """A zip's members by name, from the directory at its end. Raises ValueError."""
    file.seek(max(0, size - 0x10000 - ZIP_END.size))
    tail = file.read(0x10000 + ZIP_END.size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < ZIP_END.size:
        raise ValueError("its end is missing")
    end = ZIP_END.unpack_from(tail, at)
    count, length, offset = end[4:7]
    position = size - len(tail) + at

    # Where the sizes do not fit into the old record, or the writer is torch, they stand in a longer one before it.
    if at >= ZIP_LOCATOR.size and tail[at - ZIP_LOCATOR.size :].startswith(b"PK\6\7"):
        position = ZIP_LOCATOR.unpack_from(tail, at - ZIP_LOCATOR.size)[2]
        file.seek(position)
        end64 = ZIP_END64.unpack(file.read(ZIP_END64.size))
        count, length, offset = end64[7:]
        if end64[0] != b"PK\6\6":
            raise ValueError("its end is malformed")
    if length > ZIP_LIMIT or offset + length != position or count * ZIP_ENTRY.size > length:
        raise ValueError(f"its directory of {length} bytes is misplaced or has more than {ZIP_LIMIT}")

    file.seek(offset)
    return dict(members_in(file.read(length), count))


def members_in(directory: bytes, count: int) -> Iterator[tuple[str, Member]]:
    """The names and places that a zip's directory lists. Raises ValueError."""
    position, seen = 0, set()
    for _ in range(count):
        entry = ZIP_ENTRY.unpack_from(directory, position)
        signature, flags, method, crc32, stored, size = entry[0], entry[3], *entry[4:5], *entry[7:10]
        offset = entry[16]
        after_name = position + ZIP_ENTRY.size + entry[10]
        name = directory[position + ZIP_ENTRY.size : after_name].decode("utf-8", "replace")
        if signature != b"PK\1\2" or flags & 1 or method not in (0, 8) or 0xFFFFFFFF in (stored, size, offset):
            raise ValueError(f"its member {name[:60]!a} is encrypted, malformed, or beyond 4 GiB")
        if name.lower() in seen:
            raise ValueError(f"it has two members of the name {name[:60]!a}")
        seen.add(name.lower())
        yield name, Member(offset, stored, size, method, crc32)
        position = after_name + entry[11] + entry[12]
    if position != len(directory):
        raise ValueError("its directory has more bytes than entries")


def read_torch_zip(path: Path) -> tuple[Any, dict[str, str]]:
    with path.open("rb") as file:
        return unpickle_zip(file, check_file(path))[0], {}


def unpickle_zip(file: IO[bytes], size: int) -> tuple[Any, Zip]:
    """What the `data.pkl` of a zip of torch.save's makes."""
    archive = Zip(file, size)
    order = bytes(archive.read_into("byteorder")) if archive.has("byteorder") else b"little"
    if archive.prefix is None or order not in (b"little", b"big"):
        raise ValueError("it has no data.pkl, or an unknown byte order")

    def take(key: str, length: int) -> torch.UntypedStorage:
        storage = new_storage(length, archive.left_inflated)
        archive.read_into(f"data/{key}", memory_of(storage))
        return storage

    storages = Storages(take)
    pickled = bytes(archive.read_into("data.pkl"))
    content = Unpickler(BytesIO(pickled), len(pickled), storages).load()
    if order == b"big":
        for storage in storages.found.values():
            if storage.untyped is not None:
                storage.untyped.byteswap(storage.dtype)
    return content, archive


def new_storage(length: int, available: int) -> torch.UntypedStorage:
    """Memory for a storage of the file. Raises ValueError where the file has fewer bytes."""
    if length > available:
        raise ValueError(f"it claims a storage of {length} bytes, and has {available}")
    return torch.UntypedStorage(length, device="cpu")


def memory_of(storage: torch.UntypedStorage) -> memoryview:
    view: Tensor = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return view.numpy().data


def read_torchscript(path: Path) -> tuple[Any, dict[str, str]]:
    """The state dict of a scripted or traced module; its code is not run."""
    content, _ = read_torch_zip(path)
    tensors = module_tensors(content) if isinstance(content, Inert) else {}
    if not tensors:
        raise WeightsError(
            f"{path} is a TorchScript archive without named weights: torch.jit.freeze makes constants of them; give "
            "the archive, or the checkpoint, from before it was frozen"
        )
    return tensors, {}


# Streams: torch.save's form before torch 1.6, and pickles without storages.


class Stream:
    """A file that never takes memory for more bytes than it has."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))


def read_legacy(path: Path) -> tuple[Any, dict[str, str]]:
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
        unpickler = Unpickler(Stream(file, size), size, storages)  # type: ignore[arg-type]
        for _ in range(3):
            unpickler.load()
        content, keys = unpickler.load(), unpickler.load()

        if not isinstance(keys, list) or sorted(keys) != sorted(storages.found):
            raise ValueError("it claims more bytes than it has: the storages that it uses are not those after it")
        for key in keys:
            fill(storages.found[key], file, size)
    return content, {}


def fill(storage: Storage, file: IO[bytes], size: int) -> None:
    """Reads a storage that follows in the file: the number of its values, then the values."""
    (count,) = struct.unpack("<q", file.read(8))
    if count * storage.dtype.itemsize != storage.size or storage.size > size - file.tell():
        raise ValueError(f"it claims more bytes than it has: {storage.size} for a storage of {count} values")
    if storage.untyped is None:
        file.seek(storage.size, 1)
    else:
        file.readinto(memory_of(storage.untyped))  # type: ignore[attr-defined]


def read_bare_pickle(path: Path) -> tuple[Any, dict[str, str]]:
    size = check_file(path)
    with path.open("rb") as file:
        return Unpickler(Stream(file, size), size).load(), {}  # type: ignore[arg-type]


# safetensors: 8 bytes of header length, the header as JSON, the tensors' bytes without gaps.


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata, verified where the file carries a SHA-256. Raises WeightsError."""
    _, metadata = read_header(path)
    try:
        tensors = load(path.read_bytes())  # not mapped: truncating a mapped file kills its readers
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is refused by safetensors ({first_line(error)}); fetch or write it again"
        ) from error
    if DIGEST in metadata and metadata[DIGEST] != digest(tensors, metadata):
        raise WeightsError(f"{path} is damaged: its SHA-256 is not the one written with it; fetch or write it again")
    return tensors, metadata


# Folders.


def index_in(folder: Path) -> Path | None:
    """The index of sharded weights in a folder, that of safetensors first."""
    found = sorted(folder.glob("*.index.json"), key=lambda path: ("safetensors" not in path.name, path.name))
    return found[0] if found else None


def read_shards(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors that an index lists, from the files that it names, which lie beside it."""
    index = index_in(path) if path.is_dir() else path
    if index is None or check_file(index) > INDEX_LIMIT:
        raise ValueError(f"its index has more than {INDEX_LIMIT} bytes")
    listed = json.loads(index.read_bytes())
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index.name} has no weight_map from names to files")

    tensors: dict[str, Any] = {}
    for name in dict.fromkeys(places.values()):
        if name in ("", ".", "..") or re.search(r"[/\\\0]", name) or name.endswith(".index.json"):
            raise ValueError(f"{index.name} names the file {name[:80]!a}, which does not lie beside it")
        if not (index.parent / name).exists():
            raise WeightsError(f"{index.parent / name} is missing, which {index.name} lists; fetch it as well")
        content = read_container(index.parent / name).content
        wanted = [key for key, file in places.items() if file == name]
        lacking = [key for key in wanted if not isinstance(content, dict) or key not in content]
        if lacking:
            raise ValueError(f"{name} lacks tensors that {index.name} places in it: {shortened(lacking)}")
        tensors |= {key: content[key] for key in wanted}
    return {key: tensors[key] for key in places}, {}


READERS: dict[str, Callable[[Path], tuple[Any, dict[str, str]]]] = {
    "torch zip": read_torch_zip,
    "TorchScript archive": read_torchscript,
    "legacy torch file": read_legacy,
    "pickle of arrays": read_bare_pickle,
    "safetensors": read_safetensors,
    "sharded safetensors": read_shards,
    "sharded torch files": read_shards,
    "HDF5": lambda path: (None, {}),  # Keras' files, which h5py reads
    "Keras archive": lambda path: (None, {}),
}
