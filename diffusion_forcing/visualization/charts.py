"""Charts: scores over the horizon of a rollout, fans of sample paths after their history, and how often the truth lay below each
quantile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.visualization.canvas import COLOURS, INK, LINE, Pixels, new_figure, style, to_array

FEW = 30
"""Curves of fewer points get a dot at each."""
PANEL = (560, 400)
"""Width and height of a panel in pixels."""
BANDS = ((0.9, 0.18), (0.8, 0.28), (0.5, 0.42))
"""Central intervals and how dark they are."""
WIDTH, ROW = 1000, 260
"""Pixels: width of an image of charts, height of a row of them."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity over the horizon.

    lines: (n,) by name, NaN where there is no value; band: lower and upper end, (n,) each, around the first line.
    """

    title: str
    lines: Mapping[str, ArrayLike]
    band: tuple[ArrayLike, ArrayLike] | None = None
    band_name: str = ""


def draw_horizon(panels: Sequence[Panel]) -> Pixels:
    """`panels`, three in a row: (h, w, 3) uint8. The first frame is 1.

    Lines of one name have the same colour in every panel. ValueError if a panel has no finite value.
    """
    from matplotlib.ticker import MaxNLocator

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(columns * PANEL[0], rows * PANEL[1])
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in places[len(panels) :]:
        empty.set_axis_off()
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for panel, axes in zip(panels, places, strict=False):
        if not any(np.isfinite(np.asarray(values, dtype=np.float64)).any() for values in panel.lines.values()):
            raise ValueError(f"no finite value to draw in '{panel.title}'")
        for index, (name, values) in enumerate(panel.lines.items()):
            y = np.asarray(values, dtype=np.float64)
            x = np.arange(1, len(y) + 1)
            # The first line is the model's.
            width, size, order = (2.4, 4, 3) if index == 0 else (1.6, 3, 2)
            marker = "o" if len(y) < FEW else ""
            axes.plot(x, y, color=colours[name], lw=width, marker=marker, ms=size, label=name, zorder=order)
            if index == 0 and panel.band is not None:
                low, high = (np.asarray(end, dtype=np.float64) for end in panel.band)
                label = panel.band_name if np.isfinite(low).any() else None
                axes.fill_between(x, low, high, color=colours[name], alpha=0.18, lw=0, label=label)
        style(axes, title=panel.title, xlabel="predicted frame")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    return to_array(figure)


def draw_fans(
    history: NDArray[np.floating],
    samples: NDArray[np.floating],
    target: NDArray[np.floating],
    *,
    names: Sequence[str],
    times: Sequence[str] | None = None,
    share_columns: bool = False,
) -> NDArray[np.uint8]:
    """history: (c, v), samples: (paths, h, v), target: (h, v), NaN where nothing was observed, in data units → (H,
    WIDTH, 3) uint8: a chart for each variate, two in a row. times: the c + h times in ISO 8601; None: steps are counted
    from the end of the history. share_columns: charts below each other have one range of values. What lies ahead is
    drawn from the last value of the history on."""
    axis = np.arange(1 - len(history), samples.shape[1] + 1)
    if times is not None:
        axis = _moments(times)
    past, ahead = axis[: len(history)], axis[len(history) - 1 :]
    samples = np.concatenate([np.repeat(history[None, -1:], len(samples), axis=0), samples], axis=1)

    def draw(axes: Any, number: int) -> None:
        _draw_bands(axes, ahead, samples[:, :, number])
        axes.plot(past, history[:, number], color=INK, lw=1.2, label="history")
        if np.isfinite(target[:, number]).any():
            observed = np.append(history[-1:, number], target[:, number])
            axes.plot(ahead, observed, color=COLOURS[1], lw=1.5, label="observed")

    return _charts(names, draw, dated=times is not None, share_columns=share_columns)


def draw_gaps(
    values: NDArray[np.floating],
    samples: NDArray[np.floating],
    target: NDArray[np.floating],
    *,
    names: Sequence[str],
    times: Sequence[str],
) -> NDArray[np.uint8]:
    """values: (h, v), NaN in gaps, samples: (paths, h, v), target: (h, v), what was hidden in gaps, else NaN, in data
    units → (H, WIDTH, 3) uint8: a chart for each variate, two in a row."""
    moments = _moments(times)

    def draw(axes: Any, number: int) -> None:
        missing = np.isnan(values[:, number])
        # Bands reach to the observed values on either side of a gap.
        beside = missing | np.roll(missing, 1) | np.roll(missing, -1)
        _draw_bands(axes, moments, np.where(beside, samples[:, :, number], np.nan))
        axes.plot(moments, values[:, number], color=INK, lw=1.2, marker=".", ms=3, label="observed")
        if np.isfinite(target[:, number]).any():
            axes.plot(moments, target[:, number], color=COLOURS[1], lw=0, marker=".", ms=5, label="hidden")

    return _charts(names, draw, dated=True)


def _moments(times: Sequence[str]) -> NDArray[np.datetime64]:
    """Local times, without their offset from UTC."""
    return np.array([time[:19] for time in times], "datetime64[s]")


def _draw_bands(axes: Any, moments: NDArray[Any], paths: NDArray[np.floating]) -> None:
    """The middle of paths (n, h), and bands that hold shares of them."""
    for interval, alpha in BANDS:
        low, high = np.quantile(paths, [0.5 - interval / 2, 0.5 + interval / 2], axis=0)
        axes.fill_between(moments, low, high, color=COLOURS[0], alpha=alpha, lw=0, label=f"{interval:.0%} of paths")
    axes.plot(moments, np.median(paths, axis=0), color=COLOURS[0], lw=1.5, label="median")


def _charts(
    names: Sequence[str], draw: Callable[[Any, int], None], *, dated: bool, share_columns: bool = False
) -> NDArray[np.uint8]:
    """A chart for each name, two in a row, that `draw(axes, number)` fills."""
    from matplotlib.dates import ConciseDateFormatter

    columns = 1 if len(names) == 1 else 2
    rows = -(-len(names) // columns)
    figure = new_figure(WIDTH, rows * ROW)
    entries: dict[str, Any] = {}
    for number, name in enumerate(names):
        above = figure.axes[number - columns] if share_columns and number >= columns else None
        axes = figure.add_subplot(rows, columns, number + 1, sharey=above)
        draw(axes, number)
        axes.set_title(name, fontsize=10, color=INK)
        axes.grid(color=LINE, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        if dated:
            axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(entries), "frameon": False}
    figure.legend(list(entries.values()), list(entries), fontsize=8, **place)
    return to_array(figure)


def draw_calibration(levels: ArrayLike, shares: ArrayLike) -> NDArray[np.uint8]:
    """levels, shares: (n,) in 0…1, quantiles and the share of values below them → a square image (h, w, 3) uint8."""
    figure = new_figure(480, 480)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=LINE, lw=1.5)
    axes.plot(np.asarray(levels), np.asarray(shares), color=COLOURS[0], marker="o", ms=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="quantile of the paths", ylabel="share of values below it")
    axes.grid(color=LINE, lw=0.6)
    return to_array(figure)
