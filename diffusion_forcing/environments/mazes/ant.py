"""OGBench's AntMaze: an ant of four legs and eight motors walks through the corridors of PointMaze.

Mazes, tasks and protocols are PointMaze's (`point.py`); the goal is reached within 0.5 m. The model of the ant is
OGBench's (`pip install 'diffusion-forcing[ogbench]'`), at 10 Hz; a test compares every step with OGBench's environment.

A plan is a path of the torso, so an ant is steered like a point: an action (ax, ay) in [-1, 1] is the way to the next
subgoal. The *executor*, a small network, turns the state and the direction of that way into the torques of the eight
motors. It works in the ant's own frame (`features`).

- observation: 29 numbers, MuJoCo's qpos and qvel: x, y, height, quaternion, 8 joints, and their velocities.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.point import SUBSTEPS, UNIT, Protocol, VectorPointMaze
from diffusion_forcing.errors import UserError, require

Array = NDArray[np.floating]

STATE_SIZE = 29
ACTION_SIZE = 8
FEATURE_SIZE = 28
GOAL_DISTANCE = 0.5
"""m: the goal is reached within this distance."""
_ANKLES = np.array([1.0, -1.0, -1.0, 1.0])
"""By leg: the sign of the ankle's angle that folds the leg."""
_MOTORS = np.array([1, 2, 3, 0])
"""By leg: its motors are 2 m (hip) and 2 m + 1 (ankle)."""
_NEEDS = "AntMaze needs pip install 'diffusion-forcing[ogbench]'"

# ------------------------------------------------------------------------------------------------- the ant's own frame


def features(state: Array, way: Array) -> tuple[Array, NDArray[np.int64]]:
    """What a gait depends on, in the frame of the ant, whose front is the axis of its body nearest to the way.

    The ant has four equal legs: walking to its left is walking ahead after a quarter turn of the frame. With the legs
    counted from the front, one gait serves every direction.

    Args:
        state: (n, 29) qpos and qvel.
        way: (n, 2) to the subgoal, in world coordinates; only its direction matters.

    Returns:
        (n, 28) height; up, velocity and angular velocity (3 each); hips, ankles and their velocities (4 each); the unit
        vector of the way. And (n,) the quarter turns of the frame, for `to_motors`.
    """
    w, x, y, z = state[:, 3:7].T / np.linalg.norm(state[:, 3:7], axis=1)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    heading = np.arctan2(way[:, 1], way[:, 0]) - 2 * np.arctan2(z, w)
    turns = np.round(heading / (np.pi / 2)).astype(np.int64)
    heading = heading - turns * np.pi / 2
    velocity = np.einsum("ijn,ni->nj", rotation, state[:, 15:18])
    vectors = [_turned(vector, turns) for vector in (rotation[2].T, velocity, 0.3 * state[:, 18:21])]
    legs = (np.arange(4) + turns[:, None]) % 4
    hips, ankles = state[:, 7:15:2], state[:, 8:15:2] * _ANKLES
    speeds = 0.1 * state[:, 21:29:2], 0.1 * state[:, 22:29:2] * _ANKLES
    joints = [np.take_along_axis(joint, legs, axis=1) for joint in (hips, ankles, *speeds)]
    direction = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.concatenate([state[:, 2:3], *vectors, *joints, direction], axis=1), turns % 4


def _turned(vector: Array, turns: NDArray[np.int64]) -> Array:
    """(n, 3) vectors of the body in a frame that is `turns` quarter turns about its vertical ahead of it."""
    cosine, sine = np.array([1, 0, -1, 0])[turns % 4], np.array([0, 1, 0, -1])[turns % 4]
    x, y = vector[:, 0], vector[:, 1]
    return np.stack([x * cosine + y * sine, y * cosine - x * sine, vector[:, 2]], axis=1)


def to_motors(torques: Array, turns: NDArray[np.int64]) -> Array:
    """(n, 8) torques of the motors from those of the legs counted from the front, hips first."""
    legs = (np.arange(4) - turns[:, None]) % 4
    motors = np.empty_like(torques)
    motors[:, 2 * _MOTORS] = np.take_along_axis(torques[:, :4], legs, axis=1)
    motors[:, 2 * _MOTORS + 1] = np.take_along_axis(torques[:, 4:], legs, axis=1) * _ANKLES
    return motors


def from_motors(motors: Array, turns: NDArray[np.int64]) -> Array:
    """The inverse of `to_motors`."""
    legs = (np.arange(4) + turns[:, None]) % 4
    hips, ankles = motors[:, 2 * _MOTORS], motors[:, 2 * _MOTORS + 1] * _ANKLES
    return np.concatenate([np.take_along_axis(joint, legs, axis=1) for joint in (hips, ankles)], axis=1)


