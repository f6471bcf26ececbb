"""Demonstrations of robot_swap: the expert at work, an episode from (seed, split, index) alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.swap_expert import expert
from diffusion_forcing.environments.swap_scene import CAMERAS
from diffusion_forcing.errors import UserError

VERSION = 1
"""Raised whenever the same seed would give other bytes."""
SPLITS = ("training", "validation", "test")
_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class SwapEpisodes:
    """Episodes of pictures of `size` × `size`. noise: m, how much the expert's hand shakes on the way. Attempts that fail are not kept."""

    seed: int = 0
    size: int = 32
    noise: float = 0.008
    distractors: int = 0
    blocking: float = 0.0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"generate_seed must be at least 0, got {self.seed}")
        if self.noise < 0:
            raise UserError(f"noise is {self.noise}; it is a length in m, 0 or more")

    @property
    def frames(self) -> int:
        """Frames of an episode, about: for the progress bar."""
        return 102

    @property
    def recipe(self) -> dict[str, str | int | float]:
        """All that decides the bytes."""
        return {"simulator": "robot_swap", "version": VERSION, **asdict(self)}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        """Episode `index` of `split`.

        front, over: (N + 1, size, size, 3) uint8, before each of N actions and behind the last; actions: (N, 8) float32; states: (N + 1, 8)
        float32; blocked: (N + 1, 2) bool; slots: (2,).
        """
        env = gymnasium.make("robot_swap", size=self.size, distractors=self.distractors, blocking=self.blocking)
        seeds = np.random.SeedSequence([self.seed, SPLITS.index(split), index]).generate_state(_ATTEMPTS)
        try:
            for seed in seeds:
                episode = self._attempt(env, int(seed))
                if episode is not None:
                    return episode
        finally:
            env.close()
        raise UserError(f"the expert failed {_ATTEMPTS} times in a row with noise {self.noise}; lower dataset.noise")

    def close(self) -> None:
        """Nothing stays open between two episodes."""

    def _attempt(self, env: gymnasium.Env[Any, Any], seed: int) -> dict[str, NDArray[Any]] | None:
        observation, info = env.reset(seed=seed)
        seen, blocked, actions = [observation], [info["blocked"]], []
        for action in expert(env.unwrapped, noise=self.noise):  # type: ignore[arg-type]
            observation, _, done, late, info = env.step(action)
            seen.append(observation)
            blocked.append(info["blocked"])
            actions.append(action)
            if done or late:
                break
        if not info["success"]:
            return None
        films = {camera: np.stack([one[camera] for one in seen]) for camera in CAMERAS}
        return {
            **films,
            "actions": np.stack(actions),
            "states": np.stack([one["state"] for one in seen]),
            "blocked": np.stack(blocked),
            "slots": info["slots"],
        }
