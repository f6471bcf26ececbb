"""The agent that walks a voxel landscape, and a check of what it recorded.

The agent goes straight on for a while, turns a little, goes on, and turns away from an obstacle before it runs into it.
Its actions follow from its generator and from what it senses, never from the clock.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FORWARD, LEFT, RIGHT = range(3)

_NEAR, _FAR = 3, 10
"""Steps: an obstacle nearer than the first makes the agent turn until the path ahead is as free as the second."""
_FULL_TURN = 48
"""Left or right actions of a full turn."""
_STRAIGHT = (4, 16)
_TURNS = (1, 9)
"""Shortest run of one action, and one more than the longest."""

MIN_SPREAD = 1.5
"""Nodes: least standard deviation of the positions over 300 frames; in proportion for fewer."""
MIN_MOVED = 0.8
"""Least share of forward actions that moved the agent."""
MIN_FORWARD = 0.3
"""Least share of forward actions."""
MIN_BRIGHTNESS, MAX_DARK = 20.0, 0.02
"""Mean (of 255) below which a frame is dark, and the share of frames that may be."""
MIN_CONTRAST, MAX_FLAT = 8.0, 0.05
"""Standard deviation (of 255) below which a frame shows one surface, and the share of frames that may."""
MIN_CHANGE = 0.002
"""Least share of pixels that an effective action changes."""
_FRAMES = 300


class Sight(NamedTuple):
    """The mod's report: position (nodes), heading (rad), steps that can be walked ahead and 45° to each side."""

    moved: bool
    x: float
    y: float
    z: float
    yaw: float
    ahead: int
    left: int
    right: int
    inside: str
    """`clear`, or the block that the eyes are in."""

    @classmethod
    def read(cls, words: list[str]) -> Sight:
        """Parse the words of a report."""
        x, y, z, yaw = map(float, words[1:5])
        ahead, left, right = map(int, words[5:8])
        return cls(words[0] == "1", x, y, z, yaw, ahead, left, right, words[8])


class Walker:
    """Chooses actions; call `act` at every frame."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._action = FORWARD
        self._left = int(rng.integers(*_STRAIGHT))
        self._avoiding = False

    def act(self, sight: Sight) -> int:
        """The action after a frame with `sight`."""
        # Turning away from an obstacle.
        if self._avoiding:
            self._left -= 1
            if sight.ahead < _FAR and self._left > 0:
                return self._action
            self._avoiding = False
            self._go_straight()
        # At the end of a run, a turn follows a straight line and the other way round.
        if self._left == 0:
            if self._action == FORWARD:
                self._action, self._left = int(self._rng.choice([LEFT, RIGHT])), int(self._rng.integers(*_TURNS))
            else:
                self._go_straight()
        # An obstacle ahead: turn to the freer side.
        if self._action == FORWARD and sight.ahead < _NEAR:
            better = float(np.sign(sight.left - sight.right)) or self._rng.choice([-1.0, 1.0])
            self._action, self._left, self._avoiding = (LEFT if better > 0 else RIGHT), _FULL_TURN, True
            return self._action
        self._left -= 1
        return self._action

    def _go_straight(self) -> None:
        self._action, self._left = FORWARD, int(self._rng.integers(*_STRAIGHT))


def faults(video: NDArray[np.uint8], actions: NDArray[np.int64], sights: list[Sight]) -> list[str]:
    """Reasons to reject an episode; empty for a good one.

    video: (T, h, w, 3); actions: (T,), actions[t] follows frame t; sights: one for each frame.
    """
    found = []
    led = actions[:-1]
    forward = led == FORWARD
    moved = np.array([sight.moved for sight in sights[1:]], dtype=bool)
    places = np.array([(sight.x, sight.z) for sight in sights])
    if forward.mean() < MIN_FORWARD:
        found.append("turns on the spot")
    elif moved[forward].mean() < MIN_MOVED:
        found.append("runs into walls")
    if np.sqrt(places.var(axis=0).sum()) < MIN_SPREAD * min(1.0, len(video) / _FRAMES):
        found.append("stays in one place")
    if any(sight.inside != "clear" for sight in sights):
        found.append("eyes in a block or in water")
    flat = video.reshape(len(video), -1)
    brightness, contrast = flat.mean(axis=1), flat.std(axis=1)
    if (brightness < MIN_BRIGHTNESS).mean() > MAX_DARK:
        found.append("dark")
    if (contrast < MIN_CONTRAST).mean() > MAX_FLAT:
        found.append("one surface")
    change = (video[1:] != video[:-1]).any(axis=-1).mean(axis=(1, 2))
    if (change[~forward | moved] < MIN_CHANGE).any():
        found.append("an action without effect")
    return found
