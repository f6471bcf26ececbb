"""Films and sheets of a robot at work: what its cameras see, and beside it what the model had expected to see.

Everything takes and returns uint8 RGB, (…, h, w, 3) in [0, 255]; what is given is never edited.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.visualization.canvas import INK, SOFT, Canvas, text_width

Pictures = NDArray[np.uint8]
MARGIN, GAP, HEAD, FOOT = 16, 12, 28, 40
SIDE = 96  # of a picture on a sheet, about
GOOD, BAD = "#1a8754", "#d4342c"
COVERED = 70


def film_of_episode(
    scene: Sequence[Pictures],
    covered: Sequence[NDArray[np.bool_]],
    looks: Sequence[int],
    seen: Sequence[Pictures],
    expected: Sequence[Pictures | None],
    *,
    cameras: Sequence[str],
    success: bool,
) -> Pictures:
    """Frames (m, height, width, 3), one an action: the cameras' pictures above, blocked ones dark; below what the policy saw when it last looked
    and what it had expected.

    scene: m times (cameras, H, H, 3); covered: m times (cameras,) bool; looks: (l,) which of the m each look was at; seen: l times
    (cameras, h, h, 3); expected: the same, None where nothing was expected.
    """
    side = scene[0].shape[1]
    small = side // 2
    names = [*(f"saw, {name}" for name in cameras), *(f"expected, {name}" for name in cameras)]
    width = 2 * MARGIN + len(cameras) * 2 * (small + GAP)
    width = max(width, 2 * MARGIN + len(cameras) * (side + GAP) - GAP)
    below = HEAD + side + HEAD
    frames = []
    for moment in range(len(scene)):
        canvas = Canvas(width, below + small + FOOT)
        look = int(np.searchsorted(np.asarray(looks), moment, side="right")) - 1
        for number, name in enumerate(cameras):
            left = MARGIN + number * (side + GAP)
            canvas.text(left, 7, name, bold=True)
            blocked = covered[moment][number]
            pixels = scene[moment][number]
            canvas.frame(left, HEAD, np.full_like(pixels, COVERED) if blocked else pixels)
            if blocked:
                canvas.text(left + side / 2, HEAD + side / 2, "blocked", colour=BAD, bold=True, anchor="mm")
        for number, name in enumerate(names):
            canvas.text(MARGIN + number * (small + GAP // 2), HEAD + side + 10, name, size=11, colour=SOFT)
        small_ones = [*seen[look], *(expected[look] if expected[look] is not None else ())]  # type: ignore[misc]
        for number, pixels in enumerate(small_ones):
            canvas.frame(MARGIN + number * (small + GAP // 2), below, fitted(pixels, small))
        done = moment == len(scene) - 1
        text = ("both fruits are swapped" if success else "not done") if done else f"action {moment}"
        colour = (GOOD if success else BAD) if done else INK
        canvas.text(MARGIN, below + small + 13, text, colour=colour, bold=done)
        frames.append(canvas.array())
    frames += [frames[-1]] * 10
    return np.stack(frames)


def draw_looks(
    seen: Sequence[Sequence[Pictures]],
    expected: Sequence[Sequence[Pictures | None]],
    titles: Sequence[str],
    *,
    title: str = "",
) -> Pictures:
    """A sheet: for each episode what the policy saw at each look, one camera, above what it had expected to see then.

    seen, expected: an episode, then a look, then (cameras, h, h, 3); the first camera is drawn.
    """
    scale = max(1, round(SIDE / seen[0][0].shape[1]))
    side = seen[0][0].shape[1] * scale
    columns = max(len(episode) for episode in seen)
    left = MARGIN + text_width("expected", size=12) + GAP
    head = 36 if title else MARGIN
    block = 22 + 2 * side + 4 + GAP
    canvas = Canvas(left + columns * (side + 4) + MARGIN, head + len(seen) * block)
    canvas.text(MARGIN, 10, title, size=15, bold=True)
    for number, (looks, hopes, words) in enumerate(zip(seen, expected, titles, strict=True)):
        top = head + number * block
        canvas.text(left, top + 3, words, size=12)
        for row, (name, frames) in enumerate((("saw", looks), ("expected", hopes))):
            above = top + 22 + row * (side + 4)
            canvas.text(MARGIN, above + side / 2, name, size=12, colour=SOFT, anchor="lm")
            for column, frame in enumerate(frames):
                if frame is not None:
                    canvas.frame(left + column * (side + 4), above, frame[0], scale=scale)
    return canvas.array()


def fitted(picture: Pictures, side: int) -> Pictures:
    """(h, h, 3) as (side, side, 3), every pixel a rectangle: the nearest."""
    index = np.arange(side) * picture.shape[0] // side
    return picture[index][:, index]
