"""Pickles, read without bringing anything to life: nothing is imported, constructed or called.

A pickle is a program for a small stack machine. This module runs it on plain values, on tensors that it builds itself
from storages, and on `Inert` placeholders for everything else. Memory stays in proportion to the file: whatever an
opcode makes is charged to a budget before it is made.
"""

from __future__ import annotations

import math
import pickletools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import numpy
import torch
from torch import Tensor

LARGEST = 1 << 48  # values of a tensor
BUDGET, BUDGET_PER_BYTE = 32 << 20, 8  # bytes of memory for a pickle, and more for each byte of its file
ENTRY, TENSOR, ODD_KEY = 104, 1024, 4096  # bytes charged for an entry of a dict, a tensor, a key that may collide
LARGEST_RANK, LARGEST_KEY = 64, 1000
LARGEST_INTEGER = 1024  # bits; numpy's generators have 128, and Python cannot print 15,000
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # since Python 2
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
STORAGES = {name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()}  # "FloatStorage", ..
STORAGES["UntypedStorage"] = torch.uint8
ARRAYS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}  # numpy's dtypes
STORAGE_TYPE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+Storage)")
TENSOR_TYPE = re.compile(r"torch\.(?:cuda\.)?\w*Tensor")  # the types of tensors up to torch 0.3


@dataclass(slots=True, eq=False, repr=False)
class Inert:
    """Stands where a pickle has something other than a plain value or a tensor. It does nothing.

    `kind` is the qualified name of the type, or of the function that would have made the value. `arguments` is what the
    pickle gave it, and None where the pickle only names it. `state` was set into it, `elements` were appended or
    added, `entries` were set under keys.
    """

    kind: str
    arguments: Any = None
    state: Any = None
    elements: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)
    became: Tensor | None = None

    def __repr__(self) -> str:
        return f"<inert {self.kind[:80]}>"


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class Storage(Inert):
    """Numbers that tensors are views of; `untyped` is None where the file has none to read, or quantized ones."""

    dtype: torch.dtype
    size: int
    untyped: torch.UntypedStorage | None


@dataclass
class Storages:
    """Finds the storages that a pickle refers to. `take(key, size)` makes one of `size` bytes from the file."""

    take: Callable[[str, int], torch.UntypedStorage]
    found: dict[str, Storage] = field(default_factory=dict)

    def __call__(self, reference: Any) -> Any:
        """The storage of a persistent id, as torch.save writes it. Raises ValueError for another."""
        match reference:
            case ("module", content, *_):  # with its source, in files of torch before 1.6
                return content
            case ("storage", Inert(kind=kind), str(key), location, int(count)):
                return self.find(kind, key, location, count)
            case ("storage", Inert(kind=kind), str(key), location, int(count), view):
                storage = self.find(kind, key, location, count)
                return storage if view is None else self.part(storage, *view)
        raise ValueError("the pickle refers to something outside that is not a storage")

    def find(self, kind: str, key: str, location: Any, count: int) -> Storage:
        """The storage under `key`, which has `count` values of the type `kind`."""
        known = STORAGE_TYPE.fullmatch(kind)
        if known is None or known[1] not in STORAGES or not 0 <= count <= LARGEST:
            raise ValueError(f"the pickle has a storage of the unknown type {kind[:80]!a} or of an impossible size")
        dtype = STORAGES[known[1]]
        size = count * dtype.itemsize
        if key not in self.found:
            empty = location == "meta" or dtype in QUANTIZED
            untyped = None if empty else self.take(key, size)
            self.found[key] = Storage(kind, dtype=dtype, size=size, untyped=untyped)
        storage = self.found[key]
        if storage.size != size:
            raise ValueError(f"the pickle claims {storage.size} and {size} bytes for the same storage {key[:80]!a}")
        if storage.dtype == dtype:
            return storage
        return Storage(kind, dtype=dtype, size=size, untyped=storage.untyped)

    def part(self, storage: Storage, key: str, offset: int, count: int) -> Storage:
        """A storage that is a part of another, as torch before 0.4 wrote them."""
        start, size = offset * storage.dtype.itemsize, count * storage.dtype.itemsize
        if not 0 <= start <= start + size <= storage.size:
            raise ValueError(f"the pickle's storage {str(key)[:80]!a} lies outside of the storage that it is a part of")
        untyped = None if storage.untyped is None else storage.untyped[start : start + size]
        return Storage(storage.kind, dtype=storage.dtype, size=size, untyped=untyped)


