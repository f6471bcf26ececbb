"""FVD with a network whose features are known, so that its value is one worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.frechet import frechet_distance, fvd_report, i3d_features, i3d_input
from diffusion_forcing.metrics.i3d import CLASSES, I3D_RESOLUTION
from tests.metrics.clips import noise


class Means(nn.Module):
    """In I3D's place: the first of 400 features is the mean of all pixels as the network sees them, the second their last
    frame's minus their first's; all others are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, clips: Tensor) -> Tensor:
        assert clips.shape[1] == 3 and clips.shape[3:] == (I3D_RESOLUTION, I3D_RESOLUTION)
        assert clips.min() >= -1 and clips.max() <= 1
        self.calls += len(clips)
        features = torch.zeros(len(clips), CLASSES)
        features[:, 0] = clips.mean(dim=(1, 2, 3, 4))
        features[:, 1] = (clips[:, :, -1] - clips[:, :, 0]).mean(dim=(1, 2, 3))
        return features * self.gain


def flat_clips(greys: np.ndarray, drift: np.ndarray, *, channels: int = 3, frames: int = 9) -> Tensor:
    """(n, frames, channels, 4, 4): clip i is of one grey at each time, on average greys[i], and rises by drift[i]."""
    line = torch.from_numpy(greys)[:, None] + torch.from_numpy(drift)[:, None] * torch.linspace(-0.5, 0.5, frames)
    return line.float()[:, :, None, None, None].expand(-1, -1, channels, 4, 4)


def of_moments(n: int, mean: float, deviation: float, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).uniform(-1, 1, n)
    return mean + deviation * (x - x.mean()) / x.std(ddof=1)


def two_sets(n: int = 12) -> tuple[Tensor, Tensor]:
    real = flat_clips(of_moments(n, 0.5, 0.1, 0), np.zeros(n))
    fake = flat_clips(of_moments(n, 0.35, 0.05, 1), np.zeros(n))
    return real, fake


def test_fvd_of_two_gaussians_is_the_distance_of_means_and_deviations() -> None:
    """Grey g is 2 g - 1 to the network: d = (2 · 0.15)² + (2 · 0.1 - 2 · 0.05)²."""
    real, fake = (i3d_features(clips, Means()) for clips in two_sets())
    assert real.shape == (12, CLASSES) and real.dtype == np.float32
    assert frechet_distance(real, fake) == pytest.approx(0.3**2 + 0.1**2, rel=1e-4)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_fvd_sees_motion_that_single_frames_do_not_have() -> None:
    n, still = 10, np.zeros(10)
    greys = of_moments(n, 0.5, 0.02, 0)
    real, fake = flat_clips(greys, still), flat_clips(greys, still + 0.3)
    assert frechet_distance(i3d_features(real, Means()), i3d_features(fake, Means())) == pytest.approx(0.6**2, rel=1e-3)


@pytest.mark.slow
def test_a_report_has_n_a_floor_of_the_same_n_and_an_interval_around_the_value() -> None:
    real, fake = (i3d_features(clips, Means()) for clips in two_sets(32))
    others = i3d_features(flat_clips(of_moments(40, 0.5, 0.1, 2), np.zeros(40)), Means())
    report = fvd_report(real, fake, floor_features=others, bootstrap=50)
    assert (report.name, report.real, report.fake, report.floor_samples, report.halves) == ("FVD", 32, 32, 32, False)
    assert report.low < report.value < report.high
    assert report.floor < report.low, "two sets that differ by their means stand out from the floor"
    assert str(report).startswith("FVD 0.1 (95 % interval ") and "N 32" in str(report)
    assert report.metrics()["fvd_samples"] == 32


def test_few_clips_raise_the_value_and_the_floor_says_by_how_much() -> None:
    """The distance of two samples of one distribution is above 0 and falls as 1 / n: four times the clips, a quarter."""
    rng = np.random.default_rng(0)
    floors = [np.mean([frechet_distance(*rng.normal(size=(2, n, 8))) for _ in range(100)]) for n in (32, 128)]
    assert floors[0] > floors[1] > 0
    assert floors[0] / floors[1] == pytest.approx(4, rel=0.15)


def test_a_single_clip_is_refused_and_two_are_enough() -> None:
    real, fake = (i3d_features(clips, Means()) for clips in two_sets(2))
    assert np.isfinite(fvd_report(real, fake, bootstrap=10).value)
    with pytest.raises(UserError, match="at least 2 samples of each kind, got 1 of fake"):
        fvd_report(real, fake[:1])
    with pytest.raises(UserError, match="at least 2 samples of each kind, got 1 of real"):
        fvd_report(real[:1], fake)


def test_short_clips_wrong_ranges_and_other_channels_are_refused_before_the_network_runs() -> None:
    network = Means()
    with pytest.raises(UserError, match="clips of at least 9 frames, got 8"):
        i3d_features(noise(2, 8, 3, 4, 4), network)
    with pytest.raises(UserError, match="1 or 3 channels, got 2"):
        i3d_features(noise(2, 9, 2, 4, 4), network)
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        i3d_features(noise(2, 9, 3, 4, 4) * 2 - 1, network)
    assert network.calls == 0


def test_the_network_sees_224_pixels_in_minus_one_to_one_and_grey_as_colour() -> None:
    frames = noise(2, 9, 1, 5, 7)
    before = frames.clone()
    seen = i3d_input(frames)
    assert seen.shape == (2, 3, 9, I3D_RESOLUTION, I3D_RESOLUTION)
    assert torch.equal(seen[:, 0], seen[:, 2]) and torch.equal(frames, before)
    corner = frames[:, :, 0, 0, 0] * 2 - 1  # half-pixel centres: the outermost pixels are the corners' own
    assert torch.allclose(seen[:, 0, :, 0, 0], corner, atol=1e-6)
    grey, colour = (i3d_features(flat_clips(np.full(2, 0.3), np.zeros(2), channels=c), Means()) for c in (1, 3))
    assert np.allclose(grey, colour)


def test_features_do_not_depend_on_the_batch() -> None:
    frames = noise(5, 9, 3, 4, 4)
    alone, together = (i3d_features(frames, Means(), batch=batch) for batch in (1, 2))
    assert np.allclose(alone, together, atol=1e-6)


def test_features_of_the_same_frames_and_network_are_computed_once(tmp_path: Path) -> None:
    frames, network = noise(3, 9, 3, 4, 4), Means()
    first = i3d_features(frames, network, cache=tmp_path)
    assert network.calls == 3 and len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(i3d_features(frames, network, cache=tmp_path), first) and network.calls == 3
    i3d_features(1 - frames, network, cache=tmp_path)
    assert network.calls == 6, "other frames"
    network.gain.data *= 2
    assert np.allclose(i3d_features(frames, network, cache=tmp_path), 2 * first) and network.calls == 9, "other weights"
    for kept in tmp_path.iterdir():
        kept.write_bytes(b"damaged")
    assert np.allclose(i3d_features(frames, network, cache=tmp_path), 2 * first) and network.calls == 12
