"""Predicted clips beside the true ones: the frames of a video, and a grid of frames.

Frames are uint8 RGB, (…, h, w, 3), and never edited: frames that the model observed get an amber border around them,
not over them. Small frames are enlarged, each pixel to a square.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.visualization.canvas import COLOURS, INK, LINE, SOFT, Canvas, Pixels, text_width

VIDEO_PIXELS, GRID_PIXELS = 256, 96
"""Approximate side of a frame in a video, in a grid."""
OBSERVED, PREDICTED = "#e8930c", COLOURS[0]
MARGIN, GAP, BORDER = 16, 20, 4
HEAD, FOOT = 30, 46
"""Pixels above and below the frames of a video."""
CELL, CELL_GAP = 12, 4
"""Box of one number of an action."""
COLUMNS = 12
"""Frames of a clip in a grid."""


class SideBySide:
    """Draws the frames of one clip's video, prediction left and truth right, as they come; only the layout is kept.

    Below them: the frame's number, the action that led to it, and a bar of the elapsed time.
    """

    def __init__(
        self,
        size: tuple[int, int],
        observed: ArrayLike,
        *,
        actions: ArrayLike | None = None,
        known: ArrayLike | None = None,
        columns: int = 0,
    ) -> None:
        """size: height and width of a frame. observed: (T,) bool, frames that the model was given. actions: (T, A), in
        groups of `columns` numbers; known: (T,) bool, where an action is known."""
        self.observed = np.asarray(observed, dtype=bool)
        self.scale = max(1, round(VIDEO_PIXELS / max(size)))
        height, width = size[0] * self.scale, size[1] * self.scale
        self._lefts = (MARGIN, MARGIN + width + GAP)
        self._size = (2 * (MARGIN + width) + GAP, HEAD + height + FOOT)
        self._actions = None if actions is None else np.asarray(actions, dtype=np.float64)
        self._known = np.ones(len(self.observed), dtype=bool) if known is None else np.asarray(known, dtype=bool)
        self._columns = columns

    def frames(self, start: int, prediction: Pixels, truth: Pixels) -> Pixels:
        """Frames start … of the clip, both (n, h, w, 3), as frames of the video (n, height, width, 3)."""
        return np.stack([self._frame(start + i, *pair) for i, pair in enumerate(zip(prediction, truth, strict=True))])

    def _frame(self, now: int, prediction: Pixels, truth: Pixels) -> Pixels:
        width, height = self._size
        canvas = Canvas(width, height)
        observed = bool(self.observed[now])
        for left, name, frame in zip(self._lefts, ("prediction", "truth"), (prediction, truth), strict=True):
            canvas.text(left, 6, name, bold=True)
            canvas.frame(left, HEAD, frame, scale=self.scale, border=OBSERVED if observed else "", width=BORDER)
        count, of = (self.observed, "observed") if observed else (~self.observed, "predicted")
        text = f"{of} {count[: now + 1].sum()} of {count.sum()}"
        canvas.text(MARGIN, height - FOOT + 9, text, colour=OBSERVED if observed else INK)
        if self._actions is not None:
            self._draw_action(canvas, now)
        # The elapsed time: observed frames amber, predicted ones blue.
        bar, length = width - 2 * MARGIN, len(self.observed)
        for number in range(length):
            colour = LINE if number > now else OBSERVED if self.observed[number] else PREDICTED
            start, end = (MARGIN - (-bar * end // length) for end in (number, number + 1))
            canvas.box(start, height - 12, end, height - 8, fill=colour)
        return canvas.array()

    def _draw_action(self, canvas: Canvas, now: int) -> None:
        """An action's numbers as boxes: filled for 1, empty for 0; from the middle up or down if some are negative.

        All boxes are empty where the action is not known. Actions too wide for half of the video are not drawn.
        """
        assert self._actions is not None
        width, height = self._size
        lefts = [i * (CELL + CELL_GAP) + i // max(1, self._columns) * CELL for i in range(self._actions.shape[1])]
        shift = width - MARGIN - lefts[-1] - CELL
        if shift < width / 2:
            return
        largest = float(np.abs(self._actions).max(initial=0.0)) or 1.0
        signed = bool((self._actions < 0).any())
        top = height - FOOT + BORDER + 6
        base, room = (top + CELL // 2, CELL // 2) if signed else (top + CELL, CELL)
        for left, value in zip(lefts, self._actions[now], strict=True):
            left += shift
            canvas.box(left, top, left + CELL, top + CELL, outline=LINE)
            if self._known[now]:
                end = base - round(value / largest * room)
                canvas.box(left, min(base, end), left + CELL, max(base, end), fill=INK)


def grid_frames(observed: ArrayLike, columns: int = COLUMNS) -> NDArray[np.int64]:
    """Numbers of the frames of a clip to show, rising: at most 2 observed ones before and 2 after the predicted ones.

    Of the predicted ones the first, the last, and others at growing distances. observed: (T,) bool, not all true.
    """
    observed = np.asarray(observed, dtype=bool)
    predicted = np.flatnonzero(~observed)
    before = np.flatnonzero(observed[: predicted[0]])[-2:]
    after = predicted[-1] + 1 + np.flatnonzero(observed[predicted[-1] + 1 :])[:2]
    n, room = len(predicted), max(2, columns - len(before) - len(after))
    power = 1.0 if len(after) else 1.5
    chosen = np.unique(np.round((n - 1) * np.linspace(0, 1, min(n, room)) ** power).astype(np.int64))
    if n <= room:
        chosen = np.arange(n)
    return np.concatenate([before, predicted[chosen], after]).astype(np.int64)


def draw_grid(
    truths: Sequence[Pixels], predictions: Sequence[Pixels], frames: ArrayLike, observed: ArrayLike
) -> Pixels:
    """A grid of frames: columns are frames; of each clip the truth above the prediction.

    truths, predictions: (m, h, w, 3) of each clip. frames: (m,), their numbers in the clip. observed: (T,) bool,
    frames of the clip that the model was given.
    """
    numbers: list[int] = np.asarray(frames).tolist()
    observed = np.asarray(observed, dtype=bool)
    height, width = truths[0].shape[1:3]
    scale = max(1, round(GRID_PIXELS / max(height, width)))
    height, width, gap = height * scale, width * scale, 2 * BORDER
    left = MARGIN + text_width("prediction", size=12) + 12
    lefts = []
    for i, number in enumerate(numbers):
        if i and observed[number] != observed[numbers[i - 1]]:
            left += gap  # between observed and predicted frames
        lefts.append(left)
        left += width + gap
    head, clip_height = 28, 2 * height + gap + BORDER + 18
    canvas = Canvas(left - gap + MARGIN, head + len(truths) * clip_height)
    for at, number in zip(lefts, numbers, strict=True):
        text = "observed" if observed[number] else f"+{(~observed[: number + 1]).sum()}"
        colour = OBSERVED if observed[number] else INK
        canvas.text(at + width / 2, head - 9, text, size=12, colour=colour, anchor="ms")
    for clip, pair in enumerate(zip(truths, predictions, strict=True)):
        for row, (name, video) in enumerate(zip(("truth", "prediction"), pair, strict=True)):
            top = head + clip * clip_height + row * (height + gap)
            canvas.text(lefts[0] - 12, top + height / 2, name, size=12, colour=SOFT, anchor="rm")
            for at, number, frame in zip(lefts, numbers, video, strict=True):
                canvas.frame(at, top, frame, scale=scale, border=OBSERVED if observed[number] else "")
    return canvas.array()
