"""Pickles: what torch.load gives, ours gives to the bit; everything else stays inert, whatever it is."""

import argparse
import collections
import contextlib
import datetime
import enum
import io
import pathlib
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resnet_core.weights import WeightsError, inspect_weights
from resnet_core.weights.containers import read_container
from resnet_core.weights.contents import module_tensors, walk
from resnet_core.weights.pickles import Budget, Inert, Unpickler
from tests.weights import hostile


def unpickle(data, size=None):
    return Unpickler(io.BytesIO(data), Budget(len(data) if size is None else size)).load()


# What torch.load gives.

SAVED_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@st.composite
def tensors(draw):
    """Tensors of every dtype: contiguous, views of one storage, channels_last, expanded, conjugated, Parameters."""
    dtype = draw(st.sampled_from(SAVED_DTYPES))
    base = torch.arange(96).remainder(2 if dtype == torch.bool else 100).to(dtype)
    form = draw(
        st.sampled_from(["whole", "views", "channels_last", "expanded", "empty", "scalar", "lazy", "parameter"])
    )
    if form == "views":
        step = draw(st.integers(1, 4))
        return [base[draw(st.integers(0, 9)) :: step], base.view(8, 12).T, base[:0]]
    if form == "channels_last":
        return base.view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    if form == "expanded":
        return base[:1].expand(draw(st.integers(1, 5)), 3)
    if form == "lazy" and dtype.is_complex:
        return [base.conj(), base.clone().conj().imag]
    if form == "parameter" and dtype.is_floating_point and dtype.itemsize > 1:
        return nn.Parameter(base, requires_grad=draw(st.booleans()))
    return {"empty": base[:0].view(0, 3), "scalar": base[5].clone()}.get(form, base)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=9),
    st.binary(max_size=9), st.sampled_from([torch.float32, torch.Size([2, 3]), torch.device("cpu"), 1 + 2j, (), {3}]),
    st.builds(collections.Counter, st.text(max_size=4)), st.builds(bytearray, st.binary(max_size=3)),
)  # fmt: skip
keys = st.one_of(st.text(max_size=9), st.integers(-9, 9), st.tuples(st.integers(0, 9), st.text(max_size=2)))
contents = st.recursive(
    st.one_of(scalars, tensors()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict),
        inner.map(lambda value: [value, value]),  # one object, twice
    ),
    max_leaves=8,
)


def comparable(value, storages):
    """What torch.load or our reader made, as plain values: tensors by their bits, strides and shared storages."""
    if isinstance(value, torch.Tensor):
        address = value.untyped_storage().data_ptr()
        number = storages.setdefault(address, len(storages)) if value.untyped_storage().nbytes() else None
        bits = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).tolist()
        return (value.dtype, value.shape, value.stride(), value.storage_offset(), number, bits)
    if isinstance(value, dict):
        return [(comparable(key, storages), comparable(each, storages)) for key, each in value.items()]
    if isinstance(value, Inert) and value.kind == "builtins.set":
        return ("set", value.elements)
    if isinstance(value, Inert):
        return (value.kind, comparable(value.arguments, storages))
    if isinstance(value, list):
        return [comparable(each, storages) for each in value]
    if isinstance(value, torch.Size):
        return ("torch.Size", (tuple(value),))
    if isinstance(value, tuple):
        return tuple(comparable(each, storages) for each in value)
    if isinstance(value, set):
        return ("set", [*value])
    if isinstance(value, torch.dtype):
        return (str(value), None)
    if isinstance(value, torch.device):
        return ("torch.device", (str(value),))
    if isinstance(value, complex):
        return ("builtins.complex", (value.real, value.imag))
    if isinstance(value, bytearray):
        return bytes(value)
    return value


