"""results.json: a run's results as a leaderboard reads them. The values are those of metrics.json; beside them stand
what was evaluated, on which data, and how to repeat it. The fields are described in docs/runs.md."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = "diffusion-forcing/results"
FORMAT_VERSION = 1
COUNTS = ("episodes", "windows", "clips", "paths")
"""Results that say how much was evaluated."""
_Z = 1.96
"""Standard errors in half of a 95 % interval."""
_BESIDE = ("_stderr", "_low", "_high")


def results(metadata: Mapping[str, Any], facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json. metadata: of run.json. facts: what the launcher knows (task, dataset, model, seed,
    version). metrics: of metrics.json."""
    counts = {name: value for name, value in metrics.items() if name.rpartition("/")[2] in COUNTS}
    listed = [name for name in metrics if name not in counts and not name.endswith(_BESIDE)]
    words = (metadata.get("resumed") or [{}])[-1].get("command") or metadata.get("command") or ["main.py"]
    program = "diffusion-forcing" if Path(words[0]).stem in ("__main__", "diffusion-forcing") else "python -m main"
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **facts,
        "counts": counts,
        "metrics": [_metric(name, metrics) for name in listed if isinstance(metrics[name], int | float | None)],
        "run": {key: metadata.get(key) for key in ("id", "name", "started", "python", "commit")},
        "command": f"{program} {shlex.join(words[1:])}".rstrip(),
    }


def _metric(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One entry: a metric's value, its standard error, and its 95 % interval, null where it is not known."""
    value, stderr = metrics[name], metrics.get(f"{name}_stderr")
    low, high = (metrics.get(f"{name}{end}") for end in ("_low", "_high"))
    group, _, short = name.rpartition("/")
    count = metrics.get(f"{group}/episodes")
    interval = [low, high] if low is not None and high is not None else None
    if interval is None and value is not None and stderr is not None and count != 1:
        # Where all or none succeed the standard error is 0, and the normal interval would be a point.
        exact = short in ("success_rate", "oracle_success_rate") and count
        interval = _wilson(value, exact) if exact else [value - _Z * stderr, value + _Z * stderr]
    interval = interval and [float(f"{bound:.6g}") for bound in interval]
    return {"name": name, "value": value, "stderr": None if count == 1 else stderr, "interval": interval}


def _wilson(rate: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a share of `count` trials."""
    shrink = 1 + _Z**2 / count
    middle = (rate + _Z**2 / (2 * count)) / shrink
    half = _Z * math.sqrt(rate * (1 - rate) / count + _Z**2 / (4 * count**2)) / shrink
    return [max(0.0, middle - half), min(1.0, middle + half)]
