"""One sampler for every task: walk a scheduling matrix over tokens, and roll a sequence out chunk by chunk (METHOD §6, §7).

`walk` is the whole of sampling: the matrix decides which task it is. `rollout` appends chunks to a growing sequence. With a causal
network the finished past can be kept as memory (keys and values, or a recurrent state), so that a row costs the chunk alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.diffusion.forcing import DiffusionForcing
from diffusion_forcing.diffusion.guidance import Guidance
from diffusion_forcing.diffusion.scheduling import sampling_levels, scheduling_matrix
from diffusion_forcing.errors import UserError

OnRow = Callable[[int, Tensor, Tensor], None]


class Sampler:
    """Draws tokens from a trained DiffusionForcing.

    sampling_timesteps: S ≤ K; S = K samples with DDPM, S < K with DDIM and `eta`. scheduling_matrix, uncertainty_scale: the order in
    which the tokens of a chunk are denoised (`scheduling.scheduling_matrix`).
    """

    def __init__(
        self,
        forcing: DiffusionForcing,
        *,
        sampling_timesteps: int,
        scheduling_matrix: str = "autoregressive",
        uncertainty_scale: float = 1.0,
        eta: float = 0.0,
    ) -> None:
        self.forcing = forcing
        self.sampling_timesteps = sampling_timesteps
        self.scheduling_matrix = scheduling_matrix
        self.uncertainty_scale = uncertainty_scale
        self.eta = eta
        self.levels = sampling_levels(forcing.schedule.timesteps, sampling_timesteps)
        self.ancestral = sampling_timesteps == forcing.schedule.timesteps

    def matrix(self, horizon: int) -> Tensor:
        """The scheduling matrix for `horizon` tokens: (rows, horizon), entries s ∈ {0…S}."""
        return scheduling_matrix(
            self.scheduling_matrix, horizon, self.sampling_timesteps, uncertainty_scale=self.uncertainty_scale
        )

    def noise(
        self, shape: tuple[int, ...], *, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        """Pure noise tokens of `shape` (b, t, *c), clamped."""
        return self.forcing.clamp_noise(torch.randn(shape, generator=generator, device=device))

    @torch.no_grad()
    def walk(
        self,
        x: Tensor,
        matrix: Tensor,
        *,
        guidance: Guidance | None = None,
        conditions: Tensor | None = None,
        memory: Any = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """Tokens x: (b, t, *c) taken down the rows of `matrix`: (rows, t) of sampling levels; columns that stay at 0 are context,
        columns that stay at S are absent. Returns (b, t, *c).

        on_row(row, x, levels) sees the tokens after each row; levels: (t,) are sampling levels.
        """
        if matrix.shape[1] != x.shape[1]:
            raise UserError(
                f"the scheduling matrix has {matrix.shape[1]} columns for {x.shape[1]} tokens; give one column a token"
            )
        k = self.levels[matrix].to(x.device)
        for row in range(len(matrix) - 1):
            if torch.equal(matrix[row], matrix[row + 1]):
                continue
            x = self.forcing.step(
                x,
                k[row].expand(x.shape[:2]),
                k[row + 1].expand(x.shape[:2]),
                eta=self.eta,
                ancestral=self.ancestral,
                guidance=guidance,
                conditions=conditions,
                memory=memory,
                generator=generator,
            )
            if on_row is not None:
                on_row(row, x, matrix[row + 1])
        return x

    @torch.no_grad()
    def rollout(
        self,
        context: Tensor,
        length: int,
        *,
        window: int,
        chunk_size: int = 1,
        cache: bool = False,
        guidance: Guidance | None = None,
        conditions: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """A sequence of `length` tokens that begins with the clean `context`: (b, t₀, *c). Returns (b, length, *c).

        window: the most tokens the network sees at once; the oldest slide out. chunk_size: tokens denoised together (−1: all that
        remain). cache: keep the past as the causal network's memory; with eta 0 the result equals the uncached one (noise drawn along the
        way is drawn for fewer tokens, and DDPM's own noise on the context stays away), and a return sees the chunk alone.
        conditions: (b, length, d).
        """
        x = context
        remembered, memory = (0, 0), None
        while x.shape[1] < length:
            now = x.shape[1]
            chunk = length - now if chunk_size < 0 else min(chunk_size, length - now)
            if chunk > window:
                raise UserError(
                    f"a chunk of {chunk} tokens exceeds the window of {window}; pass algorithm.chunk_size<={window} or train with more frames"
                )
            start = max(0, now + chunk - window)
            noise = self.noise((x.shape[0], chunk, *x.shape[2:]), device=x.device, generator=generator)
            rows = self.matrix(chunk)
            if cache:
                if remembered[0] != start:
                    remembered, memory = (start, start), None
                if remembered[1] < now:
                    memory = self.forcing.remember(
                        x[:, remembered[1] : now], conditions=_span(conditions, remembered[1], now), memory=memory
                    )
                    remembered = (start, now)
                first = now
                tokens = noise
            else:
                first = start
                tokens = torch.cat([x[:, start:], noise], dim=1)
                rows = torch.cat([rows.new_zeros(len(rows), now - start), rows], dim=1)
            tokens = self.walk(
                tokens,
                rows,
                guidance=guidance,
                conditions=_span(conditions, first, now + chunk),
                memory=memory,
                generator=generator,
                on_row=on_row,
            )
            x = torch.cat([x, tokens[:, -chunk:]], dim=1)
        return x


def _span(conditions: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if conditions is None else conditions[:, start:end]
