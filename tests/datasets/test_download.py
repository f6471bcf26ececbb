"""Downloads from a server on this machine that breaks, changes and lies."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.datasets.download import checksum, download
from diffusion_forcing.datasets.mazes.maze2d import Maze2d, Maze2dOptions
from diffusion_forcing.errors import UserError

from .makers import steps, write_file

BODY = np.random.default_rng(0).bytes(1_000_000)
SUM = hashlib.sha256(BODY).hexdigest()


class Server:
    """Serves `body` with Range and ETag; `cut` = bytes to send before hanging up, per request; `ranges` logs what was asked."""

    def __init__(self) -> None:
        self.body, self.tag, self.status = BODY, '"one"', 200
        self.cut: list[int] = []
        self.ranges: list[str | None] = []
        self.honours_range = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.reply(self)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/maze2d-umaze-sparse-v1.hdf5"

    def reply(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.status != 200:
            request.send_error(self.status)
            return
        begin = 0
        if asked and self.honours_range and request.headers.get("If-Range") == self.tag:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin >= len(self.body):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(self.body)}")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(self.body) - begin))
        request.send_header("ETag", self.tag)
        request.end_headers()
        end = begin + self.cut.pop(0) if self.cut else len(self.body)
        request.wfile.write(self.body[begin:end])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def fetch(server: Server, path: Path, **options: Any) -> Path:
    return download(server.url, path, progress=False, patience=0.0, timeout=5, **options)


def test_a_file_is_fetched_once_and_its_sum_printed_and_kept(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "a.hdf5"
    for _ in range(2):
        assert fetch(server, path).read_bytes() == BODY
    assert len(server.ranges) == 1
    assert SUM in capsys.readouterr().out and path.with_name("a.hdf5.sha256").read_text().startswith(SUM)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.hdf5", "a.hdf5.sha256"]
    assert checksum(path) == SUM


def test_a_broken_connection_is_continued_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000, 400_000]
    assert fetch(server, tmp_path / "a", sha256=SUM).read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-", "bytes=700000-"]


def test_a_later_run_continues_an_earlier_one(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="connection closed after"):
        fetch(server, tmp_path / "a")
    assert not (tmp_path / "a").exists() and (tmp_path / "a.part").stat().st_size == 300_000
    server.cut, server.ranges = [], []
    assert fetch(server, tmp_path / "a").read_bytes() == BODY
    assert server.ranges == ["bytes=300000-"]


def test_a_part_that_was_already_whole_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(BODY)
    (tmp_path / "a.part.tag").write_text(server.tag)
    assert fetch(server, tmp_path / "a", sha256=SUM).read_bytes() == BODY


@pytest.mark.parametrize("changed", ["other file", "no range", "no tag"])
def test_a_part_that_cannot_be_continued_is_begun_again(server: Server, tmp_path: Path, changed: str) -> None:
    (tmp_path / "a.part").write_bytes(b"old" * 1000)
    if changed != "no tag":
        (tmp_path / "a.part.tag").write_text('"zero"' if changed == "other file" else server.tag)
    server.honours_range = changed != "no range"
    assert fetch(server, tmp_path / "a", sha256=SUM).read_bytes() == BODY


def test_a_wrong_sum_is_refused_and_the_file_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has SHA-256 {SUM}, expected {'0' * 64}"):
        fetch(server, tmp_path / "a", sha256="0" * 64)
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.part").exists()


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 5)])
def test_an_answer_without_a_file_says_where_to_place_it(
    server: Server, tmp_path: Path, status: int, tries: int
) -> None:
    server.status = status
    with pytest.raises(UserError) as caught:
        fetch(server, tmp_path / "a")
    message = str(caught.value)
    assert (
        f"HTTP {status}" in message and f"place the file at {tmp_path / 'a'} by hand" in message and "\n" not in message
    )
    assert len(server.ranges) == tries


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a", "http://no.such.host.invalid/a", "nonsense", "ftp2://x/a"])
def test_no_network_is_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError) as caught:
        download(url, tmp_path / "a", progress=False, patience=0.0, timeout=2)
    assert "cannot download" in str(caught.value) and "\n" not in str(caught.value)


def test_the_public_file_is_downloaded_and_read(server: Server, tmp_path: Path) -> None:
    server.body = write_file(tmp_path / "public.hdf5", steps(200)).read_bytes()
    options = Maze2dOptions(
        env_id="maze2d-umaze-v1",
        episode_len=20,
        save_dir=str(tmp_path / "data"),
        source="d4rl",
        d4rl_url=server.url.rpartition("/")[0],
        sha256=hashlib.sha256(server.body).hexdigest(),
    )
    data = Maze2d(options)
    data.prepare(progress=False)
    assert len(data.store) == 200 and (tmp_path / "data" / "maze2d-umaze-sparse-v1.hdf5").exists()
