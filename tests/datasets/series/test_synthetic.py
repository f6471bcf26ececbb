"""Synthetic series: of many kinds, the same again, with what simple methods leave over about as large as it should be."""

from __future__ import annotations

import numpy as np
import torch

from diffusion_forcing.datasets.series.synthetic import SyntheticWindows, synthetic_table


def test_tables_hold_many_kinds_and_are_finite() -> None:
    values = synthetic_table(np.random.default_rng(0), 300, season=12)
    assert np.isfinite(values).all()
    positive, whole = (values >= 0).all(axis=0), (values == np.round(values)).all(axis=0)
    assert 0.2 < positive.mean() < 0.9
    assert 0 < whole.mean() < 0.4
    assert ((values == 0).mean(axis=0) > 0.2).any()


def test_a_window_depends_on_its_number_alone_and_is_scaled_by_its_base() -> None:
    windows = SyntheticWindows(10_000, 12, 6)
    batch, again = windows.__getitems__([5, 900, 4096]), SyntheticWindows(10_000, 12, 6).__getitems__([900])
    assert batch.values.shape == (3, 18, 1)
    for one, other in zip(batch, again, strict=True):
        assert torch.equal(one[1:2], other)
    many = windows.__getitems__(range(2048))
    left = ((many.values - many.base) / many.spread)[many.observed]
    assert 0.5 < float(left.square().mean().sqrt()) < 2.5
    assert not bool(many.observed.all())
