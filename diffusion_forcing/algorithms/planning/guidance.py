"""Returns that planning climbs: be at the goal, as early as possible (docs/method.md §10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.tokens import Bundle
from diffusion_forcing.diffusion import GradientGuidance, NoiseSchedule, Prediction
from diffusion_forcing.errors import check_choice, require

RELEASED_BATCH = 128  # the released strength is divided by the batch; the published scales are for this one
GUIDANCE_WEIGHTS = ("released", "source")
GuidanceWeights = Literal["released", "source"]
SMALLEST_SQUARE = 1e-20  # keeps the square root's slope finite where a distance is exactly 0


def goal_distance_weights(
    kind: str, *, frames: int, planned: int, frame_stack: int, positions: int, device: torch.device
) -> Tensor:
    """Weights (frames, positions + 1) of the distance columns [(x, y) pairs…, action] of each frame.

    released: what the released code computes, 2 on token 0's frames and 8 on every other, padding included. source: what its text
    reads, 20 on token 0, 1 on planned frames, 0 on padding for the position; 2 and 8 for the other columns.
    """
    check_choice("guidance_weights", kind, GUIDANCE_WEIGHTS)
    weights = torch.full((frames, positions + 1), 8.0, device=device)
    weights[:frame_stack] = 2.0
    if kind == "source":
        weights[:, 0] = 0.0
        weights[:frame_stack, 0] = 20.0
        weights[frame_stack : frame_stack + planned, 0] = 1.0
    return weights


def goal_return(
    bundle: Bundle, start: Tensor, goal: Tensor, *, planned: int, scale: float | Tensor, weights: str = "released"
) -> Callable[[Tensor], Tensor]:
    """J: clean tokens (b, t, f·c) → (b,), highest where every frame after token 0 is at the goal.

    start, goal: (b, o) normalised. planned: frames asked for, without padding. J = −1000·scale/128 · mean over frames and columns of
    weight · distance, the distance of an (x, y) pair being tanh(√(Δx²+Δy²)/2) and that of an action its length. Each sample's return is
    its own mean, so a plan does not depend on who else is in its batch.
    """
    o, a, f = bundle.observation_dim, bundle.action_dim, bundle.frame_stack
    require(o % 2 == 0, f"goal guidance pairs observations as (x, y), (vx, vy), …; got {o} observation columns")

    def returns(x0: Tensor) -> Tensor:
        frames = bundle.unstack(x0)
        target = torch.cat([start[:, None].expand(-1, f, -1), goal[:, None].expand(-1, frames.shape[1] - f, -1)], dim=1)
        squared = (frames[..., :o] - target) ** 2
        pairs = squared.unflatten(-1, (o // 2, 2)).sum(-1).clamp(min=SMALLEST_SQUARE).sqrt()
        columns = [torch.tanh(pairs / 2)]
        if a:
            columns.append((frames[..., o : o + a] ** 2).sum(-1, keepdim=True).clamp(min=SMALLEST_SQUARE).sqrt())
        else:
            columns.append(torch.zeros_like(pairs[..., :1]))
        weight = goal_distance_weights(
            weights, frames=frames.shape[1], planned=planned, frame_stack=f, positions=o // 2, device=x0.device
        )
        return -1000 * scale / RELEASED_BATCH * (weight * torch.cat(columns, dim=-1)).mean(dim=(1, 2))

    return returns


def position_return(bundle: Bundle, goal: Tensor, *, planned: int, scale: float | Tensor) -> Callable[[Tensor], Tensor]:
    """J: clean tokens (b, t, f·c) of a plan without token 0 → (b,), the RNN line's: −scale·Σ‖position − goal‖ over the planned frames, in
    metres. goal: (b, ≥2), normalised."""
    mean, std = bundle.mean[:2], bundle.std[:2]
    target = (goal[:, None, :2] * std + mean).detach()

    def returns(x0: Tensor) -> Tensor:
        positions = bundle.unstack(x0)[:, :planned, :2] * std + mean
        distance = ((positions - target) ** 2).sum(-1).clamp(min=SMALLEST_SQUARE).sqrt()
        return -scale * distance.sum(dim=1)

    return returns


def reward_return(
    bundle: Bundle, *, planned: int, scale: float | Tensor, gamma: float = 1.0, present_tokens: int = 1
) -> Callable[[Tensor], Tensor]:
    """J: clean tokens (b, t, f·c) → (b,), the discounted reward the model predicts for the planned frames (`use_reward`), which
    `present_tokens` go before."""
    require(bool(bundle.reward_dim), "use_reward needs a reward in the bundle; train with algorithm.use_reward=True")
    first = bundle.frame_stack * present_tokens

    def returns(x0: Tensor) -> Tensor:
        rewards = bundle.unstack(x0)[:, first : first + planned, -1]
        discount = gamma ** torch.arange(rewards.shape[1], device=x0.device)
        return 1000 * scale / RELEASED_BATCH * (rewards * discount).mean(dim=1)

    return returns


class RowGuidance(GradientGuidance):
    """The RNN line's guidance: the gradient is added to the plan after each row, times what a DDIM step makes of it (docs/method.md §10).

    That constant, (1−ᾱ) − √(1−ᾱ'−σ²)·√(1−ᾱ), is what remains of a shift of ε̂ by −√(1−ᾱ)·∇J when ᾱ'/ᾱ is taken for 1.
    """

    def move(
        self,
        schedule: NoiseSchedule,
        prediction: Prediction,
        gradient: Tensor,
        x: Tensor,
        k: Tensor,
        k_to: Tensor,
        *,
        ancestral: bool = False,
    ) -> Prediction:
        noise, power_to = schedule.noise(k.clamp(min=0), x), schedule.signal_power(k_to, x)
        if ancestral:
            # DDPM's step is DDIM's with η = 1, and of x̂₀ alone: the constant over x̂₀'s share in it.
            ratio = (schedule.at("alphas_cumprod", k.clamp(min=0), x) / power_to).clamp(max=1)
            constant = noise**2 - (1 - power_to) * ratio.sqrt()
            shift = constant * noise**2 / (power_to.sqrt() * (1 - ratio)).clamp(min=1e-12) * gradient
            return prediction._replace(x0=prediction.x0 + shift)
        x0 = prediction.x0 + noise**2 / power_to.sqrt() * gradient
        return prediction._replace(x0=x0, eps=prediction.eps - noise * gradient)
