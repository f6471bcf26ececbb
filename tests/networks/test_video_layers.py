"""The layers of the U-Net against what they are by definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.networks.attention import FullAttention, LinearAttention, TemporalAttention, rotate, rotation
from diffusion_forcing.networks.memory import FrameCache
from diffusion_forcing.networks.unet3d import FrameConv, FrameNorm, ResnetBlock

BATCH, TIME, CHANNELS, SIDE = 2, 4, 16, 3


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(BATCH * TIME, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def as_clips(x: Tensor) -> Tensor:
    """(b·t, c, h, w) → (b, c, t, h, w)."""
    return x.unflatten(0, (-1, TIME)).transpose(1, 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_frame_convolution_is_the_three_dimensional_one(
    frames: Tensor, stride: int, layout: torch.memory_format
) -> None:
    ours = FrameConv(CHANNELS, 8, 3, stride=stride)
    theirs = nn.Conv3d(CHANNELS, 8, (1, 3, 3), (1, stride, stride), (0, 1, 1))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(as_clips(ours(frames.contiguous(memory_format=layout))), theirs(as_clips(frames)))


def test_a_frame_is_normalised_by_itself_or_with_its_clip(frames: Tensor) -> None:
    by_frame, by_clip = FrameNorm(4, CHANNELS, "frame"), FrameNorm(4, CHANNELS, "clip")
    with torch.no_grad():
        for norm in (by_frame, by_clip):
            norm.weight.copy_(torch.linspace(0.5, 2, CHANNELS))
            norm.bias.copy_(torch.linspace(-1, 1, CHANNELS))
    weight, bias = by_clip.weight, by_clip.bias
    torch.testing.assert_close(by_clip(frames, TIME), _folded(F.group_norm(as_clips(frames), 4, weight, bias, 1e-6)))
    alone = torch.cat([F.group_norm(frame[None], 4, weight, bias, 1e-6) for frame in frames])
    torch.testing.assert_close(by_frame(frames, TIME), alone)
    assert (by_clip(frames, TIME) - alone).abs().max() > 0.01


def _folded(clips: Tensor) -> Tensor:
    return clips.transpose(1, 2).flatten(0, 1)


def test_an_embedding_scales_and_shifts_between_the_convolutions(frames: Tensor) -> None:
    block = ResnetBlock(CHANNELS, 8, embedding=5, groups=4, norm="frame")
    embedding = torch.randn(len(frames), 5)
    h = block.in_layers[2](F.silu(block.in_layers[0](frames)))
    scale, shift = block.emb_layers(embedding).chunk(2, dim=1)
    h = block.out_layers[0](h) * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(block(frames, embedding, TIME), block.out_layers[2](F.silu(h)) + block.skip_conv(frames))


def test_attention_over_pixels_is_its_formula() -> None:
    query, key, value = (torch.randn(3, 6, 2, 4) for _ in range(3))
    scores = torch.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(4)
    full = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), value)
    torch.testing.assert_close(FullAttention()(query, key, value), full, atol=1e-5, rtol=1e-5)
    context = torch.einsum("nkhd,nkhe->nhde", key.softmax(1), value)
    linear = torch.einsum("nqhd,nhde->nqhe", query.softmax(-1) / math.sqrt(4), context)
    torch.testing.assert_close(LinearAttention()(query, key, value), linear, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("causal", "with_past"), [(True, True), (True, False), (False, False)])
def test_attention_along_time_is_the_fused_one(frames: Tensor, causal: bool, with_past: bool) -> None:
    """What a GPU computes, and the CPU's products of matrices."""
    layer = TemporalAttention(CHANNELS, 2, 4, causal=causal, rotary=True)
    heads = SIDE * SIDE * 2
    query, key, value = (torch.randn(BATCH, heads, TIME, 4) for _ in range(3))
    past = (torch.randn(BATCH, heads, 3, 4), torch.randn(BATCH, heads, 3, 4)) if with_past else None
    torch.testing.assert_close(
        layer._attend(query, key, value, past), layer._attend_fused(query, key, value, past), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("time", "with_past"), [(1, True), (1, False), (3, True), (3, False)])
def test_no_fused_call_has_more_heads_than_a_gpu_takes_and_one_frame_needs_no_mask(
    monkeypatch: pytest.MonkeyPatch, time: int, with_past: bool
) -> None:
    calls = []

    def attention(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        calls.append((query.shape[1], how["attn_mask"], how["is_causal"]))
        return fused(query, key, value, **how)

    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr("diffusion_forcing.networks.attention.GRID_LIMIT", 30)
    layer = TemporalAttention(CHANNELS, 2, 4, causal=True, rotary=True)
    query, key, value = (torch.randn(BATCH, 64, time, 4) for _ in range(3))
    past = (torch.randn(BATCH, 64, 3, 4), torch.randn(BATCH, 64, 3, 4)) if with_past else None
    found = layer._attend_fused(query, key, value, past)
    torch.testing.assert_close(found, layer._attend(query, key, value, past), atol=1e-5, rtol=1e-5)
    assert [heads for heads, _, _ in calls] == [22, 22, 20]
    for _, mask, is_causal in calls:
        assert (mask is not None) == (time > 1 and with_past)
        assert is_causal == (time > 1 and not with_past)


def test_turns_in_real_numbers_are_those_in_complex_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x, turn = torch.randn(2, 5, 8), rotation(torch.arange(5), 8)
    plain = rotate(x, turn)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, turn), plain, atol=1e-6, rtol=1e-6)


def test_only_distances_between_rotary_positions_count(frames: Tensor) -> None:
    layer = TemporalAttention(CHANNELS, 2, 4, causal=True, rotary=True)
    here, _ = layer(frames, TIME, torch.arange(TIME), None)
    there, _ = layer(frames, TIME, torch.arange(TIME) + 1000, None)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    stretched, _ = layer(frames, TIME, 3 * torch.arange(TIME), None)
    assert (here - stretched).abs().max() > 1e-4


def test_sinks_stand_just_before_the_frames_that_stay() -> None:
    """Keys of the first frames are turned to where they would be, had the frames between never been."""
    torch.manual_seed(0)
    layer = TemporalAttention(CHANNELS, 2, 4, causal=True, rotary=True)
    x = torch.randn(6, CHANNELS, SIDE, SIDE)  # one clip
    _, present = layer(x, 6, torch.arange(6), None)
    kept = FrameCache([present], position=6, rotary=True).trimmed(2, sinks=1)
    assert kept.length == 3 and kept.position == 6
    chosen = x[[0, 4, 5]]
    _, (key, value) = layer(chosen, 3, torch.tensor([3, 4, 5]), None)
    torch.testing.assert_close(kept.keys[0], key, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept.values[0], value, atol=1e-5, rtol=1e-5)


def test_a_trimmed_cache_holds_no_frame_that_left() -> None:
    pair = (torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4))
    cache = FrameCache([pair], position=6, rotary=True)
    kept = cache.trimmed(2)
    assert kept.keys[0].untyped_storage().nbytes() == 2 * pair[0].untyped_storage().nbytes() // 6
    assert cache.trimmed(6) is cache
    with pytest.raises(ValueError, match="cannot keep"):
        cache.trimmed(-1)


def test_frames_are_joined_to_those_before_only_when_they_are_asked_for() -> None:
    old = FrameCache([(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))], position=3, rotary=True)
    new = FrameCache([(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))], position=4, rotary=True, before=old)
    assert new.length == 4 and new._own[0][0].shape[2] == 1
    assert new.keys[0][0, 0, :, 0].tolist() == [0, 0, 0, 1]
