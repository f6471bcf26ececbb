"""The robot's policy server: ZeroMQ, a request and a reply (docs/method.md §11).

| a client sends | and gets |
|---|---|
| `request` | float32 (n, 8), row by row, [x, y, z, qx, qy, qz, qw, grasp]: what to do next, by what the cameras show now |
| `stop` | `stopped`: everything is forgotten |
| two frames, a session's id and one of these | the same; the memory is the id's, and outlives the connection, which else has its own |
| anything else | `error: …`, one line |

A reply that begins with `error: ` is never as long as actions are. The server reads what it is sent as these words alone, and whatever that is, it
goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import zmq
from numpy.typing import NDArray

from diffusion_forcing.algorithms.robot.algorithm import Robot
from diffusion_forcing.algorithms.robot.policy import RobotPolicy
from diffusion_forcing.errors import UserError
from diffusion_forcing.serve.cameras import HOME, Cameras, open_cameras

# What the policy server can be told.


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """`diffusion-forcing serve-policy`. address: where it listens; a port of 0 is any free one. cameras: where pictures come from.

    folder: of cameras=folder; the newest picture of <folder>/<camera>/ is what that camera sees. devices: of v4l2 (/dev/video0, …) or realsense
    (serial numbers), one a camera; empty: the first there are. seed, distractors, blocking: of the simulated world. home: (8,) where a real arm
    waits, as an action; empty: where robot_swap's does. camera_timeout: s after which a camera that shows nothing new counts as blocked.
    session_timeout: s after which a session that asks nothing is forgotten. max_sessions: at once. max_bytes: of a request. report_every:
    requests between two lines about how long they take.
    """

    address: str = "tcp://127.0.0.1:5555"
    cameras: Literal["sim", "realsense", "v4l2", "folder"] = "sim"
    folder: str | None = None
    devices: tuple[str, ...] = ()
    seed: int = 0
    distractors: int = 0
    blocking: float = 0.0
    home: tuple[float, ...] = ()
    camera_timeout: float = 2.0
    session_timeout: float = 600.0
    max_sessions: int = 64
    max_bytes: int = 4096
    report_every: int = 100

    def __post_init__(self) -> None:
        if not self.address.startswith(("tcp://", "ipc://")):
            raise UserError(
                f"address is '{self.address}'; write tcp://127.0.0.1:5555, tcp://*:5555 for all networks, or ipc:///tmp/policy"
            )
        if self.cameras == "folder" and not self.folder:
            raise UserError("cameras=folder needs folder=DIR, in which each camera has a folder of pictures")
        if self.home and len(self.home) != 8:
            raise UserError(f"home has {len(self.home)} numbers; an action has 8: x y z, qx qy qz qw, grasp")
        for name in ("camera_timeout", "session_timeout"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it is a time in s, above 0")
        for name in ("max_sessions", "max_bytes", "report_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.blocking <= 1:
            raise UserError(f"blocking is {self.blocking}; it is a chance from 0 to 1")
        if self.seed < 0 or self.distractors < 0:
            raise UserError(f"seed is {self.seed}, distractors {self.distractors}; both must be 0 or more")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.address.startswith(("tcp://127.", "tcp://localhost:", "tcp://[::1]", "ipc://"))


# A client's session: its own memory, its own cameras, one client at a time.

NAMELESS = b"@"
"""Begins the name of a session that has no id: that of a connection."""
SILENT = 10.0
"""s"""


class Session:
    """What one client's requests have in common."""

    def __init__(self, robot: Robot, cameras: Cameras, *, client: bytes, seed: int) -> None:
        self.cameras, self.client = cameras, client
        self.policy = RobotPolicy(robot, generator=torch.Generator(robot.device).manual_seed(seed))
        self.asked = 0
        self.last = time.monotonic()
        self._done: NDArray[np.float32] | None = None

    def request(self) -> NDArray[np.float32]:
        """Look, remember, and say what to do: (n, 8) float32. UserError where nothing can be seen; the memory is then what it was."""
        pictures, state = self.cameras.look(self._done)
        self.policy.observe(torch.from_numpy(pictures)[None], state=torch.from_numpy(state))
        actions = self.policy.act()[0][0].cpu().numpy().astype(np.float32)
        self._done = actions
        self.asked += 1
        return actions

    def stop(self) -> None:
        """Forget everything: a new episode begins."""
        self.policy.reset()
        self.cameras.reset()
        self._done = None


class Sessions:
    """Sessions by their id. Each belongs to the client that began it until that client stops it, or asks nothing for `timeout` s."""

    def __init__(self, begin: Callable[[int, bytes], Session], *, most: int, timeout: float) -> None:
        self._begin, self._most, self._timeout = begin, most, timeout
        self._all: dict[bytes, Session] = {}
        self._begun = 0

    def __len__(self) -> int:
        return len(self._all)

    def of(self, name: bytes, client: bytes) -> Session:
        """The session `name`, begun where there is none. UserError where it is another client's, or there are too many."""
        self.forget_idle()
        session = self._all.get(name)
        if session is None:
            if len(self._all) >= self._most and not self._make_room():
                raise UserError(
                    f"{self._most} sessions are open, and no more are allowed; stop one, or raise max_sessions"
                )
            session = self._all[name] = self._begin(self._begun, client)
            self._begun += 1
        if session.client != client:
            raise UserError(f"session '{name.decode()}' is another client's; send stop to it, or take another id")
        session.last = time.monotonic()
        return session

    def _make_room(self) -> bool:
        """Forget the nameless session that has been silent longest, if it has been for a while: its connection is likely gone."""
        nameless = [(session.last, name) for name, session in self._all.items() if name.startswith(NAMELESS)]
        if not nameless or time.monotonic() - min(nameless)[0] < SILENT:
            return False
        self._all.pop(min(nameless)[1]).cameras.close()
        return True

    def stop(self, name: bytes) -> bool:
        """End the client's hold on `name`; its memory is gone. False where there is no such session."""
        session = self._all.get(name)
        if session is None:
            return False
        session.stop()
        session.client = b""
        return True

    def take(self, name: bytes, client: bytes) -> None:
        """A stopped session belongs to whoever asks next."""
        session = self._all.get(name)
        if session is not None and not session.client:
            session.client = client

    def forget_idle(self) -> None:
        """Close sessions that asked nothing for a while."""
        now = time.monotonic()
        for name in [name for name, session in self._all.items() if now - session.last > self._timeout]:
            self._all.pop(name).cameras.close()

    def close(self) -> None:
        """Close all."""
        for session in self._all.values():
            session.cameras.close()
        self._all.clear()


