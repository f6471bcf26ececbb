"""LPIPS against torchmetrics' own on the same weights, and its file of weights: right, wrong, absent."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as theirs

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics import lpips as ours
from diffusion_forcing.metrics.lpips import LPIPS, load_lpips, lpips
from diffusion_forcing.metrics.weights import Unavailable
from tests.metrics.clips import formula_weights, noise, waves


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AlexNet's file with other numbers in it, in the cache and pinned; a classifier lies in it too."""
    trunk = {name: x for name, x in LPIPS().state_dict().items() if name.startswith("features.")}
    path = tmp_path / ours.ALEXNET.file
    torch.save({**formula_weights(trunk), "classifier.1.bias": torch.zeros(5)}, path)
    monkeypatch.setenv("DIFFUSION_FORCING_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(ours.ALEXNET.variable, raising=False)
    monkeypatch.setattr(ours, "ALEXNET", replace(ours.ALEXNET, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    return path


def loaded() -> LPIPS:
    network = load_lpips()
    assert isinstance(network, LPIPS)
    return network


def test_every_frame_has_the_value_torchmetrics_gives(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics asks torchvision for the layers; here it is handed layers of the same kind."""
    if not hasattr(theirs, "_get_tv_model_features"):
        pytest.skip(
            "torchmetrics below 1.8 needs torchvision to build its reference, and no CPU build of that is pinned here"
        )
    network = loaded()
    layers = nn.Sequential(*network.features, nn.MaxPool2d(3, 2))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: layers)
    reference = theirs._NoTrainLpips(net="alex")
    truth = torch.cat([waves(2, 48), noise(1, 2, 3, 48, 48)])
    prediction = (truth + 0.3 * (noise(*truth.shape, seed=1) - 0.5)).clamp(0, 1)
    expected = reference(prediction.flatten(0, 1), truth.flatten(0, 1), normalize=True).view(2, 2)
    assert expected.min() > 1e-4
    assert torch.allclose(lpips(prediction, truth, network), expected, rtol=1e-4)


def test_equal_frames_are_at_no_distance_and_more_noise_is_further(weights: Path) -> None:
    network, truth = loaded(), waves(2, 40)
    assert (lpips(truth, truth.clone(), network) == 0).all()
    bump = noise(*truth.shape) - 0.5
    near, far = (lpips((truth + amount * bump).clamp(0, 1), truth, network) for amount in (0.05, 0.5))
    assert (near > 0).all() and (near < far).all()


def test_grey_frames_are_colour_frames_of_three_equal_channels(weights: Path) -> None:
    network, one, other = loaded(), noise(1, 2, 1, 31, 31), noise(1, 2, 1, 31, 31, seed=1)
    colour = lpips(one.expand(-1, -1, 3, -1, -1), other.expand(-1, -1, 3, -1, -1), network)
    assert torch.allclose(lpips(one, other, network), colour, atol=1e-6)


def test_small_frames_other_channels_and_ranges_are_refused(weights: Path) -> None:
    network = loaded()
    with pytest.raises(UserError, match="lpips needs frames of at least 31x31 pixels, got 30x40"):
        lpips(noise(1, 1, 3, 30, 40), noise(1, 1, 3, 30, 40), network)
    with pytest.raises(UserError, match="1 or 3 channels, got 4"):
        lpips(noise(1, 1, 4, 32, 32), noise(1, 1, 4, 32, 32), network)
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        lpips(noise(1, 1, 3, 32, 32) * 255, noise(1, 1, 3, 32, 32), network)


def test_the_linear_weights_are_version_0_1_s_and_another_file_is_refused(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert all((weight >= 0).all() for weight in loaded().weights), "distances are sums of what is not negative"
    (tmp_path / "alex.pth").write_bytes(b"another")
    monkeypatch.setattr(ours, "HEADS", replace(ours.HEADS, variable="DF_HEADS"))
    monkeypatch.setenv("DF_HEADS", str(tmp_path / "alex.pth"))
    assert "alex.pth has SHA-256" in str(load_lpips())
    monkeypatch.setenv("DF_HEADS", str(tmp_path / "none.pth"))
    assert "none.pth, get it by `pip install" in str(load_lpips())


def test_lpips_is_computed_in_float32_also_under_autocast(weights: Path) -> None:
    network, truth = loaded(), waves(2, 40)
    prediction = (truth + 0.1 * (noise(*truth.shape) - 0.5)).clamp(0, 1)
    expected = lpips(prediction, truth, network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lpips(prediction, truth, network), expected)


def test_damaged_or_absent_weights_are_a_line(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes() + b"x")
    found = load_lpips()
    assert isinstance(found, Unavailable) and "SHA-256" in found.because and "curl" in found.how
    weights.unlink()
    assert str(load_lpips()).startswith("unavailable, because the weights of its network (AlexNet) are not in ")
