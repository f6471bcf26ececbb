"""The scripted expert of robot_swap, and demonstrations by it; each follows from (seed, split, index) alone.

The expert knows where everything is. It moves the apple to the empty slot, the orange to the apple's slot, and the
apple to the orange's, and returns home after every move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.swap.environment import SwapEnv
from diffusion_forcing.environments.swap.scene import CAMERAS, DOWN, HOME, OBJECTS, SLOT_X, SLOTS_Y, TABLE
from diffusion_forcing.errors import UserError, check_minimum

SPEED = 0.06
"""Maximum distance of one action, m."""
ABOVE, GRASP_AT, RELEASE_AT = TABLE + 0.14, TABLE + 0.03, TABLE + 0.036
"""Heights."""
CLOSE_STEPS, OPEN_STEPS = 4, 3
_MAX_STEPS = 30
"""Actions towards one point."""

VERSION = 1
"""Raised whenever the same seed would give other bytes."""
SPLITS = ("training", "validation", "test")
_ATTEMPTS = 20

Point = tuple[float, ...]


def moves(slots: NDArray[np.int64]) -> list[tuple[str, int]]:
    """Which fruit goes to which slot, in order, from a layout (apple's, orange's)."""
    apple, orange = (int(slot) for slot in slots)
    empty = 3 - apple - orange
    return [(OBJECTS[0], empty), (OBJECTS[1], apple), (OBJECTS[0], orange)]


def expert(env: SwapEnv, *, noise: float = 0.0) -> Iterator[NDArray[np.float32]]:
    """The actions (8,) of an episode just reset; the caller steps `env` with each before asking for the next.

    noise: standard deviation (m) of the actions' error while moving (not while grasping or releasing), drawn from the
    environment's random numbers, so that demonstrations show how to recover.
    """
    for name, slot in moves(env.slots):
        # Grasp the fruit.
        x, y, _ = env.scene.position(name)
        yield from _go(env, (x, y, ABOVE), closed=False, noise=noise)
        yield from _go(env, (x, y, GRASP_AT), closed=False, near=0.006)
        yield from _stay((x, y, GRASP_AT), closed=True, steps=CLOSE_STEPS)
        yield from _go(env, (x, y, ABOVE), closed=True, noise=noise)
        # Release it in its slot.
        x, y = SLOT_X, SLOTS_Y[slot]
        yield from _go(env, (x, y, ABOVE), closed=True, noise=noise)
        yield from _go(env, (x, y, RELEASE_AT), closed=True, near=0.006)
        yield from _stay((x, y, RELEASE_AT), closed=False, steps=OPEN_STEPS)
        yield from _go(env, (x, y, ABOVE), closed=False, noise=noise)
        # Return home.
        yield from _go(env, tuple(HOME), closed=False, noise=noise)
        yield from _stay(tuple(HOME), closed=False, steps=2)


def _go(
    env: SwapEnv, point: Point, *, closed: bool, noise: float = 0.0, near: float = 0.015
) -> Iterator[NDArray[np.float32]]:
    """Actions towards `point` until the gripper is `near` it."""
    for _ in range(_MAX_STEPS):
        if np.linalg.norm(np.array(point) - env.scene.grip) < near:
            return
        way = np.array(point) - env.scene.target
        distance = float(np.linalg.norm(way))
        position = env.scene.target + way * min(1.0, SPEED / max(distance, 1e-9))
        if noise and distance > SPEED:
            position = position + env.np_random.normal(0, noise, 3)
        yield _action(position, closed)


def _stay(point: Point, *, closed: bool, steps: int) -> Iterator[NDArray[np.float32]]:
    for _ in range(steps):
        yield _action(np.array(point), closed)


def _action(position: NDArray[np.float64], closed: bool) -> NDArray[np.float32]:
    return np.r_[position, DOWN, float(closed)].astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class SwapEpisodes:
    """A simulator for `datasets.generate`: the expert's successful episodes, with images of `size` × `size` pixels.

    noise: see `expert`; distractors, blocking: see `SwapEnv`.
    """

    seed: int = 0
    size: int = 32
    noise: float = 0.008
    distractors: int = 0
    blocking: float = 0.0

    def __post_init__(self) -> None:
        check_minimum("generate_seed", self.seed, 0)
        check_minimum("noise", self.noise, 0)

    @property
    def frames(self) -> int:
        """Approximate frames of an episode, for the progress bar."""
        return 102

    @property
    def recipe(self) -> dict[str, str | int | float]:
        """All that determines the bytes of an episode."""
        return {"simulator": "robot_swap", "version": VERSION, **asdict(self)}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        """Episode `index` of `split`.

        front, over: (N + 1, size, size, 3) uint8, before each of N actions and after the last; actions: (N, 8) float32;
        states: (N + 1, 8) float32; blocked: (N + 1, 2) bool; slots: (2,).
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
        observations, blocked, actions = [observation], [info["blocked"]], []
        for action in expert(env.unwrapped, noise=self.noise):  # type: ignore[arg-type]
            observation, _, terminated, truncated, info = env.step(action)
            observations.append(observation)
            blocked.append(info["blocked"])
            actions.append(action)
            if terminated or truncated:
                break
        if not info["success"]:
            return None
        return {
            **{camera: np.stack([one[camera] for one in observations]) for camera in CAMERAS},
            "actions": np.stack(actions),
            "states": np.stack([one["state"] for one in observations]),
            "blocked": np.stack(blocked),
            "slots": info["slots"],
        }
