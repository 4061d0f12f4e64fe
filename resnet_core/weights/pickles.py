"""Tensors from torch.save's pickles: torch.load(weights_only=True), after a look at what the pickle would do.

Nothing that a pickle says is done before it is known to make tensors in plain containers, of no more bytes than the
file has.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from resnet_core.foundation.errors import shortened
from resnet_core.weights.header import INDEX_LIMIT, file_size

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle
LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, keys of its storages
CALLS = {  # what torch.save writes calls of -> with how many arguments; the types of tensors up to torch 0.3
    "collections OrderedDict": (0, 1), "torch.nn.parameter Parameter": (1, 2), "torch._utils _rebuild_parameter": (3,),
    "torch._utils _rebuild_tensor": (4,), "torch._utils _rebuild_tensor_v2": (6, 7),
    "torch FloatTensor": (0,), "torch LongTensor": (0,),
}  # fmt: skip
STORAGE = re.compile(r"torch \w+Storage")
IN_PLACE = {"SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD"}
ZIP_END = struct.Struct(
    "<4sQHHIIQQQQ 4sIQI 4sHHHHIIH"
)  # zip64 end, its locator, end: the last 98 bytes of torch's zips
ZIP_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")


def read_pickle(path: Path) -> dict[str, Tensor]:
    remedy = "save model.state_dict() alone, with torch.save or, better, write_weights"
    size = file_size(path)
    try:
        stored = check_pickles(path, size, CALLS)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise ValueError(f"is refused as a pickle of weights ({error}); {remedy}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # of any type, as the bytes are anyone's
        raise ValueError(f"is refused by torch.load ({type(error).__name__}); fetch it again, or {remedy}") from error
    nested = [content[key] for key in ("state_dict", "model") if is_dict(content) and is_dict(content.get(key))]
    tensors = nested[0] if nested else content
    if not is_dict(tensors):
        raise ValueError(f"holds a {type(tensors).__name__}, not a dict of tensors; {remedy}")
    foreign = [str(name) for name, value in tensors.items() if not isinstance(name, str) or not is_plain(value)]
    if foreign:
        raise ValueError(f"holds other things than named tensors: {shortened(foreign)}; {remedy}")
    check_memory(tensors, stored)
    return {name: value.detach() for name, value in tensors.items()}


def check_memory(tensors: Mapping[str, Tensor], stored: int) -> None:
    """Raises ValueError where tensors are larger than what a file has stored of them, in bytes."""
    storages = {name: value.untyped_storage() for name, value in tensors.items()}
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages.values()}.values())
    spread = [name for name, value in tensors.items() if value.numel() * value.itemsize > storages[name].nbytes()]
    if claimed > stored or spread:
        raise ValueError(
            f"claims more bytes than it has ({shortened(spread) or f'{claimed} of {stored}'}); fetch it again"
        )


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
    raise ValueError("neither of torch.save's two forms")


def pickle_member(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """Where a zip's `data.pkl` lies, how long it is, and the bytes of all members: no more than the file has.

    torch.save compresses nothing, so a member's size is what the file has of it. The end must be just as torch
    writes it: zip readers that find different directories in one file see different members.
    """
    file.seek(max(size - ZIP_END.size, 0))
    end = ZIP_END.unpack(file.read())
    count, length, begin = end[7:10]
    if (end[0], end[10], end[14]) != (b"PK\6\6", b"PK\6\7", b"PK\5\6") or end[12] != size - ZIP_END.size or end[21]:
        raise ValueError("a zip that torch did not write")
    if length > INDEX_LIMIT or begin + length != size - ZIP_END.size:
        raise ValueError(f"a zip whose directory of {length} bytes is misplaced or has more than {INDEX_LIMIT}")
    file.seek(begin)
    directory, position, pickles, total = file.read(length), 0, [], 0
    for _ in range(count):
        entry = ZIP_ENTRY.unpack_from(directory, position)
        method, stored, plain, offset = entry[4], entry[8], entry[9], entry[16]
        after_name = position + ZIP_ENTRY.size + entry[10]
        name = directory[position + ZIP_ENTRY.size : after_name].decode("ascii")
        if (
            entry[0] != b"PK\1\2"
            or method
            or stored != plain
            or not name.isprintable()
            or 0xFFFFFFFF in (plain, offset)
        ):
            raise ValueError(f"its member {name[:60]!a} is compressed, malformed, or beyond 4 GiB")
        total += plain
        pickles += [(offset, plain)] if name.lower().endswith("/data.pkl") else []
        position = after_name + entry[11] + entry[12]
    if total > size or position != length:
        raise ValueError(f"a zip of {size} bytes whose members claim {total}")
    if len(pickles) != 1 or pickles[0][1] > INDEX_LIMIT:
        raise ValueError(f"a zip needs one data.pkl of at most {INDEX_LIMIT} bytes")
    return *pickles[0], total


def check_pickle(stream: IO[bytes], calls: Mapping[str, tuple[int, ...]]) -> None:
    """Follows a pickle without doing what it says. Raises ValueError unless it makes tensors in plain containers.

    torch.load's own rules allow more: calls that take memory out of all proportion, as `bytearray(10**12)` or a
    thousand copies of one dict. Here only `calls` are called, and nothing is copied more often than it is written down.
    """
    stack: list[str] = []  # how each value was made: an opcode or a global's name; "again" for one from the memo
    memo: dict[int, str] = {}
    marks: list[int] = []
    value: Any
    for opcode, value, _ in pickletools.genops(stream):
        made, takes = opcode.name, opcode.stack_before
        operands = []
        if pickletools.markobject in takes:
            start = marks.pop()
            operands, stack[start:] = stack[start:], []
            takes = takes[: takes.index(pickletools.markobject)]
        operands = [stack.pop() for _ in takes][::-1] + operands
        if made == "MARK":
            marks.append(len(stack))
            continue
        if made in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif made in ("BINGET", "LONG_BINGET"):
            made = memo[value] if " " in memo[value] else "again"
        elif made == "GLOBAL":
            made = value
            if value not in calls and not STORAGE.fullmatch(value):
                raise ValueError(f"it names {value.replace(' ', '.')[:80]!a}, which is no part of a tensor")
        elif made in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            made = "again" if operands == ["again"] else f"TUPLE{len(operands)}"
        elif made in ("REDUCE", "NEWOBJ"):
            check_call(calls, *operands)
        elif made in IN_PLACE:
            made = operands[0]
            if opcode.name == "BUILD" and operands[1] == "again":
                raise ValueError("it copies one value many times")
        stack += [made] * len(opcode.stack_after)


def check_call(calls: Mapping[str, tuple[int, ...]], function: str, arguments: str) -> None:
    """Raises ValueError for a call that torch.save does not write."""
    if arguments == "again":
        raise ValueError("it copies one value many times")
    if arguments not in [f"TUPLE{count}" for count in calls.get(function, ())]:
        raise ValueError(f"it calls {function[:80]!a} with other arguments than a tensor's")


def is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def is_plain(value: object) -> bool:
    """Whether it is a dense tensor with values."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized
