"""Weights in files: what was written comes back, what does not fit is named, and what is hostile does nothing."""

import contextlib
import json
import logging
import os
import pickle
import random
import struct
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.errors import shortened
from resnet_core.models.resnet import BasicBlock, ResNet
from resnet_core.weights.files import load_weights, read_info, read_weights, write_weights
from resnet_core.weights.header import DTYPES, WeightsError
from resnet_core.weights.info import WeightsInfo
from tests.weights import hostile

INFO = WeightsInfo(
    model="resnet18",
    config={"num_classes": 3},
    transform=ImageTransform(resize_size=40, crop_size=32),
    class_names=("ant", "bee", "cat"),
    origin="a test",
)
PICKLED = {"zip": False, "legacy": True}


def network(num_classes=3):
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)


def contents(tensors):
    """Everything of named tensors that can differ, comparable: NaNs by their bits."""
    return {
        name: (value.dtype, value.shape, value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, value in tensors.items()
    }


@pytest.fixture(scope="module")
def weights():
    """The state of a network, none of whose tensors is at its start."""
    torch.manual_seed(0)
    state = network().state_dict()
    return {name: value + 1 if "num_" in name else torch.rand(value.shape) for name, value in state.items()}


@pytest.fixture
def written(tmp_path, weights):
    write_weights(tmp_path / "model.safetensors", weights, INFO)
    return tmp_path / "model.safetensors"


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    data = draw(st.binary(min_size=(size := torch.Size(shape).numel() * dtype.itemsize), max_size=size))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__" and not name.startswith("module.")
)


def test_one_content_makes_one_file(tmp_path):
    tensors = hostile.model().state_dict()
    for number in range(8):
        write_weights(tmp_path / f"{number}.safetensors", tensors, INFO)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@settings(max_examples=150, deadline=None)
@given(content=st.dictionaries(names, tensors(), max_size=4), info=st.sampled_from([INFO, None]))
def test_any_tensors_come_back_to_the_bit_and_as_other_readers_see_them(tmp_path_factory, content, info):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    write_weights(path, content, info)
    assert contents(read_weights(path)) == contents(load_file(path)) == contents(content)
    assert read_info(path) == (info and WeightsInfo.from_metadata(info.to_metadata()))


def test_shared_and_strided_tensors_are_written_as_they_look(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    views = {"all": base, "same": base, "turned": base.T, "row": base[1], "wide": torch.ones(1).expand(5)}
    write_weights(tmp_path / "a.safetensors", views)
    assert contents(read_weights(tmp_path / "a.safetensors")) == contents(views)


def test_files_of_other_writers_are_read_and_say_nothing(tmp_path, weights):
    save_file(weights, tmp_path / "other.safetensors")
    assert contents(read_weights(tmp_path / "other.safetensors")) == contents(weights)
    assert read_info(tmp_path / "other.safetensors") is None


def test_read_weights_outlive_their_file(written, weights):
    read = read_weights(written)
    os.truncate(written, 0)
    assert contents(read) == contents(weights)


def test_a_written_file_is_whole_readable_to_others_and_alone(tmp_path, written):
    (tmp_path / "plain").touch()
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode
    before = written.read_bytes()
    for name, value in {"a": torch.eye(2).to_sparse(), "b": torch.ones(2, dtype=torch.complex64), "c": 1}.items():
        with pytest.raises(WeightsError, match=f"model.safetensors cannot hold {name}: give dense tensors"):
            write_weights(written, {name: value})
    with pytest.raises(WeightsError, match=r"must end in .safetensors"):
        write_weights(tmp_path / "model.pth", {})
    with pytest.raises(WeightsError, match="broken header"):
        write_weights(written, {"__metadata__": torch.ones(2)})
    assert written.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "model.safetensors"}


def test_no_flipped_bit_of_a_written_file_changes_what_is_read(tmp_path):
    path, content = tmp_path / "a.safetensors", {"weight": torch.rand(8, 4), "bias": torch.rand(4).half()}
    write_weights(path, content, INFO)
    whole = path.read_bytes()
    bits = random.Random(0).sample(range(64, len(whole) * 8), 1000)
    refused = 0
    for position in [*range(64), *bits]:
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read = contents(read_weights(path))
        except WeightsError:
            refused += 1
        else:
            assert read == contents(content), position
    print(
        f"{64 + len(bits)} flipped bits: {refused} refused, {64 + len(bits) - refused} harmless, 0 read as other values"
    )
    assert refused > 1000


def test_every_cut_of_a_written_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_weights(path, {"weight": torch.ones(2)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"a.safetensors .*; fetch"):
            read_weights(path)


def test_broken_info_is_named(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"resnet_core": "{"})
    with pytest.raises(WeightsError, match=r"a.safetensors has metadata 'resnet_core' that cannot be read"):
        read_info(tmp_path / "a.safetensors")


