"""Files of weights that someone broke or wrote to do harm; whatever executes one leaves a mark in its folder."""

import io
import json
import os
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict

import numpy
import torch
from torch import nn

from resnet_core.weights.files import write_weights
from resnet_core.weights.header import INDEX_LIMIT

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle
ZIP_END = struct.Struct("<4sQHHIIQQQQ 4sIQI 4sHHHHIIH")  # the three records at the end of torch's zips
ZIP_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
GIB = 1 << 30


def model():
    return nn.Linear(3, 2)


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def saved(content, legacy=False):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype="F32", shape=(2,), span=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span), **more}


def torch_zip(*members, directory_times=1, total=None):
    """A zip that ends as torch's do; members are (name, stored bytes, method, size claimed)."""
    body, directory = b"", b""
    for name, stored, method, size in members:
        entry = (20, 0, method, 0, 0, zlib.crc32(stored), len(stored), size, len(name), 0)
        offset = len(body)
        body += struct.pack("<4sHHHHHIIIHH", b"PK\3\4", *entry) + name + stored
        directory += ZIP_ENTRY.pack(b"PK\1\2", 20, *entry, 0, 0, 0, 0, offset) + name
    directory *= directory_times
    count = len(members) * directory_times if total is None else total
    end = (b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(body))
    locator = (b"PK\6\7", 0, len(body) + len(directory), 1)
    return body + directory + ZIP_END.pack(*end, *locator, b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)


def member(name, stored, method=0, size=None):
    return (b"archive/" + name, stored, method, len(stored) if size is None else size)


def deflated(data):
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return machine.compress(data) + machine.flush()


def records(content):
    """Members of a zip of torch.save's by name, without its folder."""
    with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
        return {name.split("/", 1)[1].encode(): archive.read(name) for name in archive.namelist()}


def rezipped(content, **changed):
    """torch.save's members, some exchanged: `data_pkl=bytes`, `data_0=bytes`."""
    parts = records(content)
    for name, data in changed.items():
        parts[name.replace("data_pkl", "data.pkl").replace("data_", "data/").encode()] = data
    return torch_zip(*[member(name, data) for name, data in parts.items()])


def scripted():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is on its way out, its files are not
        torch.jit.save(torch.jit.script(model()), buffer)
    return buffer.getvalue()


