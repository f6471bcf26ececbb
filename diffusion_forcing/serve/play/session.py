"""Between a page and a player: the player works in a thread of its own, the socket lives in the event loop.

A page's messages wait in an inbox. What a player sends waits until the socket has taken it, so a slow page slows its player and fills no
memory. When the page leaves, the player's next word to it, or question for it, raises `Left`.

A message to the page is JSON, or, with data behind it: the header's length (uint32, little-endian), the header as JSON, padded to a multiple of
4, and the data.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import secrets
import struct
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any, Protocol

from diffusion_forcing.errors import UserError
from diffusion_forcing.serve.play.messages import Message
from diffusion_forcing.terminal import clean, tell

PATIENCE = 20.0
"""Seconds that a page may take to accept a message before it counts as gone."""
MOST_WAITING = 1_000
"""Messages in an inbox."""


class Left(Exception):
    """The page has gone."""


def packed(kind: str, data: bytes | None = None, **fields: Any) -> str | bytes:
    """A message to the page, as the socket carries it."""
    header = json.dumps({"type": kind, **fields}, separators=(",", ":"))
    if data is None:
        return header
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 4)
    return struct.pack("<I", len(encoded)) + encoded + data


class Session:
    """One page and its player. `send` and `receive` are the player's; `put` and `close` the event loop's."""

    def __init__(self, socket: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        """socket: with `send_text` and `send_bytes`, coroutines of `loop`."""
        self._socket, self._loop = socket, loop
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._closed, self._table_waits = threading.Event(), threading.Event()
        self.token = secrets.token_urlsafe(24)
        """What an upload must carry to belong to this session."""

    @property
    def closed(self) -> bool:
        """Whether the page has gone."""
        return self._closed.is_set()

    def put(self, message: Message) -> None:
        """A message for the player. UserError where it reads none any more."""
        if self._inbox.qsize() >= MOST_WAITING:
            raise UserError("the player is busy and does not answer; reload the page to start it again")
        if "content" in message:  # a table of some megabytes: one waits at most
            if self._table_waits.is_set():
                raise UserError("the table before this one has not been read yet; try again in a moment")
            self._table_waits.set()
        self._inbox.put(message)

    def close(self) -> None:
        """The page has gone."""
        self._closed.set()
        self._inbox.put({})

    def send(self, kind: str, data: bytes | None = None, **fields: Any) -> None:
        """Send a message and wait until the socket has it."""
        self.check()
        message = packed(kind, data, **fields)
        send = self._socket.send_text if isinstance(message, str) else self._socket.send_bytes
        assert self._loop is not None
        try:
            asyncio.run_coroutine_threadsafe(send(message), self._loop).result(PATIENCE)
        except Exception as failure:  # whatever a socket raises that is no longer open
            self._closed.set()
            raise Left from failure

    def receive(self, timeout: float | None = None) -> Message:
        """The next message; an empty one where none came within `timeout` seconds (None: wait for one)."""
        try:
            message = self._inbox.get(timeout=timeout) if timeout is None or timeout > 0 else self._inbox.get_nowait()
        except queue.Empty:
            message = {}
        if "content" in message:
            self._table_waits.clear()
        self.check()
        return message

    def check(self) -> None:
        """Raise `Left` if the page has gone: for the loops of long work."""
        if self._closed.is_set():
            raise Left

    @property
    def waiting(self) -> bool:
        """Whether a message waits, so that work for an older one may as well end."""
        self.check()
        return not self._inbox.empty()


class Player(Protocol):
    """A model that is played with until the page leaves (`Left`)."""

    def play(self, session: Session) -> None: ...
    def close(self) -> None: ...


class Stage:
    """A view's player: built once, played with by one page at a time, and closed, all in one thread."""

    def __init__(self, name: str, build: Callable[[], Player]) -> None:
        self.name, self._build = name, build
        self.session: Session | None = None
        self._player: Player | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"play-{name}")

    def prepare(self) -> Future[None]:
        """Build the player ahead of its first page; what fails is told to that page."""

        def build() -> None:
            with contextlib.suppress(Exception):
                self._built()

        return self._thread.submit(build)

    def perform(self, session: Session) -> Future[None]:
        """Play with `session` until it leaves."""
        return self._thread.submit(self._perform, session)

    def _perform(self, session: Session) -> None:
        with contextlib.suppress(Left):
            try:
                session.check()
                player = self._built()
                session.send("ready", token=session.token)
                player.play(session)
            except UserError as mistake:
                session.send("failed", text=clean(mistake, 1000))
            except Left:
                raise
            except Exception as failure:  # our fault: printed, told, and the next page gets a new player
                tell(traceback.format_exc())
                self._discard()
                problem = clean(f"{type(failure).__name__}: {failure}", 500)
                session.send("failed", text=f"the player failed ({problem}); reload the page to start it again")

    def _built(self) -> Player:
        self._player = self._player or self._build()
        return self._player

    def _discard(self) -> None:
        player, self._player = self._player, None
        if player is not None:
            player.close()

    def close(self) -> None:
        """End the session and the player."""
        if self.session is not None:
            self.session.close()
        self._thread.submit(self._discard)
        self._thread.shutdown(wait=True, cancel_futures=False)


PLAYERS = {
    "world": "world.WorldPlayer",
    "plan": "plan.PlanPlayer",
    "forecast": "forecast.ForecastPlayer",
    "robot": "robot.RobotPlayer",
}


def builders(threads: int) -> dict[str, Callable[[], Player]]:
    """What builds each view's player. The imports are theirs, so that a view whose packages are missing fails alone."""

    def build(module: str, name: str) -> Player:
        import torch

        torch.set_num_threads(threads)
        player: Player = getattr(import_module(f"diffusion_forcing.serve.play.{module}"), name)()
        return player

    return {view: partial(build, *where.split(".")) for view, where in PLAYERS.items()}
