"""Videos and grids of a robot at work: what was seen lies where it says, and nothing is edited."""

from __future__ import annotations

import numpy as np

from diffusion_forcing.visualization.video import BLOCKED, LAST_FRAMES, MARGIN, ROBOT_HEAD, decision_grid, episode_video

drawn = np.random.default_rng(0)
SCENE = [drawn.integers(0, 256, (2, 48, 48, 3), np.uint8) for _ in range(5)]
SEEN = [drawn.integers(0, 256, (2, 16, 16, 3), np.uint8) for _ in range(2)]


def test_a_video_shows_the_scene_and_the_last_decision() -> None:
    blocked = [np.array([False, now == 2]) for now in range(5)]
    frames = episode_video(SCENE, blocked, [0, 3], SEEN, [None, SEEN[0]], cameras=("front", "over"), success=True)
    assert len(frames) == 5 + LAST_FRAMES
    front = frames[:, ROBOT_HEAD : ROBOT_HEAD + 48, MARGIN : MARGIN + 48]
    assert all(np.array_equal(front[now], SCENE[now][0]) for now in range(5))
    over = frames[:, ROBOT_HEAD : ROBOT_HEAD + 48, MARGIN + 60 : MARGIN + 108]
    assert np.array_equal(over[1], SCENE[1][1]) and (over[2] == BLOCKED).mean() > 0.7
    saw = frames[:, ROBOT_HEAD + 48 + ROBOT_HEAD :, MARGIN : MARGIN + 24][:, :24]
    small = np.arange(24) * 16 // 24
    for now, decision in enumerate((0, 0, 0, 1, 1)):
        assert np.array_equal(saw[now], SEEN[decision][0][small][:, small])


def test_a_grid_has_a_row_of_what_was_seen_above_what_was_expected() -> None:
    grid = decision_grid([SEEN, SEEN[:1]], [[None, SEEN[0]], [None]], ["one", "two"])
    large = SEEN[1][0].repeat(6, axis=0).repeat(6, axis=1)
    found = [
        (top, left)
        for top in range(grid.shape[0] - 96)
        for left in range(grid.shape[1] - 96)
        if np.array_equal(grid[top, left], large[0, 0])
        and np.array_equal(grid[top : top + 96, left : left + 96], large)
    ]
    assert len(found) == 1
