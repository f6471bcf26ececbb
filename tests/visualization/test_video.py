"""Films and sheets show the pixels they are given, frame what was given, and edit nothing."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from diffusion_forcing.visualization.curves import Panel, draw_horizon
from diffusion_forcing.visualization.video import (
    BORDER,
    GAP,
    GIVEN,
    HEAD,
    MARGIN,
    SideBySide,
    action_glyph,
    draw_sheet,
    enlarged,
    lettering,
    sheet_frames,
)

AMBER = np.round(255 * np.array(to_rgb(GIVEN))).astype(np.uint8)
CLIP = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
CONTEXT = np.array([True, True, False, False, False, False])


def box(picture: np.ndarray, side: int, scale: int, around: int = 0) -> np.ndarray:
    left = MARGIN + side * (8 * scale + GAP)
    return picture[HEAD - around : HEAD + 8 * scale + around, left - around : left + 8 * scale + around]


def test_a_film_shows_prediction_left_and_truth_right_pixel_by_pixel_and_frames_the_context_around_them() -> None:
    before = CLIP.copy(), OTHER.copy()
    film = SideBySide((8, 8), CONTEXT)
    frames = film.frames(0, CLIP, OTHER)
    assert frames.dtype == np.uint8 and len(frames) == 6
    for now, picture in enumerate(frames):
        for side, clip in enumerate((CLIP, OTHER)):
            np.testing.assert_array_equal(box(picture, side, film.scale), enlarged(clip[now], film.scale))
            corner = box(picture, side, film.scale, BORDER)[0, 0]
            np.testing.assert_array_equal(corner, AMBER if CONTEXT[now] else [255, 255, 255])
    np.testing.assert_array_equal(before, (CLIP, OTHER))


def test_a_film_made_in_pieces_is_the_film_made_at_once() -> None:
    actions = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    film = SideBySide((8, 8), CONTEXT, actions=actions)
    pieces = [film.frames(start, CLIP[start : start + 2], OTHER[start : start + 2]) for start in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(pieces), film.frames(0, CLIP, OTHER))
    assert (film.frames(3, CLIP[:1], OTHER[:1]) != film.frames(4, CLIP[:1], OTHER[:1])).any()  # counter and action


@pytest.mark.parametrize("size", [8, 64, 128])
def test_frames_of_every_size_are_shown_about_as_large(size: int) -> None:
    film = SideBySide((size, size), CONTEXT)
    clip = np.zeros((1, size, size, 3), np.uint8)
    assert 500 < film.frames(0, clip, clip).shape[2] < 600


def test_an_action_is_a_filled_box_of_its_row_and_pale_where_unknown() -> None:
    first, second = (action_glyph(np.eye(3)[i], True, 3) for i in (0, 1))
    dark = [np.flatnonzero((glyph < 60).all(axis=(0, 2))).mean() for glyph in (first, second)]
    assert dark[0] < dark[1]
    assert (action_glyph(np.eye(3)[0], False, 3) > 200).all()
    stacked = action_glyph(np.concatenate([np.eye(3)[0], np.eye(3)[2]]), True, 3)
    assert stacked.shape[1] > 2 * first.shape[1]


def test_a_continuous_action_goes_up_or_down_from_the_middle() -> None:
    glyph = action_glyph(np.array([1.0, -1.0]), True, 2, largest=1.0)
    rows = [np.flatnonzero((half < 60).all(axis=(1, 2))) for half in (glyph[:, :12], glyph[:, 16:28])]
    assert rows[0].max() < rows[1].min()


@pytest.mark.parametrize("length", [3, 16, 56, 1000])
def test_a_sheet_has_the_last_given_frames_the_first_predicted_and_the_last(length: int) -> None:
    given = np.zeros(length, dtype=bool)
    given[:2] = True
    chosen = sheet_frames(given)
    assert {0, 1, 2, length - 1} <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) <= 12


def test_a_sheet_between_two_ends_has_both() -> None:
    given = np.array([True, False, False, False, True])
    np.testing.assert_array_equal(sheet_frames(given), np.arange(5))


def test_a_sheet_holds_every_chosen_frame_of_every_clip_unchanged() -> None:
    chosen = sheet_frames(CONTEXT)
    picture = draw_sheet([CLIP[chosen], OTHER[chosen]], [OTHER[chosen], CLIP[chosen]], chosen, CONTEXT, title="two")
    text = picture.tobytes()
    for clip in (CLIP, OTHER):
        for frame in clip[chosen]:
            assert (
                text.count(enlarged(frame, 12)[0].tobytes()) >= 2 * 12
            )  # its first row of pixels, in truth and prediction
    assert (picture == AMBER).all(axis=-1).any()


def test_curves_have_one_colour_a_name_and_leave_gaps_where_there_is_nothing() -> None:
    values = np.array([20.0, 18.0, np.nan])
    panels = [
        Panel(
            title="PSNR, dB",
            lines={"model": values, "copy": values - 1},
            band=(values - 1, values + 1),
            band_name="95 %",
        ),
        Panel(title="SSIM", lines={"model": values / 30}),
    ]
    one, two = draw_horizon(panels[:1]), draw_horizon(panels)
    assert one.shape == (400, 560, 3) and two.shape == (400, 1120, 3)
    assert one.std() > 5
    with pytest.raises(ValueError, match="no finite value to draw in 'SSIM'"):
        draw_horizon([Panel(title="SSIM", lines={"model": [np.nan]})])
    with pytest.raises(ValueError, match="no panel"):
        draw_horizon([])


def test_words_are_as_wide_as_they_are_long_and_dollars_mean_themselves() -> None:
    assert lettering("predicted").shape[1] > lettering("given").shape[1] > 10
    assert lettering("$x_1$").shape[0] == lettering("x").shape[0]
