"""What the policy server can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffusion_forcing.errors import UserError


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
