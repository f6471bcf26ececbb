"""The 3-D U-Net, its training loss and single denoising rows: the released code's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import GradientGuidance
from diffusion_forcing.diffusion.denoiser import Denoiser, NoisyContext
from tests.parity.recorded import flip, norm, recording

NETWORKS = ("video_u1", "video_u2", "video_u3")
OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
TRAININGS = [
    f"train_forward_video_{objective}_{weighting}" for objective in OBJECTIVES for weighting in ("fused", "minsnr")
]
KINDS = ("eta0", "eta1", "eta0_guided", "eta1_guided", "ddpm")
STEPS = [f"sample_step_video_{objective}_{kind}" for objective in OBJECTIVES for kind in KINDS]


@pytest.mark.parametrize("kind", ["causal", "full"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_gives_the_recorded_output(network: str, kind: str) -> None:
    recorded = recording(f"{network}_{kind}")
    video = recorded.video()
    assert video.network.causal == recorded.meta["is_causal"] == (kind == "causal")
    with torch.no_grad():
        output, memory = video.network(flip(recorded["x"]), flip(recorded["k"]))
    recorded.agrees(flip(output), "out")
    assert memory is None  # the released normalisation sees the future


@pytest.mark.parametrize("name", TRAININGS)
def test_the_training_loss_and_its_gradients_are_the_recorded_ones(name: str) -> None:
    recorded = recording(name)
    video = recorded.video()
    # raised to the power frame_stack·frame_skip, here and only once
    assert math.isclose(video.forcing.cum_snr_decay, recorded.meta["cum_snr_decay_effective"])
    loss, x0, _ = video.forcing.loss(
        flip(recorded["x"]), flip(recorded["noise_levels"]), noise=flip(recorded["noise_raw"])
    )
    recorded.agrees(flip(x0), "x_pred")
    recorded.agrees(flip(loss), "loss")
    recorded.agrees(loss.mean(), "loss_mean")
    loss.mean().backward()
    gradients = {key: p.grad for key, p in video.network.named_parameters() if p.grad is not None}
    if "grad_norm" in recorded:
        recorded.agrees(norm(list(gradients.values())), "grad_norm")
    released = {_ours(key): key for key in recorded.below("gradnorm.model.")}
    for key, theirs in released.items():
        recorded.agrees(gradients[key].norm(), f"gradnorm.model.{theirs}", known_error="grad.*")
        if f"grad.model.{theirs}" in recorded:
            recorded.agrees(gradients[key], f"grad.model.{theirs}", known_error="grad.*")
    assert not released or released.keys() == gradients.keys()


def _ours(released: str) -> str:
    for word in ("module.", "wrapper.", "attn_block."):
        released = released.replace(word, "")
    return released


@pytest.mark.parametrize("name", STEPS)
def test_one_denoising_row_is_the_recorded_one(name: str) -> None:
    recorded = recording(name)
    video = recorded.video()
    sampler = video.sampler()
    assert sampler.ancestral == (recorded.meta["sampler"] == "ddpm")
    guidance = None
    if recorded.meta.get("guidance_coef") is not None:
        target = flip(recorded["guidance_target"])

        def returns(x0: Tensor) -> Tensor:
            return -recorded.meta["guidance_coef"] * ((x0 - target) ** 2).flatten(1).sum(dim=1)

        guidance = GradientGuidance(returns)
    denoise: Denoiser = video.forcing
    if sampler.ancestral:
        context_noise = video.forcing.clamp_noise(flip(recorded["noise_context_raw"]))
        level = video.forcing.stabilization_level - 1
        denoise = NoisyContext(denoise, video.forcing.schedule, level=level, noise=context_noise)
    if guidance is not None:
        denoise = guidance.wrap(denoise, video.forcing)
    noise = recorded["noise_step_raw" if sampler.ancestral else "noise_raw"]
    out = video.forcing.step(
        flip(recorded["x"]),
        sampler.levels[flip(recorded["curr"])],
        sampler.levels[flip(recorded["next"])],
        eta=sampler.eta,
        ancestral=sampler.ancestral,
        denoise=denoise,
        noise=flip(noise),
    )
    recorded.agrees(flip(out), "out")
    still = flip(recorded["curr"]) == flip(recorded["next"])
    assert still.any()
    assert torch.equal(out[still], flip(recorded["x"])[still])
