"""Losses in Algorithm 1's place, by the same call: teacher forcing, a baseline of the paper, and distillation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion import DiffusionForcing, Loss, add_noise, per_token, sampling_levels
from diffusion_forcing.errors import check_range

# ------------------------------------------------------------------------------------------------------ teacher forcing
# Next-token prediction noises one token of a sequence. A network with `teacher_forced` can be shown the clean sequence
# beside the noised one, so that all tokens train in one call, each behind a clean past.


class TeacherForcedNetwork(nn.Module):
    """A network that predicts each token from a clean past: (b, t, *c) at levels past_k: (b, t), as the network sees it."""

    def __init__(self, network: nn.Module, past: Tensor, past_k: Tensor) -> None:
        super().__init__()
        self.network, self.past, self.past_k = network, past, past_k

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        network: Any = self.network
        return network.teacher_forced(self.past, self.past_k, x, k, conditions, memory), None


def teacher_forcing_loss(forcing: DiffusionForcing, x: Tensor, k: Tensor, **options: Any) -> Loss:
    """`DiffusionForcing.loss` of tokens x: (b, t, *c) at levels k: (b, t), each predicted from the clean ones before it."""
    past, past_k = forcing.stabilize(x, torch.full_like(k, -1))

    def loss_weight(k: Tensor) -> Tensor:
        """Weights (b, t): a weight that looks at the history sees a clean one."""
        token = torch.arange(k.shape[1], device=k.device)
        # (b, t, t): for each token, the levels of a sequence whose earlier tokens are clean.
        levels = torch.where(token < token[:, None], past_k[:, None], k[..., None])
        weights = forcing.loss_weight(levels.flatten(0, 1)).unflatten(0, k.shape)
        return weights.diagonal(dim1=-2, dim2=-1)

    network = TeacherForcedNetwork(forcing.network, past, past_k)
    return forcing.over(network, loss_weight=loss_weight).loss(x, k, **options)


# --------------------------------------------------------------------------------------------- consistency distillation
# A student that reaches in one or two steps what its teacher reaches in many (Song et al. 2023, Geng et al. 2024). The
# teacher's sampling follows a curve from noise to a clean token. The student f(x, k), the clean token it predicts, is
# trained to give the same answer at neighbouring points of that curve, and the clean token itself at its end:
#
#     x_r = the teacher's DDIM step of x_s from level s to the next lower level r of a grid
#     loss = huber(f(x_s, s) − f⁻(x_r, r)) / (ln(1 + σ_s) − ln(1 + σ_r)),  f⁻ without gradient
#
# The gap is that of σ where there is little noise, and that of its logarithm where there is much: schedules that end at
# σ 5 and at σ 150 are weighed alike.

HUBER = 0.03
"""c of huber(u) = √(mean u² + c²) − c: errors much larger than c, in units of the tokens, count by their size, not its square."""


class Distillation(DiffusionForcing):
    """The method over a student network with this loss, so that an algorithm distils by training with it.

    Every token has a level of its own, as in Algorithm 1; conditions and memory are the same in all three calls.
    `teacher`: a trained network of the same method; grid: number of levels of the curve.
    """

    def __init__(
        self, student: DiffusionForcing, teacher: nn.Module, *, target: nn.Module | None = None, grid: int = 32
    ) -> None:
        """student: the method over the network that is trained. target: the network of f⁻, such as an average of the student's weights;
        None: the student itself. Neither it nor the teacher is a part of this module's state."""
        check_range("grid", grid, 1, student.schedule.timesteps)
        same = ("weighting", "cum_snr_decay", "clip_noise", "stabilization_level", "offset_noise")
        options: dict[str, Any] = {name: getattr(student, name) for name in same}
        super().__init__(student.network, student.schedule, student.parameterization, **options)
        self.grid = sampling_levels(student.schedule.timesteps, grid)
        """(grid + 1,): levels of the curve, rising, −1 first."""
        # Behind a tuple, so that they are neither saved nor trained with the student.
        self._frozen = (teacher, target)

    def loss(
        self,
        x: Tensor,
        k: Tensor,
        *,
        conditions: Tensor | None = None,
        memory: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The distillation loss of clean tokens x: (b, t, *c), each at the first level of the grid that is at least its k, (b, t).

        The Huber loss of a token is spread evenly over its elements; clean tokens (k = −1) have none.
        """
        self._check_levels(k)
        inputs = conditions, memory
        grid = self.grid.to(k.device)
        place = torch.searchsorted(grid, k.contiguous())  # 0 for clean tokens, which stay as they are
        s, r = grid[place], grid[(place - 1).clamp(min=0)]
        eps = self.gaussian_noise(x, noise, generator)
        x_s = torch.where(per_token(s < 0, x), x, add_noise(self.schedule, x, s.clamp(min=0), eps))

        # The student at the noisier end, with gradient.
        prediction, after = self(x_s, s, *inputs)
        with torch.no_grad():
            # One step of the teacher along its curve, then the student from there; at the end of the curve, the data.
            teacher, target = (self if network is None else self.over(network.to(x.device)) for network in self._frozen)
            curve, _ = teacher(x_s, s, *inputs)
            x_r = torch.where(per_token(s < 0, x), x, teacher.ddim(curve.x0, curve.eps, s, r))
            answer = target(x_r, r, *inputs)[0].x0
            answer = torch.where(per_token(r < 0, x), x, answer)

        # (b, t): the Huber loss of each token, over the distance of the two points.
        error = (prediction.x0 - answer).square().flatten(2).mean(dim=-1)
        huber = (error + HUBER**2).sqrt() - HUBER
        sigmas = self.schedule.sigmas
        ends = [torch.where(level < 0, 0.0, sigmas[level.clamp(min=0)].log1p()) for level in (s, r)]
        weight = torch.where(s < 0, 0.0, 1 / (ends[0] - ends[1]).clamp(min=1e-6))
        return Loss(per_token(weight * huber, x).expand_as(x), prediction.x0, after)

    def wrapped(self, wrap: Callable[[nn.Module], nn.Module]) -> DiffusionForcing:
        """Teacher and target are wrapped too."""
        other: Any = super().wrapped(wrap)
        other._frozen = tuple(None if network is None else wrap(network) for network in self._frozen)
        return cast(DiffusionForcing, other)
