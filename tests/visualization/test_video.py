"""Videos and grids show the pixels they are observed, frame what was observed, and edit nothing."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from diffusion_forcing.visualization.canvas import Canvas
from diffusion_forcing.visualization.video import (
    BORDER,
    CELL,
    GAP,
    HEAD,
    MARGIN,
    OBSERVED,
    SideBySide,
    draw_grid,
    grid_frames,
)

AMBER = np.round(255 * np.array(to_rgb(OBSERVED))).astype(np.uint8)
CLIP = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def enlarged(frame: np.ndarray, scale: int) -> np.ndarray:
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


CONTEXT = np.array([True, True, False, False, False, False])


def box(image: np.ndarray, side: int, scale: int, around: int = 0) -> np.ndarray:
    left = MARGIN + side * (8 * scale + GAP)
    return image[HEAD - around : HEAD + 8 * scale + around, left - around : left + 8 * scale + around]


def test_a_video_shows_prediction_left_and_truth_right_pixel_by_pixel_and_frames_the_context_around_them() -> None:
    before = CLIP.copy(), OTHER.copy()
    video = SideBySide((8, 8), CONTEXT)
    frames = video.frames(0, CLIP, OTHER)
    assert frames.dtype == np.uint8 and len(frames) == 6
    for now, image in enumerate(frames):
        for side, clip in enumerate((CLIP, OTHER)):
            np.testing.assert_array_equal(box(image, side, video.scale), enlarged(clip[now], video.scale))
            corner = box(image, side, video.scale, BORDER)[0, 0]
            np.testing.assert_array_equal(corner, AMBER if CONTEXT[now] else [255, 255, 255])
    np.testing.assert_array_equal(before, (CLIP, OTHER))


def test_a_video_made_in_pieces_is_the_film_made_at_once() -> None:
    actions = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    video = SideBySide((8, 8), CONTEXT, actions=actions)
    pieces = [video.frames(start, CLIP[start : start + 2], OTHER[start : start + 2]) for start in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(pieces), video.frames(0, CLIP, OTHER))
    assert (video.frames(3, CLIP[:1], OTHER[:1]) != video.frames(4, CLIP[:1], OTHER[:1])).any()  # counter and action


@pytest.mark.parametrize("size", [8, 64, 128])
def test_frames_of_every_size_are_shown_about_as_large(size: int) -> None:
    video = SideBySide((size, size), CONTEXT)
    clip = np.zeros((1, size, size, 3), np.uint8)
    assert 500 < video.frames(0, clip, clip).shape[2] < 600


def action_boxes(actions: np.ndarray, now: int, **options) -> list[np.ndarray]:
    """The boxes of an action in a video's frame, from left to right."""
    clip = np.full((len(actions), 8, 8, 3), 255, np.uint8)
    video = SideBySide((8, 8), np.zeros(len(actions), dtype=bool), actions=actions, **options)
    frame = video.frames(now, clip[:1], clip[:1])[0]
    top = HEAD + 8 * video.scale + BORDER + 6
    corners = np.flatnonzero((frame[top : top + CELL] != 255).any(axis=(0, 2)))
    corners = corners[corners > frame.shape[1] // 2]
    lefts = corners[np.flatnonzero(np.diff(corners, prepend=0) > 1)]
    return [frame[top : top + CELL, left : left + CELL] for left in lefts]


def filled(box: np.ndarray) -> float:
    return float((box < 60).all(axis=-1).mean())


def test_an_action_is_a_filled_box_of_its_row_and_empty_where_unknown() -> None:
    one_hot = np.eye(3)
    for now in range(3):
        assert [filled(box) for box in action_boxes(one_hot, now)] == [float(i == now) for i in range(3)]
    known = np.array([False, True, True])
    assert [filled(box) for box in action_boxes(one_hot, 0, known=known)] == [0, 0, 0]


def test_a_continuous_action_goes_up_or_down_from_the_middle() -> None:
    up, down = action_boxes(np.array([[1.0, -1.0]]), 0)
    assert filled(up[: CELL // 2]) == filled(down[CELL // 2 :]) == 1
    assert filled(up[CELL // 2 :]) == filled(down[: CELL // 2]) == 0


@pytest.mark.parametrize("length", [3, 16, 56, 1000])
def test_a_grid_has_the_last_observed_frames_the_first_predicted_and_the_last(length: int) -> None:
    observed = np.zeros(length, dtype=bool)
    observed[:2] = True
    chosen = grid_frames(observed)
    assert {0, 1, 2, length - 1} <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) <= 12


def test_a_grid_between_two_ends_has_both() -> None:
    observed = np.array([True, False, False, False, True])
    np.testing.assert_array_equal(grid_frames(observed), np.arange(5))


def test_a_grid_holds_every_chosen_frame_of_every_clip_unchanged() -> None:
    chosen = grid_frames(CONTEXT)
    image = draw_grid([CLIP[chosen], OTHER[chosen]], [OTHER[chosen], CLIP[chosen]], chosen, CONTEXT)
    text = image.tobytes()
    for clip in (CLIP, OTHER):
        for frame in clip[chosen]:
            assert (
                text.count(enlarged(frame, 12)[0].tobytes()) >= 2 * 12
            )  # its first row of pixels, in truth and prediction
    assert (image == AMBER).all(axis=-1).any()


def test_text_on_a_canvas_takes_dollars_literally() -> None:
    plain, other = Canvas(80, 20), Canvas(80, 20)
    plain.text(0, 0, "x1")
    other.text(0, 0, "$x_1$")
    assert (plain.array() != other.array()).any() and (plain.array() != 255).any()
