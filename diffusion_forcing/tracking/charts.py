"""Logged metrics as curves of at most 500 points, and a chart of them as inline SVG without a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)

POINTS = 500  # most points of a curve
LARGEST = 1e100  # a value beyond this says no more than infinity, and would overflow a chart


class Point(NamedTuple):
    """The values logged from step `first` to step `last`: their mean, minimum, maximum and number."""

    first: float
    last: float
    mean: float
    low: float
    high: float
    values: int


class Curve:
    """The values of one metric over steps.

    Each value joins the newest point until that holds `width` values. When there are 500 points, neighbours are merged
    and `width` doubles; so the memory and the page do not grow with the length of a run.
    """

    def __init__(self, points: int = POINTS) -> None:
        self._most = points
        self._width = 1
        self._points: list[Point] = []

    def add(self, step: float, value: float) -> None:
        """Append a value; one that is not finite or beyond `LARGEST` is left out.

        A step at or before the last one rewinds the curve: a resumed run logs those steps again.
        """
        if not abs(value) < LARGEST:
            return
        points = self._points
        while points and points[-1].last >= step:
            points.pop()
        if points and points[-1].values < self._width:
            points[-1] = _merged(points[-1], Point(step, step, value, value, value, 1))
            return
        if len(points) >= self._most:
            self._points = points = [_merged(*points[i : i + 2]) for i in range(0, len(points), 2)]
            self._width *= 2
        points.append(Point(step, step, value, value, value, 1))

    def points(self) -> list[Point]:
        """The points so far, in order of step."""
        return list(self._points)


def _merged(a: Point, b: Point | None = None) -> Point:
    if b is None:
        return a
    values = a.values + b.values
    mean = a.mean + (b.mean - a.mean) * b.values / values
    return Point(a.first, b.last, mean, min(a.low, b.low), max(a.high, b.high), values)


WIDTH, HEIGHT = 440, 240  # of the view box; the chart scales with the page
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 32  # margins, for the tick labels
FEW = 12  # up to so many points are drawn as dots
TOOLTIPS = 80  # across a chart
SMOOTHING_SHARE = 0.04  # a running mean covers this share of the curve
LOG_RATIO = 30.0  # positive values that span a larger factor get a logarithmic axis; a loss always does


def line_chart(name: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """An `<svg>` of the metric `name`: the running mean of every curve in `lines`, whose keys are CSS classes.

    A single curve also shows its values, their range and tooltips. At least one curve needs two points.
    """
    every = [point for points in lines.values() for point in points]
    smooth = {key: smoothed([p.mean for p in points]) for key, points in lines.items()}
    single = len(lines) == 1
    values = [v for p in every for v in (p.low, p.high)] if single else [v for line in smooth.values() for v in line]
    low, high = min(values), max(values)
    logarithmic = low > 1 / LARGEST and ("loss" in name or high / low > LOG_RATIO)
    low, high = _padded(low, high, logarithmic)
    first, last = min(p.first for p in every), max(p.last for p in every)
    x = _scale(first, last, LEFT, WIDTH - RIGHT, False)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    tooltips = _tooltips(every) if single else []
    column = (WIDTH - RIGHT - LEFT) / max(1, len(tooltips))

    curves = []
    for key, points in lines.items():
        xs = [x((point.first + point.last) / 2) for point in points]
        mean = [(a, y(value)) for a, value in zip(xs, smooth[key], strict=True)]
        curve = {"key": key, "mean": _pairs(mean), "dots": mean if len(points) <= FEW else mean[-1:]}
        if single and any(point.high > point.low for point in points):
            highs = [(a, y(point.high)) for a, point in zip(xs, points, strict=True)]
            lows = [(a, y(point.low)) for a, point in zip(xs, points, strict=True)]
            curve["band"] = _pairs(highs + lows[::-1])
        if single and len(points) > FEW:
            curve["unsmoothed"] = _pairs([(a, y(point.mean)) for a, point in zip(xs, points, strict=True)])
        curves.append(curve)
    return TEMPLATES.get_template("chart.svg").render(
        name=name,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        x_ticks=[(x(tick), label(tick)) for tick in ticks(first, last, 5)],
        y_ticks=[(y(tick), label(tick)) for tick in (log_ticks(low, high) if logarithmic else ticks(low, high, 5))],
        curves=curves,
        tooltips=[(round(LEFT + number * column, 1), text) for number, text in enumerate(tooltips)],
        tooltip_width=round(column, 1),
    )


def _tooltips(points: Sequence[Point]) -> list[str]:
    """The values under evenly spaced columns of the chart, which show where the pointer is."""
    columns = min(TOOLTIPS, len(points))
    texts = []
    for column in range(columns):
        point = points[round(column * (len(points) - 1) / max(1, columns - 1))]
        text = f"step {point.last:,.0f}: {point.mean:.5g}"
        if point.values > 1:
            values = f"{point.mean:.5g} ({point.low:.5g} to {point.high:.5g})"
            text = f"steps {point.first:,.0f} to {point.last:,.0f}: {values}"
        texts.append(text)
    return texts


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
    """Powers of ten between low and high; also 2 and 5 times them when they are few, every n-th when many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 200 else (1,)
    every = (factor * 10.0**decade for decade in decades[:: math.ceil(len(decades) / 7)] for factor in factors)
    found = [tick for tick in every if low <= tick <= high]
    return found if len(found) > 1 else ticks(low, high, 4)


def label(value: float) -> str:
    """A short number for a tick: 20k, 1.5M, 2e−5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}".replace("e-0", "e-").replace("-", "−")


def _pairs(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _scale(low: float, high: float, start: float, end: float, logarithmic: bool) -> Callable[[float], float]:
    """Map low … high to the pixels start … end, to a tenth."""
    if logarithmic:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0
    return lambda value: round(start + (end - start) * ((math.log(value) if logarithmic else value) - low) / span, 1)


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """The values' range, slightly wider; a constant gets a range around it."""
    if logarithmic:
        factor = max(high / low, 1.05) ** 0.05
        return low / factor, high * factor
    space = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - space, high + space
