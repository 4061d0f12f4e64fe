"""Files and folders of weights, recognised by their content, never by their ending, and read without running them.

A file that holds no weights is refused by what it is: a Git LFS pointer, a web page, a cut download, another format.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import IO, Any
from zipfile import BadZipFile

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from resnet_core.foundation.errors import first_line, shortened
from resnet_core.weights.contents import walk
from resnet_core.weights.folders import WEIGHTS, weights_in
from resnet_core.weights.header import DIGEST, INDEX_LIMIT, WeightsError, check_file, digest, read_header
from resnet_core.weights.pickles import Inert
from resnet_core.weights.torch_files import (
    Zip,
    read_bare_pickle,
    read_distributed,
    read_legacy,
    read_old_tar,
    read_torch_zip,
    read_torchscript,
)

MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError, EOFError,
    struct.error, zlib.error, BadZipFile, TarError,
)  # fmt: skip


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
    file = file_of(path)
    kind = recognise(file)
    if file != path and file.name not in WEIGHTS:
        warnings.warn(f"{path} is a folder, of which the weights file {file.relative_to(path)} is taken", stacklevel=2)
        path = file
    try:
        content = READERS[kind](file)
        content, metadata = content if kind == "safetensors" else (content, {})
    except WeightsError:
        raise
    except MALFORMED as error:
        raise WeightsError(
            f"{path} is a {kind} that is damaged or malformed: {first_line(error)[:200]}; fetch or write it again"
        ) from error
    beside = {value.kind for _, value in walk(content) if isinstance(value, Inert)}
    beside = set() if kind == "TorchScript archive" else beside  # its layers
    return Container(path, kind, content, metadata, tuple(sorted(beside)))


# Which file it is.


def file_of(path: Path) -> Path:
    """The file that a folder stands for; a file, and a folder that is read as a whole, as they are.

    Raises WeightsError for a folder with several files, or none.
    """
    if not path.is_dir():
        return path
    if weights_in(path):
        return weights_in(path)[0]
    if any((path / name).exists() for name in (".metadata", "saved_model.pb")) or index_in(path) is not None:
        return path

    files = files_in(path)
    if len(files) == 1 or (files and re.fullmatch(PART_OF_DEEPSPEED, files[0].name)):
        return files[0]
    if files:
        names = shortened([str(file.relative_to(path)) for file in files])
        raise WeightsError(
            f"{path} has {len(files)} weights files ({names}); give one of them, as in `resnet-core inspect "
            f"{shlex.quote(str(files[0]))}`"
        )
    names = shortened(sorted(each.name for each in path.iterdir())) or "it is empty"
    raise WeightsError(
        f"{path} has no model.safetensors: its run is not finished, or it is not a folder of weights ({names}); finish "
        "the run, or give a weights file"
    )


def files_in(folder: Path) -> list[Path]:
    """The weights files in a folder and the folders in it, by their endings; of DeepSpeed's steps those of the last."""
    files: list[Path] = []
    for place, folders, names in islice(os.walk(folder), MOST_FOLDERS):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if "checkpoint.json" in names:  # of a run of this package, which saves its weights at its end
            folders.clear()
        elif weights_in(Path(place)):
            files.append(weights_in(Path(place))[0])
        else:
            weights = [each for each in names if re.search(WEIGHTS_ENDING, each) and not re.search(BESIDE, each)]
            files += [Path(place, each) for each in weights if Path(place, each).is_file()]

    files = sorted({file.resolve(): file for file in sorted(files)[::-1]}.values())  # a link to one is not another
    latest = folder / "latest"
    step = latest.read_bytes()[:100].decode("utf-8", "replace").strip() if latest.is_file() else ""
    return [file for file in files if file.parent.name == step] or files


MOST_FOLDERS = 1000  # that are looked through for a weights file
WEIGHTS_ENDING = r"(?i)\.(safetensors|pt|pth|th|bin|ckpt|pkl|pth\.tar|pt2?\.tar)$"
BESIDE = r"(?i)optim|sched|scaler|rng_state|random_states|sampler|training_args"  # what trainers save beside weights
PART_OF_DEEPSPEED = r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt"


# What a file is.


