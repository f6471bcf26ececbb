"""What all images share: colours, matplotlib figures as arrays, and a canvas for frames of video and text.

matplotlib is imported when something is drawn, which a training may never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Pixels = NDArray[np.uint8]
"""RGB in [0, 255], (…, h, w, 3)."""

COLOURS = ("#1f6f8b", "#d4342c", "#8a4fc4", "#b9770e", "#1a8754")
INK, SOFT, LINE = "#222c37", "#66727f", "#dfe3e8"
DPI = 100


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of `width` x `height` pixels, which pyplot does not know."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def to_array(figure: Figure) -> Pixels:
    """The drawn figure, (h, w, 3)."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def style(axes: Axes, *, title: str = "", xlabel: str = "") -> None:
    """A light grid, no frame, and a title on the left in which $ and _ mean themselves."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, parse_math=False)
    axes.set_xlabel(xlabel, color=SOFT)
    axes.grid(color=LINE, lw=0.8)
    axes.tick_params(colors=SOFT, which="both", length=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)


class Canvas:
    """A white image of `width` x `height` pixels. Positions are pixels from the left and from the top."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self,
        left: float,
        top: float,
        text: str,
        *,
        size: int = 13,
        colour: str = INK,
        bold: bool = False,
        anchor: str = "la",
    ) -> None:
        """One line of text, `size` pixels high. `anchor`: which of its points is placed, as Pillow names them."""
        self._draw.text((left, top), text, colour, _font(size, bold), anchor)

    def frame(self, left: int, top: int, frame: Pixels, *, scale: int = 1, border: str = "", width: int = 3) -> None:
        """A frame of video (h, w, 3), each pixel `scale` x `scale`, and a border of `width` pixels around it."""
        pixels = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        if border:
            height, wide = pixels.shape[:2]
            self.box(left - width, top - width, left + wide + width, top + height + width, fill=border)
        self._image.paste(Image.fromarray(pixels), (left, top))

    def box(self, left: int, top: int, right: int, bottom: int, *, fill: str = "", outline: str = "") -> None:
        """A rectangle from (left, top) to (right, bottom), the end not included; nothing if it is empty."""
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), fill or None, outline or None)

    def array(self) -> Pixels:
        """The image, (height, width, 3)."""
        return np.array(self._image)


def text_width(text: str, *, size: int = 13) -> int:
    """Width in pixels of a line of text on a canvas."""
    return round(_font(size, False).getlength(text))


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import FontProperties, findfont

    return ImageFont.truetype(findfont(FontProperties(weight="bold" if bold else "normal")), size)


# --------------------------------------------------------------------------------------------------------------- curves
# Scores over the horizon of a rollout.

FEW = 30
"""Curves of fewer points get a dot at each."""
PANEL = (560, 400)
"""Width and height of a panel in pixels."""


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
    """`panels` side by side: (h, w, 3) uint8. The first frame is 1.

    Lines of one name have the same colour in every panel. ValueError if a panel has no finite value.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(len(panels) * PANEL[0], PANEL[1])
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
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
