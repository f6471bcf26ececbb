"""robot_swap: Gymnasium's rules, an expert that does it, what cannot be known without memory, covered cameras, things that do not belong."""

from __future__ import annotations

import warnings
from itertools import permutations
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("gymnasium_robotics")

from diffusion_forcing.environments.swap import (
    CAMERAS,
    DOWN,
    HOME,
    OBJECTS,
    REACH,
    SLOT_X,
    SLOTS_Y,
    SwapEnv,
    expert,
    moves,
)
from diffusion_forcing.errors import UserError

pytestmark = pytest.mark.slow

LAYOUTS = list(permutations(range(3), 2))


@pytest.fixture(scope="module")
def env() -> SwapEnv:
    return SwapEnv(size=32, render_mode="rgb_array")


def play(env: SwapEnv, **how: Any) -> tuple[bool, int]:
    """Whether the expert swaps the fruits of an episode just reset, and its actions."""
    count, done = 0, False
    for action in expert(env, **how):
        _, reward, done, _, _ = env.step(action)
        count += 1
        assert reward == float(done)
        if done:
            break
    return done, count


def test_gymnasium_finds_nothing_to_complain_about() -> None:
    made = gymnasium.make("robot_swap", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for said in ("different from the unwrapped version", "symmetric and normalized space"):  # metres are not
            warnings.filterwarnings("ignore", message=f"(?s).*{said}")
        check_env(made.unwrapped)
    assert made.spec is not None and made.spec.max_episode_steps == 135
    made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_expert_swaps_every_layout_in_time_with_a_shaking_hand_too(env: SwapEnv, layout: tuple[int, int]) -> None:
    for seed, noise in ((1, 0.0), (2, 0.008)):
        _, info = env.reset(seed=seed, options={"slots": layout})
        assert info["slots"].tolist() == list(layout)
        done, count = play(env, noise=noise)
        assert done
        assert 80 < count < 130
        assert [env.scene.slot_of(name) for name in OBJECTS] == list(layout[::-1])


def test_the_same_picture_asks_for_different_moves() -> None:
    """After the first move home, the layout is the start of another episode, in which another fruit must go."""
    env = SwapEnv(size=64)
    env.reset(seed=0, options={"slots": (0, 1)})
    observation: dict[str, Any] = {}
    for action in expert(env):
        observation, _, _, _, _ = env.step(action)
        at_home = np.linalg.norm(env.scene.grip - HOME) < 0.016
        if at_home and env.scene.slot_of("apple") == 2:
            break
    for _ in range(5):
        observation, _, _, _, _ = env.step(np.r_[HOME, DOWN, 0.0].astype(np.float32))
    layout = [env.scene.slot_of(name) for name in OBJECTS]
    jitter = [
        env.scene.position(name)[:2] - (SLOT_X, SLOTS_Y[slot]) for name, slot in zip(OBJECTS, layout, strict=True)
    ]
    other = SwapEnv(size=64)
    start, _ = other.reset(seed=5, options={"slots": layout, "jitter": jitter})
    for camera in CAMERAS:
        off = np.abs(start[camera].astype(int) - observation[camera].astype(int))
        assert off.mean() < 1.0  # of 255: nobody could tell
        moved, _ = other.reset(seed=5, options={"slots": layout[::-1], "jitter": jitter})
        assert np.abs(moved[camera].astype(int) - observation[camera].astype(int)).mean() > 2 * off.mean()
    np.testing.assert_allclose(start["state"], observation["state"], atol=0.02)
    assert moves(np.array([0, 1]))[1] == ("orange", 0)
    assert moves(np.array(layout))[0] == ("apple", 0)


def test_an_episode_follows_from_its_seed() -> None:
    def pictures() -> list[np.ndarray]:
        env = SwapEnv(size=16, distractors=2, blocking=0.2)
        seen = [env.reset(seed=7)[0]]
        for action, _ in zip(expert(env, noise=0.01), range(12), strict=False):
            seen.append(env.step(action)[0])
        return [one[camera] for one in seen for camera in CAMERAS]

    for first, second in zip(pictures(), pictures(), strict=True):
        assert np.array_equal(first, second)


def test_the_gripper_goes_where_it_is_told_but_no_faster_than_it_can_and_never_into_the_table(env: SwapEnv) -> None:
    env.reset(seed=0)
    before = env.scene.target
    env.step(np.array([1.4, 1.0, 0.5, *DOWN, 0], np.float32))
    assert np.linalg.norm(env.scene.target - before) == pytest.approx(REACH)
    for _ in range(15):
        observation, *_ = env.step(np.array([1.4, 1.0, -3.0, *(2 * DOWN), 1], np.float32))
    assert observation["state"][:2] == pytest.approx([1.4, 1.0], abs=0.02)
    assert observation["state"][2] > 0.4
    assert observation["state"][3:7] == pytest.approx(DOWN, abs=1e-3)
    assert observation["state"][7] > 0.9


def test_a_covered_camera_shows_nothing_for_a_while() -> None:
    env = SwapEnv(size=16, blocking=1.0)
    env.reset(seed=0)
    observation, _, _, _, info = env.step(np.r_[HOME, DOWN, 0.0].astype(np.float32))
    assert info["blocked"].tolist() == [True, True]
    assert all(observation[camera].std() == 0 for camera in CAMERAS)
    env = SwapEnv(size=16, blocking=0.05)
    env.reset(seed=0)
    covered = np.array([env.step(np.r_[HOME, DOWN, 0.0].astype(np.float32))[4]["blocked"] for _ in range(100)])
    assert 0 < covered[:, 0].mean() < 1
    assert (covered[:, 0] != covered[:, 1]).any()
    lengths = np.diff(np.flatnonzero(np.diff(np.r_[0, covered[:, 0], 0])))[::2]
    assert lengths.max() >= 9


def test_distractors_are_seen_and_do_not_hinder() -> None:
    plain, env = SwapEnv(size=32), SwapEnv(size=32, distractors=2)
    without, _ = plain.reset(seed=3)
    before, _ = env.reset(seed=3)
    assert all((np.abs(before[c].astype(int) - without[c]).max(axis=-1) > 40).sum() >= 2 for c in CAMERAS)
    assert play(env)[0]


def test_bad_words_are_one_line(env: SwapEnv) -> None:
    for how, said in (
        ({"size": 4}, "size is 4"),
        ({"distractors": 3}, "distractors is 3"),
        ({"blocking": 2}, "blocking is 2"),
        ({"render_mode": "human"}, "not available"),
    ):
        with pytest.raises(UserError, match=said):
            SwapEnv(**how)  # type: ignore[arg-type]
    for options, said in (
        ({"slots": (0, 0)}, "give two different ones"),
        ({"slots": (0, 3)}, "give two different ones"),
        ({"jitter": np.ones((2, 2))}, "at most 0.01"),
        ({"goal": 1}, "has no option 'goal'"),
    ):
        with pytest.raises(UserError, match=said):
            env.reset(options=options)
    env.reset(seed=0)
    with pytest.raises(UserError, match="8 finite numbers"):
        env.step(np.full(8, np.nan, np.float32))
