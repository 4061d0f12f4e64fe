"""Containers: every kind that holds weights is read as what it is, and anything else says what it is."""

import contextlib
import json
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from resnet_core.weights.containers import READERS, read_container
from resnet_core.weights.contents import module_tensors
from resnet_core.weights.files import read_weights, write_weights
from resnet_core.weights.header import WeightsError
from tests.weights import hostile


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()


STATE = network().state_dict()


def is_state(tensors):
    same = tensors.keys() == STATE.keys() and all(torch.equal(tensors[name], value) for name, value in STATE.items())
    return same and all(tensors[name].dtype == value.dtype for name, value in STATE.items())


# Makers of files: each writes STATE at a path.


def torchscript(path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(network()).save(str(path))


def zipped_again(path, method=zipfile.ZIP_DEFLATED):
    """torch.save's members, as a tool that edits zips writes them."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in hostile.records(STATE).items():
            archive.writestr(f"model/{name.decode()}", data)


def big_endian(path):
    members = hostile.records(STATE)
    for number, value in enumerate(STATE.values()):
        data = value.numpy().astype(value.numpy().dtype.newbyteorder(">")).tobytes()
        members[f"data/{number}".encode()] = data
    members[b"byteorder"] = b"big"
    path.write_bytes(hostile.torch_zip(*[hostile.member(name, data) for name, data in members.items()]))


def old_tar(path):
    """As torch 0.1 wrote it; torch.load(weights_only=False) reads it too."""
    storages, tensors, pickled = pickle.dumps(len(STATE), 2), pickle.dumps(len(STATE), 2), b"\x80\x02}("
    for number, (name, value) in enumerate(STATE.items()):
        kind = b"LongStorage" if value.dtype == torch.int64 else b"FloatStorage"
        storages += b"\x80\x02K" + bytes([number]) + hostile.short(b"cpu") + b"ctorch\n" + kind + b"\n\x87."
        storages += struct.pack("<q", value.numel()) + value.numpy().tobytes()
        tensors += b"\x80\x02K" + bytes([100 + number]) + b"K" + bytes([number]) + b"ctorch\nFloatTensor\n\x87."
        numbers = (*value.shape, *value.stride(), 0)
        tensors += struct.pack(f"<ii{len(numbers)}q", value.dim(), 0, *numbers)
        pickled += hostile.short(name.encode()) + hostile.short(str(100 + number).encode()) + b"Q"
    files = {"pickle": pickled + b"u.", "tensors": tensors, "storages": storages + pickle.dumps([], 2)}
    path.write_bytes(hostile.tar(sys_info=pickle.dumps({"little_endian": True}, 2), **files))


def arrays(path):
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in STATE.items()}, 2))


def shards(folder, write, name):
    folder.mkdir()
    names = list(STATE)
    places = {key: name.format(1 if key in names[:3] else 2) for key in names}
    for file in set(places.values()):
        write({key: STATE[key] for key in names if places[key] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{name.split('-')[0]}.{name.split('.')[-1]}.index.json").write_text(json.dumps(index))


def distributed(folder):
    dcp.save(dict(STATE), checkpoint_id=folder, no_dist=True)


MAKERS = {
    "torch zip": {
        "today's": lambda path: torch.save(STATE, path),
        "protocol 5": lambda path: torch.save(STATE, path, pickle_protocol=5),
        "without numbers of its alignment": lambda path: path.write_bytes(hostile.rezipped(STATE)),
        "deflated": zipped_again,
        "stored by another tool": lambda path: zipped_again(path, zipfile.ZIP_STORED),
        "big-endian": big_endian,
    },
    "TorchScript archive": {"scripted": torchscript},
    "legacy torch file": {
        "protocol 2": lambda path: path.write_bytes(hostile.saved(STATE, legacy=True)),
        "protocol 4": lambda path: torch.save(STATE, path, pickle_protocol=4, _use_new_zipfile_serialization=False),
    },
    "old torch tar": {"torch 0.1": old_tar},
    "pickle of arrays": {"detectron2's": arrays},
    "safetensors": {"other writer": lambda path: save_file(STATE, path), "ours": None},
    "sharded safetensors": {"": lambda path: shards(path, save_file, "model-0000{}-of-00002.safetensors")},
    "sharded torch files": {"": lambda path: shards(path, torch.save, "pytorch_model-0000{}-of-00002.bin")},
    "torch distributed checkpoint": {"": distributed},
}
MAKERS["safetensors"]["ours"] = lambda path: (
    write_weights(path.with_suffix(".safetensors"), STATE),
    path.with_suffix(".safetensors").rename(path),
)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, ways in MAKERS.items() for way in ways])
def test_every_container_is_read_as_what_it_is_whatever_its_name(tmp_path, kind, way):
    path = tmp_path / "weights.old.tar"
    with warnings.catch_warnings(action="ignore"):
        MAKERS[kind][way](path)
    container = read_container(path)
    assert (container.kind, container.path, container.beside) == (kind, path, ())
    content = container.content
    assert is_state(module_tensors(content) if kind == "TorchScript archive" else content)
    assert kind in READERS


def test_an_index_file_stands_for_its_folder(tmp_path):
    MAKERS["sharded safetensors"][""](tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    assert is_state(read_weights(index))
    assert is_state(read_weights(str(index.parent)))


def test_the_files_of_keras_are_recognised_and_left_to_it(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(9))
    assert read_container(tmp_path / "a.h5").kind == "HDF5"
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    assert read_container(tmp_path / "b").kind == "Keras archive"


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # torch 2.11 unpacks the tar without a filter
def test_our_old_tar_is_as_torch_reads_it(tmp_path):
    old_tar(tmp_path / "a.pth")
    assert is_state(torch.load(tmp_path / "a.pth", weights_only=False))


def test_what_lies_beside_the_weights_is_listed(tmp_path):
    content = {"state_dict": STATE, "args": hostile.Call(print, "executed"), "best": np.float64(1), "path": Path("a")}
    torch.save(content, tmp_path / "a.pth.tar")
    container = read_container(tmp_path / "a.pth.tar")
    assert is_state(container.content["state_dict"])
    assert container.beside == ("builtins.print", "numpy._core.multiarray.scalar", "numpy.dtype", "pathlib.PosixPath")


# Distributed checkpoints.


def test_a_nested_state_is_read_as_it_was_saved_and_as_torch_converts_it(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3, 3, 3)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optim": optimizer.state_dict(), "epoch": 3}
    with warnings.catch_warnings(action="ignore"):
        dcp.save(saved, checkpoint_id=tmp_path / "dcp", no_dist=True)
    content = read_container(tmp_path / "dcp").content
    assert all(torch.equal(content["model"][name], value) for name, value in model.state_dict().items())
    assert content["epoch"] == 3
    assert content["optim"]["param_groups"][0]["momentum"] == 0.9


def write_pieces(folder, changed=None, place=None):
    """A tensor of 4 by 3 in two files, as two processes write it; `changed` and `place` replace parts of the truth."""
    folder.mkdir()
    whole = torch.arange(12.0).reshape(4, 3)
    properties = TensorProperties(dtype=torch.float32)
    chunks = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([2, 3])) for row in (0, 2)]
    data = {}
    for number, row in enumerate((0, 2)):
        piece = hostile.saved(whole[row : row + 2].clone())
        (folder / f"__{number}_0.distcp").write_bytes(piece)
        info = dcp.filesystem._StorageInfo(f"__{number}_0.distcp", 0, len(piece))
        data[MetadataIndex("w", torch.Size([row, 0]))] = info
    size = torch.Size([4, 3])
    for key, value in (place or {}).items():
        object.__setattr__(info, key, value)
    described = {"w": TensorStorageMetadata(properties, size, chunks), "note": BytesStorageMetadata()}
    del described["note"]
    metadata = Metadata(described, storage_data=data)
    (changed or (lambda metadata: None))(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return whole


def test_a_tensor_in_pieces_is_put_together(tmp_path):
    whole = write_pieces(tmp_path / "dcp")
    assert torch.equal(read_weights(tmp_path / "dcp")["w"], whole)


PIECES = {
    "missing piece": (lambda metadata: metadata.storage_data.popitem(), None, "pieces of the tensor 'w' are missing"),
    "larger": (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([1 << 40])), None, "more bytes than"),
    "outside": (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([3, 3])), None, "lies outside of it"),
    "other folder": (None, {"relative_path": "../secret"}, "does not lie in it"),
    "absolute": (None, {"relative_path": "/etc/passwd"}, "does not lie in it"),
    "missing file": (None, {"relative_path": "__9_0.distcp"}, "__9_0.distcp is missing"),
    "longer": (None, {"length": 1 << 50}, "more bytes than its files have"),
    "copies": (
        lambda m: m.storage_data.update(
            {
                MetadataIndex("w", torch.Size([0, n])): m.storage_data[key]
                for key in [*m.storage_data]
                for n in range(1, 9)
            }
        ),
        None,
        "more bytes than its files have",
    ),
    "negative": (None, {"offset": -5}, "more bytes than its files have"),
    "compressed": (None, {"transform_descriptors": ["zstd"]}, "format_utils dcp_to_torch .*dcp NAME.pth"),
}


@pytest.mark.parametrize("fault", PIECES)
def test_pieces_that_lie_are_refused(tmp_path, fault):
    changed, place, message = PIECES[fault]
    write_pieces(tmp_path / "dcp", changed, place)
    with pytest.raises(WeightsError, match=rf"dcp.*{message}"):
        read_container(tmp_path / "dcp")


def test_code_in_the_metadata_does_not_run(tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "dcp").mkdir()
    for pickled in hostile.executions(mark).values():
        (tmp_path / "dcp" / ".metadata").write_bytes(pickled)
        with pytest.raises(WeightsError, match="torch distributed checkpoint that is damaged"):
            read_container(tmp_path / "dcp")
    assert not mark.exists()


# Shards.


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../one.safetensors"}, "does not lie beside it"),
        ({"a": "/etc/passwd"}, "does not lie beside it"),
        ({"a": ".."}, "does not lie beside it"),
        ({"a": "model.safetensors.index.json"}, "does not lie beside it"),
        ({"a": "two.safetensors"}, "two.safetensors is missing.*; fetch it as well"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "lacks tensors .* places in it: b"),
        ({"a": 1}, "has no weight_map"),
        (["a"], "has no weight_map"),
    ],
)
def test_an_index_names_only_files_beside_it(tmp_path, places, message):
    (tmp_path / "model").mkdir()
    for folder in (tmp_path, tmp_path / "model"):
        save_file({"a": torch.ones(1)}, folder / "one.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(WeightsError, match=message):
        read_container(tmp_path / "model")


# Damage.


def test_every_cut_of_a_torch_zip_is_refused_and_named(tmp_path):
    whole = hostile.saved(hostile.WEIGHTS)
    for length in range(4, len(whole) - 22, 7):
        (tmp_path / "a.pth").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"a.pth is a zip.* cut off or damaged: .*; fetch it again"):
            read_container(tmp_path / "a.pth")


def test_no_flipped_bit_of_a_torch_zip_changes_what_is_read(tmp_path):
    whole = hostile.saved(STATE)
    positions = random.Random(0).sample(range(len(whole) * 8), 500)
    for position in positions:
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        (tmp_path / "a.pth").write_bytes(flipped)
        with contextlib.suppress(WeightsError):
            assert is_state(read_container(tmp_path / "a.pth").content), position


# Anything else.


def npz(path):
    np.savez(path.with_suffix(".npz"), **{name: value.numpy() for name, value in STATE.items()})
    path.with_suffix(".npz").rename(path)


def zip_of(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"")

    return write


def frozen(path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.freeze(torch.jit.script(network())).save(str(path))


def saved_model(path):
    path.mkdir()
    (path / "saved_model.pb").touch()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 32 * b"ab" + b"\nsize 46830571\n"
OTHERS = {
    "Git LFS": (POINTER, r"a Git LFS pointer.*`git lfs pull`"),
    "page": (b"<!DOCTYPE html><html><title>Virus scan warning</title></html>", "a web page.*download it again"),
    "XML page": (b"\xef\xbb\xbf\n<?xml version='1.0'?>", "a web page"),
    "empty": (b"", "is empty; fetch it again"),
    "cut safetensors": (b"\x40\x42\0\0\0\0\0\0{" + bytes(99), "cut off.*fetch it again"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "ONNX file.*checkpoint from which it was exported"),
    "TensorFlow": (b"\x08\x01\x12\xff", r"TensorFlow file.*save_weights\('NAME.weights.h5'\)"),
    "SavedModel": (saved_model, r"TensorFlow SavedModel.*save_weights"),
    "npy": (b"\x93NUMPY\x01\0", "numpy array"),
    "npz": (npz, r"numpy archive.*write_weights\("),
    "pt2": (zip_of("m/models/model.json", "m/archive_format"), r"exported program.*torch.export.load\("),
    "old TorchScript": (zip_of("m/model.json", "m/tensors/0"), r"TorchScript archive of torch 1.0.*torch.jit.load\("),
    "two pickles": (zip_of("a/data.pkl", "b/data.pkl"), "more than one data.pkl; fetch it again"),
    "zip": (zip_of("model.pth", "readme.txt"), r"zip of other files \(model.pth, readme.txt\); unpack it"),
    "frozen": (frozen, r"torch.jit.freeze makes constants.*before it was frozen"),
    "gzip": (b"\x1f\x8b\x08", "unpack it"),
    "tar": (lambda path: path.write_bytes(hostile.tar(weights=b"x")), "unpack it"),
    "image": (b"\x89PNG\r\n\x1a\n", "an image"),
    "JSON": (b'{\n "epoch": 3}', "a JSON file"),
    "text": (b"lr: 0.1\n", "a text file"),
    "numbers": (bytes(range(180, 256)), "not a weights file of a known format"),
    "folder": (lambda path: path.mkdir(), r"has no model.safetensors: .*it is empty.*give a weights file"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_anything_else_says_what_it_is_and_what_to_do(tmp_path, what):
    content, message = OTHERS[what]
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    with pytest.raises(WeightsError, match=rf"^{path} .*{message}"):
        read_container(path)
