"""A client's session: its own memory, its own cameras, one client at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.algorithms.robot import Robot
from diffusion_forcing.algorithms.robot_policy import RobotPolicy
from diffusion_forcing.errors import UserError
from diffusion_forcing.serve.cameras import Cameras

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
