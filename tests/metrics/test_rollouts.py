"""What judges long rollouts, against closed forms: texture of known waves, survival of known corpses, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_forcing.metrics.video import (
    Life,
    alive,
    bootstrap,
    contrast,
    laplacian_energy,
    mean_interval,
    motion,
    nearest,
    ratio_interval,
    thumbnails,
)


def test_the_laplacian_of_a_wave_is_its_frequency_squared_times_the_wave() -> None:
    x = torch.arange(64.0)
    wave = 0.5 + 0.25 * torch.cos(2 * torch.pi * x / 8)
    frames = wave.expand(1, 2, 3, 64, 64)
    # cos(x + h) + cos(x − h) − 2·cos(x) = (2·cos h − 2)·cos x; seven and three quarters periods of the 62 inner columns.
    expected = (2 * np.cos(2 * np.pi / 8) - 2) ** 2 * (0.25 * torch.cos(2 * torch.pi * x / 8))[1:-1].square().mean()
    torch.testing.assert_close(laplacian_energy(frames), torch.full((1, 2), float(expected)))


def test_blur_has_less_texture_than_the_frame_and_noise_more() -> None:
    frames = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 3, 1, 1).unflatten(0, (2, 3))
    noisy = frames + 0.3 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    assert (laplacian_energy(blurred) < 0.1 * laplacian_energy(frames)).all()
    assert (laplacian_energy(noisy) > 1.5 * laplacian_energy(frames)).all()


def test_motion_is_the_mean_change_and_a_thumbnail_the_mean_of_a_cell() -> None:
    frames = torch.zeros(1, 3, 1, 16, 16)
    frames[:, 1] += 0.25
    torch.testing.assert_close(motion(frames), torch.tensor([[0.25, 0.25]]))
    frames[0, 0, 0, :2, :2] = 1
    small = thumbnails(frames)
    assert small.shape == (1, 3, 64)
    assert small[0, 0, 0] == 1
    assert small[0, 0, 1:].abs().max() == 0


def test_rollouts_that_stand_still_are_grey_or_are_far_from_all_real_frames_are_dead() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(16, 20, 12, generator=generator)
    living = Life(0.1 + 0.05 * torch.rand(16, generator=generator), contrast(real), nearest(real, real, same=True))
    lost = torch.rand(1, 20, 12, generator=generator) + 3
    grey = 0.5 + 0.1 * (real[:1] - 0.5)
    rollouts = torch.cat([real[:3] + 0.01, lost, grey])
    distance = nearest(rollouts, real)
    assert distance[0].item() == pytest.approx(0.01, rel=1e-3)
    moved = torch.tensor([0.12, 0.12, 0.001, 0.12, 0.12])
    signs = Life(moved, contrast(rollouts), distance)
    assert alive(signs, living).tolist() == [True, True, False, False, False]


def test_a_real_clip_is_compared_with_other_clips() -> None:
    clips = torch.zeros(3, 4, 5)
    clips[1] += 1
    clips[2] += 3
    torch.testing.assert_close(nearest(clips, clips, same=True), torch.tensor([1.0, 1.0, 2.0]))


# ---------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("episodes", [8, 64])
def test_bootstrap_intervals_of_a_mean_and_a_ratio_cover_the_truth(episodes: int) -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(2, 1, size=(episodes, 400))
    other = one + rng.normal(2, 0.5, size=one.shape)
    for interval, truth in ((mean_interval(one), 2.0), (ratio_interval(one, other), 0.5)):
        covered = ((interval.low <= truth) & (truth <= interval.high)).mean()
        assert 0.86 < covered < 0.99
        assert ((interval.low <= interval.value) & (interval.value <= interval.high)).all()


def test_what_is_missing_is_left_out_and_one_episode_has_no_interval() -> None:
    values = np.array([[1.0, np.nan, 5.0], [3.0, 4.0, np.nan], [5.0, 6.0, np.nan]])
    interval = mean_interval(values)
    np.testing.assert_allclose(interval.value, [3, 5, 5])
    assert np.isfinite(interval.low[:2]).all()
    assert np.isnan([interval.low[2], interval.high[2]]).all()
    assert interval.numbers("psnr", 2) == {"psnr": 5.0}
    assert set(interval.numbers("psnr")) == {"psnr", "psnr_low", "psnr_high"}
    assert np.isnan(mean_interval(values[:1]).low).all()


def test_the_statistic_sees_means_of_the_same_episodes() -> None:
    values = np.random.default_rng(0).normal(size=(32, 1))
    difference = bootstrap(lambda a, b: a - b, values, values + 1)
    np.testing.assert_allclose([difference.low, difference.high], -1)


def test_an_interval_stays_inside_the_range_of_the_values() -> None:
    for values in ([1.0] + [0.0] * 11, [1.0] * 11 + [0.0], [1e-4, 2e-4, 3e-2, np.nan]):
        value, low, high = mean_interval(np.array(values)[:, None])
        assert np.nanmin(values) <= low[0] <= value[0] <= high[0] <= np.nanmax(values)
