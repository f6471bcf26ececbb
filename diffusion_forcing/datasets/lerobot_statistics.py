"""Statistics as LeRobot keeps them for each episode and the whole set: min, max, mean, std, count and five quantiles of every feature.

Of an episode they are exact, of pictures a channel over all pixels in [0, 1], counted in frames. The set's are joined from the episodes': mean and
std exactly, quantiles as LeRobot joins them, by their mean weighted with the count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Statistics = dict[str, NDArray[Any]]


def of_rows(rows: NDArray[Any]) -> Statistics:
    """Of values (n, …), for each of them."""
    values = rows.reshape(len(rows), -1).astype(np.float64)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }


def of_pictures(pictures: NDArray[np.uint8]) -> Statistics:
    """Of pictures (n, h, w, 3), for each channel (3, 1, 1)."""
    levels = np.arange(256) / 255.0
    columns = []
    for channel in range(3):
        counts = np.bincount(pictures[..., channel].reshape(-1), minlength=256).astype(np.float64)
        share = counts / counts.sum()
        seen, upto = np.flatnonzero(counts), np.cumsum(share)
        mean = float(levels @ share)
        columns.append(
            {
                "min": levels[seen[0]],
                "max": levels[seen[-1]],
                "mean": mean,
                "std": float(np.sqrt(max(0.0, float((levels - mean) ** 2 @ share)))),
                **{name: levels[min(255, int(np.searchsorted(upto, part)))] for name, part in QUANTILES.items()},
            }
        )
    joined: Statistics = {name: np.array([column[name] for column in columns]).reshape(3, 1, 1) for name in columns[0]}
    return {**joined, "count": np.array([len(pictures)])}


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Of several episodes together."""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    weights = counts / counts.sum()

    def mean(values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        return np.tensordot(weights, np.stack(values).astype(np.float64), axes=1)

    middle = mean([part["mean"] for part in parts])
    spread = mean([part["std"] ** 2 + (part["mean"] - middle) ** 2 for part in parts])
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": middle,
        "std": np.sqrt(spread),
        "count": np.array([int(counts.sum())]),
        **{name: mean([part[name] for part in parts]) for name in QUANTILES},
    }


def plain(statistics: Mapping[str, Statistics]) -> dict[str, dict[str, Any]]:
    """As nested lists, for json."""
    return {key: {name: value.tolist() for name, value in facts.items()} for key, facts in statistics.items()}
