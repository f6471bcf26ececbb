"""The robot's policy server: ZeroMQ, a request and a reply (METHOD §11).

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

import numpy as np
import torch
import zmq

from diffusion_forcing.algorithms.robot import Robot
from diffusion_forcing.algorithms.robot_policy import RobotPolicy
from diffusion_forcing.errors import UserError
from diffusion_forcing.serve.cameras import HOME, Cameras, open_cameras
from diffusion_forcing.serve.options import ServeOptions
from diffusion_forcing.serve.sessions import NAMELESS, Session, Sessions

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
