"""Predicted clips beside the true ones, and a robot at work: the frames of a video, and a grid of frames.

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


def grid_frames(observed: ArrayLike) -> NDArray[np.int64]:
    """Numbers of the frames of a clip to show, rising: at most 2 observed ones before and 2 after the predicted ones.

    Of the predicted ones the first, the last, and others at growing distances. observed: (T,) bool, not all true.
    """
    observed = np.asarray(observed, dtype=bool)
    predicted = np.flatnonzero(~observed)
    before = np.flatnonzero(observed[: predicted[0]])[-2:]
    after = predicted[-1] + 1 + np.flatnonzero(observed[predicted[-1] + 1 :])[:2]
    n, room = len(predicted), max(2, COLUMNS - len(before) - len(after))
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


# ---------------------------------------------------------------------------------------------------------------- robot
# A robot at work: a video of an episode and a grid of several, with what the policy saw beside what it had expected
# to see.

ROBOT_GAP, ROBOT_HEAD, ROBOT_FOOT = 12, 28, 40
GOOD, BAD = "#1a8754", "#d4342c"
BLOCKED = 70
"""Grey of a blocked camera."""
LAST_FRAMES = 10
"""How often the last frame of a video is repeated."""


def episode_video(
    scene: Sequence[Pixels],
    blocked: Sequence[NDArray[np.bool_]],
    decisions: Sequence[int],
    seen: Sequence[Pixels],
    expected: Sequence[Pixels | None],
    *,
    cameras: Sequence[str],
    success: bool,
) -> Pixels:
    """Frames (m, height, width, 3), one per action: the cameras above; below what the policy saw at its last decision,
    and expected.

    scene: m images (cameras, H, H, 3); blocked: m times (cameras,) bool; decisions: the frame of each decision; seen:
    per decision (cameras, h, h, 3); expected: the same, or None.
    """
    side = scene[0].shape[1]
    small = side // 2
    names = [*(f"saw, {name}" for name in cameras), *(f"expected, {name}" for name in cameras)]
    width = 2 * MARGIN + max(len(names) * (small + ROBOT_GAP), len(cameras) * (side + ROBOT_GAP) - ROBOT_GAP)
    below = ROBOT_HEAD + side + ROBOT_HEAD
    frames = []
    for now in range(len(scene)):
        canvas = Canvas(width, below + small + ROBOT_FOOT)
        # The scene, with blocked cameras dark.
        for number, name in enumerate(cameras):
            left = MARGIN + number * (side + ROBOT_GAP)
            canvas.text(left, 7, name, bold=True)
            if blocked[now][number]:
                canvas.frame(left, ROBOT_HEAD, np.full_like(scene[now][number], BLOCKED))
                canvas.text(left + side / 2, ROBOT_HEAD + side / 2, "blocked", colour=BAD, bold=True, anchor="mm")
            else:
                canvas.frame(left, ROBOT_HEAD, scene[now][number])
        # The images of the last decision.
        last = int(np.searchsorted(np.asarray(decisions), now, side="right")) - 1
        hopes = expected[last]
        images = [*seen[last], *([] if hopes is None else hopes)]
        for number, name in enumerate(names):
            left = MARGIN + number * (small + ROBOT_GAP // 2)
            canvas.text(left, ROBOT_HEAD + side + 10, name, size=11, colour=SOFT)
            if number < len(images):
                at = np.arange(small) * images[number].shape[0] // small  # the nearest pixels
                canvas.frame(left, below, images[number][at][:, at])
        over = now == len(scene) - 1
        text = ("both fruits are swapped" if success else "not done") if over else f"action {now}"
        colour = (GOOD if success else BAD) if over else INK
        canvas.text(MARGIN, below + small + 13, text, colour=colour, bold=over)
        frames.append(canvas.array())
    return np.stack(frames + [frames[-1]] * LAST_FRAMES)


def decision_grid(
    seen: Sequence[Sequence[Pixels]], expected: Sequence[Sequence[Pixels | None]], titles: Sequence[str]
) -> Pixels:
    """For every episode, what the first camera showed at each decision, above what the policy had expected.

    seen, expected: per episode and decision (cameras, h, h, 3), or None.
    """
    scale = max(1, round(GRID_PIXELS / seen[0][0].shape[1]))
    side = seen[0][0].shape[1] * scale
    cell, block = side + 4, 22 + 2 * side + 4 + ROBOT_GAP
    left = MARGIN + text_width("expected", size=12) + ROBOT_GAP
    canvas = Canvas(left + max(map(len, seen)) * cell + MARGIN, MARGIN + len(seen) * block)
    for episode, title in enumerate(titles):
        top = MARGIN + episode * block
        canvas.text(left, top + 3, title, size=12)
        for row, (name, images) in enumerate((("saw", seen[episode]), ("expected", expected[episode]))):
            above = top + 22 + row * cell
            canvas.text(MARGIN, above + side / 2, name, size=12, colour=SOFT, anchor="lm")
            for column, image in enumerate(images):
                if image is not None:
                    canvas.frame(left + column * cell, above, image[0], scale=scale)
    return canvas.array()
