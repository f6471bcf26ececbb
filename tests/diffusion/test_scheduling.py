from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_forcing.diffusion import sampling_levels, scheduling_matrix, validate_matrix
from diffusion_forcing.diffusion.scheduling import SCHEDULING_MATRICES
from diffusion_forcing.errors import UserError

kinds = st.sampled_from(SCHEDULING_MATRICES)
horizons = st.integers(1, 12)
steps = st.integers(1, 20)
uncertainties = st.floats(0, 5)


@given(kind=kinds, horizon=horizons, levels=steps, uncertainty=uncertainties)
@settings(max_examples=40)
def test_every_matrix_starts_as_noise_ends_clean_and_loses_a_level_a_row(
    kind: str, horizon: int, levels: int, uncertainty: float
) -> None:
    matrix = scheduling_matrix(kind, horizon, levels, uncertainty_scale=uncertainty)
    assert matrix.shape[1] == horizon
    assert torch.equal(validate_matrix(matrix, levels), matrix)
    falls = -matrix.diff(dim=0)
    assert ((falls == 0) | (falls == 1)).all()
    assert (falls.sum(dim=0) == levels).all()
    # every row up to the last does something
    assert (falls.sum(dim=1) > 0)[-1]


@given(horizon=horizons, levels=steps, uncertainty=uncertainties)
@settings(max_examples=40)
def test_the_pyramid_keeps_the_near_future_ahead(horizon: int, levels: int, uncertainty: float) -> None:
    matrix = scheduling_matrix("pyramid", horizon, levels, uncertainty_scale=uncertainty)
    assert len(matrix) == levels + math.floor((horizon - 1) * uncertainty) + 1
    assert (matrix.diff(dim=1) >= 0).all()
    for row in range(len(matrix)):
        for token in range(horizon):
            expected = min(max(levels + math.floor(token * uncertainty) - row, 0), levels)
            assert matrix[row, token] == expected


@given(horizon=horizons, levels=steps, uncertainty=uncertainties)
@settings(max_examples=40)
def test_the_trapezoid_is_symmetric_and_does_its_ends_first(horizon: int, levels: int, uncertainty: float) -> None:
    matrix = scheduling_matrix("trapezoid", horizon, levels, uncertainty_scale=uncertainty)
    assert torch.equal(matrix, matrix.flip(1))
    left = (horizon + 1) // 2
    assert torch.equal(
        matrix[:, :left], scheduling_matrix("pyramid", left, levels, uncertainty_scale=uncertainty)[: len(matrix)]
    )
    assert (matrix[-1] == 0).all()


@given(horizon=horizons, levels=steps)
@settings(max_examples=40)
def test_full_sequence_and_autoregressive_are_the_two_ends_of_the_pyramid(horizon: int, levels: int) -> None:
    full = scheduling_matrix("full_sequence", horizon, levels, uncertainty_scale=3.0)
    assert torch.equal(full, scheduling_matrix("pyramid", horizon, levels, uncertainty_scale=0.0))
    assert torch.equal(full, torch.arange(levels, -1, -1)[:, None].expand(-1, horizon))
    one_by_one = scheduling_matrix("autoregressive", horizon, levels)
    assert torch.equal(one_by_one, scheduling_matrix("pyramid", horizon, levels, uncertainty_scale=float(levels)))
    # never two tokens in the middle of falling
    assert (((one_by_one > 0) & (one_by_one < levels)).sum(dim=1) <= 1).all()
    assert len(one_by_one) == horizon * levels + 1


def test_a_matrix_of_ones_own_comes_back_as_integers() -> None:
    own = [[3, 3], [2, 3], [0, 1], [0, 0]]
    assert torch.equal(validate_matrix(own, 3), torch.tensor(own))
    assert validate_matrix(torch.tensor(own, dtype=torch.int16), 3).dtype == torch.int64


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[3, 3], [2], [0, 0]], "rows of equal length"),
        ([["a", "b"]], "rows of equal length"),
        ([3, 0], "got shape (2,)"),
        ([[3, 3]], "2 rows or more"),
        ([[], []], "got shape (2, 0)"),
        ([[3.0, 3.0], [0.0, 0.0]], "integers"),
        ([[True], [False]], "integers"),
        ([[4, 3], [0, 0]], "holds levels 0…3 (sampling_timesteps); token 0 goes [4, 0]"),
        ([[3, 3], [0, -1]], "token 1 goes [3, -1]"),
        ([[3, 2], [0, 0]], "starts at 3 (pure noise); token 1 goes [2, 0]"),
        ([[3, 3], [0, 1]], "ends at 0 (clean); token 1 goes [3, 1]"),
        ([[3, 3], [1, 3], [2, 1], [0, 0]], "never rises; token 0 goes [3, 1, 2, 0]"),
    ],
)
def test_a_matrix_that_cannot_be_sampled_is_refused_in_one_line(matrix: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_matrix(matrix, 3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "horizon", "levels", "uncertainty", "message"),
    [
        ("pyramide", 3, 3, 1.0, "did you mean 'pyramid'"),
        ("pyramid", 0, 3, 1.0, "horizon must be at least 1, got 0"),
        ("pyramid", 3, 0, 1.0, "sampling_timesteps must be at least 1, got 0"),
        ("pyramid", 3, 3, -0.5, "uncertainty_scale must be at least 0, got -0.5"),
    ],
)
def test_a_matrix_that_cannot_be_built_is_refused(
    kind: str, horizon: int, levels: int, uncertainty: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scheduling_matrix(kind, horizon, levels, uncertainty_scale=uncertainty)


@given(data=st.data(), timesteps=st.integers(1, 1000))
@settings(max_examples=40)
def test_sampling_levels_rise_from_clean_to_the_noisiest(data: st.DataObject, timesteps: int) -> None:
    count = data.draw(st.integers(1, timesteps))
    found = sampling_levels(timesteps, count)
    assert found.shape == (count + 1,)
    assert found.dtype == torch.int64
    assert (found[0], found[-1]) == (-1, timesteps - 1)
    assert (found.diff() > 0).all()
    exact = torch.linspace(-1, timesteps - 1, count + 1, dtype=torch.float64)
    assert ((found - exact).abs() < 1 + 1e-3).all()


def test_as_many_sampling_levels_as_training_levels_are_all_of_them() -> None:
    assert torch.equal(sampling_levels(1000, 1000), torch.arange(-1, 1000))


@pytest.mark.parametrize("count", [0, 11])
def test_more_sampling_levels_than_training_levels_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"sampling_timesteps is {count}; it must lie in 1…10"):
        sampling_levels(10, count)
