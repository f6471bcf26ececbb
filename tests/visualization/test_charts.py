"""Scores over the horizon."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_forcing.visualization import charts
from diffusion_forcing.visualization.charts import Panel, draw_fans, draw_horizon


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


def test_a_fan_begins_at_the_last_value_of_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(charts, "to_array", lambda figure: figures.append(figure) or np.zeros((1, 1, 3), np.uint8))
    history, target = np.array([[1.0, 5], [2, 6]]), np.full((2, 2), np.nan)
    draw_fans(history, np.array([[[3.0, 7], [4, 9]]]), target, names=["a", "b"])
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figures[0].axes[1].lines}
    assert drawn == {"median": [[0, 6], [1, 7], [2, 9]], "history": [[-1, 5], [0, 6]]}
    band = figures[0].axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 0].min() == 0 and set(band[band[:, 0] == 0, 1]) == {2.0}
    draw_fans(np.array([[0.0, 0, 9]]), np.ones((1, 2, 3)), np.ones((2, 3)), names=["a", "b", "a"], share_columns=True)
    first, beside, below = figures[1].axes
    assert first.get_ylim() == below.get_ylim() != beside.get_ylim()
