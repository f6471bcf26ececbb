"""Mean, spread and range of the columns of observations and actions, over parts of a run too long to hold at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RunningStatistics:
    """Collects parts with `add`; sums in float64, so that a part's size changes nothing that is printed."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[int, NDArray[np.float64]]]] = {"observation": [], "action": []}

    def add(self, observations: NDArray[Any], actions: NDArray[Any]) -> None:
        """Take in (n, o) observations and (n, a) actions."""
        for name, values in (("observation", observations), ("action", actions)):
            if len(values):
                exact = values.astype(np.float64)
                self._parts[name].append(
                    (len(values), np.stack([exact.mean(0), exact.var(0), exact.min(0), exact.max(0)]))
                )

    def statistics(self) -> dict[str, list[float]]:
        """observation_mean, observation_std, observation_min, observation_max and the same of actions; one number per column."""
        out: dict[str, list[float]] = {}
        for name, parts in self._parts.items():
            if not parts:
                continue
            counts = np.array([count for count, _ in parts], dtype=np.float64)
            weights = (counts / counts.sum())[:, None]
            means, variances, least, largest = np.stack([rows for _, rows in parts], axis=1)
            mean = (weights * means).sum(0)
            out[f"{name}_mean"] = mean.tolist()
            out[f"{name}_std"] = np.sqrt((weights * (variances + (means - mean) ** 2)).sum(0)).tolist()
            out[f"{name}_min"] = least.min(0).tolist()
            out[f"{name}_max"] = largest.max(0).tolist()
        return out


def statistics(observations: NDArray[Any], actions: NDArray[Any]) -> dict[str, list[float]]:
    """`RunningStatistics` of arrays in memory: (n, o) observations and (n, a) actions."""
    running = RunningStatistics()
    running.add(observations, actions)
    return running.statistics()
