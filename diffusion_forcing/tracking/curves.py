"""A curve of any length in at most 500 points.

Each logged value falls into the open bucket; a bucket holds `width` values (mean, least, greatest). When there are
500 of them, neighbours are merged and `width` doubles, so a million values cost a million additions and 500 buckets
of memory, and the page that draws them never grows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

POINTS = 500  # most points of a drawn curve
LARGEST = 1e100  # a value this far from 0 says no more than infinity, and would overflow a chart


class Point(NamedTuple):
    """Values logged from step `first` to step `last`: their mean, least and greatest, and how many they are."""

    first: float
    last: float
    mean: float
    low: float
    high: float
    values: int


class Curve:
    """The values of one metric over steps."""

    def __init__(self, points: int = POINTS) -> None:
        self._most = points
        self._width = 1
        self._points: list[Point] = []

    def add(self, step: float, value: float) -> None:
        """Append a value; one that is not finite or beyond `LARGEST` is left out.

        A step at or before the last one rewinds: a run resumed from a checkpoint logs those steps again, and what it
        says now replaces what was said before.
        """
        if not abs(value) < LARGEST:
            return
        points = self._points
        while points and points[-1].last >= step:
            points.pop()
        if points and points[-1].values < self._width:
            first, _, mean, low, high, values = points[-1]
            mean += (value - mean) / (values + 1)
            points[-1] = Point(first, step, mean, min(low, value), max(high, value), values + 1)
            return
        if len(points) >= self._most:
            self._points = points = [_merged(*points[i : i + 2]) for i in range(0, len(points), 2)]
            self._width *= 2
        points.append(Point(step, step, value, value, value, 1))

    def points(self) -> list[Point]:
        """The buckets so far, in order of step: at most 500."""
        return list(self._points)


def _merged(a: Point, b: Point | None = None) -> Point:
    if b is None:
        return a
    values = a.values + b.values
    mean = (a.mean * a.values + b.mean * b.values) / values
    return Point(a.first, b.last, mean, min(a.low, b.low), max(a.high, b.high), values)


def read_curves(path: Path) -> dict[str, Curve]:
    """The curves of a `metrics.jsonl`, by metric; no file: none. Lines cut short by a kill are skipped."""
    try:
        with path.open("rb") as lines:
            return curves_of(lines)
    except FileNotFoundError:
        return {}


def curves_of(lines: Iterable[bytes]) -> dict[str, Curve]:
    """The curves of the lines of a `metrics.jsonl`."""
    curves: dict[str, Curve] = {}
    for line in lines:
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, TypeError, KeyError):
            continue
        for name, value in record.items():
            if name not in ("step", "time") and isinstance(value, (int, float)):
                curves.setdefault(name, Curve()).add(step, value)
    return curves
