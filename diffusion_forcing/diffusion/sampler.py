"""One sampler for every task: denoise tokens down a scheduling matrix, and roll a sequence out chunk by chunk (docs/method.md §6, §7).

`denoise` is the whole of sampling: the matrix decides which task it is. `fill` denoises the unknown tokens of a sequence; `stream` appends
chunks to a growing one for as long as it is asked to, `rollout` up to a length. What a chunk sees of the past is its `History`
(`history.py`): with a causal network, a memory, so that a row costs the chunk alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.diffusion.denoiser import Denoiser, MemoryOnly, NoisyContext
from diffusion_forcing.diffusion.forcing import DiffusionForcing
from diffusion_forcing.diffusion.guidance import (
    PLAIN,
    GradientGuidance,
    WeightedBranches,
    classifier_free_guidance,
    combine,
    history_guidance,
)
from diffusion_forcing.diffusion.history import Cache, OnRow, Past, Tokens, build_history
from diffusion_forcing.diffusion.parameterization import noise_further, with_observed
from diffusion_forcing.diffusion.schedules import per_token
from diffusion_forcing.diffusion.scheduling import sampling_levels, scheduling_matrix
from diffusion_forcing.errors import UserError, check_minimum

Conditions = Tensor | Callable[[int, int], Tensor]
"""(b, length, d), or `conditions(start, end) -> (b, end − start, d)`: asked once for each token, when it is about to be sampled."""


@dataclass(eq=False)
class Sampler:
    """Draws tokens from a trained DiffusionForcing.

    sampling_timesteps: S ≤ K; S = K samples with DDPM, and real noise on the context, S < K with DDIM and `eta`. scheduling_matrix,
    uncertainty_scale: the order in which the tokens of a chunk are denoised (`scheduling.scheduling_matrix`). condition_scale: classifier-free
    guidance; history_scale, history_level: history guidance (`guidance.py`); 1 is none, and costs nothing. resample: how often each row is
    repeated where part of a token is observed (`with_observed`). past_shown: how a rollout shows finished tokens: `clean`, or at the `same`
    level as the chunk that is sampled, observed there (full-sequence diffusion, for networks that know one level for all). noisy_context: clean
    tokens are shown at the stabilization level with real noise, as under DDPM. finish: applied to the finished tokens of a rollout before they
    are handed out and remembered, such as rounding to values that data can have; twice must be the same as once.
    """

    forcing: DiffusionForcing
    _: KW_ONLY
    sampling_timesteps: int
    scheduling_matrix: str = "autoregressive"
    uncertainty_scale: float = 1.0
    eta: float = 0.0
    condition_scale: float = 1.0
    history_scale: float = 1.0
    history_level: int | None = None
    resample: int = 1
    past_shown: Past = "clean"
    noisy_context: bool = False
    finish: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.past_shown == "same" and self.scheduling_matrix != "full_sequence":
            raise UserError(
                f"scheduling_matrix={self.scheduling_matrix} gives tokens different levels; "
                "past_shown=same needs one level: full_sequence"
            )
        check_minimum("resample", self.resample, 1)
        timesteps = self.forcing.schedule.timesteps
        self.levels = sampling_levels(timesteps, self.sampling_timesteps)
        self.ancestral = self.sampling_timesteps == timesteps
        self.branches = combine(
            classifier_free_guidance(self.condition_scale),
            history_guidance(self.history_scale, timesteps, self.history_level),
        )
        self.noises_history = any(branch.history is not None for branch in self.branches)

    def matrix(self, horizon: int) -> Tensor:
        """The scheduling matrix for `horizon` tokens: (rows, horizon), entries s ∈ {0…S}."""
        return scheduling_matrix(
            self.scheduling_matrix, horizon, self.sampling_timesteps, uncertainty_scale=self.uncertainty_scale
        )

    def noise(self, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Pure noise tokens of `shape` (b, t, *c), clamped."""
        return self.forcing.draw_noise(shape, generator=generator, device=device)

    # ------------------------------------------------------------------------------------------------ one set of tokens

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        matrix: Tensor,
        *,
        guidance: GradientGuidance | None = None,
        conditions: Tensor | None = None,
        memory: Any = None,
        history_noise: Tensor | None = None,
        observed: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """Tokens x: (b, t, *c) taken down the rows of `matrix`: (rows, t) or (rows, b, t) of sampling levels. Returns (b, t, *c).

        Columns that stay at 0 are context, columns that stay at S are absent. history_noise: (b, t, *c), what history guidance noises
        clean tokens with, instead of a draw. observed: like x, what is known of tokens that are sampled, NaN elsewhere; it comes back as
        it is (`with_observed`). on_row(row, x, levels) sees the tokens after each row, and their sampling levels.
        """
        if matrix.shape[-1] != x.shape[1]:
            raise UserError(
                f"the scheduling matrix has {matrix.shape[-1]} columns for {x.shape[1]} tokens; give one column a token"
            )
        if history_noise is None and self.noises_history:
            history_noise = self._noise_like(x, generator)
        levels = self.levels[matrix].to(x.device, non_blocking=True)  # k, shaped as the matrix
        # Tokens that move in any row of any sequence: only they draw step noise, whatever else is seen.
        moving = (matrix[0] != matrix[-1]).reshape(-1, x.shape[1]).any(dim=0).nonzero().flatten()
        moving = moving.to(x.device, non_blocking=True)

        def step(x: Tensor, k: Tensor, k_to: Tensor) -> Tensor:
            step_noise = self._step_noise(x, moving, generator)
            # DDPM shows its context with real noise.
            noisy = self.noisy_context or self.ancestral
            context_noise = self.forcing.gaussian_noise(x, generator=generator) if noisy else None
            return self.forcing.step(
                x,
                k,
                k_to,
                denoise=self._denoiser(self.forcing, history_noise, context_noise, guidance, generator),
                conditions=conditions,
                memory=memory,
                eta=self.eta,
                ancestral=self.ancestral,
                noise=step_noise,
            )

        for row in range(len(matrix) - 1):
            if torch.equal(matrix[row], matrix[row + 1]):
                continue
            k, k_to = levels[row].expand(x.shape[:2]), levels[row + 1].expand(x.shape[:2])
            x = step(x, k, k_to) if observed is None else self._step_observed(step, x, k, k_to, observed, generator)
            if on_row is not None:
                on_row(row, x, matrix[row + 1])
        return x

    def fill(
        self,
        x: Tensor,
        known: Tensor,
        *,
        guidance: GradientGuidance | None = None,
        conditions: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """Tokens x: (b, t, *c) of which some are `known`, (t,) or (b, t) bool, the others sampled between them: interpolation.

        The unknown tokens of a sequence go down the scheduling matrix in their order among themselves; what x holds in their places is
        not read. The known come back bit for bit. All of x must fit the window the network was trained on. A causal network lets a token
        see only what comes before it, so it does not steer towards a known end; one with causal=False does.
        """
        known = known.to(x.device, torch.bool).expand(x.shape[:2])
        matrices = [
            self.matrix(int(count)) if count else torch.zeros(1, 0, dtype=torch.long) for count in (~known).sum(1)
        ]
        matrix = torch.zeros(max(map(len, matrices), default=1), *x.shape[:2], dtype=torch.long)
        for sequence, rows in enumerate(matrices):
            matrix[: len(rows), sequence, ~known[sequence].cpu()] = rows
        noise = self.noise(x.shape, x.device, generator)
        start = torch.where(per_token(known, x), x, noise)
        return self.denoise(start, matrix, guidance=guidance, conditions=conditions, generator=generator, on_row=on_row)

    # ------------------------------------------------------------------------------------------------ growing sequences

    def rollout(self, context: Tensor, length: int, **options: Any) -> Tensor:
        """A sequence of `length` tokens (b, length, *c) that begins with the clean `context`: (b, t₀, *c). options: as for `stream`."""
        return torch.cat([context, *self.stream(context, length, **options)], dim=1)

    def stream(
        self,
        context: Tensor,
        length: int | None,
        *,
        window: int | None = None,
        chunk_size: int = 1,
        cache: Cache = "none",
        sinks: int = 0,
        guidance: GradientGuidance | None = None,
        conditions: Conditions | None = None,
        memory: Any = None,
        observed: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Iterator[Tensor]:
        """The chunks (b, chunk, *c) that follow the clean `context`: (b, t₀, *c), each as soon as it is finished, until there are `length`
        tokens with the context (None: for ever). The memory in use does not grow.

        window: the most tokens the network sees at once; the oldest slide out. chunk_size: tokens denoised together (−1: all that
        remain). cache, sinks: how the past is kept (`history.py`). Under a cache a return sees the chunk alone, and DDPM's noise on the
        context stays away. memory: what a recurrent network holds before the context, such as a latent made from a start state. observed:
        (b, length, *c), what is known of tokens to come, NaN elsewhere (`with_observed`).
        """
        if chunk_size < 0 and length is None:
            raise UserError(
                "chunk_size=-1 denoises all remaining tokens together; an endless rollout needs chunk_size >= 1"
            )
        if observed is not None and (length is None or observed.shape != (len(context), length, *context.shape[2:])):
            raise UserError(
                f"observed has shape {tuple(observed.shape)}; ({len(context)}, {length}, …) is needed: every token, the context's too"
            )
        remaining = chunk_size if length is None else max(0, length - context.shape[1])
        size = min(chunk_size, remaining) if chunk_size > 0 else remaining
        if memory is not None and self.branches != {PLAIN: 1.0}:
            raise UserError("condition_scale and history_scale do not work with a start memory; leave both at 1")
        history = build_history(
            cache,
            self.forcing.network,
            chunk=size,
            window=window,
            sinks=sinks,
            slides=length is None or window is None or length > window,
            past_shown=self.past_shown,
            prefill=partial(self._prefill, generator=generator),
            memory=memory,
            whole_rows=guidance is not None,
        )

        # `denoise` with this rollout's guidance and randomness.
        def denoise_rows(tokens: Tokens, matrix: Tensor, memory: Any = None, on_row: OnRow | None = None) -> Tensor:
            return self.denoise(
                tokens.x,
                matrix,
                guidance=guidance,
                conditions=tokens.conditions,
                memory=memory,
                history_noise=tokens.history_noise,
                observed=tokens.observed,
                generator=generator,
                on_row=on_row,
            )

        @torch.no_grad()
        def chunks() -> Iterator[Tensor]:
            # The context is history; what lies before the window is neither seen nor asked for.
            visible = context if history.window is None else context[:, -history.window :]
            history.end = context.shape[1] - visible.shape[1]
            history.append(self._tokens(visible, context.shape[1], conditions, generator))
            while length is None or history.end < length:
                # New tokens begin as pure noise.
                chunk = size if length is None else min(size, length - history.end)
                noise = self.noise((len(context), chunk, *context.shape[2:]), context.device, generator)
                new = self._tokens(noise, history.end + chunk, conditions, generator, observed)
                # They go down the scheduling matrix, seeing the history, and then belong to it.
                x = history.denoise(new, self.matrix(chunk), denoise_rows, on_row)
                if self.finish is not None:
                    x = self.finish(x)
                    if new.observed is not None:
                        x = torch.where(torch.isfinite(new.observed), new.observed.to(x.dtype), x)
                history.append(replace(new, x=x, observed=None))
                yield x

        return chunks()

    def _tokens(
        self,
        x: Tensor,
        end: int,
        conditions: Conditions | None,
        generator: torch.Generator | None,
        observed: Tensor | None = None,
    ) -> Tokens:
        """Tokens x: (b, t, *c), the last of them number `end` − 1, with what belongs to them."""
        start, own = end - x.shape[1], None
        if conditions is not None and start < end:
            own = conditions(start, end) if callable(conditions) else conditions[:, start:end]
            if own.shape[:2] != x.shape[:2]:
                raise UserError(
                    f"conditions for tokens {start} to {end - 1} have shape {tuple(own.shape)}; "
                    f"({x.shape[0]}, {end - start}, width) is needed: a row for every token, the context's too"
                )
        history_noise = self._noise_like(x, generator) if self.noises_history else None
        return Tokens(x, own, history_noise, None if observed is None else observed[:, start:end])

    def _prefill(self, tokens: Tokens, memory: Any, *, generator: torch.Generator | None) -> Any:
        """The memory after clean tokens, without their output where the network can do that."""
        forcing = self.forcing
        if hasattr(forcing.network, "remember"):
            forcing = forcing.over(MemoryOnly(forcing.network))
        x = tokens.x if self.finish is None else self.finish(tokens.x)
        context_noise = forcing.gaussian_noise(x, generator=generator) if self.noisy_context else None
        denoise = self._denoiser(forcing, tokens.history_noise, context_noise)
        return self.forcing.prefill(x, denoise=denoise, conditions=tokens.conditions, memory=memory)

    # ------------------------------------------------------------------------------------------------ helpers

    def _denoiser(
        self,
        forcing: DiffusionForcing,
        history_noise: Tensor | None = None,
        context_noise: Tensor | None = None,
        guidance: GradientGuidance | None = None,
        generator: torch.Generator | None = None,
    ) -> Denoiser:
        """gradient guidance(weighted branches(noisy context(`forcing`))), each where it is asked for."""
        denoise: Denoiser = forcing
        if context_noise is not None:
            level = forcing.stabilization_level - 1
            denoise = NoisyContext(denoise, forcing.schedule, level=level, noise=context_noise)
        if self.branches != {PLAIN: 1.0}:
            denoise = WeightedBranches(denoise, forcing, self.branches, history_noise)
        if guidance is not None:
            denoise = guidance.wrap(denoise, forcing, generator, ancestral=self.ancestral)
        return denoise

    def _noise_like(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.noise(x.shape, x.device, generator).to(x.dtype)

    def _step_noise(self, x: Tensor, moving: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """What a step that is not deterministic draws, for the `moving` tokens alone: the draw does not depend on what else is seen."""
        if self.eta == 0 and not self.ancestral:
            return None
        drawn = self.noise((len(x), len(moving), *x.shape[2:]), x.device, generator)
        return torch.zeros_like(x).index_copy_(1, moving, drawn.to(x.dtype))

    def _step_observed(
        self,
        step: Callable[[Tensor, Tensor, Tensor], Tensor],
        x: Tensor,
        k: Tensor,
        k_to: Tensor,
        observed: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """`step` of tokens x from levels k to k_to, repeated from its noisier end so that what is observed and the rest come to agree."""
        schedule = self.forcing.schedule
        for repeats_left in reversed(range(self.resample)):
            x = with_observed(schedule, x, observed, k, self._noise_like(x, generator))
            x_next = step(x, k, k_to)
            if repeats_left:
                noised = noise_further(schedule, x_next, k_to, k, self._noise_like(x, generator))
                x_next = torch.where(per_token(k != k_to, x), noised, x)  # what does not move stays as it was
            x = x_next
        return with_observed(schedule, x, observed, k_to, self._noise_like(x, generator))
