"""Weights in files: read without executing anything or believing a size, written whole or not at all.

safetensors is the format. A pickle is read only where the caller says `allow_pickle=True`, never as a fallback, and
only as tensors in dicts. Memory stays in proportion to the file: a header, a pickle or a zip's directory has at most
INDEX_LIMIT bytes, and tensors have no more bytes than the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickletools
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from resnet_core.durable import replacing
from resnet_core.weights.info import WeightsInfo

logger = logging.getLogger("resnet_core")

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
INDEX_LIMIT = 2 << 20  # bytes; resnet152's safetensors header has 0.1 million
RANK_LIMIT, NUMEL_LIMIT = 16, 1 << 48
DIGEST = "sha256"
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


class WeightsError(ValueError):
    """Weights that cannot be trusted, or do not fit."""


@dataclass(frozen=True)
class LoadReport:
    """How many tensors were loaded, and the names left out: the head's, the model's without any, the file's unused."""

    loaded: int
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        left_out = {"head left out": self.dropped, "missing": self.missing, "unexpected": self.unexpected}
        return "; ".join(
            [f"{self.loaded} loaded", *(f"{word}: {few(names)}" for word, names in left_out.items() if names)]
        )


def read_weights(path: str | Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from a safetensors file or, by choice, a pickle of tensors.

    A file of `write_weights` is verified against its SHA-256. Others carry none: a bit flipped in their tensors is a
    changed value that nobody sees. A pickle holds a dict of tensors, itself or under "state_dict" or "model".
    `module.`, which DistributedDataParallel puts before every name, is taken off where all names have it.
    Raises WeightsError.
    """
    path = Path(path)
    ending = path.suffix.lower()
    with blaming(path):
        if ending == ".safetensors":
            return without_module(read_safetensors(path))
        if ending not in PICKLES:
            raise ValueError(
                f"is no file of weights by its name: .safetensors, or {', '.join(PICKLES)} with allow_pickle"
            )
        if not allow_pickle:
            raise ValueError(
                "is a pickle by its name, and reading one is a choice: convert it to .safetensors, or pass "
                "allow_pickle=True (on the command line --allow-pickle)"
            )
        return without_module(read_pickle(path))


def read_info(path: str | Path) -> WeightsInfo | None:
    """What a safetensors file says of itself, from its header alone, unverified; None where it says nothing.

    Raises WeightsError.
    """
    with blaming(Path(path)):
        return WeightsInfo.from_metadata(read_header(Path(path))[1])


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], info: WeightsInfo | None = None) -> None:
    """Writes tensors, to the bit, and what is known of them as a safetensors file with a SHA-256 of both.

    A crash leaves the old file or the new one. Tensors that share memory are written once for each name.
    Raises WeightsError for what the format cannot hold, OSError where the file cannot be written.
    """
    path = Path(path)
    with blaming(path):
        if path.suffix != ".safetensors":
            raise ValueError("must end in .safetensors to be written as weights")
        unfit = [name for name, value in tensors.items() if not is_plain(value) or value.dtype not in DTYPES.values()]
        if unfit:
            raise ValueError(f"cannot hold {few(unfit)}: give dense tensors of {', '.join(DTYPES)}")
        metadata = info.to_metadata() if info else {"format": "pt"}
        copies = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        data = save(copies, {**metadata, DIGEST: digest(copies, metadata)})
        check_header(data[8 : 8 + int.from_bytes(data[:8], "little")], len(data))
    with replacing(path) as aside:
        aside.write_bytes(data)


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, strict: bool = True, new_head: bool = False,
    allow_pickle: bool = False,
) -> LoadReport:  # fmt: skip
    """What was copied into the model from a file or from tensors by name; an error leaves the model as it was.

    Floating tensors of any width become the model's; `module.` before every name is put on or taken off as the model
    has it. `new_head` keeps the model's own head and leaves out the file's, for another number of classes. `strict`
    demands all names and no others, but for `num_batches_tracked`, which old files lack and which then stays as it is.
    Raises WeightsError: wrong names, shapes, kinds, values that are not finite, or not one name of the model's.
    """
    source = "the weights" if isinstance(weights, Mapping) else str(weights)
    found = dict(weights) if isinstance(weights, Mapping) else read_weights(weights, allow_pickle=allow_pickle)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = without_module(found)
    if own and all(name.startswith("module.") for name in own):
        found = {f"module.{name}": value for name, value in found.items()}
    head = head_prefix(model)
    if new_head and head is None:
        raise ValueError(f"new_head=True needs get_classifier() or fc, and {type(model).__name__} has neither")
    in_head = {name for name in [*own, *found] if head is not None and name.startswith(head)}
    kept = in_head if new_head else set()
    matched = {name: value for name, value in found.items() if name in own and name not in kept}
    report = LoadReport(
        loaded=len(matched),
        dropped=tuple(name for name in found if name in kept),
        missing=tuple(name for name in own if name not in found and name not in kept),
        unexpected=tuple(name for name in found if name not in own and name not in kept),
    )
    faults = list(misfits(matched, own, in_head))
    if not matched:
        faults = [f"none of its names ({few(found)}) is the model's ({few(own)}); `resnet-core convert` renames"]
    elif strict:
        required = [name for name in report.missing if name not in batch_counts(model)]
        faults += [f"missing {few(required)}"] if required else []
        faults += [f"unexpected {few(report.unexpected)}"] if report.unexpected else []
    if faults:
        raise WeightsError(f"{source} cannot be loaded into {type(model).__name__}: {'; '.join(faults)}")
    model.load_state_dict(matched, strict=False)
    if report.dropped:
        logger.warning("%s: the head stays the model's own, %s left out", source, few(report.dropped))
    return report


def misfits(matched: Mapping[str, Tensor], own: Mapping[str, Tensor], in_head: set[str]) -> Iterator[str]:
    """What keeps tensors from becoming the model's of the same name, one text for each kind of fault."""
    foreign = [name for name, value in matched.items() if not is_plain(value)]
    kinds = [name for name in matched if name not in foreign and not same_kind(matched[name], own[name])]
    shapes = [name for name in matched if name not in foreign and matched[name].shape != own[name].shape]
    if foreign:
        yield f"not dense tensors: {few(foreign)}"
    if kinds:
        yield f"integers where numbers are floating, or the reverse: {few(kinds)}"
    if shapes:
        first = shapes[0]
        yield f"wrong shape: {few(shapes)} ({first}: {list(matched[first].shape)}, model {list(own[first].shape)})"
        if set(shapes) <= in_head:
            yield (
                "the number of classes differs: load_weights(..., new_head=True) keeps the model's head, "
                "reset_classifier() makes it the weights' size first"
            )
    if not (foreign or kinds or shapes):
        wild = [name for name, value in matched.items() if not is_finite(value, own[name].dtype)]
        if wild:
            yield f"not finite as the model's dtype: {few(wild)}"


def same_kind(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() == b.is_floating_point() and a.is_complex() == b.is_complex()


def is_finite(value: Tensor, dtype: torch.dtype) -> bool:
    return not value.is_floating_point() or bool(value.to(dtype).isfinite().all())


def is_plain(value: object) -> bool:
    """Whether it is a dense tensor with values."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def head_prefix(model: nn.Module) -> str | None:
    """The start of the names of the head's tensors, as "fc."; None for a model without a head."""
    network: Any = model
    head = network.get_classifier() if hasattr(network, "get_classifier") else getattr(network, "fc", None)
    return next((f"{name}." for name, module in model.named_modules() if name and module is head), None)


def batch_counts(model: nn.Module) -> set[str]:
    """Names of the BatchNorms' counts of batches, which files from before torch 0.4.1 lack."""
    norms = (name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return {f"{name}.num_batches_tracked".lstrip(".") for name in norms}


def without_module(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors; `module.` is taken off their names where all have it."""
    if not all(name.startswith("module.") for name in tensors):
        return tensors
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names and the number of the others, on one line whatever the names are."""
    names = list(names)
    shown = ", ".join(name if name.isprintable() and len(name) < 80 else f"{name[:60]!a}..." for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turns what is wrong with a file into one line that names it."""
    try:
        yield
    except WeightsError:
        raise
    except (ValueError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} {reason}") from error


def file_size(path: Path) -> int:
    """Bytes of a regular file. Raises ValueError for anything else, before it is opened."""
    if not path.exists():
        raise ValueError("is not there; check the name")
    if not path.is_file():
        raise ValueError("is not a file; name the file of weights itself")
    return path.stat().st_size


# safetensors: 8 bytes of header length, the header as JSON, the tensors' bytes without gaps.


def read_safetensors(path: Path) -> dict[str, Tensor]:
    _, metadata = read_header(path)
    tensors = load(path.read_bytes())  # not mapped: who cuts a mapped file short kills its readers
    if DIGEST in metadata and metadata[DIGEST] != digest(tensors, metadata):
        raise ValueError("is damaged: its SHA-256 is not the one written with it; fetch or write it again")
    return tensors


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of everything that a file says: metadata, names, dtypes, shapes and values, in the names' order."""
    said = sorted((key, value) for key, value in metadata.items() if key != DIGEST)
    sha = hashlib.sha256(json.dumps(said).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A safetensors file's entries by name and its metadata, checked. Raises ValueError."""
    size = file_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, INDEX_LIMIT):
            raise ValueError(
                f"is not safetensors, or cut off: its first 8 bytes give a header of {length} bytes, and the file has "
                f"{size} bytes (a header at most {INDEX_LIMIT}); fetch it again"
            )
        return check_header(file.read(length), size)


def check_header(text: bytes, size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Entries and metadata of a header whose tensors fill a file of `size` bytes exactly. Raises ValueError."""
    try:
        entries = json.loads(text.decode(), object_pairs_hook=unique)
        if not isinstance(entries, dict):
            raise ValueError(f"a {type(entries).__name__} in place of an object")
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not text by name")
        spans = sorted(check_entry(name, entry) for name, entry in entries.items())
        position = 0
        for begin, end, name in spans:
            if begin != position:
                raise ValueError(f"{few([name])} begins at {begin}, and the tensor before it ends at {position}")
            position = end
        if position != size - 8 - len(text):
            raise ValueError(f"its tensors have {position} bytes, and the file {size - 8 - len(text)} for them")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has a broken header ({error}); fetch or write it again") from error
    return entries, metadata


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that is there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{few(twice)} more than once")
    return values


def check_entry(name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends. Raises ValueError where dtype, shape and place do not agree."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{few([name])} needs dtype, shape and data_offsets")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{few([name])} has a dtype other than {', '.join(DTYPES)}")
    if not are_counts(shape) or len(shape) > RANK_LIMIT or math.prod(max(n, 1) for n in shape) > NUMEL_LIMIT:
        raise ValueError(f"{few([name])} has an impossible shape")
    if not are_counts(place) or len(place) != 2:
        raise ValueError(f"{few([name])} has impossible data_offsets")
    begin, end = place
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{few([name])} has {end - begin} bytes for a {dtype} of shape {shape}")
    return begin, end, name


def are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


# Pickles: torch.load(weights_only=True), after a look at what the pickle would do and how much memory it would take.

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
        stored = check_pickles(path, size)
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
        raise ValueError(f"holds other things than named tensors: {few(foreign)}; {remedy}")
    check_memory(tensors, stored)
    return {name: value.detach() for name, value in tensors.items()}


def is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def check_memory(tensors: Mapping[str, Tensor], stored: int) -> None:
    """Raises ValueError where tensors are larger than what a file has stored of them, in bytes."""
    storages = {name: value.untyped_storage() for name, value in tensors.items()}
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages.values()}.values())
    spread = [name for name, value in tensors.items() if value.numel() * value.itemsize > storages[name].nbytes()]
    if claimed > stored or spread:
        raise ValueError(f"claims more bytes than it has ({few(spread) or f'{claimed} of {stored}'}); fetch it again")


def check_pickles(path: Path, size: int) -> int:
    """The bytes that a file of torch.save's keeps for tensors, after a look at its pickles. Raises ValueError."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
        if start.startswith(b"PK\x03\x04"):
            offset, length, stored = pickle_member(file, size)
            file.seek(offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            file.seek(offset + 30 + name + extra)
            check_pickle(BytesIO(file.read(length)))
            return stored
        if start == LEGACY_START:
            file.seek(0)
            stream = BytesIO(file.read(INDEX_LIMIT))
            for _ in range(LEGACY_PICKLES):
                check_pickle(stream)
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


def check_pickle(stream: IO[bytes]) -> None:
    """Follows a pickle without doing what it says. Raises ValueError unless it makes tensors in plain containers.

    torch.load's own rules allow more: calls that take memory out of all proportion, as `bytearray(10**12)` or a
    thousand copies of one dict. Here only CALLS are called, and nothing is copied more often than it was written down.
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
            if value not in CALLS and not STORAGE.fullmatch(value):
                raise ValueError(f"it names {value.replace(' ', '.')[:80]!a}, which is no part of a tensor")
        elif made in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            made = "again" if operands == ["again"] else f"TUPLE{len(operands)}"
        elif made in ("REDUCE", "NEWOBJ"):
            check_call(*operands)
        elif made in IN_PLACE:
            made = operands[0]
            if opcode.name == "BUILD" and operands[1] == "again":
                raise ValueError("it copies one value many times")
        stack += [made] * len(opcode.stack_after)


def check_call(function: str, arguments: str) -> None:
    """Raises ValueError for a call that torch.save does not write."""
    if arguments == "again":
        raise ValueError("it copies one value many times")
    if arguments not in [f"TUPLE{count}" for count in CALLS.get(function, ())]:
        raise ValueError(f"it calls {function[:80]!a} with other arguments than a tensor's")
