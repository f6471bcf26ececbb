"""The physics equals gymnasium-robotics' PointMaze, which equals D4RL's, through the map between their frames."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from diffusion_forcing.environments.mazes.layout import MAZES
from diffusion_forcing.environments.mazes.maze2d import Maze2dEnv, PointMass, WaypointController, build_model

POINT_MAZES = {"umaze": "PointMaze_UMaze-v3", "medium": "PointMaze_Medium-v3", "large": "PointMaze_Large-v3"}


class Reference:
    """PointMaze seen from D4RL's frame."""

    def __init__(self, name: str) -> None:
        robotics = pytest.importorskip("gymnasium_robotics")
        gymnasium.register_envs(robotics)
        height, width = MAZES[name].shape
        self.a, self.b = height / 2 - 0.7, width / 2 - 0.7
        self.env = gymnasium.make(
            POINT_MAZES[name], continuing_task=True, reset_target=False, max_episode_steps=10**9
        ).unwrapped
        self.env.reset(seed=0)

    def set(self, state: np.ndarray) -> None:
        q0, q1, v0, v1 = state
        self.env.point_env.set_state(np.array([q1 - self.b, self.a - q0]), np.array([v1, -v0]))

    def step(self, action: np.ndarray) -> np.ndarray:
        observation, *_ = self.env.step(np.array([action[1], -action[0]]))
        x, y, vx, vy = observation["observation"]
        return np.array([self.a - y, x + self.b, -vy, vx])


@pytest.mark.parametrize("name", list(POINT_MAZES))
@pytest.mark.slow
def test_every_step_of_random_pushes_equals_point_maze(name: str) -> None:
    reference, env = Reference(name), Maze2dEnv(name)
    state, _ = env.reset(seed=3)
    rng, push, touched, worst = np.random.default_rng(0), np.zeros(2), 0, 0.0
    for step in range(1000):
        if step % 10 == 0:
            push = rng.uniform(-1.5, 1.5, 2)
        reference.set(state)
        state, *_ = env.step(push)
        worst = max(worst, np.abs(reference.step(push) - state).max())
        touched += env._ball.data.ncon > 0
    assert touched > 100, "the pushes should reach walls, or nothing was tested"
    assert worst < 1e-11


@pytest.mark.parametrize("name", list(POINT_MAZES))
def test_a_long_walk_through_the_maze_equals_point_maze(name: str) -> None:
    """Corners scatter rounding errors like a billiard, so a whole rollout is only comparable where a controller steers."""
    reference, env = Reference(name), Maze2dEnv(name, goal="random")
    state, info = env.reset(seed=1)
    reference.set(state)
    controller = WaypointController(env.maze, rng=np.random.default_rng(0))
    worst = 0.0
    for _ in range(800):
        action = np.array(controller.act(*state.tolist(), tuple(info["goal"].tolist()))[:2])
        state, *_ = env.step(action)
        worst = max(worst, np.abs(reference.step(action) - state).max())
    assert worst < 1e-9


def test_speed_is_clipped_before_the_step_so_it_never_passes_5_23() -> None:
    ball = PointMass(build_model(MAZES["large"]))
    ball.reset(np.array([1.0, 0.8]), np.zeros(2))
    fastest = 0.0
    for _ in range(100):
        ball.step((0.0, 1.0))
        fastest = max(fastest, ball.velocity[1])
    assert 5.0 < fastest == pytest.approx(5.2263, abs=1e-3)


def test_a_push_into_a_wall_stops_at_the_free_band_of_the_cell() -> None:
    ball = PointMass(build_model(MAZES["umaze"]))
    for axis, cell in ((0, (1, 1)), (1, (1, 1))):
        for sign, edge in ((-1.0, -0.6), (1.0, 0.2)):
            if axis == 1 and sign > 0:
                continue  # the corridor goes on there
            ball.reset(np.array([0.8, 0.8]), np.zeros(2))
            for _ in range(200):
                ball.step((sign, 0.0) if axis == 0 else (0.0, sign))
            assert ball.position[axis] == pytest.approx(cell[axis] + edge, abs=0.03)
