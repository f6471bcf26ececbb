"""The policy server's gate: it passes bytes between clients and the ZeroMQ socket behind it, and hangs up on a client whose
message is longer than any request.

ZeroMQ bounds the size of a frame (`MAXMSGSIZE`) and the number of messages that wait, but not the frames of a message:
one that does not end fills the memory. A client's bytes are a greeting of 64 bytes and frames of flags, length and body
(ZMTP 3, https://rfc.zeromq.org/spec/23); only these are read here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from diffusion_forcing.errors import UserError

GREETING = 64
FRAME_COST = 8
"""Bytes that a frame counts besides its body: empty ones are not free."""
GREETING_SECONDS = 10.0
"""How long a client may take to send its first bytes."""
CONNECTIONS = 256
"""At the same time; one that has not greeted, or else the one that was silent longest, makes room for a new one."""
_CHUNK = 2**14
_MORE, _LONG, _COMMAND = 1, 2, 4
_SPARE_FILES = 64
"""Of those that this process may open, for other purposes."""


class Frames:
    """Follows a client's frames through its bytes."""

    def __init__(self, most: int) -> None:
        """most: bytes of a message."""
        self._most = most
        self._head = b""  # the start of the greeting, or of a frame
        self._body = 0  # bytes that follow it
        self._message = 0  # bytes of the frames of a message so far
        self.greeted = False

    def fits(self, data: bytes) -> bool:
        """Whether the client's next bytes are ZMTP 3, and its messages within the limit."""
        at = 0
        while at < len(data):
            if self._body:
                step = min(self._body, len(data) - at)
                self._body -= step
                at += step
                continue
            self._head += data[at : at + 1]
            at += 1
            if not self.greeted:
                if len(self._head) == 11:  # signature and version
                    if self._head[0] != 0xFF or self._head[9] != 0x7F or self._head[10] < 3:
                        return False
                    self._head, self._body, self.greeted = b"", GREETING - 11, True
            elif len(self._head) == (9 if self._head[0] & _LONG else 2):
                flags, self._body = self._head[0], int.from_bytes(self._head[1:], "big")
                self._head = b""
                # Commands such as a ping may lie between the frames of a message, and are not kept.
                size = self._body if flags & _COMMAND else self._message + self._body + FRAME_COST
                if size > self._most:
                    return False
                if not flags & _COMMAND:
                    self._message = size if flags & _MORE else 0
        return True


@dataclass(eq=False)
class _Client:
    writer: asyncio.StreamWriter
    frames: Frames
    heard: float = field(default_factory=time.monotonic)

    def fits(self, data: bytes) -> bool:
        """Whether the client's next bytes are within the limits."""
        self.heard = time.monotonic()
        return self.frames.fits(data)


class Gate:
    """Listens at `address`, in a thread of its own, until `close()`."""

    def __init__(self, address: str, inner: str, *, most: int) -> None:
        """address: tcp://HOST:PORT or ipc://PATH. inner: the ipc:// or tcp:// address of the socket behind; most: bytes of
        a message. UserError where nobody can listen at `address`, or where something is there."""
        self._inner, self._most, self._most_clients = inner, most, most_connections()
        self._clients: set[_Client] = set()
        self._path: str | None = None
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: None)  # a client that is lost, too many open files
        try:
            self._server = self._loop.run_until_complete(self._listen(address))
        except (OSError, ValueError, OverflowError) as failure:
            self._loop.close()
            reason = getattr(failure, "strerror", None) or failure
            raise UserError(
                f"cannot listen at {address}: {reason}; choose another with address=tcp://127.0.0.1:PORT"
            ) from failure
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="gate")
        self._thread.start()

    def close(self) -> None:
        """Hang up and listen no longer."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    async def _hang_up(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, address: str) -> asyncio.AbstractServer:
        scheme, _, place = address.partition("://")
        if scheme == "ipc":
            self.address, name = address, place
            if place.startswith("@"):
                name = "\0" + place[1:]
            elif os.path.lexists(place):
                raise OSError(None, f"{place} exists; if no other server uses it, delete it")
            server = await asyncio.start_unix_server(self._serve, name, limit=_CHUNK)
            self._path = None if place.startswith("@") else place
            return server
        host, colon, port = place.rpartition(":")
        if not colon:
            raise ValueError("it has no port")
        host = "0.0.0.0" if host == "*" else host.strip("[]")
        number = 0 if port == "*" else int(port)
        server = await asyncio.start_server(self._serve, host, number, limit=_CHUNK, reuse_address=True)
        name, number = server.sockets[0].getsockname()[:2]
        self.address = f"tcp://[{name}]:{number}" if ":" in name else f"tcp://{name}:{number}"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from its first bytes to its last."""
        client = _Client(writer, Frames(self._most))
        self._clients.add(client)
        if len(self._clients) > self._most_clients:
            others = self._clients - {client}
            silent = min(others, key=lambda other: (other.frames.greeted, other.heard))
            self._clients.discard(silent)
            silent.writer.transport.abort()
        inner = None
        try:
            first = await asyncio.wait_for(reader.read(_CHUNK), GREETING_SECONDS)
            if not first or not client.fits(first):
                return
            if self._inner.startswith("ipc://"):
                replies, inner = await asyncio.open_unix_connection(self._inner[6:], limit=_CHUNK)
            else:
                host, port = self._inner[6:].rsplit(":", 1)
                replies, inner = await asyncio.open_connection(host, int(port), limit=_CHUNK)
            inner.write(first)
            ways = [
                asyncio.ensure_future(_pass(reader, inner, client.fits)),
                asyncio.ensure_future(_pass(replies, writer, lambda data: True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
        except (OSError, TimeoutError):
            pass
        finally:
            self._clients.discard(client)
            for end in (writer, inner):
                if end is not None:
                    end.transport.abort()  # what is not sent yet is for nobody


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fits: Callable[[bytes], bool]) -> None:
    """Write what is read while it fits, no faster than the other end takes it."""
    with contextlib.suppress(OSError):
        while (data := await reader.read(_CHUNK)) and fits(data):
            writer.write(data)
            await writer.drain()


def most_connections() -> int:
    """`CONNECTIONS`, or as many as the limit on open files allows, of which each takes three."""
    try:
        import resource
    except ImportError:  # Windows
        return CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if files < 0 else max(2, min(CONNECTIONS, (files - _SPARE_FILES) // 3))


def inner_address(folder: str) -> str:
    """An address that only this user reaches: a socket in `folder`, or, on Windows, the loopback."""
    return f"ipc://{folder}/policy" if hasattr(socket, "AF_UNIX") else "tcp://127.0.0.1:*"
