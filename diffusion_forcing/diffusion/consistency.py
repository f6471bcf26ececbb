"""Consistency distillation: a student that reaches in one or two steps what its teacher reaches in many (Song et al. 2023, Geng et al. 2024).

The teacher's sampling follows a curve from noise to a clean token. The student f(x, k), the clean token it predicts, is trained to give the
same answer at neighbouring points of that curve, and the clean token itself at its end:

    x_r = the teacher's DDIM step of x_s from level s to the next lower level r of a grid
    loss = huber(f(x_s, s) − f⁻(x_r, r)) / (ln(1 + σ_s) − ln(1 + σ_r)),  f⁻ without gradient;  at the end the target is the clean token

The gap is that of σ where there is little noise, and that of its logarithm where there is much: schedules that end at σ 5 and at σ 150 are
weighed alike.

`Distillation` is a `DiffusionForcing` with this loss, so an algorithm distils by training with it. Every token has a level of its own, as in
Algorithm 1, and conditions, memory and past are the same in all three calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion.forcing import DiffusionForcing, Loss, network_inputs
from diffusion_forcing.diffusion.parameterization import add_noise
from diffusion_forcing.diffusion.schedules import per_token
from diffusion_forcing.diffusion.scheduling import sampling_levels
from diffusion_forcing.errors import check_range

HUBER = 0.03
"""c of huber(u) = √(mean u² + c²) − c: errors much larger than c, in units of the tokens, count by their size, not its square."""


class Distillation(DiffusionForcing):
    """The method over a student network. `teacher`: a trained network of the same method; grid: number of levels of the curve."""

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
        past: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The distillation loss of clean tokens x: (b, t, *c), each at the first level of the grid that is at least its k, (b, t).

        The Huber loss of a token is spread evenly over its elements; clean tokens (k = −1) have none. past: as in `DiffusionForcing.loss`.
        """
        self._check_levels(k)
        inputs = network_inputs(conditions, memory, past)
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
