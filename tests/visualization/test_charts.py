"""Scores over the horizon."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_forcing.visualization.charts import Panel, draw_horizon


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
