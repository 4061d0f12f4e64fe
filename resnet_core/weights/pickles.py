"""Tensors from torch.save's pickles: torch.load(weights_only=True), after a look at what the pickle would do.

Nothing that a pickle says is done before it is known to make tensors in plain containers, of no more bytes than the
file has.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections import namedtuple
from collections.abc import Mapping
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from resnet_core.foundation.errors import first_line, shortened
from resnet_core.weights.header import INDEX_LIMIT, WeightsError, check_file

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle
LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, keys of its storages
CALLS = {  # what torch.save writes calls of -> with how many arguments; the types of tensors up to torch 0.3
    "collections OrderedDict": (0, 1), "torch.nn.parameter Parameter": (1, 2), "torch._utils _rebuild_parameter": (3,),
    "torch._utils _rebuild_tensor": (4,), "torch._utils _rebuild_tensor_v2": (6, 7),
    "torch FloatTensor": (0,), "torch LongTensor": (0,),
}  # fmt: skip
STORAGE = re.compile(r"torch \w+Storage")
IN_PLACE = {"SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD"}

# The zip format's records, by the names of PKWARE's APPNOTE. The last 98 bytes of torch's zips are three of them.
ZIP_END = struct.Struct("<4sQHHIIQQQQ 4sIQI 4sHHHHIIH")
ZipEnd = namedtuple(
    "ZipEnd",
    "signature64 size made_by needed disk64 directory_disk64 entries_here64 entries directory_size directory_offset "
    "locator_signature end_disk end_offset disks "
    "signature disk directory_disk entries_here entries32 directory_size32 directory_offset32 comment_length",
)
ZIP_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
ZipEntry = namedtuple(
    "ZipEntry",
    "signature made_by needed flags method time date crc32 stored_size size name_length extra_length comment_length "
    "disk internal external offset",
)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save's. Raises WeightsError for a file that is anything else."""
    remedy = "save only model.state_dict(), with torch.save or, better, write_weights"
    size = check_file(path)
    try:
        stored = check_pickles(path, size, CALLS)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise WeightsError(f"{path} is refused as a pickle of weights: {first_line(error)}; {remedy}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # of any type, as the bytes are anyone's
        kind = type(error).__name__
        raise WeightsError(f"{path} is refused by torch.load ({kind}); fetch it again, or {remedy}") from error

    nested = [content[key] for key in ("state_dict", "model") if is_dict(content) and is_dict(content.get(key))]
    tensors = nested[0] if nested else content
    if not is_dict(tensors):
        raise WeightsError(f"{path} holds a {type(tensors).__name__}, not a dict of tensors; {remedy}")
    foreign = [str(name) for name, value in tensors.items() if not isinstance(name, str) or not is_plain(value)]
    if foreign:
        raise WeightsError(f"{path} holds other things than named tensors: {shortened(foreign)}; {remedy}")
    check_memory(tensors, stored, path)
    return {name: value.detach() for name, value in tensors.items()}


def check_memory(tensors: Mapping[str, Tensor], stored: int, path: Path) -> None:
    """Raises WeightsError where tensors are larger than what the file at `path` has stored of them, in bytes."""
    storages = {name: value.untyped_storage() for name, value in tensors.items()}
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages.values()}.values())
    spread = [name for name, value in tensors.items() if value.numel() * value.itemsize > storages[name].nbytes()]
    if claimed > stored or spread:
        claims = shortened(spread) or f"{claimed} of {stored}"
        raise WeightsError(f"{path} claims more bytes than it has ({claims}); fetch it again")


