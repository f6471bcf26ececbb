"""The U-Net under the sampler: every cache gives the uncached frames while the window is not full, `exact` always."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import DiffusionForcing, Sampler, build_parameterization, build_schedule
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.unet3d import UNet3D

FRAME, ACTIONS, STEPS, BATCH, LENGTH = (1, 4, 4), 3, 2, 2, 6


@cache
def unet(time_emb_type: str = "rotary", **settings: Any) -> UNet3D:
    """The smallest there is, random, its outputs of all layers away from 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet3D(
            1,
            4,
            network_size=8,
            dim_mults=(1,),
            attn_resolutions=(4,),
            attn_heads=2,
            attn_dim_head=8,
            time_emb_type=time_emb_type,  # type: ignore[arg-type]
            external_cond_dim=ACTIONS,
            **settings,
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


def sampler_over(network: UNet3D, kind: str, **settings: Any) -> Sampler:
    forcing = DiffusionForcing(network, build_schedule("sigmoid"), build_parameterization("pred_v", clip_noise=6.0))
    return Sampler(forcing, sampling_timesteps=STEPS, scheduling_matrix=kind, uncertainty_scale=1.5, **settings)


def frames(seed: int, *shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


def rollout(network: UNet3D, kind: str, settings: dict[str, Any] | None = None, **how: Any) -> Tensor:
    return sampler_over(network, kind, **settings or {}).rollout(
        frames(0, 2, *FRAME),
        LENGTH,
        conditions=frames(1, LENGTH, ACTIONS),
        generator=torch.Generator().manual_seed(2),
        **how,
    )


@pytest.mark.parametrize("window", [LENGTH, 4])
@pytest.mark.parametrize(("kind", "chunk_size"), [("autoregressive", 1), ("pyramid", 2), ("full_sequence", 3)])
def test_an_exact_cache_gives_the_uncached_frames_always(kind: str, chunk_size: int, window: int) -> None:
    how = {"window": window, "chunk_size": chunk_size}
    plain, cached = (rollout(unet(), kind, cache=kept, **how) for kept in ("none", "exact"))
    assert (plain - cached).abs().max() <= 1e-4
    assert plain[:, 2:].std() > 0.1


@pytest.mark.parametrize("time_emb_type", ["rotary", "sinusoidal"])
@pytest.mark.parametrize(("kind", "chunk_size"), [("autoregressive", 1), ("pyramid", -1), ("full_sequence", 2)])
def test_a_streaming_cache_gives_the_uncached_frames_while_the_window_is_not_full(
    kind: str, chunk_size: int, time_emb_type: str
) -> None:
    how = {"window": LENGTH, "chunk_size": chunk_size}
    plain, streamed = (rollout(unet(time_emb_type), kind, cache=kept, **how) for kept in ("none", "streaming"))
    assert (plain - streamed).abs().max() <= 1e-4


@pytest.mark.parametrize("sinks", [0, 1])
@pytest.mark.parametrize("time_emb_type", ["rotary", "sinusoidal"])
def test_a_streaming_cache_goes_its_own_way_when_the_window_slides_and_stays_bounded(
    time_emb_type: str, sinks: int
) -> None:
    network = unet(time_emb_type)
    exact = rollout(network, "autoregressive", window=4, cache="exact")
    lengths: list[int] = []
    hook = network.register_forward_hook(lambda module, given, out: lengths.append(out[1].length))
    streamed = rollout(network, "autoregressive", window=4, cache="streaming", sinks=sinks)
    hook.remove()
    assert (exact[:, :4] - streamed[:, :4]).abs().max() <= 1e-4
    assert (exact[:, 5:] - streamed[:, 5:]).abs().max() > 1e-4
    assert max(lengths) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"condition_scale": 2.0},
        {"history_scale": 1.5},
        {"history_scale": 1.5, "history_level": 400, "condition_scale": 2},
    ],
    ids=["actions", "history", "both"],
)
def test_guided_frames_are_the_same_with_a_cache(settings: dict[str, Any]) -> None:
    plain, cached = (
        rollout(unet(), "pyramid", settings, window=4, chunk_size=2, cache=kept) for kept in ("none", "exact")
    )
    assert (plain - cached).abs().max() <= 1e-4
    assert (plain - rollout(unet(), "pyramid", window=4, chunk_size=2))[:, 2:].abs().max() > 0.01


@pytest.mark.parametrize("settings", [{"norm": "clip"}, {"causal": False}], ids=["norm clip", "not causal"])
def test_a_network_whose_past_is_never_finished_takes_no_cache_and_says_why(settings: dict[str, Any]) -> None:
    network = unet(**settings)
    assert network.why_no_memory
    for kept in ("exact", "streaming"):
        with pytest.raises(UserError) as refusal:
            rollout(network, "autoregressive", window=4, cache=kept)
        assert network.why_no_memory in str(refusal.value)
        assert "pass cache=none" in str(refusal.value)


@pytest.mark.parametrize("causal", [True, False])
def test_frames_between_given_frames_are_filled_in(causal: bool) -> None:
    known = torch.tensor([True, False, False, False, True])
    given, actions = frames(0, 5, *FRAME), frames(1, 5, ACTIONS)
    other_end = given.clone()
    other_end[:, 4] += 1
    outs = [
        sampler_over(unet(causal=causal), "pyramid").fill(
            x, known, conditions=actions, generator=torch.Generator().manual_seed(0)
        )
        for x in (given, other_end)
    ]
    assert torch.equal(outs[0][:, known], given[:, known])
    moved = (outs[0] - outs[1])[:, 1:4].abs().max()
    assert moved == 0 if causal else moved > 1e-4
