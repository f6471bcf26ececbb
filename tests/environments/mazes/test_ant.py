"""The ant: its own frame, OGBench's physics, and episodes in AntMaze."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_forcing.checkpoints import load, resolve
from diffusion_forcing.environments.mazes import ant as module
from diffusion_forcing.environments.mazes.ant import (
    Ant,
    Executor,
    VectorAntMaze,
    build_ant_model,
    features,
    from_motors,
    to_motors,
)
from diffusion_forcing.environments.mazes.point import POINT_MAZES, TASKS
from diffusion_forcing.errors import UserError

MEDIUM = POINT_MAZES["medium"]
RNG = np.random.default_rng(0)


def executor(name: str = "ogbench_ant_executor") -> Executor:
    return Executor({key: value.numpy() for key, value in load(resolve(name)).weights.items()})


def states(count: int) -> np.ndarray:
    """Any states of ants, their quaternions of length 1."""
    state = RNG.standard_normal((count, 29))
    state[:, 3:7] /= np.linalg.norm(state[:, 3:7], axis=1, keepdims=True)
    return state


def times(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The product of quaternions (n, 4) and (4,) or (n, 4)."""
    (a, b, c, d), (w, x, y, z) = one.T, other.T
    product = (
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    )
    return np.stack(np.broadcast_arrays(*product), axis=1)


def turned(vectors: np.ndarray, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return vectors @ np.array([[cosine, sine], [-sine, cosine]])


def about_z(angle: float) -> np.ndarray:
    return np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


def test_the_frame_turns_with_the_world() -> None:
    state, way = states(50), RNG.standard_normal((50, 2))
    for angle in (0.3, 2.0, -2.5):
        other = state.copy()
        other[:, :2], other[:, 15:17] = turned(state[:, :2], angle), turned(state[:, 15:17], angle)
        other[:, 3:7] = times(np.tile(about_z(angle), (50, 1)), state[:, 3:7])
        (x, turns), (y, other_turns) = features(state, way), features(other, turned(way, angle))
        np.testing.assert_allclose(x, y, atol=1e-12)
        assert np.array_equal(turns, other_turns)


def test_a_quarter_turn_of_the_body_renames_the_legs_and_nothing_else() -> None:
    state, way = states(50), RNG.standard_normal((50, 2))
    other, folds = state.copy(), np.array([1, -1, -1, 1])
    other[:, 3:7] = times(state[:, 3:7], about_z(-np.pi / 2))
    other[:, 18:20] = turned(state[:, 18:20], np.pi / 2)
    for first in (7, 21):
        other[:, first : first + 8 : 2] = np.roll(state[:, first : first + 8 : 2], 1, axis=1)
        ankles = state[:, first + 1 : first + 9 : 2] * folds
        other[:, first + 1 : first + 9 : 2] = np.roll(ankles, 1, axis=1) * folds
    (x, turns), (y, other_turns) = features(state, way), features(other, way)
    np.testing.assert_allclose(x, y, atol=1e-12)
    assert np.array_equal((other_turns - turns) % 4, np.ones(50))
    # the same torques of the legs go to the motors of the renamed legs
    torques = RNG.standard_normal((50, 8))
    motors, other_motors = to_motors(torques, turns), to_motors(torques, other_turns)
    np.testing.assert_allclose(np.roll(motors[:, ::2], 1, axis=1), other_motors[:, ::2])
    np.testing.assert_allclose(from_motors(motors, turns), torques)


def test_the_physics_is_the_same_for_each_quarter_turn() -> None:
    """An ant and its copy, turned and with the legs renamed, walk the same way with the same torques of the legs."""
    pytest.importorskip("ogbench")
    ants = [Ant(build_ant_model(MEDIUM)) for _ in range(2)]
    ways = np.array([[1.0, 0.2], [-0.2, 1.0]])
    for one, yaw in zip(ants, (0.0, np.pi / 2), strict=True):
        one.reset(np.array([0.0, 4.0]), np.random.default_rng(0))
        one.data.qpos[3:7], one.data.qvel[:] = about_z(yaw), 0
    for _ in range(3):
        torques = RNG.uniform(-1, 1, (1, 8)).repeat(2, axis=0)
        x, turns = features(np.stack([one.state for one in ants]), ways)
        np.testing.assert_allclose(x[0], x[1], atol=1e-6)
        for one, motors in zip(ants, to_motors(torques, turns), strict=True):
            one.step(motors)


def test_every_step_is_ogbenchs() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("ogbench.locomaze")
    theirs: Any = gymnasium.make("antmaze-medium-v0", disable_env_checker=True).unwrapped
    ours = Ant(build_ant_model(MEDIUM))
    ours.reset(np.array([1.0, 3.0]), RNG)
    theirs.reset(seed=0, options={"task_id": 1})
    assert np.abs(ours.data.qpos - theirs.init_qpos)[2:].max() <= 0.1  # its noise
    theirs.set_state(ours.data.qpos, ours.data.qvel)
    for torques in RNG.uniform(-1, 1, (30, 8)):
        ours.step(torques)
        np.testing.assert_allclose(theirs.step(torques)[0], ours.state, atol=1e-6)


def test_the_executor_walks_every_way() -> None:
    pytest.importorskip("ogbench")
    act = executor()
    starts, ways = np.array([[0.0, 4.0]] * 8), np.array([[np.cos(a), np.sin(a)] for a in np.arange(8) * np.pi / 4])
    env = VectorAntMaze(MEDIUM, 8, executor=act)
    observations, _ = env.reset(seed=0, options={"starts": starts})
    for _ in range(20):
        observations, *_ = env.step(ways)
    walked = ((observations[:, :2] - starts) * ways).sum(axis=1)
    assert walked.min() > 0.4  # metres in two seconds, from standing; walls are 2 m away
    assert observations.shape == (8, 29)


def test_the_goal_is_half_a_metre_wide_and_ants_rest_there() -> None:
    pytest.importorskip("ogbench")
    env = VectorAntMaze(MEDIUM, 2, executor=executor())
    starts = np.array([[0.0, 4.0]] * 2)
    observations, _ = env.reset(
        seed=0, options={"starts": starts, "goals": starts + np.array([[0.4, 0.2], [0.5, 0.2]])}
    )
    after, rewards, *_ = env.step(np.zeros((2, 2)))
    assert np.array_equal(after[0], observations[0]) and not np.array_equal(after[1], observations[1])
    assert rewards.tolist() == [1, float(np.linalg.norm(after[1, :2] - env.goals[1]) <= 0.5)]
    starts, info = env.reset(seed=0)
    cells = [MEDIUM.cell_at(point) for point in (starts[0, :2], info["goal"][0])]
    assert tuple(cells) == TASKS["medium"][0]


def test_other_weights_and_a_missing_ogbench_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {f"{layer}.{kind}": np.zeros((4, 4)) for layer in (0, 2, 4) for kind in ("weight", "bias")}
    for wrong in (weights, {}, {"0.weight": np.zeros(3)}):
        with pytest.raises(UserError, match="not the weights of an ant's executor, which has 28 inputs and 8 outputs"):
            Executor(wrong)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"AntMaze needs pip install 'diffusion-forcing\[ogbench\]'$"):
        VectorAntMaze(MEDIUM, 1, executor=executor())
