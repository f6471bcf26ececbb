"""The loss curve, and scores over the horizon."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_forcing.visualization.curves import Panel, draw_horizon, draw_loss_curve, smoothed


def test_a_loss_curve_has_the_size_asked_for_and_leaves_its_input() -> None:
    steps, values = np.arange(100), np.exp(-np.arange(100) / 20)
    values[5] = np.nan
    before = values.copy()
    image = draw_loss_curve(steps, values, width=400, height=300)
    assert image.shape == (300, 400, 3) and image.dtype == np.uint8
    assert np.array_equal(values, before, equal_nan=True)
    assert (image != 255).any()


def test_values_that_are_not_positive_get_a_linear_axis_and_one_value_is_enough() -> None:
    assert draw_loss_curve([0, 1], [-1.0, 0.0], width=300, height=200).shape == (200, 300, 3)
    assert draw_loss_curve([7], [0.5], width=300, height=200).shape == (200, 300, 3)


def test_nothing_to_draw_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="no finite value"):
        draw_loss_curve([1, 2], [np.nan, np.inf])
    with pytest.raises(ValueError, match="equally long, got 3 and 2"):
        draw_loss_curve([1, 2, 3], [1.0, 2.0])


def test_smoothing_keeps_a_constant_and_does_not_lag_behind_a_slope() -> None:
    assert smoothed(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    assert smoothed(np.arange(200.0))[10:190] == pytest.approx(np.arange(10.0, 190.0))


def test_curves_have_one_colour_a_name_and_leave_gaps_where_there_is_nothing() -> None:
    values = np.array([20.0, 18.0, np.nan])
    panels = [
        Panel(
            title="PSNR, dB",
            lines={"model": values, "copy": values - 1},
            band=(values - 1, values + 1),
            band_name="95 %",
        ),
        Panel(title="SSIM", lines={"model": values / 30}),
    ]
    one, two = draw_horizon(panels[:1]), draw_horizon(panels)
    assert one.shape == (400, 560, 3) and two.shape == (400, 1120, 3)
    assert one.std() > 5
    with pytest.raises(ValueError, match="no finite value to draw in 'SSIM'"):
        draw_horizon([Panel(title="SSIM", lines={"model": [np.nan]})])
