"""robot_swap: a simulated arm exchanges two fruits between three slots; the scene, the environment, the scripted expert."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mujoco.rendering.classic import gl_context
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, check_minimum, require

# ------------------------------------------------------------------------------------------------------------ the scene
# The MuJoCo scene of robot_swap: the Fetch arm of Gymnasium-Robotics at a table with three slots, an apple and an
# orange.
#
# Lengths are in metres. The robot stands at x ≈ 0.4 facing +x, with y to its left. As in the Fetch tasks of
# Gymnasium-Robotics, a weld attaches the gripper to a mocap body, which drags it along.

OBJECTS = ("apple", "orange")
SLOT_X, SLOTS_Y = 1.32, (0.57, 0.75, 0.93)
"""Centres of the three slots on the table."""
TABLE = 0.4
"""Height of the table top."""
CAMERAS = ("front", "over")
HOME = np.array([1.18, 0.75, TABLE + 0.3])
"""Where the gripper waits: away from the slots, so that its position does not show what has been done."""
DOWN = np.array([0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5)])
"""The gripper looking down, as a quaternion (x, y, z, w)."""
DISTRACTORS = 2
OFF_TABLE = (0.3, 3.0, 0.1)
"""Where unused distractors lie, out of sight."""
_BASE = {"robot0:slide0": 0.4049, "robot0:slide1": 0.48, "robot0:slide2": 0.0}

_MJCF = """<mujoco model="robot_swap">
  <compiler angle="radian" meshdir="{assets}/stls/fetch" texturedir="{assets}/textures"/>
  <option timestep="0.002"/>
  <visual><quality shadowsize="0" offsamples="0"/><global offwidth="512" offheight="512"/></visual>
  <include file="{assets}/fetch/shared.xml"/>
  <worldbody>
    <geom name="floor0" pos=".8 .75 0" size="1.2 1.2 1" type="plane" condim="3" material="floor_mat"/>
    <include file="{assets}/fetch/robot.xml"/>
    <body pos="1.3 .75 .2" name="table0"><geom size=".25 .35 .2" type="box" mass="2000" rgba=".45 .32 .2 1"/></body>
    {slots}{objects}{distractors}
    <camera name="front" pos="2.0 .75 1.0" xyaxes="0 1 0 -.604 0 .797" fovy="38"/>
    <camera name="over" pos="1.33 .13 1.12" xyaxes="1 0 0 0 .734 .679" fovy="44"/>
    <light directional="true" ambient=".25 .25 .25" diffuse=".75 .75 .75" castshadow="false" pos="0 0 4" dir="0 0 -1"/>
  </worldbody>
  <actuator>
    <position ctrllimited="true" ctrlrange="0 .2" joint="robot0:l_gripper_finger_joint" kp="30000"/>
    <position ctrllimited="true" ctrlrange="0 .2" joint="robot0:r_gripper_finger_joint" kp="30000"/>
  </actuator>
