"""The judge of long rollouts, given rollouts whose verdict is known: real video played on, a frozen grey frame, a memory that is perfect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_forcing.checkpoints import save
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.video.judge import (
    CHANNEL,
    CONTRAST,
    JudgeOptions,
    endless,
    first_clips,
    judge,
    load_inverse_dynamics,
    statistics,
)
from diffusion_forcing.experiments.video.rollouts import PIXEL_SQUARE, Roller
from diffusion_forcing.metrics.video import InverseDynamics
from diffusion_forcing.tracking.run import Run
from tests.experiments.video.test_rollouts import GIVEN, batch, video

CLIPS, LENGTH = 6, 40


class Player(Roller):
    """Goes on with the frames of real clips, back and forth (`real`), or with one grey frame."""

    def __init__(self, clips: VideoBatch, *, real: bool) -> None:
        super().__init__(video(actions=3), None, metrics=["mse", "psnr"], seed=0, inverse=Telling())  # type: ignore[arg-type]
        self.clips, self.real = clips, real
        self.told: list[VideoBatch] = []

    def stream(self, batch: VideoBatch, number: int, length: int) -> Any:
        self.told.append(batch)
        frames = self.clips.frames.float() / 255
        there_and_back = torch.cat([frames, frames.flip(1)], dim=1)
        for now in range(GIVEN, length):
            frame = there_and_back[:, now % there_and_back.shape[1]][: len(batch.frames)]
            yield (frame if self.real else torch.full_like(frame, 0.5))[:, None]


class Telling(InverseDynamics):
    """Tells action 0 for a pair that moves, action 1 for one that does not."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3, width=4)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        moves = (pairs[:, 0] != pairs[:, 1]).flatten(1).any(dim=1).float()
        return torch.stack([moves, 1 - moves, torch.zeros_like(moves)], dim=1)


def clips() -> VideoBatch:
    made = batch(LENGTH, CLIPS, actions=3)
    return made._replace(actions=torch.eye(3)[torch.zeros(CLIPS, LENGTH, dtype=torch.long)])


def judged(tmp_path: Path, *, real: bool, **options: Any) -> tuple[dict[str, float], Run, Player]:
    run, made = Run.create(tmp_path, "judged"), clips()
    player = Player(made, real=real)
    said: list[str] = []
    numbers = judge(player, [made], JudgeOptions(**options), run=run, task="test", say=said.append)
    assert len(said) == sum(not name.endswith(("_low", "_high")) for name in numbers)
    return numbers, run, player


def test_real_video_that_plays_on_does_not_drift_and_lives(tmp_path: Path) -> None:
    numbers, run, _ = judged(tmp_path, real=True, frames=2 * LENGTH)
    assert numbers["long_rollouts"] == CLIPS
    for at in ("16", "end"):
        assert abs(numbers[f"long_mean_difference_{at}"]) < 0.05
        assert 0.8 < numbers[f"long_deviation_ratio_{at}"] < 1.2
        assert 0.8 < numbers[f"long_contrast_ratio_{at}"] < 1.2
        assert 0.5 < numbers[f"long_sharpness_{at}"] < 1.5  # the pattern differs from moment to moment
        assert numbers[f"long_actions_{at}"] > 0.9
        assert numbers[f"long_actions_relative_{at}_low"] <= numbers[f"long_actions_relative_{at}"]
    assert "long_actions_200" not in numbers
    assert numbers["long_alive"] == 1
    assert (run.pictures / "test_drift.png").exists()


def test_a_frozen_grey_frame_is_dead_blurred_and_disobedient(tmp_path: Path) -> None:
    numbers, _, _ = judged(tmp_path, real=False, frames=LENGTH)
    assert numbers["long_alive"] == 0
    assert numbers["long_sharpness_end"] == 0
    assert numbers["long_motion_ratio_end"] == 0
    assert numbers["long_deviation_ratio_end"] < 0.01
    assert numbers["long_actions_end"] == 0


def test_fog_of_different_colours_deviates_and_has_no_contrast() -> None:
    fog = torch.rand(4, 1, 3, 1, 1).expand(4, 6, 3, 8, 8)
    found = statistics(fog, torch.zeros(4, 5, 3), None)
    mean = torch.stack([found[f"{CHANNEL}{i}"] for i in range(3)]).mean()
    assert (found[PIXEL_SQUARE].mean() - mean**2).sqrt() > 0.1
    assert (found[CONTRAST] == 0).all()


def test_who_turns_away_and_comes_back_to_the_same_frame_has_a_memory(tmp_path: Path) -> None:
    """The player's clips run backwards, so that it comes back to its last frame of context after 2·LENGTH frames."""
    numbers, _, player = judged(tmp_path, real=True, turns=(LENGTH, 3), turn=(2, 1))
    assert numbers[f"turn_{LENGTH}_back_psnr"] == 100
    assert numbers[f"turn_{LENGTH}_away_psnr"] < 40
    assert numbers["turn_3_back_psnr"] < 40
    assert numbers["turn_3_stranger_psnr"] < 40
    path = player.told[1].actions[0, GIVEN:].argmax(dim=-1)
    assert path.tolist() == [2, 2, 2, 1, 1, 1]
    with pytest.raises(UserError, match=r"turn=\[1, 3\].*has 3"):
        judged(tmp_path, real=True, turns=(2,), turn=(1, 3))


def test_speed_is_that_of_one_clip(tmp_path: Path) -> None:
    numbers, _, player = judged(tmp_path, real=True, speed_frames=8)
    assert 0 < numbers["frames_per_second_p95"] <= numbers["frames_per_second_p50"]
    assert player.told[0].frames.shape[0] == 1


def test_a_long_rollout_goes_on_with_the_actions_of_other_clips() -> None:
    made = batch(5, 3, actions=3)
    made.actions[:, :, 0] = torch.arange(15.0).reshape(3, 5)
    made.known[:, 0] = False
    longer = endless(made, 14)
    assert longer.actions[0, :, 0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 1]
    assert not longer.known[:, 0].any()
    assert longer.known[:, 1:].all()


def test_padded_clips_are_not_judged() -> None:
    made = batch(5, 3)
    made.valid[1, 3:] = False
    assert [len(part.frames) for part in first_clips(iter([made, made, made]), 3)] == [2, 1]


def test_one_clip_cannot_be_judged(tmp_path: Path) -> None:
    one = VideoBatch(*(part[:1] for part in clips()))
    with pytest.raises(UserError, match=r"at least 2 clips.*got 1"):
        judge(Player(one, real=True), [one], JudgeOptions(frames=3), run=None, task="test", say=print)


def test_options_and_checkpoints_that_cannot_judge_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollouts.*1"):
        JudgeOptions(rollouts=1)
    with pytest.raises(UserError, match=r"turns.*0"):
        JudgeOptions(turns=(0,))
    save(tmp_path / "video", None, metadata={"task": "video", "line": "v1.5"}, model={"w": torch.zeros(1)}, step=1)
    with pytest.raises(UserError, match=r"inverse_dynamics=.*video"):
        load_inverse_dynamics(str(tmp_path / "video"))
