"""Whole rollouts of the released code, from a clip to predicted frames: the recorded numbers again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.video import Video
from tests.parity.recorded import Recording, flip, recording

ROLLOUTS = ("rollout_ar_chunk1", "rollout_ar_chunk1_u1", "rollout_full_chunk2", "rollout_pyramid_chunk3")


def rolled_out(recorded: Recording, video: Video, prefix: str = "", **how: Any) -> Tensor:
    """The recorded clip's context and what comes after it, (b, t, c, h, w) in data units, not clamped, from the recorded noise."""
    chunks = [flip(noise) for _, noise in sorted(recorded.below(f"{prefix}chunk_noise_raw.").items())]
    sampler = video.sampler()
    sampler.noise = lambda shape, *_: video.forcing.clamp_noise(chunks.pop(0))  # type: ignore[method-assign]
    clip, options = recorded[f"{prefix}video"], video.options
    tokens = sampler.rollout(
        video.tokens(clip[:, : options.context_frames]),
        clip.shape[1] // options.frame_stack,
        window=options.window,
        chunk_size=options.chunk_size,
        **how,
    )
    assert not chunks
    return video.frames(tokens)


@pytest.mark.parametrize("name", ROLLOUTS)
def test_a_whole_rollout_is_the_recorded_one(name: str) -> None:
    recorded = recording(name)
    video = recorded.video()
    assert video.options.window == recorded.meta["n_tokens"] < recorded["video"].shape[1]  # the window slides
    frames = rolled_out(recorded, video)
    recorded.agrees(flip(frames), "xs_pred", relative=1e-4)


@pytest.mark.parametrize("name", ROLLOUTS)
def test_a_rollout_walks_the_recorded_levels_and_tokens(name: str) -> None:
    recorded = recording(name)
    video = recorded.video()
    seen: list[tuple[Tensor, Tensor]] = []
    rolled_out(recorded, video, on_row=lambda row, x, levels: seen.append((x, levels)))
    assert len(seen) == int(recorded["n_sample_steps"])
    compared = 0
    for number, (x, levels) in enumerate(seen):
        assert torch.equal(levels, recorded[f"step_next.{number:03d}"][:, 0].long())
        if f"step_out.{number:03d}" in recorded:
            recorded.agrees(flip(x), f"step_out.{number:03d}", relative=1e-4)
            compared += 1
    assert compared > 3


def test_frames_become_the_recorded_tokens_and_frames_again() -> None:
    recorded = recording("rollout_ar_chunk1")
    video = recorded.video()
    recorded.agrees(flip(video.frames(video.tokens(recorded["video"]))), "xs")
