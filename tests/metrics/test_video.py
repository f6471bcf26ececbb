"""Metrics of frames against closed forms and against torchmetrics, and what is refused at their door."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional import image

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.video import FRAME_METRICS, PSNR_CAP, copy_last, frame_curves, mean_frame
from tests.metrics.clips import noise, waves

CLIPS = torch.cat([waves(3, 24), noise(1, 3, 3, 24, 24)])
"""(2, 3, 3, 24, 24): an image with structure, and noise."""


def curve(metric: str, prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return frame_curves(prediction, truth, [metric])[metric]


@pytest.mark.parametrize("offset", [0.5, 0.1, 0.01])
def test_a_constant_error_has_its_square_and_its_decibels(offset: float) -> None:
    truth = noise(2, 3, 3, 12, 12) * 0.5
    assert torch.allclose(curve("mse", truth + offset, truth), torch.full((2, 3), offset**2), rtol=1e-4)
    assert torch.allclose(curve("psnr", truth + offset, truth), torch.full((2, 3), -20 * math.log10(offset)), atol=1e-3)


def test_noise_of_a_known_deviation_has_its_variance_as_error() -> None:
    """Uniform in ±a: variance a² / 3. The range is 1: a range of 2 would say 6 dB more."""
    truth = torch.full((1, 4, 3, 128, 128), 0.5)
    found = curve("mse", truth + 0.3 * (2 * noise(1, 4, 3, 128, 128) - 1), truth)
    assert torch.allclose(found, torch.full((1, 4), 0.03), rtol=0.02)  # 49,152 values: its deviation is 0.4 %


def test_equal_frames_have_the_best_value_there_is() -> None:
    found = frame_curves(CLIPS, CLIPS.clone())
    assert (found["mse"] == 0).all()
    assert (found["psnr"] == PSNR_CAP).all()
    assert torch.allclose(found["ssim"], torch.ones(2, 3), atol=1e-5)
    assert torch.allclose(found["uiqi"], torch.ones(2, 3), atol=1e-3)


@pytest.mark.parametrize("scale", [0.9, 0.5, 0.2])
def test_uiqi_of_a_dimmed_frame_is_its_closed_form(scale: float) -> None:
    """4 s_xy m_x m_y / ((s_x² + s_y²)(m_x² + m_y²)) with y = a x is (2 a / (1 + a²))² in every window."""
    truth = noise(1, 2, 3, 24, 24)
    expected = (2 * scale / (1 + scale**2)) ** 2
    assert torch.allclose(curve("uiqi", truth * scale, truth), torch.full((1, 2), expected), atol=1e-3)


@pytest.mark.parametrize(("one", "other"), [(0.2, 0.6), (0.0, 1.0), (0.5, 0.51)])
def test_ssim_of_flat_frames_is_that_of_their_means(one: float, other: float) -> None:
    """(2 m_x m_y + c) / (m_x² + m_y² + c), c = (0.01 range)², range 1."""
    expected = (2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4)
    flat = torch.ones(1, 2, 3, 24, 24)
    assert torch.allclose(curve("ssim", flat * one, flat * other), torch.full((1, 2), expected), atol=2e-3)


def test_uiqi_of_flat_frames_is_counted_as_nothing() -> None:
    flat = torch.full((1, 1, 3, 24, 24), 0.5)
    assert curve("uiqi", flat, flat).abs().max() < 1e-3


def test_every_frame_has_what_torchmetrics_says_of_it_alone() -> None:
    prediction = (CLIPS + 0.2 * (noise(*CLIPS.shape, seed=1) - 0.5)).clamp(0, 1)
    found = frame_curves(prediction, CLIPS)
    for b in range(2):
        for t in range(3):
            one, other = prediction[b, t][None], CLIPS[b, t][None]
            expected = {
                "mse": (one - other).square().mean(),
                "psnr": image.peak_signal_noise_ratio(one, other, data_range=1.0),
                "ssim": image.structural_similarity_index_measure(one, other, data_range=1.0),
                "uiqi": image.universal_image_quality_index(one, other),
            }
            for name, value in expected.items():
                assert found[name][b, t] == pytest.approx(float(value), abs=1e-4), name


@pytest.mark.parametrize("metric", FRAME_METRICS)
def test_more_noise_is_worse_and_symmetric_and_the_frames_are_left_as_they_are(metric: str) -> None:
    truth = waves(2, 24)
    first = 2 * noise(*truth.shape) - 1
    levels = [(truth + amount * first).clamp(0, 1) for amount in (0.02, 0.1, 0.4)]
    before = truth.clone(), levels[1].clone()
    values = [curve(metric, level, truth).mean() for level in levels]
    assert (values == sorted(values)) is (metric == "mse")
    assert torch.allclose(curve(metric, levels[1], truth), curve(metric, truth, levels[1]), atol=1e-5)
    assert torch.equal(truth, before[0]) and torch.equal(levels[1], before[1])


def test_many_frames_looked_at_some_at_a_time_score_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, truth = noise(3, 5, 1, 16, 16), noise(3, 5, 1, 16, 16, seed=1)
    whole = frame_curves(prediction, truth)
    monkeypatch.setattr("diffusion_forcing.metrics.video.CHUNK_VALUES", 4 * 256)
    for name, values in frame_curves(prediction, truth).items():
        assert values.shape == (3, 5) and torch.allclose(values, whole[name], atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "advice"), [(-1.0, 1.0, "x / 2"), (0.0, 255.0, "divide by 255"), (0.0, 1.2, "clamp")]
)
def test_another_range_is_refused_with_what_to_do(low: float, high: float, advice: str) -> None:
    frames = torch.linspace(low, high, 3 * 144).view(1, 1, 3, 12, 12)
    with pytest.raises(UserError, match=rf"prediction must lie in \[0, 1\], found .*{advice}"):
        curve("mse", frames, torch.rand(1, 1, 3, 12, 12))
    with pytest.raises(UserError, match=r"truth must lie in"):
        curve("mse", torch.rand(1, 1, 3, 12, 12), frames)


def test_what_is_no_number_no_float_or_of_another_shape_is_refused() -> None:
    good = torch.rand(1, 2, 3, 12, 12)
    with pytest.raises(UserError, match="found nan"):
        curve("mse", good * torch.nan, good)
    with pytest.raises(UserError, match=r"floating point in \[0, 1\], got torch.uint8; divide by 255"):
        curve("mse", good.byte(), good)
    with pytest.raises(UserError, match=r"same shape, got \(1, 2, 3, 12, 12\) and \(1, 1, 3, 12, 12\)"):
        curve("mse", good, good[:, :1])
    for wrong in (good[0], good[:, :0]):
        with pytest.raises(UserError, match="clips, frames, channels, height, width"):
            curve("mse", wrong, wrong)
    with pytest.raises(UserError, match="got list"):
        curve("mse", [0.5], good)  # type: ignore[arg-type]


def test_small_frames_and_unknown_metrics_are_refused_by_name() -> None:
    small = torch.rand(1, 1, 3, 10, 16)
    for name in ("ssim", "uiqi"):
        with pytest.raises(UserError, match=f"{name} needs frames of at least 11x11 pixels, got 10x16"):
            frame_curves(small, small, [name])
    with pytest.raises(UserError, match=r"'snr' is unknown.*mse, psnr, ssim, uiqi.*did you mean 'psnr'"):
        frame_curves(small, small, ["snr"])


@pytest.mark.parametrize("metric", FRAME_METRICS)
def test_metrics_are_computed_in_float32_also_under_autocast(metric: str) -> None:
    prediction = (CLIPS + 0.2 * (noise(*CLIPS.shape, seed=1) - 0.5)).clamp(0, 1)
    expected = curve(metric, prediction, CLIPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = curve(metric, prediction, CLIPS)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_copying_repeats_the_last_frame_and_the_mean_repeats_the_mean() -> None:
    context = noise(2, 4, 3, 5, 6)
    assert torch.equal(copy_last(context, 7), context[:, [3] * 7])
    assert mean_frame(context, 7).shape == (2, 7, 3, 5, 6)
    assert torch.allclose(mean_frame(context, 7)[1, 6], context[1].sum(dim=0) / 4)


@pytest.mark.parametrize("predictor", [copy_last, mean_frame])
def test_predictions_share_no_memory_and_keep_type_and_context(predictor) -> None:
    context = noise(1, 2, 1, 4, 4).double()
    before = context.clone()
    prediction = predictor(context, 3)
    prediction[0, 0] = 9
    assert prediction.dtype == torch.float64 and torch.equal(context, before) and prediction[0, 1].max() < 1


def test_a_clip_that_moves_steadily_is_off_by_how_far_it_went() -> None:
    """Frame t has the grey value 0.1 t; after frames 0 … 3 the last one is 0.3 and their mean 0.15."""
    clip = torch.arange(8).view(1, 8, 1, 1, 1).expand(1, 8, 1, 4, 4) * 0.1
    context, truth = clip[:, :4], clip[:, 4:]
    ahead = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert torch.allclose(curve("mse", copy_last(context, 4), truth)[0], ahead**2, atol=1e-6)
    assert torch.allclose(curve("mse", mean_frame(context, 4), truth)[0], (ahead + 0.15) ** 2, atol=1e-6)


def test_the_mean_of_noise_is_nearer_than_its_last_frame() -> None:
    """Of independent frames with variance v: copying is off by 2 v, the mean of t frames by v (1 + 1 / t)."""
    clip = noise(1, 9, 3, 64, 64)
    context, truth = clip[:, :8], clip[:, 8:]
    assert float(curve("mse", copy_last(context, 1), truth)) == pytest.approx(2 / 12, rel=0.03)
    assert float(curve("mse", mean_frame(context, 1), truth)) == pytest.approx((1 + 1 / 8) / 12, rel=0.03)
