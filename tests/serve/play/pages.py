"""What stands for a page in tests: a server on a real port, a browser's socket, and a session without a socket."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from websockets.sync.client import ClientConnection, connect

from diffusion_forcing.serve.play.messages import read
from diffusion_forcing.serve.play.server import PlayOptions, create_app, serve
from diffusion_forcing.serve.play.session import Player, Session


def unpacked(message: str | bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a message to a page."""
    if isinstance(message, str):
        return json.loads(message), b""
    (length,) = struct.unpack("<I", message[:4])
    return json.loads(message[4 : 4 + length]), message[4 + length :]


@contextmanager
def serving(builders: dict[str, Callable[[], Player]]) -> Iterator[str]:
    """The address, host:port, of a server in a thread of its own."""
    found: queue.Queue[str] = queue.Queue()
    servers: list[uvicorn.Server] = []
    run = uvicorn.Server.run

    def kept(self: uvicorn.Server, *words: Any, **more: Any) -> None:
        servers.append(self)
        run(self, *words, **more)

    uvicorn.Server.run = kept  # type: ignore[method-assign]
    app = create_app(builders)
    thread = threading.Thread(target=serve, args=(app, PlayOptions(port=0)), kwargs={"started": found.put})
    thread.start()
    try:
        address = found.get(timeout=60).removeprefix("http://")
        host, port = address.split(":")
        for _ in range(400):
            with socket.socket() as probe:
                if servers and servers[0].started and probe.connect_ex((host, int(port))) == 0:
                    break
            time.sleep(0.02)
        yield address
    finally:
        uvicorn.Server.run = run  # type: ignore[method-assign]
        for server in servers:
            server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def page(address: str, view: str, *, origin: str | None = None) -> ClientConnection:
    """A browser's socket: it says which page it belongs to."""
    return connect(f"ws://{address}/ws/{view}", origin=origin or f"http://{address}", proxy=None)  # type: ignore[arg-type]


def ask(
    address: str, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


class Talk(Session):
    """A session that a test leads: what its player sends is kept. With `playing`, the player runs in a thread."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.heard: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()

    def send(self, kind: str, data: bytes | None = None, **fields: Any) -> None:
        self.check()
        self.heard.put(({"type": kind, **json.loads(json.dumps(fields))}, data or b""))

    def say(self, view: str, **message: Any) -> None:
        self.put(read(view, json.dumps(message)))

    def until(self, kind: str, *, timeout: float = 180, **fields: Any) -> tuple[dict[str, Any], bytes]:
        """The next message of a kind, with these values; what came before it is dropped."""
        end = time.monotonic() + timeout
        while True:
            header, data = self.heard.get(timeout=max(0.01, end - time.monotonic()))
            assert header["type"] != "crashed", header["text"]
            if header["type"] == kind and all(header[name] == value for name, value in fields.items()):
                return header, data


@contextmanager
def playing(player: Player) -> Iterator[Talk]:
    """A talk with `player`, which plays in a thread until the block's end."""
    talk, failures = Talk(), list[BaseException]()

    def play() -> None:
        from diffusion_forcing.serve.play.session import Left

        try:
            player.play(talk)
        except Left:
            pass
        except BaseException as failure:
            failures.append(failure)
            talk.heard.put(({"type": "crashed", "text": repr(failure)}, b""))

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield talk
    finally:
        talk.close()
        thread.join(60)
        assert not thread.is_alive() and not failures, failures