</mujoco>"""
_SLOT = '<geom name="slot{i}" type="cylinder" size=".07 .004" pos="{x} {y} {z}" rgba=".95 .95 1 1"/>'
_OBJECT = (
    '<body name="{name}" pos="{x} {y} {z}"><joint name="{name}" type="free" damping="0.001"/>'
    '<geom type="sphere" size=".025" mass=".1" condim="6" friction="1.5 .05 .02" rgba="{colour}"/></body>'
)
_DISTRACTOR = (
    '<body name="distractor{i}" pos="0 0 0" mocap="true">'
    '<geom type="box" size=".022 .022 .022" contype="0" conaffinity="0" rgba="{colour}"/></body>'
)


def build_model() -> mujoco.MjModel:
    """The compiled scene. UserError where the assets are not installed."""
    found = importlib.util.find_spec("gymnasium_robotics")
    if found is None or found.origin is None:
        raise UserError("robot_swap needs the Fetch arm of gymnasium-robotics: pip install 'diffusion-forcing[robot]'")
    assets = Path(found.origin).parent / "envs" / "assets"
    colours = dict(zip(OBJECTS, (".85 .08 .08 1", "1 .6 .05 1"), strict=True))
    model = mujoco.MjModel.from_xml_string(
        _MJCF.format(
            assets=assets,
            slots="".join(_SLOT.format(i=i, x=SLOT_X, y=y, z=TABLE + 0.004) for i, y in enumerate(SLOTS_Y)),
            objects="".join(
                _OBJECT.format(name=name, colour=colours[name], x=SLOT_X, y=SLOTS_Y[i], z=TABLE + 0.04)
                for i, name in enumerate(OBJECTS)
            ),
            distractors="".join(
                _DISTRACTOR.format(i=i, colour=colour) for i, colour in enumerate((".1 .7 .2 1", ".2 .3 .9 1"))
            ),
        )
    )
    # Weld the gripper to the middle of the mocap body, without an offset.
    for weld in np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_WELD):
        model.eq_data[weld, :3] = model.eq_data[weld, 3:6] = 0
        model.eq_data[weld, 6:10] = [1, 0, 0, 0]
    hand = model.body("robot0:mocap").id
    model.geom_rgba[model.geom_bodyid == hand, 3] = 0  # hide the cross that marks the mocap body
    return model


class SwapScene:
    """The simulation: reset to a layout, move the gripper, render."""

    SUBSTEPS = 50
    """Simulation steps of 2 ms per control step: 10 control steps per second."""

    def __init__(self) -> None:
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self._renderers: dict[int, mujoco.Renderer] = {}
        data, model = self.data, self.model
        # Place the robot's base, then let the arm settle at home.
        for name, value in _BASE.items():
            data.joint(name).qpos[0] = value
        mujoco.mj_forward(model, data)
        self._hand = int(model.body("robot0:mocap").mocapid[0])
        data.mocap_pos[:] = OFF_TABLE
        data.mocap_pos[self._hand] = HOME
        data.mocap_quat[self._hand] = _wxyz(DOWN)
        data.ctrl[:] = 0.05
        mujoco.mj_step(model, data, 1500)
        self.offset = self.grip - data.mocap_pos[self._hand]
        for _ in range(2):  # twice: `offset` is the gripper's distance from the mocap body
            data.mocap_pos[self._hand] = HOME - self.offset
            mujoco.mj_step(model, data, 1000)
        self._home = (data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderers": {}}  # a copy opens its own

    @property
    def grip(self) -> NDArray[np.float64]:
        """(3,) position between the fingertips."""
        return np.array(self.data.site("robot0:grip").xpos)

    @property
    def orientation(self) -> NDArray[np.float64]:
        """(4,) orientation of the gripper, a quaternion (x, y, z, w)."""
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, self.data.site("robot0:grip").xmat)
        return quaternion[[1, 2, 3, 0]]

    @property
    def opening(self) -> float:
        """Distance of a finger from the middle: 0 closed, 0.05 open."""
        return float(self.data.joint("robot0:r_gripper_finger_joint").qpos[0])

    def reset(self, slots: NDArray[np.int64], jitter: NDArray[np.float64], distractors: NDArray[np.float64]) -> None:
        """Put the arm at home and object i at slots[i] + jitter[i]: (2,), with distractors at (n ≤ 2, 2) on the
        table."""
        data, model = self.data, self.model
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = self._home
        data.ctrl[:] = 0.05
        for name, slot, (dx, dy) in zip(OBJECTS, slots, jitter, strict=True):
            data.joint(name).qpos[:] = [SLOT_X + dx, SLOTS_Y[slot] + dy, TABLE + 0.034, 1, 0, 0, 0]
        self.place_distractors(distractors)
        mujoco.mj_step(model, data, 100)

    def place_distractors(self, places: NDArray[np.float64]) -> None:
        """Distractors on the table at places (n ≤ 2, 2); the others out of sight."""
        for number in range(DISTRACTORS):
            position = (*places[number], TABLE + 0.022) if number < len(places) else OFF_TABLE
            self.data.mocap_pos[int(self.model.body(f"distractor{number}").mocapid[0])] = position

    def move_gripper(self, position: NDArray[np.float64], orientation: NDArray[np.float64], closed: bool) -> None:
        """Spend 0.1 s moving the gripper evenly to `position` (3,) and `orientation` (4,) (x, y, z, w)."""
        data, hand = self.data, self._hand
        start, end = data.mocap_pos[hand].copy(), position - self.offset
        data.mocap_quat[hand] = _wxyz(orientation)
        data.ctrl[:] = 0.0 if closed else 0.05
        parts = 5
        for part in range(1, parts + 1):
            data.mocap_pos[hand] = start + (end - start) * part / parts
            mujoco.mj_step(self.model, data, self.SUBSTEPS // parts)

    @property
    def target(self) -> NDArray[np.float64]:
        """(3,) position the gripper was last moved to."""
        return np.array(self.data.mocap_pos[self._hand] + self.offset)

    def position(self, name: str) -> NDArray[np.float64]:
        """(3,) position of an object."""
        return np.array(self.data.joint(name).qpos[:3])

    def slot_of(self, name: str) -> int:
        """The slot in which an object lies, or −1."""
        x, y, z = self.position(name)
        distance = np.hypot(x - SLOT_X, y - np.array(SLOTS_Y))
        return int(distance.argmin()) if distance.min() < 0.05 and z < TABLE + 0.06 else -1

    def render(self, camera: str, size: int) -> NDArray[np.uint8]:
        """(size, size, 3) image of a camera. UserError where rendering is not possible."""
        if size not in self._renderers:
            _use_egl_without_display()
            try:
                self._renderers[size] = mujoco.Renderer(self.model, size, size)
            except Exception as failure:
                raise UserError(
                    f"MuJoCo cannot render here ({failure}); install a software OpenGL (Debian: apt-get install "
                    "libegl1 libosmesa6) "
                    "and set MUJOCO_GL=egl or osmesa"
                ) from failure
        renderer = self._renderers[size]
        renderer.update_scene(self.data, camera)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return np.array(renderer.render(), np.uint8)

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def _use_egl_without_display() -> None:
    """Let MuJoCo render with EGL where there is no display; it chose at import, so its module is loaded again."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
        importlib.reload(gl_context)


