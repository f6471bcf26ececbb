"""Planning scores of a batch of executed episodes, as D4RL computes them.

The input is the environment's sparse reward `rewards: (n, T)`: `rewards[i, t]` is 1 if the agent of episode i is within
0.5 of the goal after step t, else 0. Mazes never terminate, so every episode has all T steps. Per episode:

    episode_reward          sum of the rewards: the return as executed; leaving the goal again costs
    first_reach             steps until the first reward, 1 + its index; T if there is none
    episode_reward_if_stay  T - first_reach + 1, the return had the agent stayed (docs/method.md §10); 0 if unreached
    success                 whether any step was rewarded
    normalized_score        D4RL's 100 (R - R_random) / (R_expert - R_random) of R = episode_reward (or of ..._if_stay)

An episode that never reaches its goal has first_reach = T, like one that reaches it in its very last step;
`planning/unreached` counts the former. A maze without a D4RL reference has no normalised score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.errors import check_choice


class Reference(NamedTuple):
    """Returns of D4RL's random and expert policies (`REF_MIN_SCORE`, `REF_MAX_SCORE`): normalised scores 0 and 100."""

    random: float
    expert: float


REFERENCE_SCORES: dict[str, Reference] = {
    "umaze": Reference(23.85, 161.86),
    "medium": Reference(13.13, 277.39),
    "large": Reference(6.7, 273.99),
}


@dataclass(frozen=True, kw_only=True)
class EpisodeMetrics:
    """The scores of n episodes, each (n,); definitions in the module's docstring."""

    episode_reward: NDArray[np.float64]
    episode_reward_if_stay: NDArray[np.float64]
    first_reach: NDArray[np.int64]
    success: NDArray[np.bool_]


def episode_metrics(rewards: ArrayLike) -> EpisodeMetrics:
    """Scores of each episode from `rewards: (n, T)`; ValueError for another shape, no episode or step, or NaN."""
    array = np.asarray(rewards, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"rewards must be (n episodes, T steps), both at least 1, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("rewards must be finite")
    steps = array.shape[1]
    success: NDArray[np.bool_] = np.any(array > 0, axis=1)
    first_reach = np.where(success, (array > 0).argmax(axis=1) + 1, steps)
    return EpisodeMetrics(
        episode_reward=array.sum(axis=1),
        episode_reward_if_stay=np.where(success, steps - first_reach + 1, 0).astype(np.float64),
        first_reach=first_reach.astype(np.int64),
        success=success,
    )


def normalized_score(returns: ArrayLike, maze: str) -> NDArray[np.float64]:
    """D4RL's score of `returns` (any shape): 0 is the random policy's return, 100 the expert's.

    `maze`: "umaze", "medium" or "large"; UserError for another one, which has no reference.
    """
    check_choice("the maze of a D4RL reference score", maze, REFERENCE_SCORES)
    random, expert = REFERENCE_SCORES[maze]
    return 100.0 * (np.asarray(returns, dtype=np.float64) - random) / (expert - random)


def planning_report(
    rewards: ArrayLike,
    *,
    maze: str | None = None,
    seconds_per_plan: ArrayLike | None = None,
    oracle_score: float | None = None,
    tasks: ArrayLike | None = None,
) -> dict[str, float]:
    """Numbers for `metrics.json` of n executed episodes, `rewards: (n, T)`; every mean has its `_stderr` beside it.

    Keys, each after `planning/`: success_rate (a fraction in [0, 1]), episode_reward, episode_reward_if_stay,
    first_reach (steps), the counts episodes and unreached (without stderr), and
    - normalized_score, normalized_score_if_stay if `maze` is one of `REFERENCE_SCORES`;
    - seconds_per_plan if the measured seconds are given, one for each timed plan;
    - oracle_ratio if a positive `oracle_score` is given too: mean normalized_score over the oracle's, taken as exact.
      A ratio to an oracle at or below the random policy means nothing;
    - success_rate_task1, … if `tasks: (n,)`, the number of each episode's task, is given.
    """
    episodes = episode_metrics(rewards)
    columns: dict[str, ArrayLike] = {
        "success_rate": episodes.success,
        "episode_reward": episodes.episode_reward,
        "episode_reward_if_stay": episodes.episode_reward_if_stay,
        "first_reach": episodes.first_reach,
    }
    if maze in REFERENCE_SCORES:
        score = normalized_score(episodes.episode_reward, maze)
        columns["normalized_score"] = score
        columns["normalized_score_if_stay"] = normalized_score(episodes.episode_reward_if_stay, maze)
        if oracle_score is not None and oracle_score > 0:
            columns["oracle_ratio"] = score / oracle_score
    if seconds_per_plan is not None:
        columns["seconds_per_plan"] = seconds_per_plan
    report: dict[str, float] = {}
    for name, values in columns.items():
        report[f"planning/{name}"], report[f"planning/{name}_stderr"] = mean_and_stderr(values)
    for task in np.unique([] if tasks is None else np.asarray(tasks)):
        name = f"planning/success_rate_task{task}"
        report[name], report[f"{name}_stderr"] = mean_and_stderr(episodes.success[np.asarray(tasks) == task])
    report["planning/episodes"] = int(episodes.success.size)
    report["planning/unreached"] = int((~episodes.success).sum())
    return report


def mean_and_stderr(values: ArrayLike) -> tuple[float, float]:
    """Mean of `values: (n,)` and its standard error s / sqrt(n), s the sample standard deviation (ddof = 1).

    The stderr of a single value is 0.0, not NaN, so that reports stay valid JSON; read it beside n.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    stderr = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else 0.0
    return float(array.mean()), stderr
