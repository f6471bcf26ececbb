"""Histograms of many things at once, one a row: how large the values of every weight of a network are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffusion_forcing.visualization.curves import INK

MOST_ROWS = 120
LONGEST_NAME = 48


def draw_histograms(
    counts: NDArray[np.integer], *, names: Sequence[str], edges: NDArray[np.floating], title: str, width: int = 1000
) -> NDArray[np.uint8]:
    """counts: (n, bins), edges: (bins + 1,) powers of ten → (H, width, 3) uint8: a row each, darker where more of its values are.

    Of more than 120 rows, the first and the last are drawn.
    """
    if len(counts) > MOST_ROWS:
        half = MOST_ROWS // 2
        counts = np.concatenate([counts[:half], counts[-half:]])
        names = [*names[:half], *names[-half:]]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    rows = len(counts)
    figure = Figure(figsize=(width / 100, 1.2 + 0.16 * rows), dpi=100, facecolor="white")
    high = figure.get_figheight()
    figure.subplots_adjust(left=0.3, right=0.98, bottom=0.4 / high, top=1 - 0.4 / high)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(
        shares, aspect="auto", cmap="Blues", interpolation="none", extent=(edges[0], edges[-1], rows - 0.5, -0.5)
    )
    shared = [len(set(parts)) == 1 for parts in zip(*(name.split(".")[:-1] for name in names), strict=False)]
    common = [*shared, False].index(False)  # of all names, when there are several
    names = [".".join(name.split(".")[common:]) for name in names] if rows > 1 else names
    labels = [name if len(name) <= LONGEST_NAME else f"…{name[-LONGEST_NAME + 1 :]}" for name in names]
    axes.set_yticks(range(rows), labels, fontsize=6)
    axes.set_title(f"{title}: size of the values, log10", fontsize=10, color=INK)
    axes.tick_params(axis="x", labelsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