def tar(**files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def object_array(content):
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.array([content], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def legacy(obj, keys=b"\x80\x02].", numbers=b""):
    """torch's old form around any pickled object."""
    return LEGACY_START + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + obj + keys + numbers


def tensor_opcodes(key=b"0", numel=2, shape=b"K\x02\x85", stride=b"K\x01\x85"):
    """A tensor as torch.save pickles it, with the storage's size claimed at will."""
    storage = b"((X\7\0\0\0storagectorch\nFloatStorage\n" + short(key) + short(b"cpu") + b"\x8a\x08"
    storage += struct.pack("<q", numel)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"TAILQK\x00" + shape + stride + hooks + b"tR"


def short(text):
    return b"X" + struct.pack("<I", len(text)) + text


def dict_of(**values):
    return b"\x80\x02}" + b"".join(short(name.encode()) + value + b"s" for name, value in values.items()) + b"."


def claimed(old_form, **claim):
    """A file whose tensor claims another size than it has."""
    end = b"Nt" if old_form else b"t"
    pickled = dict_of(weight=tensor_opcodes(**claim).replace(b"TAIL", end))
    if old_form:
        return legacy(pickled, pickle.dumps(["0"], 2), struct.pack("<q", 2) + bytes(8))
    return torch_zip(member(b"data.pkl", pickled), member(b"version", b"3\n"), member(b"data/0", bytes(8)))


def many_copies(copy):
    """A dict with 40,000 entries, then 2,000 copies of it, each in a few bytes of pickle: `copy` is how."""
    entries = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(40_000))
    return b"\x80\x02(}q\x00(" + entries + b"uccollections\nOrderedDict\nq\x01" + copy * 2_000 + b"t."


def reduced(name, *arguments):
    """A pickled call of `name`, that is "module function", as protocol 2 writes it."""
    inner = pickle.dumps(arguments, 2)[2:-1]
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + inner + b"R."


def executions(mark):
    """Pickled objects by name; each writes `mark` when it is unpickled without care."""
    touch = f"touch {mark}"
    python = f"__import__('os').system({touch!r})"
    return {
        # As Python pickles them, in every protocol.
        "os.system": pickle.dumps({"weight": Call(os.system, touch)}, 2),
        "os": reduced("os system", touch),
        "eval": pickle.dumps({"weight": Call(eval, python)}, 2),
        "exec": pickle.dumps(OrderedDict(weight=Call(exec, python)), 2),
        "open": pickle.dumps({"weight": Call(open, str(mark), "w")}, 2),
        "subprocess": reduced("subprocess check_call", ["touch", str(mark)]),
        "protocol 0": pickle.dumps({"weight": Call(os.system, touch)}, 0),
        "protocol 4": pickle.dumps({"weight": Call(os.system, touch)}, 4),
        "protocol 5": pickle.dumps({"weight": Call(os.system, touch)}, 5),
        # By opcodes that Python no longer writes.
        "instance": b"(S" + repr(touch).encode() + b"\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS" + repr(touch).encode() + b"\no.",
        "state": pickle.dumps({"weight": Call(OrderedDict, state={"x": Call(os.system, touch)})}, 2),
        "storage": b"\x80\x02(" + short(b"storage") + reduced("os system", touch)[2:-1] + b"tQ.",
        # Calls of what another call returns, and calls after honest values.
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n" + short(b"__call__") + b"\x86R" + short(touch.encode())
        + b"\x85R.",
        "after a tensor": b"\x80\x02}" + short(b"a") + b"Ns" + short(b"b") + reduced("os system", touch)[2:-1] + b"s.",
    }  # fmt: skip


def pickles(mark):
    """Name of a file -> its bytes: pickles that execute, in every container, and pickles that take memory."""
    files = {}
    for way, pickled in executions(mark).items():
        files[f"zip {way}.pt"] = rezipped(WEIGHTS, data_pkl=pickled)
        files[f"legacy {way}.pth"] = legacy(pickled)
        files[f"raw {way}.bin"] = pickled
    harm = reduced("os system", f"touch {mark}")
    big = b"\x8a\x08" + struct.pack("<q", 8 * GIB)
    many = [member(b"data.pkl", records(WEIGHTS)[b"data.pkl"])] + [member(b"x", b"")] * 60_000
    zeros = deflated(bytes(64 << 20))
    bombs = {
        "bytearray": b"\x80\x02c__builtin__\nbytearray\n" + big + b"\x85R.",
        "tensor": b"\x80\x02ctorch\nFloatTensor\n" + big + b"\x85R.",
        "storage": b"\x80\x02ctorch.storage\nUntypedStorage\n" + big + b"\x85R.",
        "copies": many_copies(b"h\x01h\x00\x85R"),
        "copies by tuple": many_copies(b"h\x01(h\x00tR"),
        "copies by state": many_copies(b"h\x01)Rh\x00b"),
        "copies by counter": many_copies(b"ccollections\nCounter\nh\x00\x85R"),
        "long": dict_of(weight=b"N") + bytes(INDEX_LIMIT + 1),
        "string of 4 GiB": b"\x80\x02X\xff\xff\xff\xff",
    }
    for name, pickled in bombs.items():
        files[f"zip bomb {name}.pt"] = rezipped(WEIGHTS, data_pkl=pickled)
        files[f"legacy bomb {name}.pth"] = legacy(pickled)
    honest, old = saved(WEIGHTS), saved(WEIGHTS, legacy=True)
    expanded = {"shape": b"\x8a\x06" + struct.pack("<q", 1 << 40)[:6] + b"\x85", "stride": b"K\x00\x85"}
    return files | {
        "legacy magic.pt": harm,
        "legacy keys.pt": legacy(dict_of(), keys=harm),
        "tar.pt": tar(pickle=harm, storages=harm, tensors=harm),
        "tar.pth": tar(sys_info=harm, pickle=harm),
        "array.ckpt": object_array(Call(os.system, f"touch {mark}")),
        "script.pt": scripted(),
        "module.pt": saved(model()),
        "module.pth": saved(model(), legacy=True),
        "deflated.pt": torch_zip(
            member(b"data.pkl", records(WEIGHTS)[b"data.pkl"]), member(b"data/0", zeros, 8, 64 << 20)
        ),
        "deflated pickle.pt": torch_zip(member(b"data.pkl", zeros, 8, 64 << 20)),
        "stored but longer.pt": torch_zip(member(b"data.pkl", zeros, 0, 8 * GIB % 2**32 + 64)),
        "overlapping.pt": torch_zip(member(b"data.pkl", bytes(1 << 20)), directory_times=500),
        "members.pt": torch_zip(*many),
        "count.pt": torch_zip(member(b"data.pkl", b"N."), total=1 << 60),
        "two pickles.pt": torch_zip(member(b"data.pkl", b"N."), member(b"DATA.PKL", harm)),
        "no pickle.pt": torch_zip(member(b"data/0", bytes(8))),
        "offset.pt": torch_zip(member(b"data.pkl", b"N."))[:-46] + bytes(46),
        "comment.pt": honest[:-2] + b"\x04\0more",
        "after the end.pt": honest + b"more",
        "another writer.pt": tar_to_zip(honest),
        "cut.pt": honest[:-30],
        "half.pt": honest[: len(honest) // 2],
        "claims.pt": claimed(False, numel=1 << 40),
        "claims a little.pt": claimed(False, numel=3, shape=b"K\x03\x85"),
        "expanded.pt": claimed(False, **expanded),
        "outside.pt": claimed(False, shape=b"K\x09\x85"),
        "cut.pth": old[:-5],
        "half.pth": old[: len(old) // 2],
        "claims.pth": claimed(True, numel=1 << 40),
        "claims a little.pth": claimed(True, numel=3, shape=b"K\x03\x85"),
        "expanded.pth": claimed(True, **expanded),
        "unstored.pth": legacy(
            dict_of(weight=tensor_opcodes().replace(b"TAIL", b"Nt")), pickle.dumps([], 2)
        ),
        "missing record.pt": claimed(False, key=b"7"),
        "list.pt": saved([torch.ones(2)]),
        "numbered.pt": saved({0: torch.ones(2)}),
        "text.pt": saved({"weight": "a text"}),
        "sparse.pt": saved({"weight": torch.eye(2).to_sparse()}),
        "empty.pt": b"",
        "page.pt": b"<!DOCTYPE html><title>404 Not Found</title>",
        "safetensors.pt": safetensors({"a": tensor()}, bytes(8)),
        "nan.pth": saved({**WEIGHTS, "weight": torch.full((2, 3), float("nan"))}),
    }  # fmt: skip


def called(name, *arguments):
    """A fragment of a pickle that calls `name`, "module function"."""
    return reduced(name, *arguments)[2:-1]


def fragment(value):
    return pickle.dumps(value, 2)[2:-1]


STORAGE = b"((" + short(b"storage") + b"ctorch\nFloatStorage\n<KEY>" + short(b"cpu") + b"K\x06<END>Q"  # of `weight`
TWO = b"K\0K\2\x85K\1\x85"  # the place of two numbers in it: offset, shape, stride


def view(place):
    """A tensor that shares its storage with `weight`."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + STORAGE + place + b"\x89}tR"


def doubled(start, twice):
    """A value that holds the one before it twice, 60 times over: 2**60 values when somebody counts."""
    return start + b"q\xf00" + (twice + b"q\xf00") * 60 + b"h\xf0"


def repeated(function, arguments, times, before=b""):
    """A tuple of many results of one call, each in a few bytes."""
    name = b"c" + function.replace(" ", "\n").encode() + b"\nq\xf1"
    return b"(" + before + arguments + b"q\xf0" + name + b"h\xf1h\xf0R" * times + b"t"


def harmless_neighbours(mark):
    """Fragments of pickles by name that harm a reader who believes them, and that an inert reader reads."""
    touch = f"touch {mark}"
    array = fragment(numpy.zeros(4))
    system = b"cos\nsystem\n"
    return {
        "os.system": called("os system", touch),
        "posix.system": called("posix system", touch),
        "eval": called("__builtin__ eval", f"__import__('os').system({touch!r})"),
        "exec": called("builtins exec", f"__import__('os').system({touch!r})"),
        "import": called("builtins __import__", "leaves_a_mark"),
        "import_module": called("importlib import_module", "leaves_a_mark"),
        "named module": b"cleaves_a_mark\nanything\n",
        "named library": b"cantigravity\nanything\n",
        # Calls that would leave the mark, or names whose import would.
        "subprocess": called("subprocess Popen", ["touch", str(mark)]),
        "pty": called("pty spawn", ["touch", str(mark)]),
        "open": called("builtins open", str(mark), "w"),
        "run_path": called("runpy run_path", str(mark.parent / "leaves_a_mark.py")),
        "nested pickle": called("pickle loads", executions(mark)["os.system"]),
        "torch.load": called("torch.serialization load", str(mark)),
        "torch.hub": called("torch.hub load_state_dict_from_url", "http://localhost/a"),
        "load_library": called("torch._ops load_library", str(mark)),
        "numpy.load": called("numpy load", str(mark)),
        "ctypes": called("ctypes CDLL", str(mark)),
        "function": called("types FunctionType", "code"),
        "getattr": executions(mark)["getattr"][2:-1],
        "attrgetter": b"coperator\nattrgetter\n" + short(b"system") + b"\x85Rcos\nsystem\n\x85R",
        "partial": b"cfunctools\npartial\n" + system + short(touch.encode()) + b"\x86R)R",
        # Objects that get their state, their class or their items by hand.
        "instance": executions(mark)["instance"][:-1],
        "object": executions(mark)["object"][:-1],
        "new object with keywords": system + b")}" + short(b"a") + b"Ns\x92",
        "reconstructor": b"ccopy_reg\n_reconstructor\n" + system + b"c__builtin__\nobject\nN\x87R",
        "newobj function": b"ccopyreg\n__newobj__\n" + system + short(touch.encode()) + b"\x86R",
        "extension": b"\x82\x01",
        "extension of 2 bytes": b"\x83\x01\x01",
        "extension of 4 bytes": b"\x84\xff\xff\xff\x7f",
        "add_extension": called("copyreg add_extension", "os", "system", 1),
        "setstate": called("collections OrderedDict") + called("os system", touch) + b"b",
        "class by state": system + b")R}" + short(b"__class__") + system + b"sb",
        "state twice": system + b")R}b}b",
        "slots": system + b")RN}" + short(b"__dict__") + b"Ns\x86b",
        "state of a type": b"ccollections\nOrderedDict\n}" + short(b"clear") + b"Nsb",
        "items of a type": system + short(b"a") + b"Ns",
        # Tensors and arrays that are none.
        "type of tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + 2 * system + short(touch.encode()) + b"\x85}tR",
        "wrapper": called("torch._utils _rebuild_wrapper_subclass", touch),
        "sparse": called("torch._utils _rebuild_sparse_tensor", touch, (1, 2, 3)),
        "meta": called("torch._utils _rebuild_meta_tensor_no_storage", touch, (1 << 60,), (1,), True),
        "quantized": called("torch._utils _rebuild_qtensor", touch),
        "parameter of text": called("torch._utils _rebuild_parameter", touch, True, None),
        "scalar": b"cnumpy.core.multiarray\nscalar\n" + fragment(numpy.dtype("O")) + short(b"x") + b"\x86R",
        "array of objects": fragment(numpy.array([Call(os.system, touch)], dtype=object)),
        "array of an unknown dtype": array.replace(b"f8", b"Z9"),
        # Values that would take memory.
        "codec": called("_codecs encode", "x" * 99, "zip"),
        "bytearray": called("builtins bytearray", 1 << 40),
        "range": called("builtins range", 1 << 60),
        "list of a range": b"cbuiltins\nlist\n" + called("builtins range", 1 << 60) + b"\x85R",
        "torch.zeros": called("torch zeros", 1 << 40),
        "torch.Size": called("torch Size", (1 << 60,) * 99),
        "typed tensor": called("torch FloatTensor", 1 << 40),
        "defaultdict": b"ccollections\ndefaultdict\n" + system + b"\x85R",
        # Values that hold each other, or one value many times.
        "doubled lists": doubled(b"]", b"(h\xf0h\xf0l"),
        "doubled tuples": doubled(b")", b"h\xf0h\xf0\x86"),
        "doubled objects": doubled(b")", system + b"h\xf0h\xf0\x86R"),
        "doubled set": b"c__builtin__\nset\n](" + doubled(b")", b"h\xf0h\xf0\x86") + b"e\x85R",
        "deep lists": b"]" * 20_000 + b"a" * 19_999,
        "deep tuples": b")" + b"\x85" * 20_000,
        "deep dicts": (b"}" + short(b"")) * 20_000 + b"N" + b"s" * 20_000,
        "list of itself": b"]q\xf0h\xf0a",
        "dict of itself": b"}q\xf0" + short(b"a") + b"h\xf0s",
        "object of itself": system + b")Rq\xf0h\xf0b",
        # Numbers and lengths beyond the file.
        "far memo": b"Nr\xff\xff\xff\xff",
        "frame of 8 EiB": b"\x95" + struct.pack("<Q", 1 << 62) + b"N",
        "megabyte of integer": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20),
        "integer of 2000 bits": b"\x8a\xfa" + b"\x7f" * 250,
        "source of a module": b"(" + short(b"module") + system + short(str(mark).encode()) + short(b"x") + b"tQ",
        "view of the weights": view(TWO),
    }  # fmt: skip


def malformed_neighbours():
    """Fragments of pickles by name that no pickle of Python's has, or that take memory or time."""
    array = fragment(numpy.zeros(4))
    key = short(b"../../../../etc/passwd")
    below = b"J\xff\xff\xff\xff"
    thousands = b"}(" + b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(20_000)) + b"u"
    megabyte = struct.pack("<I", 1 << 20) + bytes(1 << 20)
    from_buffer = b"(B" + megabyte + fragment(numpy.dtype("f4")) + fragment((1 << 18,)) + short(b"C") + b"t"
    colliding = b"".join(fragment(number * ((1 << 61) - 1)) + b"N" for number in range(1 << 10, 20_000))
    return {
        # Keys that take long to hash.
        "tuples as a key": b"}" + doubled(b")", b"h\xf0h\xf0\x86") + b"Ns",
        "unhashable key": b"}]Ns",
        "integers as keys": b"}(" + colliding + b"u",
        # Copies that take memory, each in a few bytes.
        "copied dicts": repeated("collections OrderedDict", thousands + b"\x85", 2_000),
        "copied sets": repeated("builtins set", b"(" + b"N" * 20_000 + b"t\x85", 5_000),
        "copied arguments": repeated("copyreg __newobj__", b"(cos\nsystem\n" + b"N" * 20_000 + b"t", 5_000),
        "copied bytes": repeated("_codecs encode", b"X" + megabyte + short(b"latin1") + b"\x86", 200),
        "copied arrays": repeated("numpy.core.numeric _frombuffer", from_buffer, 200),
        "copied tensors": repeated("torch._utils _rebuild_tensor_v2", STORAGE + TWO + b"\x89}t", 60_000),
        "sets": b"(" + b"\x8f" * 200_000 + b"t",
        "memo": b"N" + b"".join(b"r" + struct.pack("<I", number) for number in range(500_000)),
        "nested calls": repeated("copyreg __newobj__", b"(" + b"ccopyreg\n__newobj__\n" * 3_000 + b"t", 1),
        # Views outside of their storage, or of impossible shapes.
        "expanded": view(b"K\0\x8a\x06" + struct.pack("<q", 1 << 40)[:6] + b"\x85K\0\x85"),
        "negative stride": view(b"K\5K\2\x85" + below + b"\x85"),
        "negative shape": view(b"K\0" + below + below + b"\x86K\1K\1\x86"),
        "negative offset": view(below + b"K\2\x85K\1\x85"),
        "65 dimensions": view(b"K\0(" + b"K\1" * 65 + b"t(" + b"K\1" * 65 + b"t"),
        "shape of text": view(b"K\0" + short(b"2") + b"K\1\x85"),
        "fewer strides": view(b"K\0K\2\x85)"),
        "outside of its storage": view(b"K\5K\2\x85K\1\x85"),
        # Storages that are not the file's.
        "storage outside of the file": view(TWO).replace(b"<KEY>", key),
        "storage under a number": view(TWO).replace(b"<KEY>", b"K\0"),
        "storage of another size": view(TWO).replace(b"K\x06", b"K\x05"),
        "storage of two sizes": b"(" + view(TWO) + view(TWO).replace(b"K\x06", b"K\x05") + b"t",
        "storage of an unknown type": view(TWO).replace(b"FloatStorage", b"OddStorage"),
        "tensor without a storage": called("torch._utils _rebuild_tensor", "x", 0, (1,), (1,)),
        # References and lengths beyond the file.
        "persistent text": b"P../../../etc/passwd\n",
        "unknown persistent id": key + b"Q",
        "buffer outside": b"\x97",
        "8 EiB of bytes": b"\x8e" + struct.pack("<Q", 1 << 62),
        "8 EiB of bytearray": b"\x96" + struct.pack("<Q", 1 << 62),
        "8 EiB of text": b"\x8d" + struct.pack("<Q", 1 << 62),
        "long integer in digits": b"L" + b"7" * 5000 + b"L\n",
        # Opcodes on the wrong values.
        "tuple over a mark": b"(N(\x85tt",
        "more pops than values": b"0" * 9,
        "module under a number": b"K\1K\2\x93",
        "call of text": short(b"os.system") + b")R",
        "call with a list": b"cos\nsystem\n]R",
        "state of text": short(b"x") + b"}b",
        "append to text": short(b"x") + b"Na",
        "items of a list": b"]NNs",
        "items without a value": b"}(NNNu",
        "items of text": b"ccollections\nOrderedDict\n" + short(b"abcd") + b"\x85R",
        "unknown memo": b"h\xee",
        "other weights by state": view(TWO) + STORAGE + TWO + b"tb",
        "state of weights": view(TWO) + short(b"x") + b"b",
        "append to weights": view(TWO) + b"Na",
        "items of weights": view(TWO) + b"NNs",
        "array outside of its bytes": array.replace(b"K\x04\x85", b"J\0\0\0\x10\x85"),
    }  # fmt: skip


def beside_weights(hostile, old_form):
    """A file with good weights and, before them, a hostile fragment under another name."""
    honest = saved(WEIGHTS, old_form)
    pickled = honest if old_form else records(WEIGHTS)[b"data.pkl"]
    start = pickled.index(b"}q\x00(" + short(b"weight"))
    end = pickled.index(b"u.", start)
    key = re.search(rb"X.\0\0\0(\d+)q.X\x03\0\0\0cpu", pickled, re.DOTALL)[1]
    hostile = hostile.replace(b"<KEY>", short(key)).replace(b"<END>", b"Nt" if old_form else b"t")
    changed = b"}" + short(b"neighbour") + hostile + b"s" + pickled[start + 3 : end]
    if old_form:
        return honest[:start] + changed + honest[end:]
    return rezipped(WEIGHTS, data_pkl=pickled[:start] + changed + pickled[end:])


def tar_to_zip(honest):
    """The same members, stored, as Python's zipfile writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(honest)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def safetensors_files(mark, written):
    """Name of a file -> its bytes: headers that lie, damage to `written`, and pickles under this name."""
    flipped, wide = bytearray(written), (1 << 32, 1 << 32)
    flipped[-1] ^= 1
    harm = reduced("os system", f"touch {mark}")
    good = json.dumps({"a": tensor()}).encode()
    two = {"a": tensor(), "b": tensor(span=(8, 16))}
    said = {"model": "resnet18", "origin": 5, "config": {}, "transform": None, "class_names": None}
    digits = good.replace(b"[2]", b"[" + b"2" * 5000 + b"]")
    files = {
        # Headers of impossible length, or that are not JSON.
        "empty": b"",
        "seven bytes": bytes(7),
        "no header": safetensors(b""),
        "length past the end": safetensors(good, length=1 << 20),
        "length of 8 EiB": safetensors(good, length=1 << 63),
        "length all ones": safetensors(good, length=(1 << 64) - 1),
        "length too short": safetensors(good, bytes(8), length=len(good) - 1),
        "long header": safetensors(good + b" " * INDEX_LIMIT, bytes(8)),
        "not JSON": safetensors(b"{'a': 1}"),
        "not UTF-8": safetensors(b'{"\xff": 1}'),
        "UTF-16": safetensors(good.decode().encode("utf-16"), bytes(8)),
        "list": safetensors(b"[]"),
        "null": safetensors(b"null"),
        "deep": safetensors(b"[" * 100_000 + b"]" * 100_000),
        "digits": safetensors(digits, bytes(8)),
        # Names twice, and entries of the wrong types.
        "name twice": safetensors(good[:-1] + b", " + good[1:], bytes(8)),
        "dtype twice": safetensors(good.replace(b'"dtype"', b'"dtype": "F32", "dtype"'), bytes(8)),
        "metadata twice": safetensors(good[:-1] + b', "__metadata__": {}, "__metadata__": {}}', bytes(8)),
        "metadata list": safetensors({"a": tensor(), "__metadata__": []}, bytes(8)),
        "metadata number": safetensors({"a": tensor(), "__metadata__": {"format": 1}}, bytes(8)),
        "origin number": safetensors({"a": tensor(), "__metadata__": {"resnet_core": json.dumps(said)}}, bytes(8)),
        "entry number": safetensors({"a": 1}, bytes(8)),
        "entry without shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
        "entry with more": safetensors({"a": tensor(more=1)}, bytes(8)),
        "unknown dtype": safetensors({"a": tensor(dtype="F33")}, bytes(8)),
        "dtype list": safetensors({"a": tensor(dtype=["F32"])}, bytes(8)),
        "dtype of 4 bits": safetensors({"a": tensor(dtype="F4", shape=(16,))}, bytes(8)),
        # Offsets that lie.
        "negative offset": safetensors({"a": tensor(span=(-8, 0))}, bytes(8)),
        "reversed offsets": safetensors({"a": tensor(span=(8, 0))}, bytes(8)),
        "offset true": safetensors({"a": tensor(shape=(), dtype="U8", span=(False, True))}, bytes(1)),
        "one offset": safetensors({"a": tensor(span=(8,))}, bytes(8)),
        "overlap": safetensors({**two, "b": tensor(span=(4, 12))}, bytes(12)),
        "same place": safetensors({"a": tensor(), "b": tensor()}, bytes(8)),
        "hole": safetensors({**two, "b": tensor(span=(12, 20))}, bytes(20)),
        "starts late": safetensors({"a": tensor(span=(8, 16))}, bytes(16)),
        "past the end": safetensors(two, bytes(8)),
        "bytes left over": safetensors({"a": tensor()}, bytes(16)),
        "offsets of 2**70": safetensors({"a": tensor(span=(0, 1 << 70))}, bytes(8)),
        # Shapes that lie.
        "8 TiB": safetensors({"a": tensor(shape=(1 << 41,), span=(0, 1 << 43))}, bytes(8)),
        "shape too small": safetensors({"a": tensor(shape=(1,))}, bytes(8)),
        "shape negative twice": safetensors({"a": tensor(shape=(-1, -2))}, bytes(8)),
        "shape float": safetensors({"a": tensor(shape=(2.0,))}, bytes(8)),
        "shape text": safetensors({"a": {**tensor(), "shape": "2"}}, bytes(8)),
        "shape of 1000 dimensions": safetensors({"a": tensor(shape=[1] * 999 + [2])}, bytes(8)),
        "shape that wraps to zero": safetensors({"a": tensor(shape=wide, span=(0, 0))}),
        "shape absurd but empty": safetensors({"a": tensor(shape=(0, *wide), span=(0, 0))}),
        # Damage to an honest file, and pickles under this name.
        "cut in the header": written[:50],
        "cut in the tensors": written[:-4],
        "longer": written + bytes(4),
        "flipped bit": bytes(flipped),
        "raw pickle": harm,
        "zip pickle": rezipped(WEIGHTS, data_pkl=harm),
        "legacy pickle": legacy(harm),
        "honest pickle": saved(WEIGHTS),
    }
    return {f"{name}.safetensors": data for name, data in files.items()}


def write_hostile_files(folder):
    """Paths of all hostile files, and of the mark that an execution would leave."""
    mark = folder / "executed"
    good = folder / "written.safetensors"
    write_weights(good, WEIGHTS)
    written = good.read_bytes()
    for value in (float("nan"), float("inf")):
        write_weights(folder / f"{value}.safetensors", {**WEIGHTS, "bias": torch.tensor([1.0, value])})
    good.unlink()
    for name, data in (pickles(mark) | safetensors_files(mark, written)).items():
        (folder / name).write_bytes(data)
    (folder / "folder.safetensors").mkdir()
    (folder / "folder.pt").mkdir()
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "loop.pt").symlink_to(folder / "loop.pt")
    (folder / "dangling.safetensors").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.pt")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "weights.pickle").write_bytes(reduced("os system", f"touch {mark}"))
    (folder / "weights").write_bytes(written)
    return sorted(folder.iterdir()), mark