def recognise(path: Path) -> str:
    """The kind of a container, a key of READERS, by its content. Raises WeightsError for anything else."""
    if path.is_dir():
        return recognise_folder(path)
    size = check_file(path)
    if re.fullmatch(r"__\d+_\d+\.distcp", path.name):
        raise WeightsError(
            f"{path} is a part of a torch distributed checkpoint, which its .metadata describes; give the folder "
            f"{path.parent}, with both in it"
        )
    if re.fullmatch(PART_OF_DEEPSPEED, path.name):
        root = shlex.quote(str(path.parent.parent))
        raise WeightsError(
            f"{path} is one of DeepSpeed's parts (ZeRO stage 3), none of which has whole tensors; if you trust that "
            f"folder, `python {root}/zero_to_fp32.py {root} {root}/whole` joins them: give {root}/whole"
        )
    with path.open("rb") as file:
        head = file.read(4096)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            return recognise_zip(path, file, size)

    for kind, pattern in STARTS.items():
        if re.match(pattern, head, re.DOTALL):
            return kind
    if path.name.endswith(".index.json"):
        return shards_of(path)
    for pattern, refusal in OTHERS.items():
        if re.match(pattern, head, re.DOTALL):
            raise WeightsError(refusal.format(path=path))
    if path.suffix.lower() == ".safetensors":
        read_header(path)  # whose refusal says what is wrong with it
    raise WeightsError(
        f"{path} is not a weights file of a known format: it has neither torch.save's forms nor that of safetensors or "
        "HDF5; fetch or write it again"
    )


def recognise_folder(path: Path) -> str:
    """The kind of a folder, a key of READERS, by the names in it. Raises WeightsError for anything else."""
    if (path / ".metadata").is_file():
        return "torch distributed checkpoint"
    index = index_in(path)
    if index is not None:
        return shards_of(index)
    if (path / "saved_model.pb").exists():
        raise WeightsError(
            f"{path} is a TensorFlow SavedModel, which is not read; load it in Keras, save it there with "
            "model.save_weights('NAME.weights.h5') and convert that file"
        )
    raise WeightsError(f"{path} is not a file; name the weights file itself")


def shards_of(index: Path) -> str:
    return "sharded safetensors" if "safetensors" in index.name else "sharded torch files"


def recognise_zip(path: Path, file: IO[bytes], size: int) -> str:
    """The kind of a zip, a key of READERS, by its members. Raises WeightsError for anything else."""
    try:
        archive = Zip(file, size)
    except MALFORMED as error:
        raise WeightsError(
            f"{path} is a zip, as torch.save writes it, that is cut off or damaged: {first_line(error)[:200]}; fetch "
            "it again"
        ) from error

    # What has weights.
    names = [name.partition("/")[2] or name for name in archive.names]
    if archive.prefix is not None:
        return "TorchScript archive" if "constants.pkl" in names or archive.has("code/") else "torch zip"
    if "model.weights.h5" in names:
        return "Keras archive"

    # What is made from weights, or has them in another form.
    if names and all(name.endswith(".npy") for name in names):
        raise WeightsError(
            f"{path} is a numpy archive (.npz), which is not read; write it as safetensors: write_weights("
            f"'NAME.safetensors', {{name: torch.from_numpy(value) for name, value in numpy.load('{path}').items()}})"
        )
    if "models/model.json" in names or "serialized_exported_program.json" in names:
        raise WeightsError(
            f"{path} is an exported program of torch.export, which is not read; save its weights with "
            f"torch.save(torch.export.load('{path}').state_dict, 'NAME.pth')"
        )
    if "model.json" in names:
        raise WeightsError(
            f"{path} is a TorchScript archive of torch 1.0, which is not read; save its weights with "
            f"torch.save(torch.jit.load('{path}').state_dict(), 'NAME.pth')"
        )
    raise WeightsError(
        f"{path} is a zip of other files ({shortened(sorted(archive.names)) or 'none'}); unpack it and give the "
        "weights file that it holds"
    )