@settings(max_examples=120, deadline=None)
@given(content=contents, protocol=st.sampled_from([2, 2, 3, 4, 5]), legacy=st.booleans())
def test_what_torch_reads_is_read_to_the_bit(tmp_path_factory, content, protocol, legacy):
    """Compared with torch.load(weights_only=True) where it reads the protocol, and with what was saved."""
    path = tmp_path_factory.getbasetemp() / "any.pth"
    try:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    except (RuntimeError, NotImplementedError, AttributeError, KeyError):  # of torch's old form, for new dtypes
        return
    ours = comparable(read_container(path).content, {})
    assert ours == comparable(content, {})
    # torch refuses b"" and, in its old form, dtypes that have no storages of their own.
    refusals = (pickle.UnpicklingError, AttributeError)
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(*refusals):
        assert ours == comparable(torch.load(path, weights_only=True), {})


def test_lazy_conjugation_and_negation_are_kept(tmp_path):
    saved = torch.tensor([1 + 2j, 3 - 4j]).conj()
    torch.save([saved, saved.resolve_conj().conj().imag], tmp_path / "a.pt")
    conjugated, negated = read_container(tmp_path / "a.pt").content
    assert conjugated.tolist() == [1 - 2j, 3 + 4j]
    assert negated.tolist() == [2, -4]


# Everything else.


class Colour(enum.Enum):
    RED = 1


BESIDE = {
    "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data")),
    "best": np.float64(0.5),
    "when": datetime.datetime(2024, 1, 2),
    "colour": Colour.RED,
    "objects": np.array([{}], dtype=object),
    "factory": collections.defaultdict(list, {"a": [1]}),
    "counts": collections.Counter("aab"),
    "ordered": collections.OrderedDict(a=1),
    "set": {1, 2},
}


