"""Downloads from a server on 127.0.0.1 that misbehaves: one line that names the remedy, and no file left."""

import errno
import gzip
import hashlib
import http.client
import inspect
import io
import os
import resource
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

import resnet_core
from resnet_core.weights import CATALOG, download, find_weights
from resnet_core.weights.download import DownloadError, fetch
from tests.conftest import PATIENCE
from tests.weights.networks import akamaster, akamaster_checkpoint

BODY = bytes(range(256)) * 1200  # 307,200 bytes: five pieces
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = f"net-{SHA256[:8]}.pth"
STALL = 1.0  # seconds, more than a thread waits for a core that others use, too
MOST = 1 << 20  # bytes


def answer(body=BODY, *headers, status="200 OK", length=True):
    """An HTTP answer as bytes."""
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def redirect(location, body=b""):
    return answer(body, f"Location: {location}", status="302 Found")


def in_chunks(*pieces):
    coded = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return answer(coded, "Transfer-Encoding: chunked", length=False)


def stall(send, stopping):
    stopping.wait(20)


MEETING = threading.Barrier(2, timeout=25)


def meet(send, stopping):
    MEETING.wait()


def endless(send, stopping):
    while not stopping.is_set():
        send(b"x" * 65536)


def slow(send, stopping):
    send(answer()[: -len(BODY)])
    for start in range(0, len(BODY), 30720):
        send(BODY[start : start + 30720])
        stopping.wait(0.05)


