"""debuginfod: what is asked of a server, and everything that a server can do wrong."""

from __future__ import annotations

import http.server
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from kdump_elftool.arch.x86_64 import ARCH
from kdump_elftool.jobs import debuginfod
from kdump_elftool.jobs.debug_files import Search
from kdump_elftool.progress import no_progress
from tests.unit.jobs.test_debug_files import ID, OTHER, image, info

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """One server on this machine: ``answer`` is what it does, ``asked`` what it was asked for."""

    def __init__(self) -> None:
        self.answer: Answer = lambda handler: handler.send_error(404)
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.answer(self)

            def log_message(self, *_args: object) -> None:
                """Nothing on stderr."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    yield running
    running.stop()


def send(data: bytes, length: int | None = None) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirect(to: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


@pytest.fixture
def fetch(tmp_path):
    """``fetch(urls, **environment)``: the file, or None; nothing else may be left."""

    def run(urls: str, **environment: str) -> Path | None:
        place = tmp_path / "cache"
        environ = {"DEBUGINFOD_URLS": urls, "DEBUGINFOD_CACHE_PATH": str(place), **environment}
        path = debuginfod.download(ID, environ, no_progress)
        target = place / ID.hex() / "debuginfo"
        assert path == (str(target) if target.exists() else None)
        assert list(place.glob("*/debuginfo.*")) == []
        return None if path is None else Path(path)

    return run


def test_a_file_is_fetched_once_into_the_clients_cache(server, tmp_path):
    server.answer = send(image())
    environ = {"DEBUGINFOD_URLS": f"{server.url}/", "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        with ExitStack() as stack:
            found = Search(stack, environ, [], root=str(tmp_path / "root")).locate(info(), ARCH)
            assert found is not None
            assert found.path == str(tmp_path / "debuginfod_client" / ID.hex() / "debuginfo")
    assert server.asked == [f"/buildid/{ID.hex()}/debuginfo"]
    path = Path(found.path)
    assert path.read_bytes() == image()
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0


def test_nobody_is_asked_without_a_build_id(server, tmp_path):
    environ = {"DEBUGINFOD_URLS": server.url, "HOME": str(tmp_path)}
    with ExitStack() as stack:
        assert Search(stack, environ, [], root=str(tmp_path)).locate(info(None), ARCH) is None
    assert server.asked == []


@pytest.mark.parametrize(
    "urls", ["", "   ", "file:///etc", "ftp://127.0.0.1/", "ima:enforcing", "/etc", "http://"]
)
def test_no_server(fetch, urls):
    assert fetch(urls) is None


def test_no_place_to_keep_it(server):
    assert debuginfod.download(ID, {"DEBUGINFOD_URLS": server.url}, no_progress) is None
    assert (
        debuginfod.download(
            ID, {"DEBUGINFOD_URLS": server.url, "DEBUGINFOD_CACHE_PATH": "relative"}, no_progress
        )
        is None
    )
    assert server.asked == []


def test_the_next_server_is_asked(server, fetch):
    server.answer = send(image())
    assert fetch(f"http://127.0.0.1:1/ ima:ignore {server.url}/prefix") is not None
    assert server.asked == [f"/prefix/buildid/{ID.hex()}/debuginfo"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.send_error(404),
        lambda handler: handler.send_error(500),
        lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"),
        lambda handler: None,
        send(b""),
        send(b"no ELF"),
        send(image(OTHER)),
        send(image(None)),
        send(image()[:-10], len(image())),
        send(image(), 1 << 40),
        redirect("file:///etc/passwd"),
        redirect("ftp://127.0.0.1/x"),
        redirect("/again"),
        redirect("http:" + "//[bad"),
    ],
    ids=lambda answer: getattr(answer, "__qualname__", "")[:8],
)
def test_what_a_server_can_do_wrong(server, fetch, answer):
    server.answer = answer
    assert fetch(server.url) is None
    assert len(server.asked) < 20


def test_a_redirection_is_followed(server, fetch):
    def answer(handler):
        (send(image()) if handler.path == "/there" else redirect("/there"))(handler)

    server.answer = answer
    assert fetch(server.url) is not None


def test_more_than_it_said(server, fetch):
    """Without a length, too: no more than the limit is written."""

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    server.answer = endless
    assert fetch(server.url, DEBUGINFOD_MAXSIZE="1000000") is None


def test_a_server_that_falls_asleep(server, fetch):
    server.answer = lambda handler: time.sleep(3)
    begin = time.monotonic()
    assert fetch(server.url, DEBUGINFOD_TIMEOUT="1") is None
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("limit", [{"DEBUGINFOD_TIMEOUT": "1"}, {"DEBUGINFOD_MAXTIME": "1"}])
def test_a_server_that_drips(server, fetch, limit):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.1)
        except OSError:
            pass

    server.answer = drip
    assert fetch(server.url, **limit) is None


def test_a_directory_that_cannot_be_written(server, tmp_path, fetch):
    (tmp_path / "cache").write_text("a file")
    server.answer = send(image())
    environ = {"DEBUGINFOD_URLS": server.url, "DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache")}
    assert debuginfod.download(ID, environ, no_progress) is None
    assert os.listdir(tmp_path) == ["cache"]
