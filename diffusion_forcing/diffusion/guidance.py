"""Guidance: wrappers of a denoiser that change ε̂ while sampling. They do not know each other, so they can be combined.

Gradient guidance (paper §3.4) moves samples to where a return J(x̂₀) is high. J sees the clean prediction; its gradient with respect to the
*noisy* tokens moves ε̂. Because every token has its own level, the gradient of the future reaches the present through the network.

Classifier-free guidance (Ho & Salimans 2022) amplifies what the conditions change: ε̂ + (w − 1)·(ε̂ − ε̂(∅)), ∅ being conditions set to
zero, as in training when they were dropped. History guidance (Song et al. 2025) does the same for the past. It needs no dropout in training,
since a token's own noise level says how much of it is shown: ∅ is a history of pure noise. Its fractional form compares two noisy
histories: ε̂ + (w − 1)·(ε̂(history at `level`) − ε̂(∅)).
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion.denoiser import Denoised, Denoiser, noisy_context
from diffusion_forcing.diffusion.forcing import DiffusionForcing
from diffusion_forcing.diffusion.parameterization import Prediction, add_noise, x0_from_eps
from diffusion_forcing.diffusion.schedules import NoiseSchedule, per_token
from diffusion_forcing.errors import UserError, require

Return = Callable[[Tensor], Tensor]


class GradientGuidance:
    """Moves ε̂ along the gradient of a return `returns(x0: (b, t, *c)) -> (b,)`, higher is better, its scale included.

    Each sample's return must depend on that sample alone. samples: Monte Carlo guidance averages the gradient over so many continuations
    (paper §3.4); the first is the prediction itself, the others are denoised again from it, noised at the same levels. started_only: tokens
    that are still pure noise give no gradient, for a network that was not trained to foresee them.
    """

    def __init__(self, returns: Return, *, samples: int = 1, started_only: bool = False) -> None:
        require(samples >= 1, f"mcg_samples is {samples}; guidance needs at least 1 continuation")
        self.returns = returns
        self.samples = samples
        self.started_only = started_only

    def wrap(
        self,
        denoise: Denoiser,
        forcing: DiffusionForcing,
        generator: torch.Generator | None = None,
        *,
        ancestral: bool = False,
    ) -> Denoiser:
        """`denoise`, guided. generator: draws the noise of the continuations. ancestral: whether the step is DDPM's."""

        def guided(x: Tensor, k: Tensor, *inputs: Any, k_to: Tensor | None = None) -> Denoised:
            assert k_to is not None, "gradient guidance needs to know where the step leads"
            prediction, gradient, memory = self.gradient(denoise, forcing, x, k, *inputs, generator=generator)
            return self.move(forcing.schedule, prediction, gradient, x, k, k_to, ancestral=ancestral), memory

        return guided

    def gradient(
        self,
        denoise: Denoiser,
        forcing: DiffusionForcing,
        x: Tensor,
        k: Tensor,
        *inputs: Any,
        generator: torch.Generator | None = None,
    ) -> tuple[Prediction, Tensor, Any]:
        """The prediction for tokens x: (b, t, *c), ∇J with respect to x averaged over continuations, and the memory."""
        clean, level = per_token(k < 0, x), k.clamp(min=0)
        with torch.enable_grad(), _frozen(forcing):
            x = x.detach().requires_grad_()
            # J of the prediction itself …
            prediction, after = denoise(x, k, *inputs)
            total = self._total_return(prediction.x0, k, forcing.schedule)
            for _ in range(self.samples - 1):
                # … and of continuations: the prediction, noised and denoised again. Context stays as it is.
                noise = forcing.gaussian_noise(x, generator=generator)
                again = torch.where(clean, x, add_noise(forcing.schedule, prediction.x0, level, noise))
                continuation, _ = denoise(again, k, *inputs)
                total = total + self._total_return(continuation.x0, k, forcing.schedule)
            (gradient,) = torch.autograd.grad(total / self.samples, x)
        return Prediction(*(part.detach() for part in prediction)), gradient, after

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
        """ε̂ − √(1−ᾱ')·∇J, and x̂₀ from it: nothing on the step to clean, as released. What it gives for clean tokens is not used."""
        eps = prediction.eps - (1 - schedule.signal_power(k_to, x)).sqrt() * gradient
        return prediction._replace(x0=x0_from_eps(schedule, x, k.clamp(min=0), eps), eps=eps)

    def _total_return(self, x0: Tensor, k: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The sum of J(x0) over samples, x0: (b, t, *c) predicted of tokens at levels k: (b, t)."""
        if self.started_only:
            x0 = torch.where(per_token(k < schedule.timesteps - 1, x0), x0, x0.detach())
        return self.returns(x0).sum()


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients of weights inside: only the tokens' gradient is wanted, and the weights' would cost as much again."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Branch:
    """One prediction among several. conditions: whether it sees them. history: the level its clean tokens are noised to; None: clean."""

    conditions: bool = True
    history: int | None = None


Weights = dict[Branch, float]
"""Branches and their weights. Those of a guidance have sum 0: it is added to the plain prediction."""
PLAIN = Branch()


def classifier_free_guidance(scale: float) -> Weights:
    """(w − 1)·(ε̂ − ε̂(no conditions)), w = scale ≥ 0."""
    _check_scale("condition_scale", scale)
    return {PLAIN: scale - 1, Branch(conditions=False): 1 - scale}


def history_guidance(scale: float, timesteps: int, level: int | None = None) -> Weights:
    """(w − 1)·(ε̂(history) − ε̂(no history)), w = scale ≥ 0. level: 0…K−2, the history of fractional history guidance; None: clean."""
    _check_scale("history_scale", scale)
    if level is not None and not 0 <= level <= timesteps - 2:
        raise UserError(
            f"history_level is {level}; it must lie in 0…{timesteps - 2} (a history at {timesteps - 1} is no history), "
            "or be null for vanilla history guidance"
        )
    return {Branch(history=level): scale - 1, Branch(history=timesteps - 1): 1 - scale}


def combine(*guidances: Weights) -> Weights:
    """The plain prediction and all `guidances`, branches of weight 0 left out: weights of sum 1."""
    total: Weights = defaultdict(float, {PLAIN: 1.0})
    for guidance in guidances:
        for branch, weight in guidance.items():
            total[branch] += weight
    return {branch: weight for branch, weight in total.items() if weight != 0}


def _check_scale(name: str, scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0):
        raise UserError(f"{name} is {scale}; it must be a finite number, 0 or more (1: no guidance)")


class WeightedBranches:
    """Σ weight·(x̂₀, ε̂) over branches. They are stacked on the batch axis: one call of the network, one memory for all.

    x̂₀ and ε̂ are affine in the network's output and the weights have sum 1, so the outputs are summed. history_noise: standard normal like
    the tokens, what branches with a noisy history see instead of it. The same noise must be used in every row.
    """

    def __init__(
        self, denoise: Denoiser, forcing: DiffusionForcing, weights: Weights, history_noise: Tensor | None = None
    ) -> None:
        self.denoise, self.forcing, self.weights, self.history_noise = denoise, forcing, weights, history_noise

    def __call__(self, x: Tensor, k: Tensor, *inputs: Any, k_to: Tensor | None = None) -> Denoised:
        conditions, memory = (*inputs, None, None)[:2]
        # (n·b, t, …): what each branch sees.
        views = [self._view(branch, x, k, conditions) for branch in self.weights]
        tokens, levels, conditioned = zip(*views, strict=True)
        stacked = None if conditions is None else torch.cat(conditioned)
        prediction, memory = self.denoise(torch.cat(tokens), torch.cat(levels), stacked, memory)
        # (n·b, t, *c) → (b, t, *c): the weighted sum. Branches see different clean tokens; there the first one is taken.
        outputs = prediction.output.unflatten(0, (len(self.weights), -1))
        total = sum(weight * output for weight, output in zip(self.weights.values(), outputs, strict=True))
        output = torch.where(per_token(k < 0, x), outputs[0], total)
        shown, level = self.forcing.stabilize(x, k)
        return self.forcing.parameterization.resolve(self.forcing.schedule, shown, level, output), memory

    def _view(
        self, branch: Branch, x: Tensor, k: Tensor, conditions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if not branch.conditions:
            if conditions is None:
                raise UserError(
                    "condition_scale needs conditions, and there are none; pass conditions, or condition_scale=1"
                )
            conditions = torch.zeros_like(conditions)
        if branch.history is not None:
            assert self.history_noise is not None
            x, k = noisy_context(self.forcing.schedule, x, k, level=branch.history, noise=self.history_noise)
        return x, k, conditions