@pytest.mark.parametrize("protocol", range(6))
def test_what_lies_beside_the_weights_stays_inert_and_says_its_name(protocol):
    numbers = np.arange(6, dtype=">i4").reshape(2, 3).T
    content = unpickle(pickle.dumps({**BESIDE, "numbers": numbers, "again": numbers}, protocol))
    assert content["args"].kind == "argparse.Namespace"
    assert content["args"].state["lr"] == 0.1
    assert (content["factory"], content["counts"], content["ordered"]) == ({"a": [1]}, {"a": 2, "b": 1}, {"a": 1})
    assert content["numbers"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert content["again"] is content["numbers"]
    kinds = {value.kind for _, value in walk(content) if isinstance(value, Inert)}
    assert {"argparse.Namespace", "pathlib.PurePosixPath", "datetime.datetime", "builtins.set"} <= kinds
    assert {f"{__name__}.Colour", "numpy._core.multiarray.scalar", "numpy.ndarray"} <= kinds


def test_arrays_with_the_text_of_python_2_for_bytes_are_read():
    """As in detectron2's R-50.pkl, and in one written by `pickle.dump` of Python 2 with any bytes in it."""
    values = np.array([0.1, -2.5, 3e7], np.float32)
    written = hostile.fragment(values)
    start, end = written.rindex(b"h\x03X"), written.rindex(b"Rq") + 1  # the call of _codecs.encode
    old = written[:start] + b"U\x0c" + values.tobytes() + written[end:]
    assert unpickle(b"\x80\x02" + old + b".").tolist() == values.tolist()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_module_has_its_state_dict_and_is_not_built(tmp_path, legacy):
    class Private(nn.Sequential):
        """Which nobody could import."""

    network = nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2))))
    network.module.register_buffer("unsaved", torch.ones(1), persistent=False)
    with warnings.catch_warnings(action="ignore"):
        torch.save({"model": network}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    container = read_container(tmp_path / "a.pt")
    found = module_tensors(container.content["model"])
    assert list(found) == list(network.state_dict())
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
    assert "torch.nn.modules.batchnorm.BatchNorm2d" in container.beside


def test_modules_that_hold_each_other_are_refused_by_the_name_of_the_file(tmp_path):
    itself = hostile.short(b"_modules") + b"}" + hostile.short(b"0") + b"h\x00s"
    module = b"\x80\x02ctorch.nn.modules.container\nSequential\n)Rq\x00}" + itself + b"sb."
    (tmp_path / "a.pkl").write_bytes(module)
    with pytest.raises(WeightsError, match=r"a.pkl is malformed: the pickle has modules that hold each other; fetch"):
        inspect_weights(tmp_path / "a.pkl")


ODD_TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(2, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_without_plain_numbers_say_what_they_are(tmp_path, kind):
    with warnings.catch_warnings(action="ignore"):
        torch.save({"odd": ODD_TENSORS[kind](), "even": torch.ones(2)}, tmp_path / "a.pt")
    container = read_container(tmp_path / "a.pt")
    assert container.content["odd"].kind == f"torch.Tensor ({kind})"
    assert torch.equal(container.content["even"], torch.ones(2))


def test_walking_ends_for_content_that_holds_itself_or_one_value_many_times():
    shared = ["x"]
    for _ in range(100):
        shared = [shared, shared]
    content = {"shared": shared, "deep": pickle.loads(b"]" * 50_000 + b"a" * 49_999 + b".")}
    content["self"] = content
    assert sum(1 for _ in walk(content)) < 1000
    assert dict(walk({"a": [{"b": 1}]}))["a", "0", "b"] == 1


# Hostile neighbours.

READ_NEIGHBOURS = """
import os, resource, sys, time
from pathlib import Path
from resnet_core.weights import WeightsError, inspect_weights
from resnet_core.weights.containers import read_container
from resnet_core.weights.header import WeightsError
from resnet_core.weights.contents import walk

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))  # where modules lie that leave a mark when they are imported
for path in sorted(folder.glob("honest.*")):
    sum(1 for _ in walk(read_container(path).content))
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 30),) * 2)

modules = set(sys.modules)
Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
before = memory("VmRSS")
seen, paths = [], sorted(folder.glob("*.pt"))


def watch(event, arguments):
    reads = event == "open" and str(arguments[0]).startswith(str(folder)) and arguments[1] == "r"
    if not reads and event not in ("builtins.id", "object.__getattr__"):
        seen.append((event, *arguments[:1]))


sys.addaudithook(watch)
for path in paths:
    start = time.process_time()
    try:
        content = read_container(path).content
        sum(1 for _ in walk(content))
        print("read", path.name, content["weight"].tolist(), content["bias"].tolist(), sep="|")
    except WeightsError as error:
        print("refused", path.name, error, sep="|")
    assert time.process_time() - start < 10, path
print("events", seen[:9], sorted(set(sys.modules) - modules))
print("MiB", (memory("VmHWM") - before) >> 10)
"""


def test_hostile_neighbours_do_nothing_and_the_tensors_beside_them_are_right(tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "leaves_a_mark.py").write_text(f"open({str(mark)!r}, 'w')")
    good, bad = hostile.harmless_neighbours(mark), hostile.malformed_neighbours()
    for name, value in (good | bad).items():
        (tmp_path / f"zip {name}.pt").write_bytes(hostile.beside_weights(value, False))
        if len(value) < 50_000:
            (tmp_path / f"legacy {name}.pt").write_bytes(hostile.beside_weights(value, True))
    for form in ("zip", "legacy"):
        (tmp_path / f"honest.{form}").write_bytes(hostile.saved(hostile.WEIGHTS, form == "legacy"))
    code = [sys.executable, "-W", "error", "-c", READ_NEIGHBOURS, str(tmp_path)]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, events, memory = done.stdout.splitlines()

    outcomes = {line.split("|")[1]: line.split("|") for line in lines}
    assert len(outcomes) == len([*tmp_path.glob("*.pt")]) > 200
    values = [str(hostile.WEIGHTS[name].tolist()) for name in ("weight", "bias")]
    for name, (outcome, _, *rest) in outcomes.items():
        malformed = name.split(" ", 1)[1].removesuffix(".pt") in bad
        assert outcome == ("refused" if malformed else "read"), (name, rest)
        assert rest == values or (malformed and len(rest[0]) < 450 and str(tmp_path / name) in rest[0]), rest
    assert events == "events [] []"
    assert not mark.exists()
    mebibytes = int(memory.removeprefix("MiB "))
    print(f"{len(outcomes)} hostile neighbours: 0 executed, 0 imported; {mebibytes} MiB of memory at most")
    assert mebibytes < 128
