"""Curves of any length in at most 500 points, and the lines they are read from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_forcing.tracking.records import POINTS, Curve, read_log


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(2, 20))
def test_a_thinned_curve_keeps_mean_extremes_count_and_order(values: list[float], most: int) -> None:
    curve = Curve(points=most)
    for step, value in enumerate(values):
        curve.add(step, value)
    points = curve.points()
    assert len(points) <= most
    assert sum(p.values for p in points) == len(values)
    assert sum(p.mean * p.values for p in points) == pytest.approx(sum(values), abs=1e-3)
    assert (min(p.low for p in points), max(p.high for p in points)) == (min(values), max(values))
    assert all(a.first <= a.last < b.first for a, b in pairwise(points))
    assert all(p.low - 1e-6 <= p.mean <= p.high + 1e-6 for p in points)


def test_a_short_curve_is_kept_exactly() -> None:
    curve = Curve()
    for step in range(POINTS):
        curve.add(step, step**2)
    assert [(p.first, p.mean) for p in curve.points()] == [(step, step**2) for step in range(POINTS)]


def test_a_long_curve_has_at_most_500_points_and_they_share_it_evenly() -> None:
    curve = Curve()
    for step in range(100_000):
        curve.add(step, 1.0)
    points = curve.points()
    assert POINTS / 2 <= len(points) <= POINTS
    assert max(p.values for p in points) <= 2 * points[0].values


def test_a_resumed_run_replaces_what_it_says_again() -> None:
    curve = Curve()
    for step in range(10):
        curve.add(step, 1.0)
    for step in range(5, 8):
        curve.add(step, 2.0)
    assert [(p.last, p.mean) for p in curve.points()] == [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 2),
        (6, 2),
        (7, 2),
    ]


def test_values_that_are_not_finite_are_left_out() -> None:
    curve = Curve()
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        curve.add(step, value)
    assert [p.first for p in curve.points()] == [0, 3]


def test_broken_lines_are_skipped(tmp_path: Path) -> None:
    texts = [
        b'{"step": 1, "time": 5, "a": 1}',
        b'{"step": 2, "a',
        b"[]",
        b"{}",
        b"\xff",
        b'{"step": 3, "a": null, "b": "x", "c": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(texts))
    assert list(read_log(tmp_path / "metrics.jsonl")) == [{"step": 1, "time": 5, "a": 1}, {"step": 3, "c": 2}]


def test_no_file_has_no_curves(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / "metrics.jsonl")) == []
