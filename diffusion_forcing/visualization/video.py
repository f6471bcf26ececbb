"""Predicted clips beside the true ones: the frames of a film, and a contact sheet.

Everything takes and returns uint8 RGB, (…, h, w, 3) in [0, 255], and paints on pixels of its own: what is given and what is predicted is never
edited. What the model was given is framed in amber, around the frame and not over it. Small frames are shown larger, each pixel a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

# Words as pixels, for pictures that are put together from arrays.

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


Picture = NDArray[np.uint8]
FILM_PIXELS, SHEET_PIXELS = 256, 96  # about the side of a frame in a film, on a sheet
INK, SOFT, LINE, GIVEN, PREDICTED = "#222c37", "#66727f", "#dfe3e8", "#e8930c", "#1f6f8b"
MARGIN, GAP, BORDER = 16, 20, 4
HEAD, FOOT = 30, 46  # above and below the frames of a film
CELL, CELL_GAP = 12, 4  # of an action
COLUMNS = 12  # of a sheet


class SideBySide:
    """The frames of a film of one clip, prediction left and truth right, made as the frames come: nothing is kept but the layout.

    Below them: which frame this is, the action that led to it, and a bar of the time gone.
    """

    def __init__(
        self,
        size: tuple[int, int],
        given: ArrayLike,
        *,
        actions: ArrayLike | None = None,
        known: ArrayLike | None = None,
        columns: int = 0,
    ) -> None:
        """size: (h, w) of a frame; given: (T,) bool, frames of the clip that the model was given; actions: (T, A), those that led to each
        frame, known: (T,) bool, whether they are; columns: of one action, where several lie side by side (0: A)."""
        self.given = np.asarray(given, dtype=bool)
        self.actions = None if actions is None else np.asarray(actions, dtype=np.float64)
        self.known = np.ones_like(self.given) if known is None else np.asarray(known, dtype=bool)
        self.scale = max(1, round(FILM_PIXELS / max(size)))
        h, w = size[0] * self.scale, size[1] * self.scale
        self._boxes = [(HEAD, MARGIN + side * (w + GAP), h, w) for side in range(2)]
        self._width = 2 * MARGIN + 2 * w + GAP
        self._height = HEAD + h + FOOT
        self._columns = columns or (0 if self.actions is None else self.actions.shape[1])
        self._largest = 1.0 if self.actions is None else float(np.abs(self.actions).max(initial=0.0)) or 1.0
        self._predicted = int((~self.given).sum())
        self._paper = np.full((self._height, self._width, 3), 255, np.uint8)
        for (_, left, _, _), name in zip(self._boxes, ("prediction", "truth"), strict=True):
            put_(self._paper, lettering(name, bold=True), 4, left)

    def frames(self, start: int, prediction: Picture, truth: Picture) -> Picture:
        """Frames start … of the clip, both (n, h, w, 3), as frames of the film (n, height, width, 3)."""
        return np.stack([self._frame(start + i, *pair) for i, pair in enumerate(zip(prediction, truth, strict=True))])

    def _frame(self, now: int, prediction: Picture, truth: Picture) -> Picture:
        picture, given = self._paper.copy(), bool(self.given[now])
        for (top, left, h, w), pixels in zip(self._boxes, (prediction, truth), strict=True):
            if given:
                around = picture[top - BORDER : top + h + BORDER, left - BORDER : left + w + BORDER]
                around[...] = _rgb(GIVEN)
            picture[top : top + h, left : left + w] = enlarged(pixels, self.scale)
        below = self._height - FOOT + BORDER + 3
        number = int((~self.given[: now + 1]).sum())
        text = (
            f"given {now + 1 - number} of {len(self.given) - self._predicted}"
            if given
            else f"predicted {number} of {self._predicted}"
        )
        put_(picture, lettering(text, colour=GIVEN if given else INK), below, MARGIN)
        if self.actions is not None:
            glyph = action_glyph(self.actions[now], bool(self.known[now]), self._columns, self._largest)
            if glyph.shape[1] < self._width // 2:
                put_(picture, glyph, below + 2, self._width - MARGIN - glyph.shape[1])
        self._draw_time_(picture, now)
        return picture

    def _draw_time_(self, picture: Picture, now: int) -> None:
        length, room = len(self.given), self._width - 2 * MARGIN
        frame_of = np.arange(room) * length // room
        colours = np.where(self.given[frame_of][:, None], _rgb(GIVEN), _rgb(PREDICTED))
        bar = np.where((frame_of <= now)[:, None], colours, _rgb(LINE)).astype(np.uint8)
        picture[self._height - 12 : self._height - 8, MARGIN : MARGIN + room] = bar


def action_glyph(action: NDArray[Any], known: bool, columns: int, largest: float = 1.0) -> Picture:
    """One row of an action's numbers, (A,), as boxes: filled for 1, empty for 0, part-filled between, down from the middle for negative ones.
    Every `columns` numbers are a group of their own; all boxes are pale where the action is not known."""
    groups = max(1, len(action) // max(1, columns))
    width = len(action) * (CELL + CELL_GAP) + (groups - 1) * CELL
    picture = np.full((CELL, max(1, width), 3), 255, np.uint8)
    signed = bool((action < 0).any())
    for index, value in enumerate(action):
        left = index * (CELL + CELL_GAP) + index // max(1, columns) * CELL
        box = picture[:, left : left + CELL]
        box[...] = _rgb(LINE)
        box[1:-1, 1:-1] = 255
        if known and value:
            tall = round(abs(float(value)) / largest * (CELL // 2 if signed else CELL))
            middle = CELL // 2 if signed else CELL
            box[slice(middle - tall, middle) if value > 0 else slice(middle, middle + tall)] = _rgb(INK)
    return picture


def sheet_frames(given: ArrayLike, columns: int = COLUMNS) -> NDArray[np.int64]:
    """Which frames of a clip to show, rising: the last given ones before and the first behind the predicted, and of those the first,
    the last, and others ever further apart. given: (T,) bool, with a predicted frame."""
    given = np.asarray(given, dtype=bool)
    predicted = np.flatnonzero(~given)
    before, behind = (
        np.flatnonzero(given[: predicted[0]])[-2:],
        predicted[-1] + 1 + np.flatnonzero(given[predicted[-1] + 1 :])[:2],
    )
    room = max(2, columns - len(before) - len(behind))
    n = len(predicted)
    power = 1.0 if len(behind) else 1.5
    chosen = (
        np.arange(n) if n <= room else np.unique(np.round((n - 1) * np.linspace(0, 1, room) ** power).astype(np.int64))
    )
    return np.concatenate([before, predicted[chosen], behind]).astype(np.int64)


def draw_sheet(
    truths: Sequence[Picture], predictions: Sequence[Picture], frames: ArrayLike, given: ArrayLike, *, title: str = ""
) -> Picture:
    """Clips below each other, the truth above the prediction; columns are frames. truths, predictions: (m, h, w, 3) a clip; frames: (m,),
    their numbers in the clip; given: (T,) bool, frames of the clip that the model was given."""
    frames, given = np.asarray(frames), np.asarray(given, dtype=bool)
    size = truths[0].shape[1:3]
    scale = max(1, round(SHEET_PIXELS / max(size)))
    h, w = size[0] * scale, size[1] * scale
    names = [lettering(name, colour=SOFT, pixels=12) for name in ("truth", "prediction")]
    left = MARGIN + max(name.shape[1] for name in names) + 12
    gap = 2 * BORDER
    breaks = np.concatenate([[0], np.cumsum(given[frames[1:]] != given[frames[:-1]])])
    lefts = [left + i * (w + gap) + int(breaks[i]) * gap for i in range(len(frames))]
    head = 28 + (26 if title else 0)
    pair = 2 * h + gap + BORDER
    width = lefts[-1] + w + MARGIN
    height = head + len(truths) * (pair + 18) + 18
    picture = np.full((height, width, 3), 255, np.uint8)
    if title:
        put_(picture, lettering(title, pixels=15, bold=True), 6, MARGIN)
    for at, frame in zip(lefts, frames.tolist(), strict=True):
        text = "given" if given[frame] else f"+{int((~given[: frame + 1]).sum())}"
        word = lettering(text, colour=GIVEN if given[frame] else INK, pixels=12)
        put_(picture, word, head - 24, at + max(0, (w - word.shape[1]) // 2))
    for clip, films in enumerate(zip(truths, predictions, strict=True)):
        for row, (film, name) in enumerate(zip(films, names, strict=True)):
            top = head + clip * (pair + 18) + row * (h + gap)
            put_(picture, name, top + (h - name.shape[0]) // 2, left - 12 - name.shape[1])
            for at, frame, pixels in zip(lefts, frames.tolist(), film, strict=True):
                if given[frame]:
                    picture[top - 3 : top + h + 3, at - 3 : at + w + 3] = _rgb(GIVEN)
                picture[top : top + h, at : at + w] = enlarged(pixels, scale)
    return picture


def enlarged(picture: Picture, scale: int) -> Picture:
    """(h, w, 3) with every pixel as a square of `scale` pixels a side."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _rgb(colour: str) -> NDArray[np.uint8]:
    return np.round(255 * np.array(to_rgb(colour))).astype(np.uint8)
