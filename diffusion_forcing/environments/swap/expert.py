"""Demonstrations of robot_swap: the expert at work, an episode from (seed, split, index) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.swap.environment import SwapEnv
from diffusion_forcing.environments.swap.scene import CAMERAS, DOWN, HOME, OBJECTS, SLOT_X, SLOTS_Y, TABLE
from diffusion_forcing.errors import UserError

# The scripted expert of robot_swap: it knows where everything is, moves three fruits' ways, and comes home after each.
#
# The fruit that moves first goes to the empty slot, the other to its place, the first on to the other's. `first` is the apple.

SPEED = 0.06
"""m an action, at most."""
ABOVE, GRASP_AT, RELEASE_AT = TABLE + 0.14, TABLE + 0.03, TABLE + 0.036
CLOSE_STEPS, OPEN_STEPS = 4, 3
_MOST = 30
"""Actions towards one point, at most."""


def moves(slots: NDArray[np.int64]) -> list[tuple[str, int]]:
    """Which fruit goes to which slot, in order, from a layout (apple's, orange's)."""
    apple, orange = (int(slot) for slot in slots)
    empty = 3 - apple - orange
    return [(OBJECTS[0], empty), (OBJECTS[1], apple), (OBJECTS[0], orange)]


def expert(env: SwapEnv, *, noise: float = 0.0) -> Iterator[NDArray[np.float32]]:
    """The actions (8,) of an episode just reset, one after the other; whoever takes one steps `env` with it before the next.

    noise: m, standard deviation of what an action is off on the way (not where a fruit is grasped or let go), drawn from the environment's
    random numbers, so that demonstrations show how to come back.
    """
    for name, slot in moves(env.slots):
        x, y, _ = env.scene.place(name)
        yield from _go(env, (x, y, ABOVE), False, noise)
        yield from _go(env, (x, y, GRASP_AT), False, 0.0, near=0.006)
        yield from _stay(env, (x, y, GRASP_AT), True, CLOSE_STEPS)
        yield from _go(env, (x, y, ABOVE), True, noise)
        there = (SLOT_X, SLOTS_Y[slot])
        yield from _go(env, (*there, ABOVE), True, noise)
        yield from _go(env, (*there, RELEASE_AT), True, 0.0, near=0.006)
        yield from _stay(env, (*there, RELEASE_AT), False, OPEN_STEPS)
        yield from _go(env, (*there, ABOVE), False, noise)
        yield from _go(env, tuple(HOME), False, noise)
        yield from _stay(env, tuple(HOME), False, 2)


def _go(
    env: SwapEnv, point: tuple[float, ...], closed: bool, noise: float, near: float = 0.015
) -> Iterator[NDArray[np.float32]]:
    for _ in range(_MOST):
        left = np.array(point) - env.scene.target
        if np.linalg.norm(np.array(point) - env.scene.grip) < near:
            return
        distance = float(np.linalg.norm(left))
        target = env.scene.target + left * min(1.0, SPEED / max(distance, 1e-9))
        if noise and distance > SPEED:
            target = target + env.np_random.normal(0, noise, 3)
        yield _action(target, closed)


def _stay(env: SwapEnv, point: tuple[float, ...], closed: bool, steps: int) -> Iterator[NDArray[np.float32]]:
    for _ in range(steps):
        yield _action(np.array(point), closed)


def _action(position: NDArray[np.float64], closed: bool) -> NDArray[np.float32]:
    return np.r_[position, DOWN, float(closed)].astype(np.float32)


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
