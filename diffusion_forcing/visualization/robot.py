"""Films and sheets of a robot at work: what its cameras see, and beside it what the model had expected to see.

Everything takes and returns uint8 RGB, (…, h, w, 3) in [0, 255]; what is given is never edited.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.visualization.video import enlarged, lettering, put_

Pictures = NDArray[np.uint8]
MARGIN, GAP, HEAD, FOOT = 16, 12, 28, 40
SIDE = 96  # of a picture on a sheet, about
INK, SOFT, GOOD, BAD = "#222c37", "#66727f", "#1a8754", "#d4342c"
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
    names = [*cameras, *(f"saw, {name}" for name in cameras), *(f"expected, {name}" for name in cameras)]
    width = 2 * MARGIN + len(cameras) * 2 * (side // 2 + GAP)
    width = max(width, 2 * MARGIN + len(cameras) * (side + GAP) - GAP)
    small = side // 2
    paper = np.full((HEAD + side + HEAD + small + FOOT, width, 3), 255, np.uint8)
    for number, name in enumerate(cameras):
        put_(paper, lettering(name, bold=True), 5, MARGIN + number * (side + GAP))
    for number, name in enumerate(names[len(cameras) :]):
        put_(paper, lettering(name, colour=SOFT, pixels=11), HEAD + side + 8, MARGIN + number * (small + GAP // 2))
    frames = []
    for moment in range(len(scene)):
        picture = paper.copy()
        look = int(np.searchsorted(np.asarray(looks), moment, side="right")) - 1
        for number in range(len(cameras)):
            pixels = scene[moment][number]
            if covered[moment][number]:
                pixels = np.full_like(pixels, COVERED)
            left = MARGIN + number * (side + GAP)
            picture[HEAD : HEAD + side, left : left + side] = pixels
            if covered[moment][number]:
                put_(picture, lettering(" blocked ", colour=BAD, bold=True), HEAD + side // 2, left + side // 3)
        small_ones = [*seen[look], *(expected[look] if expected[look] is not None else ())]  # type: ignore[misc]
        for number, pixels in enumerate(small_ones):
            left, top = MARGIN + number * (small + GAP // 2), HEAD + side + HEAD
            picture[top : top + small, left : left + small] = fitted(pixels, small)
        done = moment == len(scene) - 1
        text = ("both fruits are swapped" if success else "not done") if done else f"action {moment}"
        colour = (GOOD if success else BAD) if done else INK
        put_(picture, lettering(text, colour=colour, bold=done), picture.shape[0] - FOOT + 10, MARGIN)
        frames.append(picture)
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
    size = seen[0][0].shape[1]
    scale = max(1, round(SIDE / size))
    side = size * scale
    columns = max(len(episode) for episode in seen)
    name = [lettering(word, colour=SOFT, pixels=12) for word in ("saw", "expected")]
    left = MARGIN + max(word.shape[1] for word in name) + GAP
    head = 36 if title else MARGIN
    block = 22 + 2 * side + 4 + GAP
    picture = np.full((head + len(seen) * block, left + columns * (side + 4) + MARGIN, 3), 255, np.uint8)
    if title:
        put_(picture, lettering(title, pixels=15, bold=True), 8, MARGIN)
    for number, (looks, hopes, words) in enumerate(zip(seen, expected, titles, strict=True)):
        top = head + number * block
        put_(picture, lettering(words, pixels=12), top, left)
        for row, word in enumerate(name):
            put_(picture, word, top + 22 + row * (side + 4) + side // 2 - 8, MARGIN)
        for column, (look, hope) in enumerate(zip(looks, hopes, strict=True)):
            at = left + column * (side + 4)
            picture[top + 22 : top + 22 + side, at : at + side] = enlarged(look[0], scale)
            if hope is not None:
                below = top + 26 + side
                picture[below : below + side, at : at + side] = enlarged(hope[0], scale)
    return picture


def fitted(picture: Pictures, side: int) -> Pictures:
    """(h, h, 3) as (side, side, 3), every pixel a rectangle: the nearest."""
    index = np.arange(side) * picture.shape[0] // side
    return picture[index][:, index]