# How files begin, as patterns whose dot is any byte.
STARTS = {
    "safetensors": rb".{6}\0\0\{",  # first, since its length may begin with a pickle's bytes
    "legacy torch file": rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.",  # torch's magic number
    "HDF5": rb"\x89HDF\r\n\x1a\n",
    "old torch tar": rb"(?:sys_info|pickle|tensors|storages)\0.{1,256}ustar",
    "pickle of arrays": rb"\x80[\x02-\x05]|\((?:dp?|lp?)\d*\n|c(?:collections|__builtin__)\n",
}
OTHERS = {
    rb"\Z": "{path} is empty; fetch it again",
    rb"version https://git-lfs": "{path} is not a weights file: it is a Git LFS pointer, which stands for the file; "
    "run `git lfs pull` in its repository, or download the file itself",
    rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype|html|head|\?xml)": "{path} is not a weights file: it is a web page saved "
    "under its name; download it again from the link to the file itself",
    rb"\x08[\x03-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]": "{path} is an ONNX file, which is run and not loaded; give the "
    "checkpoint from which it was exported",
    rb"\x08\x01\x12|.{4}TFL3": "{path} is a TensorFlow file, which is not read; load it in Keras, save it there "
    "with model.save_weights('NAME.weights.h5') and convert that file",
    rb"\x93NUMPY": "{path} is a numpy array (.npy), which has no names; give the checkpoint that it comes from",
    rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar": "{path} is compressed or an archive; "
    "unpack it with `tar -xf`, `gunzip`, `unzip` or `7z x` and give the weights file that it holds",
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP": "{path} is an image and not a weights file; give the weights file",
    rb"GGUF": "{path} is a GGUF file, which is not read; give the checkpoint that it comes from",
    rb"\s*[{\[]\s*[\"{\[\]}\d]": "{path} is a JSON file and not a weights file; give the weights file or the folder",
    rb"[\t\n\r\x20-\x7e]{3,}\Z": "{path} is a text file and not a weights file; give the weights file",
}


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


def index_of(file: Path) -> Path | None:
    """The index beside a file that lists it as one of several; None where there is none that can be read."""
    for index in sorted(file.parent.glob("*.index.json")):
        with suppress(*MALFORMED):
            names = set(places_in(index).values())
            if len(names) > 1 and file.name in names:
                return index
    return None


def places_in(index: Path) -> dict[str, str]:
    """The file of each tensor that an index lists. Raises ValueError for a file that is no index."""
    if check_file(index) > INDEX_LIMIT:
        raise ValueError(f"the index has more than {INDEX_LIMIT} bytes")
    listed = json.loads(index.read_bytes())
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index.name} has no weight_map from names to files")
    return places


def read_shards(path: Path) -> dict[str, Any]:
    """The tensors that an index lists, from the files that it names, which lie beside it."""
    index = (index_in(path) if path.is_dir() else None) or path
    places = places_in(index)
    tensors: dict[str, Any] = {}
    for name in dict.fromkeys(places.values()):
        if name in ("", ".", "..") or re.search(r"[/\\\0]", name) or name.endswith(".index.json"):
            raise ValueError(f"{index.name} names the file {name[:80]!a}, which does not lie beside it")
        if not (index.parent / name).exists():
            raise WeightsError(f"{index.parent / name} is missing, which {index.name} lists; fetch it as well")
        content = read_container(index.parent / name).content
        wanted = [key for key, file in places.items() if file == name]
        lacking = [key for key in wanted if not isinstance(content, dict) or not isinstance(content.get(key), Tensor)]
        if lacking:
            raise ValueError(f"{name} lacks tensors that {index.name} places in it: {shortened(lacking)}")
        tensors |= {key: content[key] for key in wanted}
    return {key: tensors[key] for key in places}


READERS: dict[str, Callable[[Path], Any]] = {
    "torch zip": read_torch_zip,
    "TorchScript archive": read_torchscript,
    "legacy torch file": read_legacy,
    "pickle of arrays": read_bare_pickle,
    "safetensors": read_safetensors,
    "old torch tar": read_old_tar,
    "torch distributed checkpoint": read_distributed,
    "sharded safetensors": read_shards,
    "sharded torch files": read_shards,
    "HDF5": lambda path: None,  # Keras' files, which h5py reads
    "Keras archive": lambda path: None,
}
