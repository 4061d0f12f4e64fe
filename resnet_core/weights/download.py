"""Downloads that arrive complete and verified, or leave no file."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch

from resnet_core.data.manifest import hash_of
from resnet_core.foundation.atomic import replacing

STALL_SECONDS = 30.0  # the download fails when the server sends nothing for this long
MOST_BYTES = 2 << 30  # the largest published file has 485 MiB
CHUNK_BYTES = 1 << 16


class DownloadError(OSError):
    """A file that could not be fetched: the reason and the remedy in one line. Nothing of a download is left behind."""


def fetch(url: str, *, sha256_prefix: str, folder: Path | None = None, progress: bool = True) -> Path:
    """The path of the file of `url` in `folder`: downloaded if it is missing, its SHA-256 verified in any case.

    `folder` is torch's hub cache unless given, so that files fetched by torchvision are found. `sha256_prefix` holds
    the hash's first hex digits, at least 8. `progress` shows a bar on a terminal, elsewhere one line, on stderr.
    Raises DownloadError, and ValueError for a URL that is not https or a prefix that is too short.
    """
    if urlsplit(url).scheme != "https":
        raise ValueError(f"weights are fetched only over https, got {url}; give a URL that starts with https://")
    if not re.fullmatch("[0-9a-f]{8,64}", sha256_prefix):
        raise ValueError(f"sha256_prefix must be 8 to 64 hex digits in lower case, got {sha256_prefix!r}")
    path = (folder or Path(torch.hub.get_dir(), "checkpoints")) / PurePosixPath(urlsplit(url).path).name
    try:
        with _disk_errors(path):
            cached = path.exists() and hash_of(path)
        if not cached:
            _download(url, path, sha256_prefix, progress)
        elif not cached.startswith(sha256_prefix):
            raise DownloadError(
                f"{path} is not the published file: its SHA-256 starts with {cached[:8]}, not {sha256_prefix}; "
                "remove it, and it is fetched again"
            )
    except URLError as error:
        # The server may have written some of it: no control characters, and not more than a line.
        reason = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(error.reason))[:300]
        raise DownloadError(
            f"{url} could not be fetched: {reason}; try again, or copy the file to {path} by hand"
        ) from error
    return path


def _download(url: str, path: Path, sha256_prefix: str, progress: bool) -> None:
    """Puts the file of `url` at `path`. Raises URLError for faults of network and server, else DownloadError."""
    sha256 = hashlib.sha256()
    with _network_errors():
        response = build_opener(_HttpsRedirects).open(url, timeout=STALL_SECONDS)

    size = response.length
    with response, _disk_errors(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_size(size, path)
        with (
            replacing(path) as aside,
            aside.open("xb") as file,
            _shown(url, path, size, progress) as advance,
        ):
            for chunk in _chunks(response):
                file.write(chunk)
                sha256.update(chunk)
                advance(len(chunk))
            if not sha256.hexdigest().startswith(sha256_prefix):
                raise URLError(
                    f"the server sent another file than the published one: its SHA-256 starts with "
                    f"{sha256.hexdigest()[:8]}, not {sha256_prefix}"
                )


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body in pieces. Raises URLError where it stalls, ends too early or does not end."""
    promised, received, chunk = response.length, 0, b" "
    while chunk:
        with _network_errors():
            chunk = response.read(CHUNK_BYTES)
        received += len(chunk)
        if received > MOST_BYTES:
            raise URLError(f"the server sent more than {MOST_BYTES:,} bytes, which no published file has")
        yield chunk
    if promised is not None and received != promised:
        raise URLError(f"the connection was cut after {received:,} of {promised:,} bytes")


class _HttpsRedirects(HTTPRedirectHandler):
    """Follows redirects within https."""

    def http_error_302(self, req: Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()  # urllib would read the redirect's own body, however long it is
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme != "https":
            raise URLError(f"the server redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_size(size: int | None, path: Path) -> None:
    """Raises where the server promised more bytes than a published file has, or than there is room for."""
    if size is None:
        return
    if size > MOST_BYTES:
        raise URLError(f"the server promised {size:,} bytes, and no published file has more than {MOST_BYTES:,}")
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise DownloadError(
            f"{path} needs {size:,} bytes and the disk has {free:,} left; make room, or set TORCH_HOME to a folder on "
            "another disk"
        )


@contextmanager
def _network_errors() -> Iterator[None]:
    """Makes whatever goes wrong between here and the server a URLError."""
    try:
        yield
    except HTTPError as error:
        error.close()
        circles = "the server redirects in circles or away from https"
        raise URLError(circles if error.code < 400 else f"the server answered {error.code}") from error
    except URLError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise URLError(str(error)) from error


@contextmanager
def _disk_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Makes whatever goes wrong with the file at `path`, of `size` bytes where known, a DownloadError."""
    try:
        yield
    except (URLError, DownloadError):
        raise
    except OSError as error:
        needed = "" if size is None else f" of {size:,} bytes"
        raise DownloadError(
            f"{path}{needed} cannot be read or written ({error.strerror or error}); fix that, or set TORCH_HOME to "
            "another folder, on a disk with room"
        ) from error


@contextmanager
def _shown(url: str, path: Path, size: int | None, progress: bool) -> Iterator[Callable[[int], object]]:
    """Yields a function to call with each number of bytes received; it moves the bar where there is one."""
    shows_bar = progress and sys.stderr.isatty()
    if progress and not shows_bar:
        length = "" if size is None else f", {size:,} bytes,"
        print(f"fetching {url}{length} to {path}", file=sys.stderr)

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shows_bar) as bar:
        task = bar.add_task(path.name, total=size)
        yield lambda count: bar.advance(task, count)