class Executor:
    """π(torques | state, way to the subgoal): a network of three layers over `features`.

    weights: `0.weight`, `0.bias`, `2.weight`, … of the layers, as of a `torch.nn.Sequential` with ReLU between them.
    """

    def __init__(self, weights: Mapping[str, Any]) -> None:
        tensors = {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}
        names = [f"{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")]
        fits = set(tensors) == set(names) and tensors["0.weight"].shape[1:] == (FEATURE_SIZE,)
        require(
            fits and len(tensors["4.bias"]) == ACTION_SIZE,
            f"these are not the weights of an ant's executor, which has {FEATURE_SIZE} inputs and {ACTION_SIZE} outputs; "
            "train one with tools/train_ant.py",
        )
        self._layers = [(tensors[names[i]].T, tensors[names[i + 1]]) for i in (0, 2, 4)]

    def __call__(self, state: Array, way: Array) -> Array:
        """Actions (n, 8) in [-1, 1] of ants in states (n, 29) on their ways (n, 2)."""
        x, turns = features(state, way)
        x = x.astype(np.float32)
        for index, (weight, bias) in enumerate(self._layers):
            x = x @ weight + bias
            x = np.tanh(x) if index == 2 else np.maximum(x, 0)
        return to_motors(x.astype(np.float64), turns)


# ---------------------------------------------------------------------------------------------------------- the physics


def ant_file() -> Path:
    """OGBench's model of the ant; `UserError` without OGBench."""
    spec = find_spec("ogbench")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(_NEEDS)
    return Path(next(iter(spec.submodule_search_locations))) / "locomaze" / "assets" / "ant.xml"


def build_ant_model(maze: Maze) -> mujoco.MjModel:
    """MuJoCo model of an ant in `maze`, its walls in OGBench's order."""
    tree = ET.parse(ant_file())
    world = tree.find(".//worldbody")
    assert world is not None
    for x, y in maze.centre(np.argwhere(maze.walls.T)[:, ::-1]):
        place, size = f"{x} {y} {UNIT / 4}", f"{UNIT / 2} {UNIT / 2} {UNIT / 4}"
        ET.SubElement(world, "geom", pos=place, size=size, type="box", contype="1", conaffinity="1")
    return mujoco.MjModel.from_xml_string(ET.tostring(tree.getroot(), encoding="unicode"))


class Ant:
    """One ant in a model of `build_ant_model`."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model, self.data = model, mujoco.MjData(model)

    @property
    def state(self) -> NDArray[np.float64]:
        """(29,) qpos and qvel."""
        return np.concatenate([self.data.qpos, self.data.qvel])

    def reset(self, position: Array, rng: np.random.Generator) -> None:
        """Put the ant at `position` (2,) m, in OGBench's pose (the model's own, legs spread) with OGBench's noise."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] += rng.uniform(-0.1, 0.1, self.model.nq)
        self.data.qvel[:] = 0.1 * rng.standard_normal(self.model.nv)
        self.data.qpos[:2] = position
        mujoco.mj_forward(self.model, self.data)

    def step(self, torques: Array) -> None:
        """One step of 0.1 s with `torques` (8,) in [-1, 1]."""
        self.data.ctrl[:] = torques
        mujoco.mj_step(self.model, self.data, SUBSTEPS)


class VectorAntMaze(VectorPointMaze):
    """`num_envs` ants in `maze`, played by `protocol` and moved by `executor`; see the module. Ants at their goal rest."""

    body, goal_distance = "ant", GOAL_DISTANCE

    def __init__(
        self,
        maze: Maze,
        num_envs: int,
        *,
        executor: Executor,
        goal: Goal = "dataset",
        protocol: Protocol = "ogbench",
        max_steps: int | None = None,
    ) -> None:
        self.executor = executor
        super().__init__(maze, num_envs, goal=goal, protocol=protocol, max_steps=max_steps)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape=(STATE_SIZE,), dtype=np.float64)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)

    def _build(self, count: int) -> list[Any]:
        model = build_ant_model(self.maze)
        return [Ant(model) for _ in range(count)]

    def _put(self, index: int, position: Array, rng: np.random.Generator) -> None:
        self._bodies[index].reset(position, rng)

    def _move(self, actions: list[list[float]]) -> None:
        states = self._observations()
        torques = self.executor(states, np.array(actions))
        walking = np.linalg.norm(states[:, :2] - self.goals, axis=1) > GOAL_DISTANCE
        for index in np.flatnonzero(walking):
            self._bodies[index].step(torques[index])

    def _observations(self) -> NDArray[np.float64]:
        return np.stack([ant.state for ant in self._bodies])