class Budget:
    """The memory that the pickles of a file of `size` bytes may take."""

    def __init__(self, size: int) -> None:
        self.left = BUDGET + BUDGET_PER_BYTE * size

    def charge(self, size: int) -> None:
        """Takes bytes from the budget. Raises ValueError where it is exhausted."""
        self.left -= size
        if self.left < 0:
            raise ValueError("the pickle takes more memory than a file of its size may")


class Stream:
    """A file up to `end` that pickles are read from, without memory for more bytes than it has."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self.file, self.end = file, end
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.end - self.file.tell())))


class Unpickler:
    """Runs one pickle after the other from a stream."""

    def __init__(self, stream: Any, budget: Budget, storages: Callable[[Any], Any] | None = None) -> None:
        self.stream = stream
        self.storages = storages
        self.charge = budget.charge

    def load(self) -> Any:
        """What the next pickle of the stream makes. Raises ValueError, or what Python raises for malformed bytes."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, value, _ in pickletools.genops(self.stream):
            if opcode.name == "MARK":
                self.marks.append(len(self.stack))
            elif opcode.name == "POP" and self.marks[-1:] == [len(self.stack)]:
                self.marks.pop()
            else:
                operands = self.pop(opcode.stack_before)
                made = self.make(opcode.name, value, operands)
                self.stack += [made] * len(opcode.stack_after)
            self.charge(8)
        return made

    def pop(self, takes: list[pickletools.StackObject]) -> list[Any]:
        """The values that an opcode takes from the stack: a fixed number below those back to the last mark."""
        operands: list[Any] = []
        if pickletools.markobject in takes:
            start = self.marks.pop()
            operands = self.stack[start:]
            del self.stack[start:]
            takes = takes[: takes.index(pickletools.markobject)]
        if len(takes) > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("the pickle's opcodes take more values than there are")
        start = len(self.stack) - len(takes)
        operands[:0] = self.stack[start:]
        del self.stack[start:]
        return operands

    def make(self, opcode: str, value: Any, operands: list[Any]) -> Any:
        """What an opcode makes of its argument and its operands."""
        match opcode:
            case "BINGET" | "LONG_BINGET" | "GET":
                found = self.memo[value]
                return found.became if isinstance(found, Inert) and found.became is not None else found
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.charge(ENTRY)
                self.memo[value] = self.stack[-1]
            case "MEMOIZE":
                self.charge(ENTRY)
                self.memo[len(self.memo)] = operands[0]
                return operands[0]

            # Containers.
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                return self.charged(tuple(operands))
            case "EMPTY_LIST" | "LIST":
                return self.charged(operands)
            case "EMPTY_DICT" | "DICT":
                return self.set_items(self.charged({}), operands)
            case "EMPTY_SET" | "FROZENSET":
                return self.append(self.inert("builtins.set", ()), operands)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                return self.append(operands[0], operands[1:])
            case "SETITEM" | "SETITEMS":
                return self.set_items(operands[0], operands[1:])

            # Names, calls and state.
            case "GLOBAL" | "STACK_GLOBAL":
                return self.named(*(operands or value.split(" ", 1)))
            case "EXT1" | "EXT2" | "EXT4":
                return self.inert(f"copyreg.extension_{value}")
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                return self.call(*operands)
            case "INST":
                return self.call(self.named(*value.split(" ", 1)), self.charged(tuple(operands)))
            case "OBJ":
                return self.call(operands[0], self.charged(tuple(operands[1:])))
            case "BUILD":
                return self.build(*operands)
            case "BINPERSID":
                self.charge(ENTRY)
                if self.storages is None:
                    raise ValueError("the pickle refers to storages, and has none")
                return self.storages(operands[0])
            case "PERSID" | "NEXT_BUFFER":
                raise ValueError("the pickle refers to data outside of the file")

            # Plain values.
            case "NEWTRUE" | "NEWFALSE":
                return opcode == "NEWTRUE"
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING":
                return self.charged(text_of_python2(value))
            case "DUP" | "READONLY_BUFFER" | "STOP":
                return operands[0]
            case "NONE" | "POP" | "POP_MARK" | "PROTO" | "FRAME":
                return None
            case _:
                if isinstance(value, int) and value.bit_length() > LARGEST_INTEGER:
                    return self.inert("builtins.int", ())
                return self.charged(bytes(value) if isinstance(value, bytearray) else value)

    def charged(self, value: Any) -> Any:
        self.charge(sys.getsizeof(value))
        return value

    def inert(self, kind: str, arguments: Any = None) -> Inert:
        self.charge(3 * ENTRY)
        return Inert(kind, arguments)

    def append(self, target: Any, items: list[Any]) -> Any:
        self.charge(9 * len(items))
        if not isinstance(target, list | Inert):
            raise ValueError(f"the pickle appends to a {type(target).__name__}")
        (target if isinstance(target, list) else target.elements).extend(items)
        return target

    def set_items(self, target: Any, items: list[Any]) -> Any:
        """The dict or placeholder after keys and values, which alternate in `items`, were set."""
        self.charge(ENTRY * (len(items) // 2))
        if not isinstance(target, dict | Inert):
            raise ValueError(f"the pickle sets items of a {type(target).__name__}")
        entries = target if isinstance(target, dict) else target.entries
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                self.check_key(key)
            entries[key] = value
        return target

    def check_key(self, key: Any) -> None:
        """Raises ValueError for a tuple that takes too long to hash, as one of tuples of the same tuples.

        Only text and bytes have hashes that the file's author cannot foresee. The charge bounds the number of the
        others, since keys of the same hash take time that grows with the square of their number.
        """
        if isinstance(key, tuple) or (isinstance(key, int) and key.bit_length() > 64):
            self.charge(ODD_KEY)
        waiting, count = [key], 0
        while waiting:
            each = waiting.pop()
            count += 1
            if count + len(waiting) > LARGEST_KEY:
                raise ValueError("the pickle has a key of too many parts")
            waiting += each if isinstance(each, tuple) else []

    def named(self, module: Any, name: Any) -> Inert:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle names something with other things than text")
        return self.inert(self.charged(f"{RENAMED.get(module, module)}.{name}"))

    def call(self, function: Any, arguments: Any, keywords: Any = None) -> Any:
        """What takes the place of a call: a tensor, a plain dict or bytes from what CALLS lists, or a placeholder."""
        if type(function) is not Inert or not isinstance(arguments, tuple):
            raise ValueError(f"the pickle calls a {type(function).__name__}")
        if function.arguments is not None:  # the result of another call
            return self.inert(function.kind, (function, arguments))
        self.charge(8 * len(arguments))
        if function.kind in CALLS and not keywords:
            return CALLS[function.kind](self, *arguments)
        made = self.inert(function.kind, arguments)
        made.state = keywords
        return made

    def build(self, target: Any, state: Any) -> Any:
        """The target after its state was set, or the tensor that the state makes of it."""
        if isinstance(target, dict):  # an OrderedDict's attributes, such as state_dict's versions
            return target
        attributes = isinstance(state, dict) or (isinstance(state, tuple) and len(state) == 3)
        if isinstance(target, Tensor) and attributes:  # the last are a Parameter's gradient and hooks
            return target
        if type(target) is not Inert:
            raise ValueError(f"the pickle sets the state of a {type(target).__name__}")
        target.state = state
        match target, state:
            case Inert(kind="numpy.ndarray", arguments=()), (_, shape, Inert(kind="numpy.dtype") as dtype, order, data):
                target.became = array(self, dtype, shape, "F" if order else "C", data)
            case Inert(kind=kind, arguments=()), (Storage() as storage, *place) if TENSOR_TYPE.fullmatch(kind):
                target.became = tensor(self, storage, *place)
        return target if target.became is None else target.became


def text_of_python2(value: str) -> str | bytes:
    """Python 2's text, which may be any bytes, as pickletools reads it: under the name Latin-1."""
    data = value.encode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# What takes the place of calls: each gets the unpickler and the call's arguments.


def tensor(
    unpickler: Unpickler, storage: Any, offset: int, shape: Any, stride: Any, dtype: torch.dtype | None = None
) -> Any:
    """A view of a storage, checked against its size before it is made."""
    if not isinstance(storage, Storage):
        raise ValueError("the pickle makes a tensor without a storage")
    if storage.untyped is None:
        kind = "quantized" if storage.dtype in QUANTIZED else "meta"
        return unpickler.inert(f"torch.Tensor ({kind})", (storage, offset, shape, stride))
    dtype = dtype or storage.dtype
    shape, stride = sizes(shape), sizes(stride)
    if len(shape) != len(stride) or type(offset) is not int or offset < 0:
        raise ValueError("the pickle has a tensor of an impossible stride or offset")
    values = math.prod(shape)
    if math.prod(each or 1 for each in shape) > LARGEST:
        raise ValueError("the pickle has a tensor of too many values")
    last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
    available = storage.untyped.nbytes()
    if values and (last + 1) * dtype.itemsize > available:
        raise ValueError(f"the pickle has a tensor that ends after {(last + 1) * dtype.itemsize} of {available} bytes")

    # A view may show the same numbers many times, as `expand` does. Whoever copies it needs memory for all.
    unpickler.charge(TENSOR + max(0, values * dtype.itemsize - available))
    made = torch.empty(0, dtype=dtype, device="cpu")
    return made.set_(storage.untyped, offset, shape, stride)


def sizes(value: Any) -> tuple[int, ...]:
    """A shape or a stride, which may be a torch.Size. Raises ValueError for an impossible one."""
    if isinstance(value, Inert) and value.kind == "torch.Size" and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, tuple | list) or len(value) > LARGEST_RANK:
        raise ValueError("the pickle has a tensor whose shape is not a few numbers")
    if not all(type(each) is int and 0 <= each < 1 << 62 for each in value):
        raise ValueError("the pickle has a tensor of an impossible shape")
    return tuple(value)


def rebuilt(
    unpickler: Unpickler, storage: Any, offset: Any, shape: Any, stride: Any, gradient: Any, hooks: Any, *rest: Any,
    typed: bool = False,
) -> Any:  # fmt: skip
    """A tensor with its lazy conjugation and negation; `rest` is its dtype, where the form has one, and these."""
    dtype = DTYPES[rest[0].kind] if typed else None
    made = tensor(unpickler, storage, offset, shape, stride, dtype)
    metadata = rest[typed] if len(rest) > typed else None
    if isinstance(made, Tensor) and isinstance(metadata, dict):
        made = made.conj() if metadata.get("conj") else made
        made = torch._neg_view(made) if metadata.get("neg") else made
    return made


def parameter(unpickler: Unpickler, data: Any = None, *rest: Any) -> Any:
    return unpickler.inert("torch.Tensor", ()) if data is None else data


def device_tensor(unpickler: Unpickler, data: Any, dtype: Any, *rest: Any) -> Any:
    """A tensor of a device without storages, such as a TPU, which torch stores as an array or a tensor."""
    if isinstance(data, Tensor) and data.dtype != DTYPES[dtype.kind]:
        unpickler.charge(data.numel() * DTYPES[dtype.kind].itemsize)
        return data.to(DTYPES[dtype.kind])
    return data


def tensor_of_type(unpickler: Unpickler, function: Any, type_: Any, arguments: Any, *state: Any) -> Any:
    """The plain tensor of one with attributes or of a subclass."""
    made = unpickler.call(function, arguments)
    return made if isinstance(made, Tensor) else unpickler.inert(type_.kind, (made, *state))


def special(kind: str) -> Callable[..., Inert]:
    """A tensor without plain numbers, as a placeholder that says what it is."""
    return lambda unpickler, *arguments: unpickler.inert(f"torch.Tensor ({kind})", arguments)


def plain_dict(unpickler: Unpickler, items: Any = ()) -> dict[Any, Any]:
    """A dict from nothing, a dict, or a list of pairs."""
    if not isinstance(items, dict | list | tuple):
        raise ValueError(f"the pickle makes a dict of a {type(items).__name__}")
    made: dict[Any, Any] = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        unpickler.set_items(made, [key, value])
    return made


def plain_set(unpickler: Unpickler, items: list[Any] | tuple[Any, ...] = ()) -> Any:
    return unpickler.append(unpickler.inert("builtins.set", ()), [*items])


def encode(unpickler: Unpickler, text: Any, codec: Any = "") -> Any:
    """Bytes, which protocol 2 of Python 3 writes as text."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        return unpickler.inert("builtins.bytes", (text, codec))
    unpickler.charge(len(text))
    return text.encode("latin-1")


def plain_bytes(unpickler: Unpickler, data: Any = b"", codec: Any = None) -> Any:
    """The bytes of a `bytes` or a `bytearray`, which never get a number that would be their size."""
    return encode(unpickler, data, codec) if not isinstance(data, bytes) else data


def empty(unpickler: Unpickler, type_: Any, *arguments: Any) -> Inert:
    """An object that gets its state later."""
    return unpickler.inert(type_.kind, ())


def array_from_buffer(unpickler: Unpickler, data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    made = array(unpickler, dtype, shape, order, data)
    return unpickler.inert("numpy.ndarray", (data, dtype, shape, order)) if made is None else made


def array(unpickler: Unpickler, dtype: Any, shape: Any, order: Any, data: Any) -> Tensor | None:
    """The tensor of a numpy array of plain numbers; None for any other array."""
    match dtype:
        case Inert(kind="numpy.dtype", arguments=(str(code), *_), state=(_, ("<" | ">" | "|") as endian, *_)):
            pass
        case _:
            return None
    data = data.encode() if isinstance(data, str) else data
    if code not in ARRAYS or not isinstance(data, bytes):
        return None
    kind, shape = numpy.dtype(endian + code), sizes(shape)
    if len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"the pickle has an array of {len(data)} bytes for a {code} of shape {list(shape)[:9]}")
    unpickler.charge(TENSOR + 2 * len(data))
    values = numpy.ndarray(shape, kind, data, order="F" if order == "F" else "C")
    return torch.from_numpy(values.astype(kind.newbyteorder("="), order="K"))


TENSORS: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": tensor,
    "_rebuild_tensor_v2": rebuilt,
    "_rebuild_tensor_v3": partial(rebuilt, typed=True),
    "_rebuild_parameter": parameter,
    "_rebuild_parameter_with_state": parameter,
    "_rebuild_device_tensor_from_numpy": device_tensor,
    "_rebuild_device_tensor_from_cpu_tensor": device_tensor,
    "_rebuild_xla_tensor": device_tensor,
    "_rebuild_sparse_tensor": special("sparse"),
    "_rebuild_sparse_csr_tensor": special("sparse"),
    "_rebuild_nested_tensor": special("nested"),
    "_rebuild_qtensor": special("quantized"),
    "_rebuild_meta_tensor_no_storage": special("meta"),
    "_rebuild_wrapper_subclass": special("wrapper"),
}
CALLS: dict[str, Callable[..., Any]] = {
    **{f"torch._utils.{name}": function for name, function in TENSORS.items()},
    **{
        f"torch.{module}._rebuild_from_type{v2}": tensor_of_type
        for module in ("_tensor", "tensor")
        for v2 in ("", "_v2")
    },
    "torch.nn.parameter.Parameter": parameter,
    "torch.nn.parameter.Buffer": parameter,
    "torch.autograd.variable.Variable": parameter,
    "collections.OrderedDict": plain_dict,
    "collections.Counter": lambda unpickler, counts: plain_dict(unpickler, {**counts}),
    "builtins.set": plain_set,
    "builtins.frozenset": plain_set,
    "collections.defaultdict": lambda unpickler, factory=None, items=(): plain_dict(unpickler, items),
    "_codecs.encode": encode,
    "builtins.bytes": plain_bytes,
    "builtins.bytearray": plain_bytes,
    "copyreg._reconstructor": empty,
    "copyreg.__newobj__": lambda unpickler, type_, *arguments: unpickler.call(type_, arguments),
    "numpy.core.multiarray._reconstruct": empty,
    "numpy._core.multiarray._reconstruct": empty,
    "numpy.core.numeric._frombuffer": array_from_buffer,
    "numpy._core.numeric._frombuffer": array_from_buffer,
}
