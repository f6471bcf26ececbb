"""Naive forecasts: what they repeat, what they draw, and gaps."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_forcing.metrics.forecasting import random_walk, seasonal


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_series_that_rises_by_one_goes_on_rising() -> None:
    history = np.arange(20.0)[:, None] * [1.0, 2.0]
    paths = random_walk(history, 3, paths=4, random=random())
    assert paths.shape == (4, 3, 2)
    np.testing.assert_allclose(paths, np.broadcast_to([[20, 40], [21, 42], [22, 44]], (4, 3, 2)))


def test_steps_of_one_moment_are_drawn_together() -> None:
    history = np.cumsum(random().choice([-1.0, 1.0], size=(200, 1)), axis=0) * [1.0, -1.0]
    paths = random_walk(history, 5, paths=50, random=random(1))
    np.testing.assert_allclose(paths[..., 0], -paths[..., 1])
    assert paths[:, -1, 0].std() == pytest.approx(5**0.5, rel=0.3)


def test_a_season_that_returns_is_returned_without_errors() -> None:
    history = np.tile([1.0, 2.0, 3.0], 8)[:, None]
    paths = seasonal(history, 5, season=3, paths=4, random=random())
    np.testing.assert_allclose(paths[..., 0], np.broadcast_to([1, 2, 3, 1, 2], (4, 5)))


def test_errors_of_a_season_are_those_it_had() -> None:
    history = (np.tile([0.0, 10.0], 300) + random().normal(size=600))[:, None]
    paths = seasonal(history, 4, season=2, paths=400, random=random(1))[..., 0]
    np.testing.assert_allclose(paths.mean(axis=0), history[-2:, 0].tolist() * 2, atol=0.3)
    np.testing.assert_allclose(paths.std(axis=0), 2**0.5, rtol=0.15)


def test_gaps_take_the_last_value_known() -> None:
    history = np.array([[np.nan, 1.0], [5.0, 1.0], [np.nan, 1.0], [np.nan, np.nan]])
    for paths in (
        random_walk(history, 2, paths=3, random=random()),
        seasonal(history, 2, season=1, paths=3, random=random()),
    ):
        np.testing.assert_allclose(paths, np.broadcast_to([5.0, 1.0], (3, 2, 2)))


def test_a_history_too_short_for_its_season_walks() -> None:
    history = np.arange(5.0)[:, None]
    np.testing.assert_allclose(seasonal(history, 4, season=4, paths=1, random=random())[0, :, 0], [5, 6, 7, 8])
