"""The 3-D U-Net: what a frame may know of, what the cache is worth, what enters and how, which names and sizes it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.unet3d import UNet3D

CHANNELS, SIZE, TIME, ACTIONS = 2, 8, 5, 3
VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "sinusoidal": {"time_emb_type": "sinusoidal"},
    "patches": {"patch_size": 2, "attn_resolutions": (4,)},
    "full attention": {"use_linear_attn": False},
    "attention in the middle alone": {"attn_resolutions": (), "use_init_temporal_attn": False},
    "conditions": {"external_cond_dim": ACTIONS},
}


def unet(**options: Any) -> UNet3D:
    """A small network with random weights, none of them 0."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "network_size": 8,
        "dim_mults": (1, 2),
        "attn_resolutions": (8, 4),
        "attn_heads": 2,
        "attn_dim_head": 4,
    }
    network = UNet3D(CHANNELS, SIZE, **sizes | options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def inputs(network: UNet3D, batch: int = 2, time: int = TIME) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, time, CHANNELS, SIZE, SIZE, generator=generator)
    k = torch.randint(-1, 1000, (batch, time), generator=generator)
    width = network.external_cond_dim
    return x, k, torch.randn(batch, time, width, generator=generator) if width else None


# ------------------------------------------------------------------------------------------------ who knows of whom


def changed(network: UNet3D, at: int, what: str) -> tuple[Tensor, Tensor]:
    """Outputs for some frames and for the same with frame `at` changed in its pixels, level or condition."""
    x, k, conditions = inputs(network)
    other = [x.clone(), k.clone(), None if conditions is None else conditions.clone()]
    if what == "pixels":
        other[0][:, at] = 100 * torch.randn(x[:, at].shape)
    elif what == "level":
        other[1][:, at] = (k[:, at] + 500) % 1000
    else:
        other[2][:, at] += 10
    with torch.no_grad():
        return network(x, k, conditions)[0], network(*other)[0]


@pytest.mark.parametrize("at", [1, TIME - 1])
@pytest.mark.parametrize(
    ("variant", "what"), [*((v, w) for v in VARIANTS for w in ("pixels", "level")), ("conditions", "condition")]
)
def test_nothing_a_frame_is_changes_an_earlier_output_by_a_bit(variant: str, what: str, at: int) -> None:
    before, after = changed(unet(**VARIANTS[variant]), at, what)
    assert torch.equal(before[:, :at], after[:, :at])
    for t in range(at, TIME):  # and all later ones know of it
        assert (before[:, t] - after[:, t]).abs().max() > 1e-6


def test_the_released_normalisation_lets_the_past_see_the_future() -> None:
    before, after = changed(unet(norm="clip"), TIME - 1, "pixels")
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-4


def test_a_network_that_is_not_causal_sees_the_future() -> None:
    before, after = changed(unet(causal=False), TIME - 1, "pixels")
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-6


def test_clips_of_a_batch_do_not_know_of_each_other() -> None:
    network = unet()
    x, k, _ = inputs(network)
    with torch.no_grad():
        together, alone = network(x, k)[0], network(x[1:], k[1:])[0]
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=6, deadline=None)
@given(cuts=st.sets(st.integers(1, TIME - 1)))
def test_calls_on_pieces_with_the_memory_of_what_was_before_equal_one_call(variant: str, cuts: set[int]) -> None:
    network = unet(**VARIANTS[variant])
    x, k, conditions = inputs(network)
    with torch.no_grad():
        whole, _ = network(x, k, conditions)
        pieces, memory, start = [], None, 0
        for end in [*sorted(cuts), TIME]:
            given_conditions = None if conditions is None else conditions[:, start:end]
            out, memory = network(x[:, start:end], k[:, start:end], given_conditions, memory=memory)
            pieces.append(out)
            assert memory is not None and memory.length == memory.position == end
            start = end
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_memory_that_lost_its_oldest_frames_is_one_of_the_frames_that_stay() -> None:
    """With one temporal attention and rotary positions, frames that left leave nothing behind."""
    network = unet(attn_resolutions=(), use_init_temporal_attn=False, dim_mults=(1,))
    x, k, _ = inputs(network)
    with torch.no_grad():
        _, memory = network(x[:, :4], k[:, :4])
        assert memory is not None
        slid, _ = network(x[:, 4:], k[:, 4:], memory=memory.trimmed(2))
        afresh, _ = network(x[:, 2:], k[:, 2:])
        full, _ = network(x, k)
    assert network.memory_slides
    torch.testing.assert_close(slid, afresh[:, 2:], atol=1e-5, rtol=1e-5)
    assert (slid - full[:, 4:]).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("options", "why"),
    [({"norm": "clip"}, "norm=clip"), ({"causal": False}, "causal=False")],
    ids=["clip", "both ways"],
)
def test_a_network_that_sees_the_future_gives_no_memory_and_takes_none(options: dict[str, Any], why: str) -> None:
    network = unet(**options)
    x, k, _ = inputs(network)
    _, memory = unet()(x[:, :2], k[:, :2])
    assert network(x, k)[1] is None
    assert not network.keeps_memory and why in network.why_no_memory
    with pytest.raises(UserError, match=rf"{why}.*algorithm\.cache=none"):
        network(x[:, 2:], k[:, 2:], memory=memory)


