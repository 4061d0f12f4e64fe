"""One job at a time in a folder: a lock that the kernel releases when its owner ends, however it ends."""

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


_held: set[Path] = set()  # by this process: a record lock keeps out only other processes


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Inside this context, this process owns the folder. Raises FolderInUseError, naming the owner, if another does.

    The lock is a POSIX record lock. Forked processes do not inherit it. Other machines see it if the folder is on a
    network filesystem that supports locks, such as NFS; on one that does not, OSError is raised.
    """
    place = folder.resolve()
    if place in _held:  # opening and closing the file again would release the lock
        raise FolderInUseError(_refusal(folder, "this process"))

    with (folder / NAME).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise FolderInUseError(_refusal(folder, file.read().strip() or "another process")) from error
        except OSError as error:
            raise OSError(
                f"{folder} is on a filesystem without locks ({error.strerror}); choose a folder on another"
            ) from error

        _held.add(place)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
        finally:
            _held.discard(place)


def _refusal(folder: Path, owner: str) -> str:
    return f"{folder} is in use by {owner}; wait until it ends, or choose another folder with --out"
