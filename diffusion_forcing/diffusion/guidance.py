"""Guidance by a return: samples are pulled to where J(x̂₀) is high (docs/method.md §5, paper §3.4).

J sees the clean prediction; its gradient with respect to the *noisy* tokens moves ε̂. Because tokens have their own levels, the
gradient of the future reaches the present through the network. Monte Carlo guidance averages that gradient over several sampled
futures instead of one: the model's clean prediction is noised again at the same levels and denoised again, `samples` − 1 times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion.noise import normal
from diffusion_forcing.diffusion.parameterization import Prediction, add_noise
from diffusion_forcing.errors import UserError

if TYPE_CHECKING:
    from diffusion_forcing.diffusion.composition import Views
    from diffusion_forcing.diffusion.forcing import DiffusionForcing

Return = Callable[[Tensor], Tensor]


class Guidance:
    """The gradient of a return `returns(x0: (b, t, *c)) -> (b,)`, higher is better, its scale included.

    Each sample's return must depend on that sample alone. samples: Monte Carlo continuations (`mcg_samples`); 1 is plain guidance.
    after_row: the gradient is not put into ε̂ but, as the RNN line does, added to the tokens that a row leaves, times what a DDIM step
    would make of it (`DiffusionForcing.step`). begun: tokens that are still pure noise say nothing, for a network that was not trained to
    foresee them.
    """

    def __init__(self, returns: Return, *, samples: int = 1, after_row: bool = False, begun: bool = False) -> None:
        if samples < 1:
            raise UserError(f"mcg_samples is {samples}; guidance needs at least 1 continuation")
        self.returns = returns
        self.samples = samples
        self.after_row = after_row
        self.begun = begun

    def gradient(
        self,
        forcing: DiffusionForcing,
        x_k: Tensor,
        k: Tensor,
        clean: Tensor,
        conditions: Tensor | None = None,
        memory: Any = None,
        generator: torch.Generator | None = None,
        views: Views | None = None,
    ) -> tuple[Prediction, Tensor]:
        """The prediction for tokens x_k: (b, t, *c) at levels k: (b, t), and ∇J with respect to x_k, averaged over continuations.

        clean: (b, t), tokens that are context: a continuation keeps them. views: of a composition, whose sum is then what J sees.
        """
        with torch.enable_grad(), _frozen(forcing):
            x_k = x_k.detach().requires_grad_()
            prediction, _ = forcing.predict(x_k, k, conditions, memory, views)
            total = self._return(forcing, prediction.x0, k)
            for _ in range(self.samples - 1):
                noise = normal(x_k.shape, generator=generator, device=x_k.device)
                again = add_noise(forcing.schedule, prediction.x0, k, forcing.clamp_noise(noise))
                again = torch.where(clean.reshape(*k.shape, *(1,) * (x_k.ndim - k.ndim)), x_k, again)
                continuation, _ = forcing.predict(again, k, conditions, memory, views)
                total = total + self._return(forcing, continuation.x0, k)
            (gradient,) = torch.autograd.grad(total / self.samples, x_k)
        return Prediction(*(part.detach() for part in prediction)), gradient

    def _return(self, forcing: DiffusionForcing, x0: Tensor, k: Tensor) -> Tensor:
        """The sum over samples of J(x0), x0: (b, t, *c) predicted of tokens at levels k: (b, t)."""
        if self.begun:
            begun = (k < forcing.schedule.timesteps - 1).reshape(*k.shape, *(1,) * (x0.ndim - k.ndim))
            x0 = torch.where(begun, x0, x0.detach())
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