STOPPED = b"stopped"
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_POLL = 200  # ms
_DROPPED = 64 * 2**20  # bytes: ZeroMQ itself hangs up on more


class PolicyServer:
    """Answers clients with what `robot`, trained and in eval mode, does. `serve()` until `stop_when()`; `close()` gives the address back."""

    def __init__(
        self, robot: Robot, options: ServeOptions, *, cameras: tuple[str, ...], say: Callable[[str], None] = print
    ) -> None:
        self.robot, self.options, self._say = robot, options, say
        self._cameras = cameras
        self.sessions = Sessions(self._begin, most=options.max_sessions, timeout=options.session_timeout)
        self.seconds: list[float] = []
        """Of each answered request."""
        self.refused = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _DROPPED)
        self._socket.setsockopt(zmq.SNDTIMEO, 1000)
        try:
            self._socket.bind(options.address)
        except zmq.ZMQError as failure:
            self.close()
            raise UserError(
                f"cannot listen at {options.address}: {failure}; choose another with address=tcp://127.0.0.1:PORT"
            ) from failure
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def warm_up(self) -> None:
        """One decision before the first client asks, and the cameras tried."""
        options, robot = self.options, self.robot
        cameras = self._open(0)
        try:
            pictures, _ = cameras.look(None)
        except UserError as nothing:
            self._say(f"warning: {nothing}")
            pictures = np.zeros((len(self._cameras), 3, *robot.options.observation_shape[1:]), np.uint8)
        finally:
            cameras.close()
        policy = RobotPolicy(robot)
        policy.observe(torch.from_numpy(pictures)[None], state=torch.tensor(options.home or HOME))
        policy.act()

    def serve(self, stop_when: Callable[[], bool] = lambda: False) -> None:
        """Answer until `stop_when()`, which is asked five times a second."""
        said = 0
        while not stop_when():
            if self._socket.poll(_POLL):
                self._answer(self._socket.recv_multipart())
            else:
                self.sessions.forget_idle()
            if len(self.seconds) >= said + self.options.report_every:
                said = len(self.seconds)
                self._say(self.report())

    def report(self) -> str:
        """A line about how long requests took."""
        if not self.seconds:
            return f"no requests answered, {self.refused:,} refused"
        p50, p95 = (1000 * float(np.quantile(self.seconds, share)) for share in (0.5, 0.95))
        return f"{len(self.seconds):,} requests answered, p50 {p50:.0f} ms, p95 {p95:.0f} ms; {self.refused:,} refused"

    def close(self) -> None:
        """Give the cameras and the address back."""
        self.sessions.close()
        self._socket.close()
        self._context.term()

    # ------------------------------------------------------------------------------------------------ how

    def _answer(self, parts: list[bytes]) -> None:
        client = parts[0]
        at = parts.index(b"", 1) + 1 if b"" in parts[1:] else 1  # a REQ socket puts an empty frame before what it says
        began = time.perf_counter()
        try:
            reply = self._reply(client, parts[at:])
        except UserError as mistake:
            self.refused += 1
            reply = f"error: {' '.join(str(mistake).split())}".encode()
        except Exception as failure:  # a fault of ours must not end other clients' work
            self.refused += 1
            self._say(f"a request failed: {type(failure).__name__}: {failure}")
            reply = f"error: the server failed ({type(failure).__name__}); send stop, and begin again".encode()
        else:
            if reply != STOPPED:
                self.seconds.append(time.perf_counter() - began)
        try:
            self._socket.send_multipart([*parts[:at], reply])
        except zmq.ZMQError:
            self._say("a client went away before it was answered")

    def _reply(self, client: bytes, words: list[bytes]) -> bytes:
        size = sum(map(len, words))
        if size > self.options.max_bytes:
            raise UserError(f"the request has {size:,} bytes; at most {self.options.max_bytes:,} are allowed")
        if not 1 <= len(words) <= 2:
            raise UserError(f"a request has one frame, or a session's id and one frame; got {len(words)}")
        if len(words) == 2 and not _NAME.fullmatch(words[0]):
            raise UserError("a session's id has 1 to 64 letters, digits, '_', '.' or '-'")
        name = words[0] if len(words) == 2 else NAMELESS + client.hex().encode()
        word = words[-1]
        match word:
            case b"request":
                self.sessions.take(name, client)
                return self.sessions.of(name, client).request().tobytes()
            case b"stop":
                self.sessions.stop(name)
                return STOPPED
        raise UserError(f"{word[:40]!r} is not understood; send request or stop")

    def _begin(self, number: int, client: bytes) -> Session:
        return Session(self.robot, self._open(number), client=client, seed=self.options.seed + number)

    def _open(self, number: int) -> Cameras:
        size = self.robot.options.observation_shape[1]
        return open_cameras(self.options, names=self._cameras, size=size, number=number)
