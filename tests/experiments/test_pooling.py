"""Pools of the network's paths and the base forecast's."""

from __future__ import annotations

import numpy as np

from diffusion_forcing.experiments.forecasting import Pool, choose_pool, ordered_as


def paths(loc: float, scale: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(loc, scale, size=(6, 100, 8, 2))


def truth(seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 1, size=(6, 8, 2))


def test_the_better_one_has_all_of_the_pool() -> None:
    good, bad = paths(10, 1), paths(30, 1, 1)
    assert choose_pool(good, bad, truth()).share == 1
    assert choose_pool(bad, good, truth()).share == 0


def test_equals_share_the_pool_and_what_is_too_narrow_is_widened() -> None:
    assert choose_pool(paths(10, 1), paths(10, 1, 1), truth()) == Pool(0.5, 1.0)
    assert choose_pool(paths(10, 0.5), paths(30, 1, 1), truth()).width > 1.2


def test_a_pool_holds_its_shares_about_the_same_median() -> None:
    network, base = paths(10, 1), paths(0, 1, 1)
    mixed = Pool(0.25, 2.0).mix(network, base)
    assert mixed.shape == network.shape
    np.testing.assert_array_equal(mixed[:, 25:], base[:, 25:])
    median = np.median(network, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed[:, :25] - median, 2 * (network[:, :25] - median))


def test_nothing_observed_is_the_even_pool() -> None:
    assert choose_pool(paths(1, 1), paths(2, 1), np.full((6, 8, 2), np.nan)) == Pool(0.5, 1.0)


def test_series_sampled_one_by_one_move_together_as_the_base_does() -> None:
    shared = np.random.default_rng(2).normal(size=(6, 100, 1, 1))
    base = shared + 0.1 * paths(0, 1, 3)
    network = paths(5, 1, 4) + np.random.default_rng(5).normal(size=(6, 100, 1, 2))
    joined = ordered_as(network, base)
    np.testing.assert_allclose(np.sort(joined, axis=1), np.sort(network, axis=1))
    means = joined.mean(axis=2)
    assert np.corrcoef(means[0, :, 0], means[0, :, 1])[0, 1] > 0.9
    assert abs(np.corrcoef(network.mean(axis=2)[0].T)[0, 1]) < 0.3
