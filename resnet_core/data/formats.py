"""The binary files that Fashion-MNIST (IDX) and CIFAR-10 come in: bytes, read strictly."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue plane


def read_idx(path: Path, *, num_dimensions: int) -> Tensor:
    """The uint8 array of an IDX file, `path` or else `path`.gz. Raises ValueError naming file and rule.

    The format (LeCun et al., the MNIST page): two zero bytes, 8 for unsigned bytes, the number of dimensions; each
    dimension as a big-endian 32-bit number; then the values, the last dimension changing fastest.
    """
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists() and not packed.exists():
        raise ValueError(f"{path} is missing, and so is {packed.name}; put the dataset's four files into that folder")
    used = path if path.exists() else packed

    magic = bytes((0, 0, 8, num_dimensions))
    try:
        with used.open("rb") if used == path else gzip.open(used) as stream:
            header = stream.read(len(magic) + 4 * num_dimensions)
            sizes = np.frombuffer(header[len(magic) :], ">u4").tolist() if len(header) % 4 == 0 else []
            if header[: len(magic)] != magic or len(sizes) != num_dimensions:
                raise ValueError(
                    f"{used} is not an IDX file of unsigned bytes in {num_dimensions} dimensions: it begins with "
                    f"{header[:4].hex(' ') or 'nothing'}, not {magic.hex(' ')}; download it again"
                )
            values = stream.read(math.prod(sizes) + 1)  # one more shows a file that is too long
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{used} is not a whole gzip file ({error}); download it again") from error

    if len(values) != math.prod(sizes):
        count = "more" if len(values) > math.prod(sizes) else f"{len(values):,}"
        raise ValueError(f"{used} announces {' x '.join(map(str, sizes))} values and holds {count}; download it again")
    return as_bytes(values).view(*sizes)


def read_cifar10_records(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, 32, 32]` and labels `[N]`, uint8, of the binary version's files. Raises ValueError for others."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} is missing; unpack the whole of cifar-10-binary.tar.gz")
        size = path.stat().st_size
        if size == 0 or size % CIFAR10_RECORD:
            raise ValueError(
                f"{path} has {size:,} bytes, not a multiple of the {CIFAR10_RECORD:,} of a record; unpack it again"
            )
    records = torch.cat([as_bytes(path.read_bytes()) for path in paths]).view(-1, CIFAR10_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def as_bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
