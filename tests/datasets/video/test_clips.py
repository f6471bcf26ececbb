"""Where clips begin, which actions stand beside their frames, what is padding, and what happens where a clip cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.datasets.video.clips import Clips
from diffusion_forcing.datasets.video.episode import Episode
from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import Refused


class Numbered:
    """Frames of 2 by 2 pixels, red the episode's number and green the frame's."""

    def __init__(self, broken: frozenset[int] = frozenset()) -> None:
        self.broken = broken

    def read(self, number: int, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        if number in self.broken:
            raise Refused("is damaged")
        out = np.zeros((len(frames), 2, 2, 3), dtype=np.uint8)
        out[..., 0], out[..., 1] = number, frames[:, None, None]
        return out


def clips(
    lengths: list[int], actions: list[NDArray] | None = None, *, broken: frozenset[int] = frozenset(), **words: int
) -> Clips:
    episodes = [Episode(f"e{i}", "", f"e{i}.mp4", frames=frames) for i, frames in enumerate(lengths)]
    return Clips(episodes, Numbered(broken), actions, **words)  # type: ignore[arg-type]


def numbers(batch: VideoBatch) -> list[list[tuple[int, int]]]:
    """(episode, frame) of every frame of a batch."""
    return [[(int(f[0, 0, 0]), int(f[1, 0, 0])) for f in clip] for clip in batch.frames]


def test_training_has_every_beginning_from_which_a_whole_span_follows() -> None:
    data = clips([10, 7], length=3, skip=2)
    assert len(data) == (10 - 6 + 1) + (7 - 6 + 1)
    batch = data.__getitems__(list(range(len(data))))
    assert [clip[0] for clip in numbers(batch)] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]
    assert numbers(batch)[4] == [(0, 4), (0, 6), (0, 8)]
    assert batch.frames.shape == (7, 3, 3, 2, 2) and batch.frames.dtype == torch.uint8 and batch.frames.is_contiguous()
    assert batch.valid.all() and not batch.known.any() and batch.actions.shape == (7, 3, 0)


def test_an_episode_shorter_than_the_span_is_padded_with_its_last_frame_and_marked() -> None:
    data = clips([5], [np.array([0, 1, 2, 0, 1])], length=4, skip=2, choices=3)
    batch = data[0]
    assert len(data) == 1 and numbers(batch) == [[(0, 0), (0, 2), (0, 4), (0, 4)]]
    assert batch.valid.tolist() == [[True, True, True, False]]
    assert batch.known.tolist() == [[False, True, True, False]] and (batch.actions[0, 3] == 0).all()


def test_a_row_holds_the_actions_that_led_to_its_frame_none_dropped() -> None:
    actions = np.array([0, 1, 2, 2, 1, 0, 1, 2, 0, 0])
    data = clips([10], [actions], length=3, skip=2, choices=3)
    one_hot = np.eye(3)[actions]
    for start in range(5):
        batch = data[start]
        for row in range(3):
            frame = start + 2 * row
            known = frame >= 2
            expected = np.concatenate([one_hot[frame - 2], one_hot[frame - 1]]) if known else np.zeros(6)
            assert batch.known[0, row] == known and batch.actions[0, row].tolist() == expected.tolist(), (start, row)


def test_continuous_actions_between_two_frames_are_added() -> None:
    actions = np.arange(20, dtype=np.float32).reshape(10, 2)
    batch = clips([10], [actions], length=2, skip=3)[2]
    assert numbers(batch) == [[(0, 2), (0, 5)]]
    assert batch.known.tolist() == [[False, True]] and batch.actions[0, 1].tolist() == actions[2:5].sum(0).tolist()


def test_actions_that_led_to_their_own_frame_are_taken_without_shift() -> None:
    actions = np.array([2, 0, 1, 2, 1, 0])  # TECO: the first belongs to the reset
    batch = clips([6], [actions], length=3, skip=2, choices=3, shift=0)[0]
    assert batch.known.tolist() == [[False, True, True]]
    assert batch.actions[0, 1].reshape(2, 3).argmax(1).tolist() == [0, 1]
    assert batch.actions[0, 2].reshape(2, 3).argmax(1).tolist() == [2, 1]


def test_an_action_fewer_than_frames_is_enough_where_the_last_leads_nowhere() -> None:
    batch = clips([4], [np.array([0, 1, 1])], length=4, choices=2)[0]
    assert batch.known.tolist() == [[False, True, True, True]]
    batch = clips([1], [np.zeros(0, dtype=np.uint8)], length=2, choices=2)[0]
    assert not batch.known.any() and batch.actions.shape == (1, 2, 2)


def test_the_first_validation_clips_come_from_different_episodes_and_are_spread() -> None:
    data = clips([20, 6, 14, 3], length=3, skip=2, spread=True)
    batch = data.__getitems__(list(range(len(data))))
    firsts = [clip[0] for clip in numbers(batch)]
    assert firsts == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 7), (2, 8), (0, 14)]
    assert batch.valid.all(dim=1).tolist() == [True, True, True, False, True, True, True]


def test_a_clip_that_cannot_be_read_is_named_once_and_another_taken(capsys: pytest.CaptureFixture[str]) -> None:
    data = clips([8, 8, 8], broken=frozenset({1}), length=4)
    for _ in range(2):
        batch = data.__getitems__(list(range(len(data))))
        assert {clip[0][0] for clip in numbers(batch)} == {0, 2} and batch.frames.shape[0] == 15
    assert data.unreadable == {"e1.mp4"}
    assert capsys.readouterr().err.count("e1.mp4: is damaged; another clip is taken instead (1 unreadable so far)") == 1


def test_the_actions_of_a_clip_taken_instead_are_its_own() -> None:
    actions = [np.zeros(8, dtype=np.uint8), np.ones(8, dtype=np.uint8)]
    data = clips([8, 8], actions, broken=frozenset({0}), length=4, choices=2)
    batch = data.__getitems__([0, 1, 2])
    assert (batch.actions[..., 1] == batch.known).all() and batch.known.any()


def test_data_that_has_gone_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match="clips in a row cannot be read") as caught:
        clips([8], broken=frozenset({0}), length=4)[0]
    assert "\n" not in str(caught.value)


def test_an_index_out_of_range_is_refused() -> None:
    data = clips([8], length=4)
    for index in (-1, 5):
        with pytest.raises(IndexError):
            data[index]
