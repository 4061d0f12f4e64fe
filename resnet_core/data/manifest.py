"""Which data a run was trained on: its labels and names, and of images in files their bytes.

The bytes of a small set are always hashed. Of a larger one `resnet-core data check` writes the hashes into the set's
folder, where they hold as long as a file keeps its size and modification time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from resnet_core.data.images import HASHES
from resnet_core.data.splits import Dataset, ImageFiles, Split
from resnet_core.foundation.errors import shortened

HASHED_BELOW = 10**9  # bytes of all files together
LONGEST_PATH = 4096  # characters: a file is named in full
FILES_AT_A_TIME = 64  # that a thread hashes: a task for each file costs more than a small file


def identity(dataset: Dataset) -> dict[str, Any]:
    """What distinguishes a dataset: how many images and classes, and a hash of the labels and images, or file names."""
    digest = hashlib.sha256("/".join(dataset.class_names).encode())
    for split in (dataset.train, dataset.test):
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, Split):
            digest.update(split.images.numpy().tobytes())
        elif isinstance(split, ImageFiles):
            digest.update(split.names.tobytes())
    return {
        "classes": len(dataset.class_names),
        "training images": len(dataset.train),
        "test images": len(dataset.test),
        "sha256": digest.hexdigest(),
    }


@dataclass(frozen=True)
class FileRecord:
    """One file of a dataset."""

    path: str
    """Inside the folder of the data."""
    size: int
    modified: int
    """Nanoseconds since 1970."""
    sha256: str = ""
    """Empty where the bytes have not been hashed."""

    def is_same(self, other: FileRecord) -> bool:
        """Whether both are the same bytes, as far as is known."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return (self.size, self.modified) == (other.size, other.modified)


def files_of(dataset: Dataset) -> tuple[FileRecord, ...]:
    """The files of a dataset; none where its images are in memory. Raises OSError for a file that cannot be read."""
    parts = [part for part in (dataset.train, dataset.test) if isinstance(part, ImageFiles)]
    if not parts:
        return ()
    folder = Path(os.path.commonpath([part.folder for part in parts]))
    paths = [str(part.path(index)) for part in parts for index in range(len(part))]
    records = [record_of(path, folder) for path in paths]

    known = read_hashes(folder)
    records = [known[each.path] if each.path in known and known[each.path].is_same(each) else each for each in records]
    if sum(each.size for each in records) >= HASHED_BELOW:
        return tuple(records)
    missing = [number for number, each in enumerate(records) if not each.sha256]
    for number, sha256 in zip(missing, hashes_of([paths[number] for number in missing]), strict=True):
        records[number] = replace(records[number], sha256=sha256)
    return tuple(records)


def record_of(path: str, folder: Path) -> FileRecord:
    status = os.stat(path)
    return FileRecord(os.path.relpath(path, folder), status.st_size, status.st_mtime_ns)


def hashes_of(paths: Sequence[str]) -> list[str]:
    """The SHA-256 of each file, with a thread for each core."""
    groups = [paths[start : start + FILES_AT_A_TIME] for start in range(0, len(paths), FILES_AT_A_TIME)]
    with ThreadPoolExecutor() as threads:
        return [sha256 for hashes in threads.map(lambda group: [*map(hash_of, group)], groups) for sha256 in hashes]


def hash_of(path: str | Path) -> str:
    """A file's SHA-256, 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content(files: Iterable[FileRecord]) -> str:
    """A hash of all files: of their bytes or, where those have not been hashed, of their sizes and times."""
    digest = hashlib.sha256()
    for each in files:
        digest.update(repr((each.path, each.sha256 or (each.size, each.modified))).encode(errors="surrogateescape"))
    return digest.hexdigest()


def changes(before: Iterable[FileRecord], now: Iterable[FileRecord]) -> list[str]:
    """In words which files are gone, new or changed."""
    there, here = ({each.path: each for each in files} for files in (before, now))
    kinds = {
        "gone": [path for path in there if path not in here],
        "new": [path for path in here if path not in there],
        "changed": [path for path in there if path in here and not there[path].is_same(here[path])],
    }
    return [
        f"{len(paths):,} {'file is' if len(paths) == 1 else 'files are'} {kind}: "
        f"{shortened(paths, longest=LONGEST_PATH)}"
        for kind, paths in kinds.items()
        if paths
    ]


def to_csv(files: Iterable[FileRecord]) -> bytes:
    """A table with a line for each file; `from_csv` reads it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(each.name for each in fields(FileRecord))
    table.writerows((each.path, each.size, each.modified, each.sha256) for each in files)
    return text.getvalue().encode(errors="surrogateescape")


def from_csv(data: bytes) -> tuple[FileRecord, ...]:
    """The inverse of `to_csv`. Raises ValueError for a table of another form."""
    rows = csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline=""))
    next(rows, None)
    return tuple(FileRecord(path, int(size), int(modified), sha256) for path, size, modified, sha256 in rows)


def read_hashes(folder: Path) -> Mapping[str, FileRecord]:
    """What `data check` wrote into the folder or the one above it, by path; nothing that cannot be read."""
    found: dict[str, FileRecord] = {}
    for place, prefix in ((folder.parent, f"{folder.name}/"), (folder, "")):
        with suppress(OSError, ValueError):
            for each in from_csv((place / HASHES).read_bytes()):
                if each.path.startswith(prefix):
                    path = each.path.removeprefix(prefix)
                    found[path] = replace(each, path=path)
    return found
