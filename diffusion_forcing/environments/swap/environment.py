"""robot_swap: a Fetch arm exchanges two fruits between three slots, watched by two cameras (Chen et al. 2024 §4.4,
simulated).

What the cameras show in the middle of the task does not determine what to do next: the third slot has to be used, so
every intermediate layout is also the start of another episode, in which a different fruit must move. The arm returns
home between moves, so it does not give the answer away either. The task can only be solved with memory.

- observation: {"front", "over": (size, size, 3) uint8, "state": (8,) float32}.
- action and state: [x, y, z, qx, qy, qz, qw, grasp]: position (m) and orientation (down: 0, √½, 0, √½) of the gripper,
  and grasp, 0 open … 1 closed. An action takes 0.1 s and moves the gripper at most `REACH` towards its position.
- reward: 1, and the episode ends, when each fruit lies in the other's slot and the open gripper is home; else 0.
  `gymnasium.make` truncates after `MAX_ACTIONS`, a third more than the expert needs and too few for trial and error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.swap.scene import CAMERAS, DISTRACTORS, DOWN, HOME, OBJECTS, TABLE, SwapScene
from diffusion_forcing.errors import UserError, require

Observation = dict[str, NDArray[Any]]

MAX_ACTIONS = 135
"""After which `gymnasium.make("robot_swap")` truncates an episode."""
REACH = 0.08
"""Maximum distance of one action, m."""
TURN = 0.3
"""Fraction of the way by which one action turns the gripper to its orientation."""
LOW, HIGH = np.array([1.05, 0.42, TABLE + 0.015]), np.array([1.48, 1.08, TABLE + 0.36])
"""Limits of the gripper's position."""
JITTER = 0.01
"""Maximum distance of a fruit from the middle of its slot along each axis, m."""
HOME_REACHED = 0.04
BLOCK_STEPS = (10, 25)
"""Range of the number of actions for which a camera is covered."""
FOR_EVER = 2**60
"""Actions."""
_GREY = 40


class SwapEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """The environment of this module.

    size: pixels a side. distractors: 0 … 2 boxes on the table, moved at every reset. blocking: probability that a
    camera, independently of the other, gets covered at an action, for 1 … 2.5 s.

    `reset(options={"slots": (apple's, orange's), "jitter": (2, 2)})` sets the layout and each fruit's distance from the
    middle of its slot (m); otherwise they are drawn. `info`: "slots" at the start, "blocked" (cameras,) bool,
    "success".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, *, size: int = 32, distractors: int = 0, blocking: float = 0.0, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode {render_mode!r} is not available for robot_swap; use 'rgb_array' or None")
        require(8 <= size <= 512, f"size is {size}; allowed: 8 to 512 pixels a side")
        require(0 <= distractors <= DISTRACTORS, f"distractors is {distractors}; allowed: 0 to {DISTRACTORS}")
        require(0 <= blocking <= 1, f"blocking is {blocking}; it is a probability from 0 to 1")
        self.size, self.distractors, self.blocking, self.render_mode = size, distractors, blocking, render_mode
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        state = gymnasium.spaces.Box(-2.0, 2.0, (8,), np.float32)
        low, high = np.r_[LOW, -np.ones(4), 0.0], np.r_[HIGH, np.ones(4), 1.0]
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(
            {**dict.fromkeys(CAMERAS, image), "state": state}
        )
        self.scene = SwapScene()
        self.slots = np.array([0, 1])
        self._orientation = DOWN
        self._block_steps = np.zeros(len(CAMERAS), np.int64)  # actions for which each camera is still covered

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. UserError for an invalid layout."""
        super().reset(seed=seed)
        # Always draw everything, so that a seed gives the same episode whatever `options` and `distractors` are.
        random = self.np_random
        slots, jitter = random.permutation(3)[:2], random.uniform(-JITTER, JITTER, (2, 2))
        places = draw_distractors(random)
        options = options or {}
        for key in options:
            if key not in ("slots", "jitter"):
                raise UserError(f"reset of robot_swap has no option {key!r}; allowed: 'slots', 'jitter'")
        if "slots" in options:
            slots = np.asarray(options["slots"])
            if slots.shape != (2,) or slots[0] == slots[1] or not set(slots.tolist()) <= {0, 1, 2}:
                raise UserError(f"slots is {options['slots']!r}; give two different ones of 0, 1, 2, the apple's first")
        if "jitter" in options:
            jitter = np.asarray(options["jitter"], np.float64)
            if jitter.shape != (2, 2) or not (np.abs(jitter) <= JITTER).all():
                raise UserError(f"jitter is {options['jitter']!r}; give (2, 2) numbers of at most {JITTER} m")
        self.slots, self._orientation = slots, DOWN
        self._block_steps[:] = 0
        self.scene.reset(slots, jitter, places[: self.distractors])
        return self.observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move for 0.1 s towards `action` (8,), clipped to the limits. UserError where it is not finite."""
        info = self.move(action)
        return self.observe(), float(info["success"]), info["success"], False, info

    def move(self, action: NDArray[np.float32]) -> dict[str, Any]:
        """`step` without rendering; returns `info`."""
        target = np.asarray(action, np.float64)
        if target.shape != (8,) or not np.isfinite(target).all():
            raise UserError(f"an action of robot_swap is 8 finite numbers, got {target.shape}: {target.ravel()[:8]}")
        # Move at most REACH towards the position and turn a part of the way.
        way = np.clip(target[:3], LOW, HIGH) - self.scene.target
        distance = float(np.linalg.norm(way))
        self._orientation = _turn_towards(self._orientation, target[3:7])
        position = self.scene.target + way * min(1.0, REACH / max(distance, 1e-9))
        self.scene.move_gripper(position, self._orientation, bool(target[7] > 0.5))
        # Uncover cameras whose time is over, then cover others.
        self._block_steps = np.maximum(self._block_steps - 1, 0)
        if self.blocking:
            covered = (self.np_random.random(len(CAMERAS)) < self.blocking) & (self._block_steps == 0)
            self._block_steps[covered] = self.np_random.integers(*BLOCK_STEPS, size=int(covered.sum()))
        return self._info()

    def observe(self) -> Observation:
        """The current observation."""
        images = {camera: self.scene.render(camera, self.size) for camera in CAMERAS}
        for camera, blocked in zip(CAMERAS, self.blocked, strict=True):
            if blocked:
                images[camera] = np.full_like(images[camera], _GREY)
        grasp = 1.0 - min(1.0, self.scene.opening / 0.05)
        state = np.r_[self.scene.grip, self._orientation, grasp].astype(np.float32)
        return {**images, "state": state}

    def cover(self, camera: int, on: bool = True) -> None:
        """Cover camera number `camera` until it is uncovered with on=False, or the next reset."""
        self._block_steps[camera] = FOR_EVER if on else 0

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """(256, 512, 3) uint8: both cameras side by side, never covered; None without `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        return np.concatenate([self.scene.render(camera, 256) for camera in CAMERAS], axis=1)

    def close(self) -> None:
        """Free the renderers."""
        self.scene.close()

    @property
    def blocked(self) -> NDArray[np.bool_]:
        """(cameras,) bool: which are covered now."""
        return self._block_steps > 0

    @property
    def success(self) -> bool:
        """Whether each fruit lies in the other's slot and the open gripper is home."""
        swapped = [self.scene.slot_of(name) for name in OBJECTS] == self.slots[::-1].tolist()
        home = float(np.linalg.norm(self.scene.grip - HOME)) < HOME_REACHED
        return bool(swapped and home and self.scene.opening > 0.03)

    def _info(self) -> dict[str, Any]:
        return {"slots": self.slots.copy(), "blocked": self.blocked, "success": self.success}


def draw_distractors(random: np.random.Generator) -> NDArray[np.float64]:
    """(2, 2) places on the table, one on either side, for `SwapScene.place_distractors`."""
    x = random.uniform(1.12, 1.2, DISTRACTORS)
    y = 0.75 + np.array([-1, 1]) * random.uniform(0.1, 0.3, DISTRACTORS)
    return np.stack([x, y], axis=1)


def _turn_towards(current: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quaternion `TURN` of the way from `current` to `target`, the shorter way; a zero target changes nothing."""
    norm = float(np.linalg.norm(target))
    if norm < 1e-6:
        return current
    goal = target / norm * (1.0 if float(target @ current) >= 0 else -1.0)
    mixed = current + TURN * (goal - current)
    return np.asarray(mixed / np.linalg.norm(mixed))


class SwapBatch:
    """n episodes in step, episode i with seed `seed` + i, for a policy that decides for all at once. Finished ones
    stand still."""

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
    def finished(self) -> NDArray[np.bool_]:
        """(n,) bool: episodes that succeeded or used up their actions."""
        return self.success | (self.actions >= MAX_ACTIONS)

    def observe(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Images (n, cameras, 3, size, size) uint8 and states (n, 8)."""
        observations = [env.observe() for env in self.envs]
        images = np.stack([np.stack([one[camera] for camera in self.cameras]) for one in observations])
        return images.transpose(0, 1, 4, 2, 3), np.stack([one["state"] for one in observations])

    def move(self, actions: NDArray[np.float32], on_move: Callable[[int, SwapEnv], None] | None = None) -> None:
        """Execute actions (n, k, 8) until each episode finishes, and call on_move(number, env) after each."""
        for number, env in enumerate(self.envs):
            for action in actions[number]:
                if self.finished[number]:
                    break
                self.success[number] = env.move(action)["success"]
                self.actions[number] += 1
                if on_move is not None:
                    on_move(number, env)

    def close(self) -> None:
        """Free the renderers."""
        for env in self.envs:
            env.close()
