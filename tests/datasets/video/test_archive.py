"""An archive in parts from a server on this machine: unpacked as a stream, gone on with after any interruption, and nothing outside its folder."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.datasets.video import archive as video_archive
from diffusion_forcing.datasets.video.archive import FOLDER, Part, fetch_archive, is_unfinished
from diffusion_forcing.errors import UserError
from tests.datasets.video.test_cache import small_disk

RNG = np.random.default_rng(0)
FILES = {
    f"dmlab/{split}/{i % 2}/{i:03d}.npz": RNG.bytes(3000 + 700 * i) for split in ("train", "test") for i in range(6)
}
FILES["dmlab/train/1/" + "long" * 40 + ".npz"] = RNG.bytes(100)  # a name that needs a header of its own
UNPACKED = {
    name.replace("dmlab/train", "training").replace("dmlab/test", "validation"): body for name, body in FILES.items()
}


def tar(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("dmlab", "dmlab/train", "dmlab/test"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
        for member in more:
            archive.addfile(member)
    return out.getvalue()


def cut_up(body: bytes, count: int = 3) -> dict[str, bytes]:
    """`body` in parts at places that are no borders of files."""
    borders = [len(body) * i // count + 77 * (0 < i < count) for i in range(count + 1)]
    return {f"dmlab.tar.parta{'abcdefghijk'[i]}": body[borders[i] : borders[i + 1]] for i in range(count)}


class Server:
    """archive.org's addresses: `/download/ITEM/NAME` and `/metadata/ITEM`. `broken`: names answered with 404; `log`: what was asked."""

    def __init__(self, bodies: dict[str, bytes]) -> None:
        self.bodies, self.broken, self.log, self.sums = bodies, set[str](), list[str](), dict[str, str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.reply(self)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def parts(self) -> list[Part]:
        address = f"http://127.0.0.1:{self.http.server_port}/download"
        return [Part(f"{address}/dmlab_dataset_{name[-2:]}/{name}") for name in self.bodies]

    def reply(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        if request.path.startswith("/metadata/"):
            listed = [{"name": key, "sha1": value} for key, value in self.sums.items() if name.endswith(key[-2:])]
            body = json.dumps({"files": listed}).encode()
        else:
            self.log.append(name)
            if name in self.broken:
                request.send_error(404)
                return
            body = self.bodies[name]
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(cut_up(tar(FILES)))
    threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def unpacked(folder: Path) -> dict[str, bytes]:
    """Every visible file below `folder`, without the sums kept of the parts."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".sha256"]
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


def fetch(server: Server, folder: Path, **words: Any) -> None:
    fetch_archive(server.parts, folder, progress=False, **words)


def test_every_file_of_the_parts_is_unpacked_under_the_released_names_and_no_part_stays(
    server: Server, tmp_path: Path
) -> None:
    fetch(server, tmp_path)
    assert unpacked(tmp_path) == UNPACKED
    assert not is_unfinished(tmp_path) and not list(tmp_path.rglob("*.part*[!6]"))
    assert server.log == list(server.bodies)
    sums = {path.name: path.read_text().split()[0] for path in tmp_path.glob("*.sha256")}
    assert sums == {f"{name}.sha256": hashlib.sha256(body).hexdigest() for name, body in server.bodies.items()}


def test_a_part_is_deleted_before_the_one_after_the_next_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = video_archive.download
    most = 0

    def counting(*words: Any, **more: Any) -> Path:
        nonlocal most
        path = fetched(*words, **more)
        most = max(most, len(list((tmp_path / FOLDER).glob("*.parta?"))))
        return path

    server.bodies = cut_up(tar(FILES), 8)
    monkeypatch.setattr(video_archive, "download", counting)
    fetch(server, tmp_path)
    assert unpacked(tmp_path) == UNPACKED and most == 2


def test_a_part_that_cannot_be_had_is_said_and_the_next_run_goes_on_there(server: Server, tmp_path: Path) -> None:
    names = list(server.bodies)
    server.broken = {names[1]}
    with pytest.raises(UserError, match="by hand, or unpack the archive yourself so that") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and is_unfinished(tmp_path)
    before = unpacked(tmp_path)
    assert before and before.items() < UNPACKED.items()
    server.broken = set()
    fetch(server, tmp_path)
    assert unpacked(tmp_path) == UNPACKED and server.log.count(names[0]) == 1


@pytest.mark.parametrize("stop", [1, 4, 7, 10, 14])
def test_a_run_killed_behind_any_file_goes_on_behind_it(
    server: Server, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, count = video_archive._Stream.keep, 0

    def killed(self: Any, position: int) -> None:
        nonlocal count
        keep(self, position)
        count += 1
        if count == stop:
            raise KeyboardInterrupt

    server.bodies = cut_up(tar(FILES), 7)
    monkeypatch.setattr(video_archive._Stream, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path)
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    monkeypatch.undo()
    fetch(server, tmp_path)
    assert unpacked(tmp_path) == UNPACKED
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())  # nothing is unpacked twice
    assert sorted(server.log) == sorted(server.bodies)  # or fetched twice


@pytest.mark.parametrize("beside", [True, False])
def test_parts_placed_by_hand_are_used_and_left_alone(server: Server, tmp_path: Path, beside: bool) -> None:
    placed = []
    for name, body in server.bodies.items():
        path = tmp_path / name if beside else tmp_path / f"dmlab_dataset_{name[-2:]}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        placed.append(path)
    fetch(server, tmp_path)
    assert server.log == [] and all(path.exists() for path in placed)
    assert {name: body for name, body in unpacked(tmp_path).items() if name.endswith(".npz")} == UNPACKED


def test_a_published_or_given_sum_that_differs_is_said_and_the_part_deleted(server: Server, tmp_path: Path) -> None:
    name = next(iter(server.bodies))
    server.sums = {name: "0" * 40}
    with pytest.raises(UserError, match="SHA-1"):
        fetch(server, tmp_path)
    assert unpacked(tmp_path) == {} and not (tmp_path / FOLDER / name).exists()
    wrong = [Part(part.url, "1" * 64) for part in server.parts]
    with pytest.raises(UserError, match="expected 1111"):
        fetch_archive(wrong, tmp_path, progress=False)
    server.sums = {name: hashlib.sha1(server.bodies[name]).hexdigest()}
    fetch(server, tmp_path)
    assert unpacked(tmp_path) == UNPACKED


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("files", "more", "words"),
    [
        ({"/dmlab/train/a.npz": b"x"}, (), "outside its folder"),
        ({"dmlab/train/../../../a.npz": b"x"}, (), "outside its folder"),
        ({"dmlab\\train\\..\\..\\a.npz": b"x"}, (), "outside its folder"),
        ({"C:/a.npz": b"x"}, (), "outside its folder"),
        ({}, (link("dmlab/train/a.npz", tarfile.SYMTYPE, "/etc/passwd"),), "a link or device"),
        ({}, (link("dmlab/train/a.npz", tarfile.LNKTYPE, "dmlab/train/b.npz"),), "a link or device"),
        ({}, (link("dmlab/train/a.npz", tarfile.CHRTYPE, ""),), "a link or device"),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(
    server: Server, tmp_path: Path, files: dict[str, bytes], more: tuple[tarfile.TarInfo, ...], words: str
) -> None:
    folder = tmp_path / "a" / "b" / "data"
    server.bodies = cut_up(tar(files, *more))
    with pytest.raises(UserError, match=words):
        fetch(server, folder)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".npz" or path.is_symlink()]


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_damaged_archive_is_said_and_what_is_there_is_right(server: Server, tmp_path: Path, where: float) -> None:
    body = bytearray(tar(FILES))
    begin = int(len(body) * where) // 512 * 512
    at = next(i for i in range(begin, len(body), 512) if body[i + 257 : i + 262] == b"ustar")
    body[at + 100 : at + 300] = b"\xff" * 200
    server.bodies = cut_up(bytes(body))
    with pytest.raises(UserError, match="the archive is damaged"):
        fetch(server, tmp_path)
    assert unpacked(tmp_path).items() < UNPACKED.items()


def test_an_archive_cut_off_inside_a_file_is_said(server: Server, tmp_path: Path) -> None:
    server.bodies = cut_up(tar(FILES)[:20_000])
    with pytest.raises(UserError, match="damaged or cut off"):
        fetch(server, tmp_path)
    assert unpacked(tmp_path).items() < UNPACKED.items() and not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    for name, body in server.bodies.items():
        (tmp_path / name).write_bytes(body)
    with small_disk(5000), pytest.raises(UserError, match="make room and run again to continue") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.tmp"))
    fetch(server, tmp_path)
    assert {name: body for name, body in unpacked(tmp_path).items() if name.endswith(".npz")} == UNPACKED


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make room or choose another"):
        fetch(server, tmp_path / "data", gigabytes=1e9)
    assert server.log == [] and not is_unfinished(tmp_path / "data")