# Pickles.


@pytest.mark.parametrize("legacy", PICKLED.values(), ids=PICKLED)
def test_pickled_checkpoints_of_every_usual_form_are_read(tmp_path, weights, legacy):
    model = network()
    model.load_state_dict(weights)
    momenta = {number: {"momentum_buffer": torch.rand(2, 2), "step": 7} for number in range(3)}
    optimizer = {
        "state": momenta,
        "param_groups": [{"lr": 0.1, "nesterov": False, "foreach": None, "params": [0, 1, 2]}],
    }
    state, parallel = model.state_dict(), nn.DataParallel(model).state_dict()
    forms = {
        "flat": state,
        "parameters": OrderedDict(state_dict=dict(model.named_parameters()) | dict(model.named_buffers())),
        "state_dict": {"epoch": 3, "state_dict": state, "optimizer": optimizer, "best": 0.5, "arch": "x"},
        "model": {"model": parallel, "scheduler": None},
    }
    for name, form in forms.items():
        path = tmp_path / f"{name}.pth"
        torch.save(form, path, _use_new_zipfile_serialization=not legacy)
        assert contents(read_weights(path)) == contents(state), name


OLD_STORAGE = hostile.tensor_opcodes().split(b"TAIL")[0].split(b"_v2\n")[1] + b"NtQ"
OLD_TENSOR = OLD_STORAGE + b"K\0K\2\x85K\1\x85t"
OLD_FORMS = {
    "rebuilt": b"ctorch._utils\n_rebuild_tensor\n" + OLD_TENSOR + b"R",
    "object": b"ctorch\nFloatTensor\n)\x81" + OLD_TENSOR + b"b",
    "call": b"ctorch\nFloatTensor\n)R" + OLD_TENSOR + b"b",
    "parameter": b"ctorch.nn.parameter\nParameter\nctorch\nFloatTensor\n)\x81"
    + OLD_TENSOR
    + b"b\x85\x81(\x88\x89ccollections\nOrderedDict\n)Rtb",
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_tensors_as_torch_wrote_them_before_version_0_4_are_read(tmp_path, form):
    """As in torchvision's first files; OrderedDict as Python 2 pickles it, from a list of pairs."""
    pickled = b"\x80\x02ccollections\nOrderedDict\n](](" + hostile.short(b"weight") + OLD_FORMS[form] + b"ee\x85R."
    data = struct.pack("<q2f", 2, 1.5, -2.0)
    (tmp_path / "a.pth").write_bytes(hostile.legacy(pickled, pickle.dumps(["0"], 2), data))
    assert read_weights(tmp_path / "a.pth")["weight"].tolist() == [1.5, -2.0]


# Hostile files.

READ_ALL = """
import resource, sys
from pathlib import Path
from tests.weights.hostile import model
from resnet_core.weights.files import load_weights, read_weights
from resnet_core.weights.header import WeightsError

first = Path(sys.argv[1]) / "warm up"
for ending in (".safetensors", ".zip.pt", ".legacy.pt"):
    read_weights(f"{first}{ending}")
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 30),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.stdin.read().splitlines():
    try:
        linear = model()
        print("LOADED", path, load_weights(linear, path), [value.tolist() for value in linear.state_dict().values()])
    except WeightsError as error:
        print("refused", error)
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


REASONS = {  # what some are refused for, before any library sees them
    "name twice.safetensors": "a appears more than once",
    "long header.safetensors": "a header may have at most",
    "hole.safetensors": "b begins at 12, and the tensor before it ends at 8",
    "overlap.safetensors": "b begins at 4",
    "shape absurd but empty.safetensors": "impossible shape",
    "shape too small.safetensors": "8 bytes for a F32",
    "bytes left over.safetensors": "the tensors have 8 bytes, and the file has 16",
    "flipped bit.safetensors": "SHA-256",
    "zip os.system.pt": "holds other things than named tensors: weight",
    "zip bomb copies.pt": "takes more memory than a file of its size may",
    "legacy bomb copies by tuple.pth": "takes more memory",
    "expanded.pt": "takes more memory",
    "deflated.pt": "claim more bytes than it has",
    "overlapping.pt": "two members of the name",
    "unstored.pth": "more bytes than it has",
    "outside.pt": "a tensor that ends after 36 of 8 bytes",
    "pipe.pt": "is not a file",
    "page.pt": "it is a web page",
}
LOADED = {  # what is read as another reader would read it, since content decides
    "after the end.pt", "another writer.pt", "comment.pt", "honest pickle.safetensors", "weights",
}  # fmt: skip
MODULES = {"script.pt", "module.pt", "module.pth"}  # with weights of their own, which are read without building them


def test_hostile_files_execute_nothing_load_nothing_and_take_no_memory(tmp_path):
    folder, warm = tmp_path / "hostile", tmp_path / "warm up"
    folder.mkdir()
    write_weights(f"{warm}.safetensors", hostile.WEIGHTS)
    for name, legacy in PICKLED.items():
        warm.with_suffix(f".{name}.pt").write_bytes(hostile.saved(hostile.WEIGHTS, legacy))
    paths, mark = hostile.write_hostile_files(folder)
    code = [sys.executable, "-W", "error", "-c", READ_ALL, str(tmp_path)]
    listing = "\n".join(map(str, paths))
    done = subprocess.run(
        code, input=listing, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, last = done.stdout.splitlines()
    assert len(lines) == len(paths) > 40  # each one line
    values = [value.tolist() for value in hostile.WEIGHTS.values()]
    for path, line in zip(paths, lines, strict=True):
        if path.name in MODULES:
            assert line.startswith(f"LOADED {path} 2 loaded ")
            continue
        if path.name in LOADED:
            assert line == f"LOADED {path} 2 loaded {values}"
            continue
        assert line.startswith(f"refused {path} "), line
        assert len(line) < 400, line
        assert REASONS.get(path.name, "") in line
    assert set(REASONS) <= {path.name for path in paths}
    assert not mark.exists()
    mebibytes = int(last.removeprefix("MiB "))
    right = len(LOADED | MODULES)
    print(f"{len(paths)} hostile files: 0 executed, {right} loaded right; {mebibytes} MiB of memory at most")
    assert mebibytes < 128


def test_the_hostile_pickles_would_execute_without_care(tmp_path):
    mark = tmp_path / "executed"
    for way, pickled in hostile.executions(mark).items():
        with contextlib.suppress(pickle.UnpicklingError):  # after the harm is done
            made = pickle.loads(pickled)
            if way == "open":
                made["weight"].close()
        assert mark.exists(), way
        mark.unlink()


def test_the_makers_of_hostile_files_make_good_ones_when_told_the_truth(tmp_path):
    honest = {
        "zip.pt": hostile.rezipped(hostile.WEIGHTS),
        "tensor.pt": hostile.claimed(False),
        "tensor.pth": hostile.claimed(True),
        "a.safetensors": hostile.safetensors({"weight": hostile.tensor()}, bytes(8)),
    }
    for name, data in honest.items():
        (tmp_path / name).write_bytes(data)
        assert "weight" in read_weights(tmp_path / name), name


# Into a model.


def test_weights_load_from_a_file_and_from_names(written, weights):
    for source in (written, str(written), weights):
        model = network()
        report = load_weights(model, source)
        assert contents(model.state_dict()) == contents(weights)
        assert (report.loaded, report.dropped, report.missing, report.unexpected) == (len(weights), (), (), ())
    assert str(report) == f"{len(weights)} loaded"


@pytest.mark.parametrize(("model", "prefix"), [(network, "module."), (lambda: nn.DataParallel(network()), "")])
def test_the_prefix_of_parallel_training_is_taken_off_and_put_on(tmp_path, weights, model, prefix):
    model, path = model(), tmp_path / "a.safetensors"
    write_weights(path, {prefix + name: value for name, value in weights.items()})
    assert load_weights(model, path).loaded == len(weights)
    model = model.module if prefix == "" else model
    assert contents(model.state_dict()) == contents(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_weights_of_any_width_become_the_models(weights, dtype):
    model = network()
    load_weights(model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()})
    assert torch.equal(model.fc.weight, weights["fc.weight"].to(dtype).float())
    assert model.fc.weight.dtype == torch.float32


def without(weights, *names):
    return {name: value for name, value in weights.items() if name not in names}


MISFITS = {
    "missing": (lambda w: without(w, "conv1.weight"), r"these are missing: conv1.weight$"),
    "unexpected": (
        lambda w: w | {f"x{n}": torch.ones(1) for n in range(9)},
        r"these are unexpected: x0, x1, x2 and 6 more$",
    ),
    "shape": (lambda w: w | {"conv1.weight": torch.ones(2)}, r"wrong shape: conv1.weight \(.*: \[2\], model \[64, 3"),
    "classes": (
        lambda w: w | {"fc.weight": torch.ones(9, 512), "fc.bias": torch.ones(9)},
        r"number of classes differs: load_weights\(..., new_head=True\) .*reset_classifier\(\)",
    ),
    "integer": (lambda w: w | {"bn1.bias": torch.ones(64, dtype=torch.int32)}, r"integers .*: bn1.bias$"),
    "floating": (lambda w: w | {"bn1.num_batches_tracked": torch.tensor(1.0)}, r"integers .*bn1.num_batches_tracked$"),
    "sparse": (lambda w: w | {"fc.bias": torch.ones(3).to_sparse()}, r"not dense tensors: fc.bias$"),
    "number": (lambda w: w | {"fc.bias": 1.0}, r"not dense tensors: fc.bias$"),
    "NaN": (lambda w: {k: v * float("nan") if "fc" in k else v for k, v in w.items()}, r"not finite .*: .*fc.bias$"),
    "infinite": (lambda w: w | {"fc.bias": torch.full((3,), torch.inf)}, r"not finite in the model's dtype: fc.bias$"),
    "too large": (lambda w: w | {"fc.bias": torch.full((3,), 1e300, dtype=torch.float64)}, r"not finite .*: fc.bias$"),
    "foreign": (lambda w: {f"a.{k}": v for k, v in w.items()}, r"none of its names \(.*and 71 more\) is the model's"),
    "empty": (lambda w: {}, r"none of its names \(\) is the model's"),
}
LOADED_IF_NOT_STRICT = {"missing": 73, "unexpected": 74}


@pytest.mark.parametrize("fault", MISFITS)
def test_what_does_not_fit_is_named_and_leaves_the_model_as_it_was(weights, fault):
    change, message = MISFITS[fault]
    model = network()
    before = contents(model.state_dict())
    with pytest.raises(WeightsError, match=r"^the weights cannot be loaded into ResNet: .*" + message):
        load_weights(model, change(weights))
    assert contents(model.state_dict()) == before
    if fault in LOADED_IF_NOT_STRICT:
        report = load_weights(model, change(weights), strict=False)
        assert report.loaded == LOADED_IF_NOT_STRICT[fault]
        assert str(report).startswith(f"{report.loaded} loaded; {fault}: ")
    else:
        with pytest.raises(WeightsError, match=message):
            load_weights(model, change(weights), strict=False)
        assert contents(model.state_dict()) == before


def test_the_error_names_the_file(tmp_path):
    write_weights(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"a.safetensors cannot be loaded into ResNet: none of its names \(x\)"):
        load_weights(network(), tmp_path / "a.safetensors")


def test_a_new_head_stays_and_the_files_is_left_out_and_said(written, weights, caplog):
    model = network(num_classes=5)
    before = contents(model.fc.state_dict())
    with caplog.at_level(logging.INFO, "resnet_core"):
        report = load_weights(model, written, new_head=True)
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert contents(model.fc.state_dict()) == before
    body = without(weights, "fc.weight", "fc.bias")
    assert contents(without(model.state_dict(), "fc.weight", "fc.bias")) == contents(body)
    assert "fc.bias, fc.weight left out" in caplog.text.replace("fc.weight, fc.bias", "fc.bias, fc.weight")
    assert load_weights(model, body, new_head=True).missing == ()
    with pytest.raises(WeightsError, match="unexpected: x"):
        load_weights(model, weights | {"x": torch.ones(1)}, new_head=True)


def test_the_head_is_what_the_model_says_it_is(weights):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.classifier = nn.Linear(3, 2), nn.Linear(2, 4)

        def get_classifier(self):
            return self.classifier

    report = load_weights(Named(), nn.ModuleDict({"fc": nn.Linear(3, 2), "classifier": nn.Linear(2, 9)}).state_dict(),
                          new_head=True)  # fmt: skip
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}
    with pytest.raises(ValueError, match=r"new_head=True needs get_classifier\(\) or fc, and Linear has neither"):
        load_weights(nn.Linear(3, 2), hostile.WEIGHTS, new_head=True)


def test_counts_of_batches_that_old_files_lack_stay_as_they_are(weights):
    model, old = network(), {name: value for name, value in weights.items() if "num_batches" not in name}
    model.bn1.num_batches_tracked.fill_(7)
    report = load_weights(model, old)
    assert model.bn1.num_batches_tracked == 7
    assert len(report.missing) == len(weights) - len(old) == 12
    assert str(report).endswith("missing: bn1.num_batches_tracked, layer1.0.bn1.num_batches_tracked, "
                                "layer1.0.bn2.num_batches_tracked and 9 more")  # fmt: skip


def test_names_from_a_stranger_stay_on_one_short_line():
    assert (
        shortened(["a\nb", "\x1b[31m", "c" * 10_000, "d"])
        == r"'a\nb'..., '\x1b[31m'..., '" + "c" * 60 + "'... and 1 more"
    )
    assert json.loads(json.dumps(shortened(["weight"]))) == "weight"
