"""The robot's policy server: requests and replies over ZeroMQ (docs/method.md §11).

| client sends | reply |
|---|---|
| `request` | the next actions, given the current images: float32 (n, 8), row by row, [x, y, z, qx, qy, qz, qw, grasp] |
| `stop` | `stopped`; the memory is reset |
| two frames: a session id, and one of the above | the same, with the memory of that id, which outlives the connection |
| anything else | `error: …`, one line |

Without an id, a session belongs to the connection. A reply that starts with `error: ` never has the length of actions.
What a client sends is only compared with these words, and no request ends the server. A message of more than 16 KB ends
the client's connection before it is stored (`gate`).
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import zmq
from numpy.typing import NDArray

from diffusion_forcing.algorithms.robot.algorithm import Robot
from diffusion_forcing.algorithms.robot.policy import RobotPolicy
from diffusion_forcing.errors import UserError, check_minimum, check_positive, require
from diffusion_forcing.serve.cameras import HOME, CameraOptions, Cameras, open_cameras
from diffusion_forcing.serve.gate import Gate, inner_address

STOPPED = b"stopped"
ANONYMOUS = b"@"
"""Prefix of the name of a session without id."""
SILENT = 10.0
"""Seconds after which an anonymous session may make room for a new one."""
_SESSION_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_POLL = 200  # ms
_MAX_REQUEST = 4096  # bytes
_MAX_MESSAGE = 4 * _MAX_REQUEST  # bytes above which the connection ends
_WAITING = 16  # messages of one client that are kept
_MEASURED = 1000  # response times that are reported


@dataclass(frozen=True, kw_only=True)
class ServeOptions(CameraOptions):
    """`diffusion-forcing serve-policy`; see also `CameraOptions`.

    address: to listen at; port 0 is any free one. session_timeout: seconds after which a session without requests is
    forgotten. max_sessions: at the same time. report_every: requests between two lines about response times.
    """

    address: str = "tcp://127.0.0.1:5555"
    session_timeout: float = 600.0
    max_sessions: int = 16
    report_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.address.startswith(("tcp://", "ipc://")),
            f"address is '{self.address}'; write tcp://127.0.0.1:5555, tcp://*:5555 for all networks, or "
            "ipc:///tmp/policy",
        )
        check_positive("session_timeout", self.session_timeout)
        for name in ("max_sessions", "report_every"):
            check_minimum(name, getattr(self, name), 1)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.address.startswith(("tcp://127.", "tcp://localhost:", "tcp://[::1]", "ipc://"))


class Session:
    """The memory and the cameras behind the requests of one client."""

    def __init__(self, robot: Robot, cameras: Cameras, *, client: bytes, seed: int) -> None:
        self.cameras = cameras
        self.client: bytes | None = client
        self.policy = RobotPolicy(robot, generator=torch.Generator(robot.device).manual_seed(seed))
        self.last_request = time.monotonic()
        self._executed: NDArray[np.float32] | None = None

    def request(self) -> NDArray[np.float32]:
        """Observe and decide: (n, 8) float32. UserError where no camera gives an image; the memory is then
        unchanged."""
        images, state = self.cameras.observe(self._executed)
        self.policy.observe(torch.from_numpy(images)[None], state=torch.from_numpy(state))
        self._executed = self.policy.act()[0][0].cpu().numpy().astype(np.float32)
        return self._executed

    def stop(self) -> None:
        """Forget everything; the session belongs to the next client that asks."""
        self.policy.reset()
        self.cameras.reset()
        self._executed = self.client = None


class Sessions:
    """Sessions by name. A session belongs to its first client until it is stopped, or has no request for `timeout`
    seconds."""

    def __init__(self, begin: Callable[[int, bytes], Session], *, max_sessions: int, timeout: float) -> None:
        self._begin, self._max_sessions, self._timeout = begin, max_sessions, timeout
        self._sessions: dict[bytes, Session] = {}
        self._started = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, name: bytes, client: bytes) -> Session:
        """The session `name`, started if needed. UserError where it is another client's, or there are too many."""
        self.forget_idle()
        session = self._sessions.get(name)
        if session is None:
            if len(self) >= self._max_sessions and not self._make_room():
                raise UserError(f"all {self._max_sessions} sessions are in use; stop one or raise max_sessions")
            session = self._sessions[name] = self._begin(self._started, client)
            self._started += 1
        if session.client is None:
            session.client = client
        if session.client != client:
            raise UserError(f"session '{name.decode()}' belongs to another client; send it stop, or use another id")
        session.last_request = time.monotonic()
        return session

    def stop(self, name: bytes) -> None:
        """Stop a session, if it exists."""
        if name in self._sessions:
            self._sessions[name].stop()

    def forget_idle(self) -> None:
        """Close sessions that were not used for a while."""
        now = time.monotonic()
        for name in [name for name, session in self._sessions.items() if now - session.last_request > self._timeout]:
            self._close(name)

    def close(self) -> None:
        for name in list(self._sessions):
            self._close(name)

    def _make_room(self) -> bool:
        """Close the anonymous session that has been silent the longest: its connection is probably gone."""
        anonymous = [(one.last_request, name) for name, one in self._sessions.items() if name.startswith(ANONYMOUS)]
        if not anonymous or time.monotonic() - min(anonymous)[0] < SILENT:
            return False
        self._close(min(anonymous)[1])
        return True

    def _close(self, name: bytes) -> None:
        self._sessions.pop(name).cameras.close()