def check_pickles(path: Path, size: int, calls: Mapping[str, tuple[int, ...]]) -> int:
    """The bytes that a file of torch.save's keeps for tensors, after a look at its pickles. Raises ValueError."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
        if start.startswith(b"PK\x03\x04"):
            offset, length, stored = pickle_member(file, size)
            file.seek(offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            file.seek(offset + 30 + name + extra)
            check_pickle(BytesIO(file.read(length)), calls)
            return stored
        if start == LEGACY_START:
            file.seek(0)
            stream = BytesIO(file.read(INDEX_LIMIT))
            for _ in range(LEGACY_PICKLES):
                check_pickle(stream, calls)
            return size - stream.tell()
    raise ValueError("it has neither of torch.save's two forms")


def pickle_member(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """Where a zip's `data.pkl` lies, how long it is, and the bytes of all members: no more than the file has.

    torch.save compresses nothing, so a member's size is what the file has of it. The end must be just as torch
    writes it: zip readers that find different directories in one file see different members.
    """
    end_offset = size - ZIP_END.size
    file.seek(max(end_offset, 0))
    end = ZipEnd._make(ZIP_END.unpack(file.read()))
    signatures = (end.signature64, end.locator_signature, end.signature)
    if signatures != (b"PK\6\6", b"PK\6\7", b"PK\5\6") or end.end_offset != end_offset or end.comment_length:
        raise ValueError("torch did not write this zip")
    length = end.directory_size
    if length > INDEX_LIMIT or end.directory_offset + length != end_offset:
        raise ValueError(f"the zip's directory of {length} bytes is misplaced or has more than {INDEX_LIMIT}")

    file.seek(end.directory_offset)
    directory, position, pickles, total = file.read(length), 0, [], 0
    for _ in range(end.entries):
        entry = ZipEntry._make(ZIP_ENTRY.unpack_from(directory, position))
        after_name = position + ZIP_ENTRY.size + entry.name_length
        name = directory[position + ZIP_ENTRY.size : after_name].decode("ascii")
        is_stored = entry.signature == b"PK\1\2" and not entry.method and entry.stored_size == entry.size
        if not is_stored or not name.isprintable() or 0xFFFFFFFF in (entry.size, entry.offset):
            raise ValueError(f"its member {name[:60]!a} is compressed, malformed, or beyond 4 GiB")
        total += entry.size
        pickles += [(entry.offset, entry.size)] if name.lower().endswith("/data.pkl") else []
        position = after_name + entry.extra_length + entry.comment_length

    if total > size or position != length:
        raise ValueError(f"the zip has {size} bytes, and its members claim {total}")
    if len(pickles) != 1 or pickles[0][1] > INDEX_LIMIT:
        raise ValueError(f"the zip needs one data.pkl of at most {INDEX_LIMIT} bytes")
    return *pickles[0], total


class Kind(Enum):
    """How the pickle made a value, as far as it matters to what may be done with it."""

    GLOBAL = "a function or a type, with its name"
    TUPLE = "a tuple, with its length"
    REPEATED = "a value that was made before"
    OTHER = "anything else"


class Made(NamedTuple):
    kind: Kind
    name: str = ""
    length: int = 0


def check_pickle(stream: IO[bytes], calls: Mapping[str, tuple[int, ...]]) -> None:
    """Follows a pickle without doing what it says. Raises ValueError unless it makes tensors in plain containers.

    torch.load's own rules allow more: calls that take memory out of all proportion, as `bytearray(10**12)` or a
    thousand copies of one dict. Here only `calls` are called, and nothing is copied more often than it is written down.
    """
    stack: list[Made] = []
    memo: dict[int, Made] = {}
    marks: list[int] = []
    value: Any
    for opcode, value, _ in pickletools.genops(stream):
        # What the opcode takes from the stack: a fixed number of values, below those back to the last mark.
        takes = opcode.stack_before
        operands: list[Made] = []
        if pickletools.markobject in takes:
            start = marks.pop()
            operands, stack[start:] = stack[start:], []
            takes = takes[: takes.index(pickletools.markobject)]
        operands = [stack.pop() for _ in takes][::-1] + operands

        # What it makes of them.
        made = Made(Kind.OTHER)
        match opcode.name:
            case "MARK":
                marks.append(len(stack))
                continue
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                made = memo[value] if memo[value].kind is Kind.GLOBAL else Made(Kind.REPEATED)
            case "GLOBAL":
                made = Made(Kind.GLOBAL, name=value)
                if value not in calls and not STORAGE.fullmatch(value):
                    raise ValueError(f"it names {value.replace(' ', '.')[:80]!a}, which is not a part of a tensor")
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                repeats = [each.kind for each in operands] == [Kind.REPEATED]
                made = Made(Kind.REPEATED) if repeats else Made(Kind.TUPLE, length=len(operands))
            case "REDUCE" | "NEWOBJ":
                check_call(calls, *operands)
            case name if name in IN_PLACE:
                made = operands[0]
                if name == "BUILD" and operands[1].kind is Kind.REPEATED:
                    raise ValueError("it copies one value many times")
        stack += [made] * len(opcode.stack_after)


def check_call(calls: Mapping[str, tuple[int, ...]], function: Made, arguments: Made) -> None:
    """Raises ValueError for a call that torch.save does not write."""
    if arguments.kind is Kind.REPEATED:
        raise ValueError("it copies one value many times")
    if arguments.kind is not Kind.TUPLE or arguments.length not in calls.get(function.name, ()):
        raise ValueError(f"it calls {function.name[:80]!a} with other arguments than a tensor's")


def is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def is_plain(value: object) -> bool:
    """Whether it is a dense tensor with values."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized
