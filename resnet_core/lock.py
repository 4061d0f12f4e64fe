"""One job at a time in a folder: a lock that the kernel lets go of when its owner ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"


class FolderInUseError(OSError):
    """Another process owns the folder."""


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Within it this process owns the folder. Raises FolderInUseError naming the process that does.

    A POSIX record lock: processes that this one forks do not hold it, and other machines see it where the folder is on
    a network filesystem that keeps locks, as NFS does.
    """
    with (folder / NAME).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise FolderInUseError(
                f"{folder} is in use by {owner}; wait for its end, or choose another folder with --out"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
