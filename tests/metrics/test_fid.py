"""FID's Inception against what torch-fidelity computes with the same weights, and FID's own number, N and weights file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics import inception
from diffusion_forcing.metrics.frechet import fid_report, inception_features
from diffusion_forcing.metrics.inception import FEATURES, Inception, load_inception, resized
from diffusion_forcing.metrics.weights import Unavailable
from tests.metrics.clips import formula_weights, noise, waves

RECORDED = Path(__file__).parent / "data" / "inception_features.npy"


class Grey(nn.Module):
    """In Inception's place: the mean grey, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, frames: Tensor) -> Tensor:
        features = torch.zeros(len(frames), FEATURES)
        features[:, 0] = frames.mean(dim=(1, 2, 3)) * self.gain
        return features


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published file with other numbers in it, in the cache and pinned: with a classifier, without counters."""
    state = formula_weights(Inception().state_dict())
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / inception.INCEPTION_WEIGHTS.file
    torch.save({**state, "fc.bias": torch.zeros(1008)}, path)
    monkeypatch.setenv("DIFFUSION_FORCING_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(inception.INCEPTION_WEIGHTS.variable, raising=False)
    pin = replace(inception.INCEPTION_WEIGHTS, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(inception, "INCEPTION_WEIGHTS", pin)
    return path


@pytest.mark.slow
def test_the_features_are_those_of_torch_fidelity_on_the_same_weights(weights: Path) -> None:
    """Recorded with `FeatureExtractorInceptionV3` of torch-fidelity 0.4.0, every eighth of 2048, of the same 8-bit frames."""
    network = load_inception()
    assert isinstance(network, Inception)
    found = inception_features(waves(2), network)
    assert found.shape == (1, 2, FEATURES) and found.dtype == np.float32
    recorded = np.load(RECORDED)
    assert recorded.std() > 0.2 and np.abs(recorded[0] - recorded[1]).max() > 0.02
    assert np.abs(found[0, :, ::8] - recorded).max() < 2e-5


def test_other_or_absent_weights_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inception.INCEPTION_WEIGHTS.variable, str(tmp_path / "mine.pth"))
    found = load_inception()
    assert isinstance(found, Unavailable) and found.name == "FID" and "mine.pth, get it by `curl" in str(found)
    (tmp_path / "mine.pth").write_bytes(b"another")
    found = load_inception()
    assert isinstance(found, Unavailable) and "SHA-256" in found.because and "expected 6726825d0af5" in found.because


def test_resizing_takes_pixels_at_i_h_over_299_as_tensorflow_1_did() -> None:
    """A ramp stays a ramp up to the last pixel, which is repeated."""
    ramp = torch.arange(46.0).view(1, 1, 1, 46).expand(1, 1, 23, 46)
    found = resized(ramp)
    assert found.shape == (1, 1, 299, 299)
    expected = (torch.arange(299.0) * 46 / 299).clamp(max=45)
    assert torch.allclose(found[0, 0, 17], expected, atol=1e-4)
    same = noise(1, 3, 299, 299)
    assert torch.equal(resized(same), same)


def flat(greys: np.ndarray) -> Tensor:
    return torch.from_numpy(greys).float()[:, :, None, None, None].expand(-1, -1, 3, 4, 4)


def test_fid_of_two_gaussians_counts_every_frame_and_draws_whole_clips() -> None:
    rng = np.random.default_rng(0)
    sets = []
    for mean, deviation in ((0.5, 0.1), (0.3, 0.05)):
        x = rng.uniform(-1, 1, (6, 4))
        sets.append(inception_features(flat(mean + deviation * (x - x.mean()) / x.std(ddof=1)), Grey(), batch=5))
    report = fid_report(*sets, paired=True, bootstrap=20)
    assert report.value == pytest.approx(0.2**2 + 0.05**2, rel=1e-4)
    assert (report.name, report.fake, report.floor_samples) == ("FID", 6, 3)
    assert set(report.metrics()) == {
        f"fid{end}" for end in ("", "_low", "_high", "_samples", "_floor", "_floor_samples")
    }


def test_batches_do_not_matter_and_other_channels_are_refused() -> None:
    frames = noise(3, 3, 1, 8, 8)
    found = inception_features(frames, Grey(), batch=4)
    assert np.allclose(found[2, 1, 0], float(frames[2, 1].mean()), atol=1e-6)
    with pytest.raises(UserError, match="1 or 3 channels, got 2"):
        inception_features(noise(1, 1, 2, 8, 8), Grey())