class PolicyServer:
    """Serves `robot`, trained and in eval mode: `serve()` until `stop_when()`, then `close()`."""

    def __init__(
        self, robot: Robot, options: ServeOptions, *, cameras: tuple[str, ...], say: Callable[[str], None] = print
    ) -> None:
        self.robot, self.options, self._cameras, self._say = robot, options, cameras, say
        self.sessions = Sessions(self._begin, max_sessions=options.max_sessions, timeout=options.session_timeout)
        self.seconds: deque[float] = deque(maxlen=_MEASURED)
        """Response times of the last answered requests."""
        self.answered = self.refused = 0
        self._folder = tempfile.mkdtemp(prefix="policy-")  # only this user may enter it
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._gate: Gate | None = None
        self._socket.linger, self._socket.maxmsgsize = 0, _MAX_MESSAGE
        self._socket.rcvhwm, self._socket.sndtimeo = _WAITING, 1000
        try:
            self._socket.bind(inner_address(self._folder))
            inner = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
            self._gate = Gate(options.address, inner, most=_MAX_MESSAGE)
        except BaseException:
            self.close()
            raise
        self.address = self._gate.address

    def warm_up(self) -> None:
        """Test the cameras and decide once, before the first client asks."""
        options = self.options
        cameras = self._open_cameras(0)
        try:
            images, _ = cameras.observe(None)
        except UserError as failure:
            self._say(f"warning: {failure}")
            images = np.zeros((len(self._cameras), 3, *self.robot.options.observation_shape[1:]), np.uint8)
        finally:
            cameras.close()
        policy = RobotPolicy(self.robot)
        policy.observe(torch.from_numpy(images)[None], state=torch.tensor(options.home or HOME))
        policy.act()

    def serve(self, stop_when: Callable[[], bool] = lambda: False) -> None:
        """Answer requests until `stop_when()`, which is called five times a second."""
        reported = 0
        while not stop_when():
            if self._socket.poll(_POLL):
                self._answer(self._socket.recv_multipart())
            else:
                self.sessions.forget_idle()
            if self.answered >= reported + self.options.report_every:
                reported = self.answered
                self._say(self.report())

    def report(self) -> str:
        if not self.seconds:
            return f"no requests answered, {self.refused:,} refused"
        p50, p95 = (1000 * float(np.quantile(list(self.seconds), share)) for share in (0.5, 0.95))
        return f"{self.answered:,} requests answered, p50 {p50:.0f} ms, p95 {p95:.0f} ms; {self.refused:,} refused"

    def close(self) -> None:
        self.sessions.close()
        if self._gate is not None:
            self._gate.close()
        self._socket.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self, frames: list[bytes]) -> None:
        client = frames[0]
        # A REQ socket puts an empty frame before its message; the reply needs it too.
        start = frames.index(b"", 1) + 1 if b"" in frames[1:] else 1
        began = time.perf_counter()
        try:
            reply = self._reply(client, frames[start:])
            if reply != STOPPED:
                self.answered += 1
                self.seconds.append(time.perf_counter() - began)
        except Exception as failure:
            self.refused += 1
            line = " ".join(str(failure).split())
            if not isinstance(failure, UserError):  # our fault, which must not end other clients' work
                self._say(f"a request failed: {type(failure).__name__}: {failure}")
                line = f"the server failed ({type(failure).__name__}); send stop and start again"
            reply = f"error: {line}".encode()
        try:
            self._socket.send_multipart([*frames[:start], reply])
        except zmq.ZMQError:
            self._say("a client left before it was answered")

    def _reply(self, client: bytes, words: list[bytes]) -> bytes:
        size = sum(map(len, words))
        require(size <= _MAX_REQUEST, f"the request has {size:,} bytes; at most {_MAX_REQUEST:,} are allowed")
        require(len(words) in (1, 2), f"a request has one frame, or a session id and one frame; got {len(words)}")
        has_name = len(words) == 1 or _SESSION_ID.fullmatch(words[0]) is not None
        require(has_name, "a session id has 1 to 64 letters, digits, '_', '.' or '-'")
        name = words[0] if len(words) == 2 else ANONYMOUS + client.hex().encode()
        match words[-1]:
            case b"request":
                return self.sessions.get(name, client).request().tobytes()
            case b"stop":
                self.sessions.stop(name)
                return STOPPED
        raise UserError(f"unknown request {words[-1][:40]!r}; send request or stop")

    def _begin(self, number: int, client: bytes) -> Session:
        return Session(self.robot, self._open_cameras(number), client=client, seed=self.options.seed + number)

    def _open_cameras(self, number: int) -> Cameras:
        size = self.robot.options.observation_shape[1]
        return open_cameras(self.options, names=self._cameras, size=size, number=number)
