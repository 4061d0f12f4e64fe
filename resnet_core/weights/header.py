"""The header of a safetensors file, checked before a tensor is read: anyone may have written it. Its SHA-256."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_core.foundation.errors import shortened

DIGEST = "resnet_core.sha256"
INDEX_LIMIT = 2 << 20  # bytes; resnet152's safetensors header has 0.1 million
RANK_LIMIT, NUMEL_LIMIT = 16, 1 << 48
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


class WeightsError(ValueError):
    """Weights that cannot be trusted, or do not fit."""


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A safetensors file's entries by name and its metadata, checked. Raises WeightsError."""
    size = check_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, INDEX_LIMIT):
            raise WeightsError(
                f"{path} is not a safetensors file, or is cut off: its first 8 bytes announce a header of {length} "
                f"bytes, but the file has {size} bytes and a header may have at most {INDEX_LIMIT}; fetch it again"
            )
        return check_header(file.read(length), size, path)


def check_header(text: bytes, size: int, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A header's entries and metadata. Raises WeightsError unless the entries fill a file of `size` bytes exactly."""
    try:
        entries = json.loads(text.decode(), object_pairs_hook=unique)
        if not isinstance(entries, dict):
            raise ValueError(f"the header is a {type(entries).__name__}, not an object")
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("the header's __metadata__ is not text by name")

        # The tensors follow each other without gaps or overlaps.
        spans = sorted(check_entry(name, entry) for name, entry in entries.items())
        position = 0
        for begin, end, name in spans:
            if begin != position:
                raise ValueError(f"{shortened([name])} begins at {begin}, and the tensor before it ends at {position}")
            position = end
        if position != size - 8 - len(text):
            raise ValueError(f"the tensors have {position} bytes, and the file has {size - 8 - len(text)} for them")
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} has a broken header: {error}; fetch or write it again") from error
    return entries, metadata


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that appears twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{shortened(twice)} appears more than once")
    return values


def check_entry(name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends. Raises ValueError where dtype, shape and place do not agree."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shortened([name])} needs dtype, shape and data_offsets")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{shortened([name])} has a dtype other than {', '.join(DTYPES)}")
    if not are_counts(shape) or len(shape) > RANK_LIMIT or math.prod(max(n, 1) for n in shape) > NUMEL_LIMIT:
        raise ValueError(f"{shortened([name])} has an impossible shape")
    if not are_counts(place) or len(place) != 2:
        raise ValueError(f"{shortened([name])} has impossible data_offsets")
    begin, end = place
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{shortened([name])} has {end - begin} bytes for a {dtype} of shape {shape}")
    return begin, end, name


def are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def check_file(path: Path) -> int:
    """The bytes of a file of tensors. Raises WeightsError for anything but a regular file, before it is opened."""
    if not path.exists():
        raise WeightsError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; name the weights file itself")
    return path.stat().st_size


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of everything in a file: metadata, names, dtypes, shapes and values, in the order of the names."""
    said = sorted((key, value) for key, value in metadata.items() if key != DIGEST)
    sha = hashlib.sha256(json.dumps(said).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
