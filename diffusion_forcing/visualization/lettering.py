"""Words as pixels, for pictures that are put together from arrays."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

DPI = 100
PAPER = "#ffffff"
_POINTS = 72
_LINE = 1.5  # height of a line in the font's size


@lru_cache(maxsize=4096)  # a film repeats its words
def lettering(text: str, *, pixels: float = 13, colour: str = "#222c37", bold: bool = False) -> NDArray[np.uint8]:
    """`text` in one line on white, as tight as it is wide: (h, w, 3) uint8, h the same for every text of this size. Not to be edited."""
    height = round(pixels * _LINE)
    figure = Figure(figsize=(len(text) * pixels / DPI + 1, height / DPI), dpi=DPI, facecolor=PAPER)
    canvas = FigureCanvasAgg(figure)
    figure.text(
        0,
        0.3,
        text,
        fontsize=pixels * _POINTS / DPI,
        color=colour,
        weight="bold" if bold else "normal",
        va="baseline",
        parse_math=False,
    )
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    inked = np.flatnonzero((drawn != 255).any(axis=(0, 2)))
    width = int(inked[-1]) + 1 if len(inked) else 1
    found = np.ascontiguousarray(drawn[:, :width])
    found.setflags(write=False)
    return found


def put_(picture: NDArray[np.uint8], patch: NDArray[np.uint8], top: int, left: int) -> None:
    """Paint `patch` into `picture` in place, cut off where it would stick out on the right or below."""
    room = picture[top : top + patch.shape[0], left : left + patch.shape[1]]
    room[...] = patch[: room.shape[0], : room.shape[1]]
