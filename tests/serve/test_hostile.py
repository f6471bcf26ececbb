"""Hostile clients and pictures, six of each kind among two hundred requests: all requests are answered and memory does not grow."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

zmq = pytest.importorskip("zmq", reason="the policy server needs pyzmq: pip install 'diffusion-forcing[robot]'")
Image = pytest.importorskip("PIL.Image", reason="cameras=folder reads pictures with pillow")

from diffusion_forcing.serve import gate  # noqa: E402
from diffusion_forcing.serve.gate import Frames, Gate  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CAMERAS = ("front", "over")
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00NULL" + b"\0" * 48
READY = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
REQUESTS, EACH = 200, 6
MEMORY = 500e6  # bytes, with the files of the libraries
GROWTH = 64e6  # bytes; the pictures that are refused are up to 32 MB in the file


def put(folder: Path, name: str, value: int, *, ahead: float = 0.0, size: tuple[int, int] = (48, 64)) -> None:
    """A grey picture for each camera, its time `ahead` of the clock."""
    for camera in CAMERAS:
        (folder / camera).mkdir(parents=True, exist_ok=True)
        hidden = folder / camera / ".new"
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(hidden, format="png")
        os.utime(hidden, (time.time() + ahead,) * 2)
        os.replace(hidden, folder / camera / name)


@contextlib.contextmanager
def raw(address: str) -> Iterator[socket.socket]:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        yield connection


def send(*data: bytes, times: int = 1) -> Callable[[str], None]:
    """Write bytes to the server until it hangs up."""

    def hostile(address: str) -> None:
        with raw(address) as connection, contextlib.suppress(OSError):
            for part in data:
                connection.sendall(part)
            for _ in range(times - 1):
                connection.sendall(data[-1])

    return hostile


def message(*frames: bytes, times: int = 1) -> Callable[[str], None]:
    """Send messages as ZeroMQ's own client does, and hang up without an answer."""

    def hostile(address: str) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.setsockopt(zmq.LINGER, 300)
            client.connect(address)
            for _ in range(times):
                client.send_multipart(frames, copy=False)

    return hostile


BLOCK = b"x" * (60 << 20)
KINDS: dict[str, Callable[[str], None]] = {
    "a frame of 60 MB": message(b"", BLOCK),
    "20 frames of 60 MB": message(b"", *[BLOCK] * 20),
    "100,000 frames of 400 bytes": message(b"", *[b"x" * 400] * 100_000),
    "messages of 16 KB, unread": message(b"", b"x" * 8000, b"y" * 8000, times=200),
    "a message that does not end": send(GREETING, READY, b"\x03" + (4000).to_bytes(8, "big") + b"x" * 4000, times=5000),
    "empty frames without an end": send(GREETING, READY, b"\x01\x00" * 50_000, times=50),
    "a frame of 2**63 bytes": send(GREETING, READY, b"\x02" + (2**63 - 1).to_bytes(8, "big") + b"x" * 4000, times=1000),
    "a command of 60 MB": send(GREETING, b"\x06" + len(BLOCK).to_bytes(8, "big"), BLOCK),
    "commands within a message": send(GREETING, READY, b"\x01\x02ab\x04\x06\x04PINGx" * 5000, times=50),
    "an older greeting": send(b"\xff" + b"\0" * 8 + b"\x7f\x01\x05", b"\x01\xff" + b"x" * 255, times=1000),
    "another protocol": send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "noise": send(os.urandom(10_000), times=100),
}


