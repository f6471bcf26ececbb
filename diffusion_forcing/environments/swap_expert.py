"""The scripted expert of robot_swap: it knows where everything is, moves three fruits' ways, and comes home after each.

The fruit that moves first goes to the empty slot, the other to its place, the first on to the other's. `first` is the apple.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.swap import SwapEnv
from diffusion_forcing.environments.swap_scene import DOWN, HOME, OBJECTS, SLOT_X, SLOTS_Y, TABLE

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
