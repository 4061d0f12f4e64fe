"""Files that appear whole or not at all: written under another name, synced, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

LONGEST_NAME = 50  # characters, of up to 4 bytes each: the name of the other file must stay below 255 bytes


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the path to write to; when the block ends without an exception, that file replaces `path`.

    Whatever ends the process, `path` is the old file or the new one. An exception removes what was written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name[:LONGEST_NAME]}.{token_hex(4)}.part")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_file(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` so that a crash leaves the old file or the new one."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def sync(path: Path) -> None:
    """Returns when a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
