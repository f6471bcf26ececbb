"""Curves as inline SVG, drawn by hand: no plot library, no script, colours from the page's style sheet.

One chart: the logged values as a light line with the band of their least and greatest, their running mean as a strong
one, ticks at round numbers, a logarithmic axis where the values ask for it, and the values under the pointer as a
tooltip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

# A curve of any length in at most 500 points.
#
# Each logged value falls into the open bucket; a bucket holds `width` values (mean, least, greatest). When there are
# 500 of them, neighbours are merged and `width` doubles, so a million values cost a million additions and 500 buckets
# of memory, and the page that draws them never grows.

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


WIDTH, HEIGHT = 440, 240  # of the view box; the chart scales with the page
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 32  # margins, for the tick labels
HOVERS = 80  # tooltips across a chart
SMOOTHING_SHARE = 0.04  # the strong line is a mean over this share of the curve
COMPARED_POINTS = 200  # most points of a line where several runs are compared
LOG_RATIO = 30.0  # positive values that span more than this factor get a logarithmic axis; a loss always does


def line_chart(name: str, points: Sequence[Point]) -> str:
    """An `<svg>` of the curve `name`; needs at least two points."""
    low, high = min(p.low for p in points), max(p.high for p in points)
    logarithmic = low > 1 / LARGEST and ("loss" in name or high / low > LOG_RATIO)
    smooth = smoothed([p.mean for p in points])
    low, high = _padded(low, high, logarithmic)
    x = _scale(points[0].first, points[-1].last, LEFT, WIDTH - RIGHT, False)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)

    parts = _frame(name, low, high, points[0].first, points[-1].last, logarithmic)

    middle = [x((p.first + p.last) / 2) for p in points]
    if any(p.high > p.low for p in points):
        upper = [f"{a:.1f},{y(p.high):.1f}" for a, p in zip(middle, points, strict=True)]
        lower = [f"{a:.1f},{y(p.low):.1f}" for a, p in zip(middle, points, strict=True)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>')
    few = len(points) <= 12
    parts.append(_polyline("smooth" if few else "raw", middle, [y(p.mean) for p in points]))
    if few:
        parts += [
            f'<circle class="dot" cx="{a:.1f}" cy="{y(p.mean):.1f}" r="3"/>'
            for a, p in zip(middle, points, strict=True)
        ]
    else:
        parts.append(_polyline("smooth", middle, [y(value) for value in smooth]))

    columns = min(HOVERS, len(points))
    span = (WIDTH - RIGHT - LEFT) / columns
    for column in range(columns):
        index = round(column * (len(points) - 1) / max(1, columns - 1))
        point, left = points[index], LEFT + column * span
        text = f"step {point.last:,.0f}: {point.mean:.5g}"
        if point.values > 1:
            text = (
                f"steps {point.first:,.0f} to {point.last:,.0f}: {point.mean:.5g} ({point.low:.5g} to {point.high:.5g})"
            )
        parts.append(
            f'<rect class="hover" x="{left:.1f}" y="{TOP}" width="{span:.1f}" height="{HEIGHT - TOP - BOTTOM}">'
            f"<title>{escape(text)}</title></rect>"
        )
    return "".join(parts) + "</svg>"


def compared_chart(name: str, curves: Mapping[str, Sequence[Point]]) -> str:
    """An `<svg>` of the curve `name` of several runs: one line each, its running mean, of the class that is its key in
    `curves`. Needs a run with two points."""
    every = [point for points in curves.values() for point in points]
    smooth = {key: smoothed([p.mean for p in points]) for key, points in curves.items()}
    values = [value for line in smooth.values() for value in line]
    low, high = min(values), max(values)
    logarithmic = low > 1 / LARGEST and ("loss" in name or high / low > LOG_RATIO)
    low, high = _padded(low, high, logarithmic)
    first, last = min(p.first for p in every), max(p.last for p in every)
    x = _scale(first, last, LEFT, WIDTH - RIGHT, False)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    parts = _frame(name, low, high, first, last, logarithmic)
    for key, points in curves.items():
        xs, ys = [x((p.first + p.last) / 2) for p in points], [y(value) for value in smooth[key]]
        thin = max(1, len(xs) // COMPARED_POINTS)
        xs, ys = [*xs[:-1:thin], xs[-1]], [*ys[:-1:thin], ys[-1]]
        parts.append(f'<g class="{escape(key)}">{_polyline("compared", xs, ys)}')
        parts.append(f'<circle class="end" cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="3"/></g>')
    return "".join(parts) + "</svg>"


def _frame(name: str, low: float, high: float, first: float, last: float, logarithmic: bool) -> list[str]:
    """The `<svg>` tag, left open, with its axes: values low to high, steps first to last."""
    x = _scale(first, last, LEFT, WIDTH - RIGHT, False)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)} over steps">']
    for tick in log_ticks(low, high) if logarithmic else ticks(low, high, 5):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}">{label(tick)}</text>'
        )
    bottom = HEIGHT - BOTTOM
    for tick in ticks(first, last, 5):
        parts.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{HEIGHT - 10}">{label(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of the values around each one, over 4 % of them, half of it at the ends."""
    half = int(SMOOTHING_SHARE * len(values) / 2)
    total = [0.0, *accumulate(values)]
    windows = ((max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values)))
    return [(total[last] - total[first]) / (last - first) for first, last in windows]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) between low and high, about `most` of them."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between low and high, 2 and 5 times them too when there are few, every n-th when there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 200 else (1,)
    found = [
        f * 10.0**d for d in decades[:: math.ceil(len(decades) / 7)] for f in factors if low <= f * 10.0**d <= high
    ]
    return found if len(found) > 1 else ticks(low, high, 4)


def label(value: float) -> str:
    """A tick's number in few letters: 20000 is 20k, 1500000 is 1.5M, 0.00002 is 2e-5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}".replace("e-0", "e-").replace("-", "−")


def _scale(low: float, high: float, start: float, end: float, logarithmic: bool) -> Callable[[float], float]:
    if logarithmic:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * ((math.log(value) if logarithmic else value) - low) / span


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """The values' range, a little wider; a constant gets a range around it."""
    if logarithmic:
        factor = max(high / low, 1.05) ** 0.05
        return low / factor, high * factor
    space = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - space, high + space


def _polyline(kind: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'
