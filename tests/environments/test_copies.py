"""A copied or pickled environment is a second one: both go on alike from where they are, and neither moves the other."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import diffusion_forcing.environments  # noqa: F401  (registers them)
from diffusion_forcing.environments.mazes.maze2d import VectorMaze2d
from diffusion_forcing.environments.mazes.point import POINT_MAZES, VectorPointMaze

GYMNASIUM = tuple(int(part) for part in gymnasium.__version__.split(".")[:2])

Make = Callable[[], Any]


def deepcopied(env: Any) -> Any:
    return copy.deepcopy(env)


def pickled(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))


def vectorised(name: str, **kwargs: Any) -> Make:
    return lambda: gymnasium.make_vec(name, num_envs=2, **kwargs)


def robot(**kwargs: Any) -> Any:
    pytest.importorskip("gymnasium_robotics")
    return gymnasium.make("robot_swap", size=16, distractors=1, blocking=0.2, **kwargs)


def robots() -> Any:
    pytest.importorskip("gymnasium_robotics")
    return gymnasium.make_vec("robot_swap", num_envs=2, size=16)


@pytest.mark.parametrize(
    ("make", "copied"),
    [
        (lambda: gymnasium.make("maze2d-umaze-v1", render_mode="rgb_array"), deepcopied),
        (lambda: gymnasium.make("maze2d-umaze-v1"), pickled),
        (lambda: gymnasium.make("maze2d-custom-v1", maze=r"#####\#OOG#\#####", goal="random"), deepcopied),
        (lambda: VectorMaze2d("medium", num_envs=3), deepcopied),
        (lambda: VectorMaze2d("medium", num_envs=3), pickled),
        (lambda: VectorPointMaze(POINT_MAZES["medium"], 3), deepcopied),
        (lambda: VectorPointMaze(POINT_MAZES["medium"], 3), pickled),
        pytest.param(
            vectorised("maze2d-umaze-v1"),  # Gymnasium's own cannot be pickled
            deepcopied,
            marks=pytest.mark.skipif(
                GYMNASIUM < (1, 4), reason="before Gymnasium 1.4 its vector environments hold generators"
            ),
        ),
        pytest.param(robot, deepcopied, marks=pytest.mark.slow),
        pytest.param(lambda: robot(render_mode="rgb_array"), pickled, marks=pytest.mark.slow),
        pytest.param(robots, deepcopied, marks=pytest.mark.slow),
    ],
)
def test_a_copy_goes_on_as_the_original_would(make: Make, copied: Callable[[Any], Any]) -> None:
    env, reference = make(), make()
    drawn = np.random.default_rng(0)
    actions = drawn.uniform(-1, 1, (14, *env.action_space.shape)).astype(np.float32)
    for one in (env, reference):
        one.reset(seed=3)
        for action in actions[:5]:
            one.step(action)
    twin = copied(env)
    expected = played(reference, actions[5:])
    assert same(played(twin, actions[5:]), expected)
    assert same(played(env, actions[5:]), expected)  # it did not move with its copy
    assert same(twin.reset(seed=5), env.reset(seed=5))
    assert same(played(twin, actions), played(env, actions))
    if getattr(env, "render_mode", None) == "rgb_array":
        assert np.array_equal(twin.render(), env.render())
    for one in (env, reference, twin):
        one.close()


def played(env: Any, actions: Any) -> list[Any]:
    return [copy.deepcopy(env.step(action)) for action in actions]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))
