"""What all images share: colours, matplotlib figures as arrays, and a canvas for frames of video and text.

matplotlib is imported when something is drawn, which a training may never do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
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
