"""Simple methods: what they forecast is what their names say, nothing they know is of the future."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_forcing.datasets.series.smoothing import Base, Method, candidates, choose, seasons_of, smooth

LAST, SEASON = Method(1.0, 0.0, 0.0, 0.0), Method(0.0, 0.0, 0.0, 1.0, season=4)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_recursion_is_the_formulas() -> None:
    """One column, written out."""
    values, (alpha, beta, phi, gamma), season = random().normal(size=30), (0.3, 0.2, 0.9, 0.4), 3
    states = smooth(values[:, None], np.array([[alpha], [beta], [phi], [gamma]]), season)
    level, trend = values[:3].mean(), 0.0
    cycles = values[:9].reshape(3, 3)
    seasons = list((cycles - cycles.mean(axis=1, keepdims=True)).mean(axis=0))
    for step, value in enumerate(values):
        error = value - (level + phi * trend + seasons[step])
        level, trend = level + phi * trend + alpha * error, phi * trend + alpha * beta * error
        seasons.append(seasons[step] + gamma * (1 - alpha) * error)
        assert states.level[step, 0] == pytest.approx(level)
        assert states.trend[step, 0] == pytest.approx(trend)
        assert states.season[season + step, 0] == pytest.approx(seasons[-1])


def test_the_last_value_and_the_last_season_are_methods() -> None:
    values = random().normal(size=(40, 1))
    np.testing.assert_allclose(Base(values, [[LAST]]).forecast([40], 0, 6)[0, :, 0], values[-1, 0])
    again = Base(values, [[SEASON]]).forecast([38], 0, 6)[0, :, 0]
    np.testing.assert_allclose(again, values[[34, 35, 36, 37, 34, 35], 0])


def test_before_the_first_season_is_over_its_phase_is_right() -> None:
    """A season that repeats exactly is forecast exactly after one step of it, too."""
    values = np.tile([1.0, 7.0, 3.0, 5.0], 10)[:, None]
    base = Base(values, [[SEASON]])
    for origin in range(1, 9):
        np.testing.assert_allclose(base.forecast([origin], 0, 6)[0, :, 0], values[origin : origin + 6, 0])


def test_a_trend_is_continued_and_damped() -> None:
    values = 3.0 * np.arange(400)[:, None]
    forecast = Base(values, [[Method(0.5, 0.5, 0.9, 0.0)]]).forecast([400], 0, 3)[0, :, 0]
    steps = np.diff(forecast)
    assert (steps > 0).all()
    assert steps[1] / steps[0] == pytest.approx(0.9)


def test_what_was_not_observed_changes_nothing() -> None:
    """A gap is passed over with the forecast, and a season goes on behind it."""
    values = np.tile([1.0, 2.0, 3.0, 4.0], 10)[:, None]
    gap = values.copy()
    gap[20:26] = np.nan
    for methods in ([[SEASON]], [[Method(0.1, 0.0, 0.0, 0.3, season=4)]]):
        np.testing.assert_allclose(Base(gap, methods).forecast([40], 0, 4), Base(values, methods).forecast([40], 0, 4))


@pytest.mark.parametrize("origin", [15, 24])
def test_no_forecast_looks_ahead(origin: int) -> None:
    values, changed = (random().normal(size=(30, 2)).cumsum(axis=0) + 20 for _ in range(2))
    changed[origin:] += 100
    methods = [[Method(0.5, 0.1, 0.9, 0.3, 4, weight=0.5), LAST._replace(weight=0.5)], [LAST._replace(logarithm=True)]]
    one, other = (Base(each, methods, 12) for each in (values, changed))
    np.testing.assert_array_equal(one.forecast([origin], -6, 5), other.forecast([origin], -6, 5))
    np.testing.assert_array_equal(one.liveliness[origin], other.liveliness[origin])
    np.testing.assert_array_equal(one.spread(-6, 5), other.spread(-6, 5))
    first, second = (each.paths(origin, 5, paths=20, random=random()) for each in (one, other))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("late", [0, 9])
def test_the_first_level_and_season_do_not_look_ahead(late: int) -> None:
    """Of a history shorter than three seasons, of a series that starts just before the forecast, of forecasts that are
    longer than the history."""
    values = random().normal(size=(40, 1)).cumsum(axis=0)
    values[:late] = np.nan
    changed, origin = values.copy(), 11
    changed[origin:] += 100
    methods = [[SEASON._replace(weight=0.5), Method(0.05, 0.0, 0.0, 0.0, season=4, weight=0.5)]]
    for ahead in (3, 20):
        one, other = (
            Base(each, methods, origin).paths(origin, ahead, paths=9, random=random()) for each in (values, changed)
        )
        np.testing.assert_array_equal(one, other)


def test_paths_of_a_series_with_gaps_are_as_wide_as_those_without() -> None:
    values = random().normal(size=(400, 2))
    values[random(1).random(400) < 0.7, 0] = np.nan
    values[300:, 1] = np.nan
    paths = Base(values, [[Method(0.05, 0.0, 0.0, 0.0)]] * 2).paths(400, 5, paths=200, random=random())
    np.testing.assert_allclose(paths.std(axis=0).mean(axis=0), 1, rtol=0.2)


@pytest.mark.parametrize(("length", "ahead"), [(30, 6), (36, 12), (30, 20)])
def test_paths_of_two_and_a_half_seasons_differ(length: int, ahead: int) -> None:
    values = random().normal(size=(length, 1))
    paths = Base(values, [[Method(0.1, 0.0, 0.0, 0.1, season=12)]]).paths(length, ahead, paths=50, random=random())
    deviation = paths.std(axis=0)
    assert deviation.mean() > 0.2
    assert deviation.min() > 0.01


def test_the_best_methods_are_those_of_how_a_series_was_made() -> None:
    days = np.arange(300)
    walk, returns = (
        random().normal(size=300).cumsum(),
        np.sin(days * 2 * np.pi / 7) * 5 + 0.1 * random(1).normal(size=300),
    )
    growth = np.exp(0.02 * days + 0.01 * random(2).normal(size=300)) * np.tile([1, 2, 3, 4, 3, 2, 1], 43)[:300]
    found = choose(np.stack([walk, returns, growth], axis=1), 7, (7,))
    assert found[0][0].level >= 0.8
    assert found[1][0].season == found[2][0].season == 7
    assert [one[0].logarithm for one in found] == [False, False, True]
    assert all(sum(method.weight for method in one) == pytest.approx(1) for one in found)


def test_a_series_that_ended_early_is_continued_without_a_trend() -> None:
    values = np.full((200, 1), np.nan)
    values[:3, 0] = [10.0, 12.0, 13.5]
    forecast = Base(values, choose(values, 7, (7,))).forecast([200], 0, 7)
    assert ((forecast >= 10) & (forecast <= 13.5)).all()


def test_paths_are_as_wide_as_the_errors_are() -> None:
    """Of white noise about its mean: the paths have its deviation, and cover 80 % of what comes in their 80 %."""
    values = random().normal(size=(600, 1)) * 2
    base = Base(values, choose(values[:300], 10, ()), 300)
    paths = np.stack([base.paths(origin, 10, paths=200, random=random(origin)) for origin in range(400, 590, 10)])
    assert paths.std(axis=1).mean() == pytest.approx(2, rel=0.1)
    truth = np.stack([values[origin : origin + 10] for origin in range(400, 590, 10)])
    low, high = np.quantile(paths, [0.1, 0.9], axis=1)
    assert 0.7 < ((truth > low) & (truth < high)).mean() < 0.9
    assert base.spread(-5, 10).mean() == pytest.approx(2, rel=0.15)


def test_liveliness_follows_the_latest_errors() -> None:
    values = random().normal(size=(400, 1)) * np.where(np.arange(400) < 300, 1.0, 10.0)[:, None]
    lively = Base(values, [[Method(0.1, 0.0, 0.0, 0.0)]]).liveliness[:, 0]
    assert lively[299] == pytest.approx(1, abs=0.5)
    assert lively[340] > 2


@pytest.mark.parametrize(
    ("freq", "length", "seasons"),
    [
        ("h", 9000, (24, 168)),
        ("h", 100, (24,)),
        ("30min", 2000, (48, 336)),
        ("M", 100, (12,)),
        ("Q-DEC", 12, (4,)),
        ("D", 3000, (7, 365)),
        ("B", 100, (5,)),
        ("W-SUN", 200, (52,)),
        ("Y-DEC", 100, ()),
        ("s", 200, (60,)),
        ("7min", 400, ()),
    ],
)
def test_seasons_follow_the_frequency_and_what_was_seen(freq: str, length: int, seasons: tuple[int, ...]) -> None:
    assert seasons_of(freq, length) == seasons


@pytest.mark.parametrize("length", [3, 5, 9])
def test_the_shortest_histories_have_a_forecast(length: int) -> None:
    values = np.stack([np.arange(length) + 1.0, np.ones(length)], axis=1)
    base = Base(values, choose(values, 4, ()), length)
    assert np.isfinite(base.paths(length, 4, paths=5, random=random())).all()
    assert (base.spread(-4, 4) > 0).all()
    assert len(candidates(())) > 3


def test_paths_repeat_errors_of_a_long_past_not_of_the_last_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbouring moments make nearly the same errors: the 500 that are repeated lie apart, over 5,000 steps."""
    values = np.random.default_rng(0).standard_normal((9000, 1)).cumsum(axis=0)
    base = Base(values, choose(values, 60, ()))
    asked: list[np.ndarray] = []
    errors = Base.errors

    def counted(self: Base, origins: np.ndarray, ahead: int, until: int) -> np.ndarray:
        asked.append(origins)
        return errors(self, origins, ahead, until)

    monkeypatch.setattr(Base, "errors", counted)
    paths = base.paths(8900, 60, paths=100, random=np.random.default_rng(0))
    assert paths.shape == (100, 60, 1)
    (origins,) = asked
    assert len(origins) == 500
    assert origins.max() == 8840
    assert origins.min() == 8840 - 4990
