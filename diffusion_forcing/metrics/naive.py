"""What a forecast has to beat: the last values again, with the changes or the errors that the history had. Pure functions of the history.

history: (T, V), NaN where nothing was observed. Sample paths are (paths, ahead, V). All series of a moment are drawn together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def random_walk(history: Array, ahead: int, *, paths: int, random: np.random.Generator) -> Array:
    """The last values known, and behind them steps that the history had."""
    filled, last = _carried_on(history)
    steps = np.diff(filled, axis=0)
    drawn = steps[random.integers(len(steps), size=(paths, ahead))]
    return last + drawn.cumsum(axis=1)


def seasonal(history: Array, ahead: int, *, season: int, paths: int, random: np.random.Generator) -> Array:
    """The last season again and again, with errors that this had in the history, whole stretches at a time."""
    filled, _ = _carried_on(history)
    back = season * -(-ahead // season)
    if len(filled) < back + ahead:
        return random_walk(history, ahead, paths=paths, random=random)
    repeated = filled[len(filled) - season + np.arange(ahead) % season]
    errors = filled[back:] - filled[:-back]
    starts = random.integers(len(errors) - ahead + 1, size=paths)
    drawn: Array = repeated + errors[starts[:, None] + np.arange(ahead)]
    return drawn


def _carried_on(history: Array) -> tuple[Array, Array]:
    """The history with the last known value in every gap (before the first known, that one), and its last row."""
    known = np.isfinite(history)
    row = np.where(known, np.arange(len(history))[:, None], 0)
    latest = np.maximum.accumulate(row, axis=0)
    first = np.where(known.any(axis=0), known.argmax(axis=0), 0)
    latest = np.maximum(latest, first)
    filled = np.nan_to_num(np.take_along_axis(history, latest, axis=0))
    return filled, filled[-1]