@pytest.mark.slow
def test_two_hundred_requests_are_answered_among_six_hostile_ones_of_each_kind(tmp_path: Path) -> None:
    put(tmp_path, "0.png", 100)
    with Image.new("L", (12_000, 12_000)) as large:
        large.save(tmp_path / "large.png")
    words = [
        "load=robot_swap_small",
        "address=tcp://127.0.0.1:0",
        "cameras=folder",
        f"folder={tmp_path}",
        "camera_timeout=120",
    ]
    command = [
        sys.executable,
        "-m",
        "diffusion_forcing",
        "serve-policy",
        *words,
        "algorithm.diffusion.sampling_timesteps=2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        address = listening(server)
        silent = [raw(address) for _ in range(300)]
        before = 0.0
        with zmq.Context() as context, context.socket(zmq.REQ) as client, contextlib.ExitStack() as stack:
            client.setsockopt(zmq.LINGER, 0)
            client.connect(address)
            kinds = [kind for kind in KINDS for _ in range(EACH)]
            for number in range(REQUESTS):
                put(tmp_path, f"{number % 2}.png", number % 200)
                if number == 20:
                    before = memory(server, "VmRSS")
                    [stack.enter_context(connection) for connection in silent]
                if number >= 20 and kinds:
                    KINDS[kinds.pop(0)](address)
                if number % (REQUESTS // EACH) == 10:
                    picture(tmp_path, number)
                client.send(b"request")
                assert client.poll(20_000), f"request {number} has no answer"
                reply = client.recv()
                assert len(reply) % 32 == 0 and not reply.startswith(b"error"), reply[:200]
        peak, own = memory(server, "VmHWM"), memory(server, "RssAnon")
        print(
            f"resident before {before / 1e6:.0f} MB, at most {peak / 1e6:.0f} MB; without libraries {own / 1e6:.0f} MB"
        )
        assert not kinds
        assert peak < MEMORY and peak - before < GROWTH
    finally:
        server.terminate()
        assert server.wait(20) == 0


def picture(folder: Path, number: int) -> None:
    """One of each kind of picture that a camera must not see."""
    for name in ("a.png", "b.png", "c.png", "d.png"):
        (folder / "front" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "front" / "a.png")
    (folder / "front" / "b.png").symlink_to("/dev/zero")
    os.link(folder / "large.png", folder / "front" / "c.png")
    put(folder, "d.png", 255, ahead=3600.0 + number)


def listening(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"answers at ([^;\s]+)", line):
            return found[1]
    raise AssertionError("the server did not start")


def memory(server: subprocess.Popen[str], name: str) -> float:
    """Bytes of `name` in the process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    flags = more | 4 * command
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_the_frames_of_a_client_are_followed_however_its_bytes_arrive(step: int) -> None:
    def fits(*parts: bytes) -> bool:
        frames, data = Frames(1000), b"".join((GREETING, READY, *parts))
        return all(frames.fits(data[at : at + step]) for at in range(0, len(data), step))

    request = frame(b"", more=True) + frame(b"request")
    assert fits(*[request] * 500)
    assert fits(*[frame(b"x" * 900)] * 5, frame(b"\4PING", command=True), request)
    assert fits(frame(b"a", more=True), *[frame(b"\4PING", command=True)] * 500, request)
    assert not fits(frame(b"x" * 1000))
    assert not fits(*[frame(b"x" * 90, more=True)] * 11)
    assert not fits(*[frame(b"", more=True)] * 126)
    assert not fits(*[frame(b"x" * 90, more=True), frame(b"\4PING", command=True)] * 11)
    assert not fits(frame(b"x" * 1001, command=True))


def test_a_client_that_speaks_something_else_does_not_fit() -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\0" * 8 + b"\x7f\x01\x05\x00\x00", b"\x01\x00" + b"x" * 20):
        assert not Frames(1000).fits(data)
    partial: Any = Frames(1000)
    assert partial.fits(GREETING[:10]) and not partial.greeted


def test_clients_that_greet_and_say_no_more_lock_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CONNECTIONS", 4)
    inner = f"ipc://{tmp_path}/inner"
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        router, early, late = (stack.enter_context(context.socket(kind)) for kind in (zmq.ROUTER, zmq.REQ, zmq.REQ))
        router.bind(inner)
        door = Gate("tcp://127.0.0.1:0", inner, most=1000)
        stack.callback(door.close)

        def answered(client: Any) -> bool:
            client.setsockopt(zmq.LINGER, 0)
            client.send(b"request")
            if router.poll(5000):
                router.send_multipart(router.recv_multipart())
            return bool(client.poll(5000)) and client.recv() == b"request"

        for client in (early, late):
            client.connect(door.address)
            for _ in range(6):
                silent = stack.enter_context(raw(door.address))
                with contextlib.suppress(ConnectionError):  # it may have been sent away already
                    silent.sendall(GREETING + READY)
                    silent.recv(64)  # the router's greeting
                assert client is late or answered(early)  # who speaks stays
            assert answered(client)
        assert answered(early)  # was silent the longest, and is connected again
