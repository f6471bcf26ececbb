"""Planning scores against tables worked out by hand, and laws that hold for every episode."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.planning import (
    REFERENCE_SCORES,
    episode_metrics,
    mean_and_stderr,
    normalized_score,
    planning_report,
)

REWARDS = np.array(
    [
        [0, 0, 1, 1, 0, 1],  # reached at step 3, leaves once
        [1, 0, 0, 0, 0, 0],  # there at once, then gone for good
        [0, 0, 0, 0, 0, 1],  # in the very last step
        [0, 0, 0, 0, 0, 0],  # never
    ]
)
sparse = arrays(np.int8, st.tuples(st.integers(1, 8), st.integers(1, 30)), elements=st.integers(0, 1))


def test_episode_metrics_equal_the_table_worked_out_by_hand() -> None:
    found = episode_metrics(REWARDS)
    assert found.episode_reward.tolist() == [3, 1, 1, 0]
    assert found.episode_reward_if_stay.tolist() == [4, 6, 1, 0]
    assert found.first_reach.tolist() == [3, 1, 6, 6]
    assert found.success.tolist() == [True, True, True, False]


def test_report_equals_the_table_worked_out_by_hand() -> None:
    report = planning_report(REWARDS, maze="umaze", seconds_per_plan=[0.1, 0.3], oracle_score=50.0)
    assert report["planning/success_rate"] == 0.75
    assert report["planning/success_rate_stderr"] == pytest.approx(0.25)  # s = 1/2 of [1, 1, 1, 0], over sqrt(4)
    assert report["planning/episode_reward"] == 1.25
    assert report["planning/episode_reward_if_stay"] == 2.75
    assert report["planning/first_reach"] == 4.0
    assert report["planning/first_reach_stderr"] == pytest.approx(math.sqrt(6) / 2)  # deviations -1, -3, 2, 2
    assert report["planning/normalized_score"] == pytest.approx(100 * (1.25 - 23.85) / 138.01)
    assert report["planning/normalized_score_if_stay"] == pytest.approx(100 * (2.75 - 23.85) / 138.01)
    assert report["planning/oracle_ratio"] == pytest.approx(2 * (1.25 - 23.85) / 138.01)
    assert report["planning/seconds_per_plan"] == pytest.approx(0.2)
    assert report["planning/seconds_per_plan_stderr"] == pytest.approx(0.1)
    assert (report["planning/episodes"], report["planning/unreached"]) == (4, 1)


def test_every_mean_of_a_report_has_its_stderr_and_counts_have_none() -> None:
    report = planning_report(REWARDS, maze="large", seconds_per_plan=[1.0], oracle_score=210.3)
    means = {key for key in report if not key.endswith("_stderr")} - {"planning/episodes", "planning/unreached"}
    assert {key for key in report if key.endswith("_stderr")} == {f"{key}_stderr" for key in means}


@pytest.mark.parametrize("maze", [None, "my_own_maze"])
def test_a_maze_without_reference_has_no_normalised_score(maze: str | None) -> None:
    report = planning_report(REWARDS, maze=maze, oracle_score=100.0)
    assert not [key for key in report if "normalized" in key or "oracle" in key]
    assert report["planning/episode_reward"] == 1.25


def test_a_ratio_to_a_useless_oracle_is_left_out() -> None:
    assert "planning/oracle_ratio" not in planning_report(REWARDS, maze="umaze", oracle_score=-3.0)


@pytest.mark.parametrize("maze", REFERENCE_SCORES)
def test_the_random_policy_scores_0_and_the_expert_100(maze: str) -> None:
    assert normalized_score(REFERENCE_SCORES[maze], maze) == pytest.approx([0, 100])


def test_the_published_returns_of_d4rl_are_the_references() -> None:
    published = {"umaze": (23.85, 161.86), "medium": (13.13, 277.39), "large": (6.7, 273.99)}
    assert published == REFERENCE_SCORES


def test_an_unknown_maze_is_a_user_error_that_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'mediun'.*did you mean 'medium'"):
        normalized_score(1.0, "mediun")


@given(sparse)
def test_staying_is_never_worse_than_what_was_executed(rewards: np.ndarray) -> None:
    found = episode_metrics(rewards)
    assert (found.episode_reward_if_stay >= found.episode_reward).all()
    assert ((found.episode_reward > 0) == found.success).all()
    assert ((found.first_reach >= 1) & (found.first_reach <= rewards.shape[1])).all()


@given(sparse)
def test_rewards_of_an_agent_that_stays_are_their_own_if_stay(rewards: np.ndarray) -> None:
    staying = np.maximum.accumulate(rewards, axis=1)
    assert (episode_metrics(staying).episode_reward == episode_metrics(rewards).episode_reward_if_stay).all()


@given(sparse)
def test_metrics_leave_their_input_as_it_was(rewards: np.ndarray) -> None:
    before = rewards.copy()
    planning_report(rewards, maze="medium", oracle_score=100.0)
    assert (rewards == before).all()


def test_the_standard_error_uses_the_sample_deviation_and_one_value_has_no_spread() -> None:
    assert mean_and_stderr([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert mean_and_stderr([5.0]) == (5.0, 0.0)


@pytest.mark.parametrize("rewards", [np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), [[float("nan")]]])
def test_rewards_that_are_not_episodes_by_steps_are_refused(rewards: object) -> None:
    with pytest.raises(ValueError, match="rewards"):
        episode_metrics(rewards)  # type: ignore[arg-type]
