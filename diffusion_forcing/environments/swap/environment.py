"""Several episodes of robot_swap in step, for a policy that decides for all at once: a stack of actions, then a look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.swap.scene import CAMERAS, DISTRACTORS, DOWN, HOME, OBJECTS, TABLE, SwapScene
from diffusion_forcing.errors import UserError

# robot_swap: a Fetch arm exchanges two fruits between three slots, watched by two cameras (Chen et al. 2024 §4.4, simulated).
#
# What the cameras show in the middle of the task does not say what to do next: the third slot must be used, so that every layout along the way is
# also the start of another episode, where a different fruit must go. The arm comes home between moves and shows nothing of them either. Only
# memory helps.
#
# - observation: {"front", "over": (size, size, 3) uint8, "state": (8,) float32}.
# - action and state: [x, y, z, qx, qy, qz, qw, grasp], where the gripper should be (m), how turned (down: 0, √½, 0, √½), grasp 0 open, 1 closed.
#   One action is 0.1 s; the gripper goes at most `REACH` towards it.
# - reward: 1 and the end when both fruits lie in each other's slot and the open gripper is home, else 0. `gymnasium.make` cuts after 135 actions,
#   a third more than the expert needs: too few for trying.

Observation = dict[str, NDArray[Any]]

REACH = 0.08
"""m of one action at most."""
TURN = 0.3
"""How far a quaternion moves towards an action's in one step, from 0 to 1."""
LOW, HIGH = np.array([1.05, 0.42, TABLE + 0.015]), np.array([1.48, 1.08, TABLE + 0.36])
"""Where the gripper may go."""
JITTER = 0.01
"""m: how far a fruit lies from its slot's middle, on each axis."""
HOME_REACHED = 0.04
BLOCK_STEPS = (10, 25)
"""A blocked camera stays blocked for so many actions."""
_GREY = 40


class SwapEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """See the module. size: pixels a side. distractors: 0 … 2 more things on the table, moved at every reset. blocking: chance that a camera,
    each by itself, is covered at an action, then for 1 … 2.5 s.

    `reset(options={"slots": (apple's, orange's), "jitter": (2, 2)})` sets a layout and how far each fruit lies from its slot's middle (m), else
    they are drawn from the seed. `info`: "slots" at the start, "blocked"
    (cameras,) bool, "success".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, *, size: int = 32, distractors: int = 0, blocking: float = 0.0, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode {render_mode!r} is not available for robot_swap; use 'rgb_array' or None")
        if not 8 <= size <= 512:
            raise UserError(f"size is {size}; pictures have 8 to 512 pixels a side")
        if not 0 <= distractors <= DISTRACTORS:
            raise UserError(f"distractors is {distractors}; allowed: 0 to {DISTRACTORS}")
        if not 0 <= blocking <= 1:
            raise UserError(f"blocking is {blocking}; it is a chance from 0 to 1")
        self.size, self.distractors, self.blocking, self.render_mode = size, distractors, blocking, render_mode
        picture = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        low, high = np.r_[LOW, -np.ones(4), 0.0], np.r_[HIGH, np.ones(4), 1.0]
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        state = gymnasium.spaces.Box(-2.0, 2.0, (8,), np.float32)
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(
            {**dict.fromkeys(CAMERAS, picture), "state": state}
        )
        self.scene = SwapScene()
        self.slots = np.array([0, 1])
        self._turn = DOWN
        self._blocked = np.zeros(len(CAMERAS), np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. UserError for a layout that is none."""
        super().reset(seed=seed)
        random = self.np_random
        slots, jitter = random.permutation(3)[:2], random.uniform(-JITTER, JITTER, (2, 2))
        places = np.stack(
            [random.uniform(1.12, 1.2, DISTRACTORS), 0.75 + np.array([-1, 1]) * random.uniform(0.1, 0.3, DISTRACTORS)],
            axis=1,
        )
        options = options or {}
        for key in options:
            if key not in ("slots", "jitter"):
                raise UserError(f"robot_swap's reset has no option {key!r}; it has 'slots' and 'jitter'")
        if "slots" in options:
            slots = np.asarray(options["slots"])
            if slots.shape != (2,) or slots[0] == slots[1] or not set(slots.tolist()) <= {0, 1, 2}:
                raise UserError(f"slots is {options['slots']!r}; give two different ones of 0, 1, 2, the apple's first")
        if "jitter" in options:
            jitter = np.asarray(options["jitter"], np.float64)
            if jitter.shape != (2, 2) or not (np.abs(jitter) <= JITTER).all():
                raise UserError(f"jitter is {options['jitter']!r}; give (2, 2) numbers of at most {JITTER} m")
        self.slots, self._turn = slots, DOWN
        self._blocked[:] = 0
        self.scene.reset(slots, jitter, places[: self.distractors])
        return self.look(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """0.1 s towards `action` (8,), brought into what is allowed. UserError when it is not finite."""
        info = self.move(action)
        return self.look(), float(info["success"]), info["success"], False, info

    def move(self, action: NDArray[np.float32]) -> dict[str, Any]:
        """`step` without looking: its `info`. UserError when `action` (8,) is not finite."""
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (8,) or not np.isfinite(wanted).all():
            raise UserError(f"an action of robot_swap is 8 finite numbers, got {wanted.shape}: {wanted.ravel()[:8]}")
        move = np.clip(wanted[:3], LOW, HIGH) - self.scene.target
        distance = float(np.linalg.norm(move))
        self._turn = _towards(self._turn, wanted[3:7])
        self.scene.pull(
            self.scene.target + move * min(1.0, REACH / max(distance, 1e-9)), self._turn, bool(wanted[7] > 0.5)
        )
        self._blocked = np.maximum(self._blocked - 1, 0)
        if self.blocking:
            covered = (self.np_random.random(len(CAMERAS)) < self.blocking) & (self._blocked == 0)
            self._blocked[covered] = self.np_random.integers(*BLOCK_STEPS, size=int(covered.sum()))
        return self._info()

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """(256, 512, 3) uint8: both cameras side by side, blocked ones too; None without `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        return np.concatenate([self.scene.look(camera, 256) for camera in CAMERAS], axis=1)

    def close(self) -> None:
        """Give the renderers back."""
        self.scene.close()

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(cameras,) bool: those that are blocked now."""
        return self._blocked > 0

    def success(self) -> bool:
        """Whether both fruits lie in each other's slot and the open gripper is home."""
        swapped = [self.scene.slot_of(name) for name in OBJECTS] == self.slots[::-1].tolist()
        home = float(np.linalg.norm(self.scene.grip - HOME)) < HOME_REACHED
        return bool(swapped and home and self.scene.opening > 0.03)

    def look(self) -> Observation:
        """What is observed now."""
        pictures = {camera: self.scene.look(camera, self.size) for camera in CAMERAS}
        for camera, blocked in zip(CAMERAS, self._blocked, strict=True):
            if blocked:
                pictures[camera] = np.full_like(pictures[camera], _GREY)
        grasp = 1.0 - min(1.0, self.scene.opening / 0.05)
        state = np.r_[self.scene.grip, self._turn, grasp].astype(np.float32)
        return {**pictures, "state": state}

    def _info(self) -> dict[str, Any]:
        return {"slots": self.slots.copy(), "blocked": self.covered, "success": self.success()}


def _towards(now: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quaternion, `TURN` of the way from one to the other; a wanted one of length 0 changes nothing."""
    length = float(np.linalg.norm(wanted))
    if length < 1e-6:
        return now
    goal = wanted / length * (1.0 if float(wanted @ now) >= 0 else -1.0)
    mixed = now + TURN * (goal - now)
    return np.asarray(mixed / np.linalg.norm(mixed))


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
