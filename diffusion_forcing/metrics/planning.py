"""Planning scores of a batch of executed episodes, as D4RL counts them.

The one input is the sparse reward of the environment, `rewards: (n, T)`, n episodes of T steps each: `rewards[i, t]`
is what episode i was paid for its step t (1 while the agent is within 0.5 of the goal, else 0; mazes never terminate,
so every episode has all T steps). From it, for each episode:

    episode_reward          sum of the rewards: the return as executed; leaving the goal again costs
    first_reach             steps taken until the first reward, 1 + its index; T if there is none
    episode_reward_if_stay  T - first_reach + 1, the return had the agent stayed (docs/method.md §10); 0 if unreached
    success                 whether any step was rewarded
    normalized_score        D4RL's 100 (R - R_random) / (R_expert - R_random) of R = episode_reward (or of ..._if_stay)

An episode that never reaches its goal is counted with first_reach = T, the same as one that reaches it in its very
last step; the report says how many never did (`planning/unreached`). Scores of a maze for which D4RL gives no
reference are left out, not guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.errors import UserError, did_you_mean


class Reference(NamedTuple):
    """Returns of D4RL's random and expert policies (`d4rl.infos.REF_MIN_SCORE`, `REF_MAX_SCORE`): normalised scores 0
    and 100."""

    random: float
    expert: float


REFERENCE_SCORES: dict[str, Reference] = {
    "umaze": Reference(23.85, 161.86),
    "medium": Reference(13.13, 277.39),
    "large": Reference(6.7, 273.99),
}


class Summary(NamedTuple):
    """Mean over episodes and its standard error."""

    mean: float
    stderr: float


@dataclass(frozen=True, kw_only=True)
class EpisodeMetrics:
    """The scores of n episodes, each (n,); definitions in the module's docstring."""

    episode_reward: NDArray[np.float64]
    episode_reward_if_stay: NDArray[np.float64]
    first_reach: NDArray[np.int64]
    success: NDArray[np.bool_]


def episode_metrics(rewards: ArrayLike, *, reached: ArrayLike | None = None) -> EpisodeMetrics:
    """Scores of each episode from `rewards: (n, T)`.

    `reached: (n, T)` bool, whether the agent is at the goal at each step, is `rewards > 0` unless given (for rewards
    that are not sparse). Raises ValueError for arrays of another shape, no episode, no step, or a reward that is not
    finite.
    """
    rewards = _episodes_by_steps(rewards, "rewards").astype(np.float64)
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite")
    at_goal = rewards > 0 if reached is None else _episodes_by_steps(reached, "reached").astype(bool)
    if at_goal.shape != rewards.shape:
        raise ValueError(f"reached has shape {at_goal.shape}, rewards {rewards.shape}; both must be (n, T)")
    steps = rewards.shape[1]
    success: NDArray[np.bool_] = np.any(at_goal, axis=1)
    first_reach = np.where(success, at_goal.argmax(axis=1) + 1, steps)
    return EpisodeMetrics(
        episode_reward=rewards.sum(axis=1),
        episode_reward_if_stay=np.where(success, steps - first_reach + 1, 0).astype(np.float64),
        first_reach=first_reach.astype(np.int64),
        success=success,
    )


def normalized_score(returns: ArrayLike, maze: str) -> NDArray[np.float64]:
    """D4RL's score of `returns` (any shape): 0 is the random policy's return, 100 the expert's.

    `maze`: "umaze", "medium" or "large"; another one raises UserError, it has no reference.
    """
    if maze not in REFERENCE_SCORES:
        known = ", ".join(REFERENCE_SCORES)
        near = did_you_mean(maze, REFERENCE_SCORES)
        raise UserError(f"maze '{maze}' has no D4RL reference score{near}; known: {known}; use the raw return")
    random, expert = REFERENCE_SCORES[maze]
    return 100.0 * (np.asarray(returns, dtype=np.float64) - random) / (expert - random)


def summarise(values: ArrayLike) -> Summary:
    """Mean of `values: (n,)` and its standard error s / sqrt(n), s the sample standard deviation (ddof = 1).

    One value says nothing about its own spread: its stderr is 0.0, not NaN, so that every report stays valid JSON;
    read it beside n. Raises ValueError when there is no value.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        raise ValueError("cannot summarise no values")
    stderr = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else 0.0
    return Summary(float(array.mean()), stderr)


def planning_report(
    rewards: ArrayLike,
    *,
    maze: str | None = None,
    seconds_per_plan: ArrayLike | None = None,
    oracle_score: float | None = None,
    reached: ArrayLike | None = None,
    prefix: str = "planning",
) -> dict[str, float]:
    """What `metrics.json` says of n executed episodes, `rewards: (n, T)`; every mean has its `_stderr` beside it.

    Keys, each behind `prefix/`: success_rate (a fraction in [0, 1]), episode_reward, episode_reward_if_stay,
    first_reach (steps), episodes and unreached (counts, no stderr), and
    - normalized_score, normalized_score_if_stay when `maze` is one of `REFERENCE_SCORES` (None or a custom maze: left
    out);
    - seconds_per_plan when the measured seconds are given, one per timed plan;
    - oracle_ratio when `oracle_score` is given too: mean normalized_score (as executed) over the oracle's, which is
    taken as exact.
      Only for a positive oracle score, a ratio to one at or below the random policy means nothing.
    """
    episodes = episode_metrics(rewards, reached=reached)
    columns: dict[str, Any] = {
        "success_rate": episodes.success,
        "episode_reward": episodes.episode_reward,
        "episode_reward_if_stay": episodes.episode_reward_if_stay,
        "first_reach": episodes.first_reach,
    }
    if maze in REFERENCE_SCORES:
        columns["normalized_score"] = normalized_score(episodes.episode_reward, maze)
        columns["normalized_score_if_stay"] = normalized_score(episodes.episode_reward_if_stay, maze)
        if oracle_score is not None and oracle_score > 0:
            columns["oracle_ratio"] = columns["normalized_score"] / oracle_score
    if seconds_per_plan is not None:
        columns["seconds_per_plan"] = seconds_per_plan

    report: dict[str, float] = {}
    for name, values in columns.items():
        report[f"{prefix}/{name}"], report[f"{prefix}/{name}_stderr"] = summarise(values)
    report[f"{prefix}/episodes"] = int(episodes.success.size)
    report[f"{prefix}/unreached"] = int((~episodes.success).sum())
    return report


def _episodes_by_steps(values: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be (n episodes, T steps), both at least 1, got shape {array.shape}")
    return array
