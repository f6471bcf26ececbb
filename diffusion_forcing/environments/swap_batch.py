"""Several episodes of robot_swap in step, for a policy that decides for all at once: a stack of actions, then a look."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.swap import SwapEnv
from diffusion_forcing.environments.swap_scene import CAMERAS

MOST_ACTIONS = 135
"""Where `gymnasium.make("robot_swap")` cuts an episode."""


class SwapBatch:
    """n episodes, number i from seed + i. What ended stays as it was."""

    def __init__(
        self, n: int, *, seed: int, size: int = 32, distractors: int = 0, blocking: float = 0.0, cameras: int = 2
    ) -> None:
        self.cameras = CAMERAS[:cameras]
        self.envs = [SwapEnv(size=size, distractors=distractors, blocking=blocking) for _ in range(n)]
        for number, env in enumerate(self.envs):
            env.reset(seed=seed + number)
        self.actions = np.zeros(n, np.int64)
        self.success = np.zeros(n, bool)

    @property
    def over(self) -> NDArray[np.bool_]:
        """(n,) bool: episodes that ended, well or not."""
        return self.success | (self.actions >= MOST_ACTIONS)

    def look(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """What is seen now: pictures (n, cameras, 3, size, size) uint8 and states (n, 8)."""
        seen = [env.look() for env in self.envs]
        pictures = np.stack([np.stack([one[camera] for camera in self.cameras]) for one in seen])
        return pictures.transpose(0, 1, 4, 2, 3), np.stack([one["state"] for one in seen])

    def move(self, actions: NDArray[np.float32], on_move: Callable[[int, SwapEnv], None] | None = None) -> None:
        """Carry out actions (n, k, 8), each episode as far as it goes. on_move(number, env) is told after each action."""
        for number, env in enumerate(self.envs):
            for action in actions[number]:
                if self.over[number]:
                    break
                info = env.move(action)
                self.actions[number] += 1
                self.success[number] = info["success"]
                if on_move is not None:
                    on_move(number, env)

    def close(self) -> None:
        """Give the renderers back."""
        for env in self.envs:
            env.close()
