"""The trivial predictors: what they say, that nothing is shared with the context, and how far off they are."""

from __future__ import annotations

import pytest
import torch

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.video import copy_last, dataset_mean_frame, mean_frame, mse, repeat_frame
from tests.metrics.clips import noise


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
    assert torch.allclose(mse(copy_last(context, 4), truth)[0], ahead**2, atol=1e-6)
    assert torch.allclose(mse(mean_frame(context, 4), truth)[0], (ahead + 0.15) ** 2, atol=1e-6)


def test_the_mean_of_noise_is_nearer_than_its_last_frame() -> None:
    """Of independent frames with variance v: copying is off by 2 v, the mean of t frames by v (1 + 1 / t)."""
    clip = noise(1, 9, 3, 64, 64)
    context, truth = clip[:, :8], clip[:, 8:]
    assert float(mse(copy_last(context, 1), truth)) == pytest.approx(2 / 12, rel=0.03)
    assert float(mse(mean_frame(context, 1), truth)) == pytest.approx((1 + 1 / 8) / 12, rel=0.03)


def test_the_mean_of_a_data_set_counts_every_frame_once_and_stands_for_every_clip() -> None:
    clips = [noise(2, 3, 3, 4, 4), noise(1, 5, 3, 4, 4, seed=1)]
    mean = dataset_mean_frame(iter(clips))
    every = torch.cat([each.flatten(0, 1) for each in clips])
    assert len(every) == 11 and torch.allclose(mean, every.mean(dim=0), atol=1e-6)
    repeated = repeat_frame(mean, 2, 5)
    assert repeated.shape == (2, 5, 3, 4, 4) and torch.equal(repeated[1, 4], mean)


def test_no_clip_and_a_wrong_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no clip"):
        dataset_mean_frame([])
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        dataset_mean_frame([torch.full((1, 1, 1, 2, 2), 255.0)])