# ------------------------------------------------------------------------------------------------ levels and conditions


def test_conditions_say_nothing_before_training_and_zeros_never() -> None:
    torch.manual_seed(0)
    told = UNet3D(CHANNELS, SIZE, network_size=8, dim_mults=(1,), attn_resolutions=(), external_cond_dim=ACTIONS)
    torch.manual_seed(0)
    untold = UNet3D(CHANNELS, SIZE, network_size=8, dim_mults=(1,), attn_resolutions=())
    x, k, conditions = inputs(told)
    with torch.no_grad():
        assert torch.equal(told(x, k, conditions)[0], untold(x, k)[0])
        told.condition_embedding[2].weight.add_(1.0)
        assert torch.equal(told(x, k, torch.zeros_like(conditions))[0], untold(x, k)[0])
        assert not torch.equal(told(x, k, conditions)[0], untold(x, k)[0])


def test_each_frame_has_its_own_level() -> None:
    network = unet()
    x, k, _ = inputs(network)
    same = torch.full_like(k, 500)
    mixed = same.clone()
    mixed[:, 3] = 10
    with torch.no_grad():
        a, b = network(x, same)[0], network(x, mixed)[0]
    assert torch.equal(a[:, :3], b[:, :3])
    assert (a[:, 3] - b[:, 3]).abs().max() > 1e-5


# ------------------------------------------------------------------------------------------------ names and sizes


def test_names_of_released_checkpoints_are_taken() -> None:
    network, other = unet(), unet()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    released = {}
    for name, value in network.state_dict().items():
        head, _, tail = name.partition(".")
        wrapped = f"{head}.{tail}".replace("to_qkv", "attn_block.to_qkv") if "attn" in name else name
        released[wrapped] = value
    released["mid_block.2.rotary_emb.freqs"] = torch.ones(2)  # a constant they store
    assert sum("attn_block" in name for name in released) > 4
    other.load_state_dict(released)
    for name, value in other.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


def test_convolutions_have_the_released_shape() -> None:
    weights = [w for name, w in unet().state_dict().items() if "conv" in name and name.endswith("weight")]
    assert weights and all(w.ndim == 5 and w.shape[2] == 1 for w in weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim_mults": (1, 2, 4, 8, 8)}, r"resolution of 8 cannot be divided by 16 .*4 halvings"),
        ({"patch_size": 3}, r"resolution of 8 cannot be divided by 6 \(patch_size 3"),
        ({"network_size": 12}, r"12 channels cannot be normalised in 8 groups"),
    ],
)
def test_sizes_that_cannot_be_are_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unet(**options)


def test_what_does_not_fit_the_network_is_said() -> None:
    plain, told = unet(), unet(external_cond_dim=ACTIONS)
    x, k, conditions = inputs(told)
    with pytest.raises(UserError, match=r"frames of \(channels, height, width\) \(2, 8, 8\), got \(2, 4, 8\)"):
        plain(x[..., :4, :], k)
    with pytest.raises(UserError, match=r"conditions of width 3 \(external_cond_dim\), got none"):
        told(x, k)
    with pytest.raises(UserError, match="got width 2"):
        told(x, k, conditions[..., :2])  # type: ignore[index]
    with pytest.raises(UserError, match=r"conditions of width 0 .*got width 3"):
        plain(x, k, conditions)
