"""A robot at work: a video of an episode and a grid of several, with what the policy saw beside what it had expected
to see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.visualization.canvas import INK, SOFT, Canvas, Pixels, text_width

MARGIN, GAP, HEAD, FOOT = 16, 12, 28, 40
GRID_PIXELS = 96
"""Approximate side of an image in a grid."""
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
    width = 2 * MARGIN + max(len(names) * (small + GAP), len(cameras) * (side + GAP) - GAP)
    below = HEAD + side + HEAD
    frames = []
    for now in range(len(scene)):
        canvas = Canvas(width, below + small + FOOT)
        # The scene, with blocked cameras dark.
        for number, name in enumerate(cameras):
            left = MARGIN + number * (side + GAP)
            canvas.text(left, 7, name, bold=True)
            if blocked[now][number]:
                canvas.frame(left, HEAD, np.full_like(scene[now][number], BLOCKED))
                canvas.text(left + side / 2, HEAD + side / 2, "blocked", colour=BAD, bold=True, anchor="mm")
            else:
                canvas.frame(left, HEAD, scene[now][number])
        # The images of the last decision.
        last = int(np.searchsorted(np.asarray(decisions), now, side="right")) - 1
        hopes = expected[last]
        images = [*seen[last], *([] if hopes is None else hopes)]
        for number, name in enumerate(names):
            left = MARGIN + number * (small + GAP // 2)
            canvas.text(left, HEAD + side + 10, name, size=11, colour=SOFT)
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
    cell, block = side + 4, 22 + 2 * side + 4 + GAP
    left = MARGIN + text_width("expected", size=12) + GAP
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