FLIPPED = BODY[:1000] + bytes([BODY[1000] ^ 1]) + BODY[1001:]
HALF = BODY[: len(BODY) // 2]

# What the server does in turn (bytes are sent, functions called), and what the error says of it.
MISBEHAVIOURS = {
    "another file": ([answer(b"x" * len(BODY))], "sent another file"),
    "one bit flipped": ([answer(FLIPPED)], "sent another file"),
    "an empty file": ([answer(b"")], "sent another file"),
    "204 without a file": ([answer(status="204 No Content", length=False)], "sent another file"),
    "compressed although not asked to": ([answer(gzip.compress(BODY), "Content-Encoding: gzip")], "sent another file"),
    "a shorter length than the file": ([answer().replace(b"307200", b"307199")], "sent another file"),
    "cut half-way": ([answer()[: -len(HALF)]], "cut after 153,600 of 307,200 bytes"),
    "cut half-way, length unknown": ([answer(HALF, length=False)], "sent another file"),
    "cut between chunks": ([in_chunks(BODY[:9], HALF)], "IncompleteRead"),
    "a chunk of no size": ([in_chunks(HALF) + b"zz\r\n"], "IncompleteRead"),
    "a longer length than the file": ([answer().replace(b"307200", b"307201")], "cut after 307,200 of 307,201 bytes"),
    "no answer": ([stall], "timed out"),
    "half a header": ([b"HTTP/1.1 200 OK\r\nContent-", stall], "timed out"),
    "no more after half of the file": ([answer()[: -len(HALF)], stall], "timed out"),
    "closed without a word": ([], "closed connection without response"),
    "another protocol": ([b"SSH-2.0-\x1b[31mServer\r\n"], "SSH-2.0- [31mServer"),
    "a header line without end": ([b"HTTP/1.1 200 OK\r\nA: ", endless], "more than 65536 bytes"),
    "headers without end": ([b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200], "more than 100 headers"),
    "a file without end": ([answer(b"", length=False), endless], "sent more than 1,048,576 bytes"),
    "a huge length": ([answer().replace(b"307200", b"9" * 15)], "promised 999,999,999,999,999 bytes"),
    "403": ([answer(b"no", status="403 Forbidden")], "the server answered 403"),
    "404 with an endless page": ([answer(b"", status="404 Not Found", length=False), endless], "answered 404"),
    "500": ([answer(b"", status="500 Oh\x1b[31m")], "the server answered 500"),
    "redirects to http": ([redirect("http://127.0.0.1/good/x")], "redirects to http://127.0.0.1/good/x, which is not"),
    "redirects to ftp": ([redirect("ftp://127.0.0.1/x")], "redirects to ftp://127.0.0.1/x, which is not https"),
    "redirects to a file": ([redirect("file:///etc/hostname")], "redirects in circles or away from https"),
    "redirects to data": ([redirect("data:,x")], "redirects in circles or away from https"),
    "redirects to itself": ([redirect("?again")], "redirects in circles or away from https"),
    "redirects nowhere": ([answer(b"", status="302 Found")], "redirects in circles or away from https"),
    "redirects to nonsense": ([redirect("https://[nonsense/")], "Invalid IPv6 URL"),
    "redirects to a closed port": ([redirect("https://127.0.0.1:1/x")], "Connection refused"),
}

# What other servers do, which is not a reason to refuse a file.
ODDITIES = {
    "as it should": [answer()],
    "slowly": [slow],
    "length unknown": [answer(length=False)],
    "in chunks": [in_chunks(HALF, BODY[len(HALF) :], b"")],
    "a length that is no number": [answer().replace(b"307200", b"many")],
    "more than it promised": [answer() + b"x" * 1000],
    "redirects to another host": [redirect("https://localhost:{port}/good/x")],
    "redirects with an endless page": [answer(b"", "Location: /good/x", status="302 Found", length=False), endless],
}
ANSWERS = {
    **{name: steps for name, (steps, _) in MISBEHAVIOURS.items()},
    **ODDITIES,
    "half to each of two, then the rest": [answer()[: -len(HALF)], meet, HALF],
}


class Server(socketserver.ThreadingTCPServer):
    """Answers `/N/...` with number N of ANSWERS, `/good/...` with the file,, and counts the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.stopping = threading.Event()
        self.requests = 0

    def url(self, name):
        return f"https://127.0.0.1:{self.server_address[1]}/{list(ANSWERS).index(name)}/{NAME}"


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        if self.rfile.read(4) != b"GET ":
            self.wfile.write(b"Only HTTP is spoken here")
            return
        key = self.rfile.readline().decode().split("/")[1]
        while self.rfile.readline().strip():
            pass
        self.server.requests += 1
        try:
            for step in [answer()] if key == "good" else list(ANSWERS.values())[int(key)]:
                if callable(step):
                    step(self.wfile.write, self.server.stopping)
                else:
                    self.wfile.write(step.replace(b"{port}", str(self.server.server_address[1]).encode()))
        except OSError:
            pass  # the client left, as it should


class PlainConnection(http.client.HTTPConnection):
    """Stands in for HTTPSConnection: the URLs say https, and the server needs no certificate."""

    def __init__(self, host, *, context=None, check_hostname=None, **options):
        super().__init__(host, **options)


@pytest.fixture(scope="module")
def running():
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.stopping.set()
        server.shutdown()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setattr(http.client, "HTTPSConnection", PlainConnection)
    monkeypatch.setattr(download, "STALL_SECONDS", STALL)
    monkeypatch.setattr(download, "MOST_BYTES", MOST)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    running.requests = 0
    return running


def refused(url, folder, sha256=SHA256):
    """What the error says; it is one line and names the remedy."""
    with pytest.raises(DownloadError) as caught:
        fetch(url, sha256_prefix=sha256[:8], folder=folder, progress=False)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 700
    assert "; try again, or copy the file to" in line or "; remove it, and" in line or "set TORCH_HOME to" in line
    assert str(folder / NAME) in line
    return line


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_each_misbehaviour_is_one_line_with_the_remedy_and_leaves_nothing(name, server, tmp_path):
    assert MISBEHAVIOURS[name][1] in refused(server.url(name), tmp_path)
    assert list(tmp_path.iterdir()) == []
    path = fetch(server.url("as it should"), sha256_prefix=SHA256[:8], folder=tmp_path, progress=False)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("name", ODDITIES)
def test_what_is_only_odd_is_accepted(name, server, tmp_path):
    path = fetch(server.url(name), sha256_prefix=SHA256, folder=tmp_path, progress=False)
    assert path == tmp_path / NAME
    assert path.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_torchs_cache_is_found_verified_and_shared(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = io.BytesIO()
    torch.save({"weight": torch.arange(6.0)}, file)
    sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    monkeypatch.setitem(ANSWERS, "as it should", [answer(file.getvalue())])
    url = server.url("as it should").replace(SHA256[:8], sha256[:8])
    path = fetch(url, sha256_prefix=sha256[:8], progress=False)
    assert path == tmp_path / "hub" / "checkpoints" / f"net-{sha256[:8]}.pth"
    assert fetch(url, sha256_prefix=sha256[:8], progress=False) == path
    assert torch.equal(torch.hub.load_state_dict_from_url(url, check_hash=True)["weight"], torch.arange(6.0))
    assert server.requests == 1


def test_a_published_cifar_set_is_fetched_through_a_redirect_and_verified(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = io.BytesIO()
    torch.save(akamaster_checkpoint(akamaster()), file)
    sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    monkeypatch.setattr(download, "MOST_BYTES", 2 * MOST)
    monkeypatch.setitem(ANSWERS, "as it should", [answer(file.getvalue())])
    elsewhere = server.url("as it should").replace("127.0.0.1", "localhost")
    monkeypatch.setitem(ANSWERS, "slowly", [redirect(elsewhere)])

    url = server.url("slowly").replace(NAME, f"resnet20-{sha256[:8]}.th")
    published = replace(find_weights("cifar_resnet20", "DEFAULT"), url=url)
    monkeypatch.setitem(CATALOG["cifar_resnet20"], "CIFAR10_V1", published)
    model = resnet_core.cifar_resnet20(weights="DEFAULT", progress=False)
    saved = torch.load(file.seek(0) or file)["state_dict"]
    assert torch.equal(model.fc.weight, saved["module.linear.weight"])
    assert (tmp_path / "hub" / "checkpoints" / f"resnet20-{sha256[:8]}.th").read_bytes() == file.getvalue()

    wrong = replace(published, url=url.replace(sha256[:8], "12fca82f"))
    monkeypatch.setitem(CATALOG["cifar_resnet20"], "CIFAR10_V1", wrong)
    with pytest.raises(DownloadError, match="the server sent another file than the published one"):
        resnet_core.cifar_resnet20(weights="DEFAULT", progress=False)


def test_a_wrong_file_in_the_cache_is_named_and_kept(server, tmp_path):
    (tmp_path / NAME).write_bytes(FLIPPED)
    line = refused(server.url("as it should"), tmp_path)
    assert line.startswith(f"{tmp_path / NAME} is not the published file: its SHA-256 starts with ")
    assert (tmp_path / NAME).read_bytes() == FLIPPED
    assert server.requests == 0
    (tmp_path / NAME).unlink()
    fetch(server.url("as it should"), sha256_prefix=SHA256, folder=tmp_path, progress=False)


def test_only_https_and_a_hash_of_at_least_8_digits_are_taken(server, tmp_path):
    for scheme in ("http", "ftp", "file"):
        with pytest.raises(
            ValueError, match=f"only over https, got {scheme}://.*; give a URL that starts with https://"
        ):
            fetch(server.url("as it should").replace("https", scheme), sha256_prefix=SHA256, folder=tmp_path)
    for prefix in ("", "0676ba6", "0676BA61", SHA256 + "0"):
        with pytest.raises(ValueError, match="sha256_prefix must be 8 to 64 hex digits in lower case, got"):
            fetch(server.url("as it should"), sha256_prefix=prefix, folder=tmp_path)
    assert server.requests == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "Network is unreachable"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, OSError) else "",
)
def test_an_offline_machine_is_told_where_to_copy_the_file(error, said, server, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise error

    monkeypatch.setattr(socket, "create_connection", unreachable)
    line = refused(server.url("as it should"), tmp_path)
    assert f"{said}; try again, or copy the file to {tmp_path / NAME} by hand" in line
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_tls_is_refused(running, tmp_path):
    assert "SSL" in refused(running.url("as it should"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_a_server_with_a_certificate_of_its_own_is_refused(tmp_path):
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    subprocess.run([*new.split(), "-keyout", "key", "-out", "cert"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    folder = tmp_path / "cache"
    with Server() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        assert "certificate verify failed" in refused(server.url("as it should"), folder)
        server.shutdown()
        assert server.requests == 0
    assert not folder.exists()


def test_a_disk_without_room_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    line = refused(server.url("as it should"), tmp_path)
    assert f"{tmp_path / NAME} needs 307,200 bytes and the disk has 1,000 left; make room, or set TORCH_HOME" in line
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_end_is_told(server, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(server.url("as it should"), tmp_path)
    assert (
        f"{NAME} of 307,200 bytes cannot be read or written (No space left on device); fix that, or set TORCH_HOME"
        in line
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_told(server, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    assert "Not a directory" in refused(server.url("as it should"), tmp_path / "cache" / "checkpoints")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / NAME).mkdir()
    assert "Is a directory" in refused(server.url("as it should"), tmp_path / "hub")


def test_a_disk_that_fills_up_half_way_is_told(server, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the kernel refuses to write more to any file
    try:
        line = refused(server.url("as it should"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{NAME} of 307,200 bytes cannot be read or written (File too large); fix that, or set TORCH_HOME to" in line
    assert list(tmp_path.iterdir()) == []


# A process of its own that fetches a URL into a folder.
ALONE = f"""
import http.client, sys
from pathlib import Path
from resnet_core.weights.download import fetch

{inspect.getsource(PlainConnection)}
http.client.HTTPSConnection = PlainConnection
print(fetch(sys.argv[1], sha256_prefix="{SHA256}", folder=Path(sys.argv[2])))
"""


def start(url, folder):
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, url, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def test_two_processes_at_once_both_end_with_the_right_file(server, tmp_path):
    for process in [start(server.url("half to each of two, then the rest"), tmp_path) for _ in range(2)]:
        printed, errors = process.communicate(timeout=PATIENCE)
        assert printed == f"{tmp_path / NAME}\n", errors
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == BODY


def test_an_interrupted_download_succeeds_when_run_again(server, tmp_path):
    left = {signal.SIGINT: 0, signal.SIGKILL: 1}  # files; nobody can tidy up after kill -9
    processes = {how: start(server.url("no more after half of the file"), tmp_path / how.name) for how in left}
    for how, process in processes.items():
        folder = tmp_path / how.name
        deadline = time.monotonic() + PATIENCE
        while not list(folder.glob(".*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -how
        assert len(list(folder.iterdir())) == left[how]
        assert not (folder / NAME).exists()
        fetch(server.url("as it should"), sha256_prefix=SHA256, folder=folder, progress=False)
        assert (folder / NAME).read_bytes() == BODY


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "shown"),
    [
        (io.StringIO, True, ["fetching https://", " 307,200 bytes, to ", NAME]),
        (Terminal, True, [NAME, "307.2/307.2 kB"]),
        (io.StringIO, False, []),
        (Terminal, False, []),
    ],
)
def test_progress_is_a_bar_on_a_terminal_a_line_elsewhere_and_nothing_on_request(
    stream, progress, shown, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("COLUMNS", "200")
    fetch(server.url("as it should"), sha256_prefix=SHA256, folder=tmp_path, progress=progress)
    printed = sys.stderr.getvalue()
    assert all(part in printed for part in shown), printed
    assert bool(printed) == progress
    assert printed.count("\n") <= 1
    assert capsys.readouterr().out == ""