def _wxyz(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    return quaternion[[3, 0, 1, 2]]


# ------------------------------------------------------------------------------------------------------ the environment
# robot_swap: a Fetch arm exchanges two fruits between three slots, watched by two cameras (Chen et al. 2024 §4.4,
# simulated).
#
# What the cameras show in the middle of the task does not determine what to do next: the third slot has to be used, so
# every intermediate layout is also the start of another episode, in which a different fruit must move. The arm returns
# home between moves, so it does not give the answer away either. The task can only be solved with memory.
#
# - observation: {"front", "over": (size, size, 3) uint8, "state": (8,) float32}.
# - action and state: [x, y, z, qx, qy, qz, qw, grasp]: position (m) and orientation (down: 0, √½, 0, √½) of the gripper,
#   and grasp, 0 open … 1 closed. An action takes 0.1 s and moves the gripper at most `REACH` towards its position.
# - reward: 1, and the episode ends, when each fruit lies in the other's slot and the open gripper is home; else 0.
#   `gymnasium.make` truncates after `MAX_ACTIONS`, a third more than the expert needs and too few for trial and error.

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


# ----------------------------------------------------------------------------------------------------------- the expert
# The scripted expert of robot_swap, and demonstrations by it; each follows from (seed, split, index) alone.
#
# The expert knows where everything is. It moves the apple to the empty slot, the orange to the apple's slot, and the
# apple to the orange's, and returns home after every move.

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
