"""One sampler for every task: walk a scheduling matrix over tokens, and roll a sequence out chunk by chunk (docs/method.md §6, §7).

`walk` is the whole of sampling: the matrix decides which task it is. `fill` walks over the unknown tokens of a sequence; `stream` appends
chunks to a growing one for as long as it is asked to, `rollout` up to a length. With a causal network the finished past can be kept as
memory (keys and values, or a recurrent state), so that a row costs the chunk alone (`past.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_forcing.diffusion.composition import compose
from diffusion_forcing.diffusion.forcing import DiffusionForcing
from diffusion_forcing.diffusion.given import impose, noise_further
from diffusion_forcing.diffusion.guidance import Guidance
from diffusion_forcing.diffusion.noise import normal
from diffusion_forcing.diffusion.past import Cache, Carried, Tokens, carries, check_cache, past_of
from diffusion_forcing.diffusion.recurrent_walk import walk_unfinished
from diffusion_forcing.diffusion.scheduling import sampling_levels, scheduling_matrix
from diffusion_forcing.errors import UserError

OnRow = Callable[[int, Tensor, Tensor], None]
Conditions = Tensor | Callable[[int, int], Tensor]
"""(b, length, d), or `conditions(start, end) -> (b, end − start, d)`: asked once for each token, when it is about to be sampled."""


class Sampler:
    """Draws tokens from a trained DiffusionForcing.

    sampling_timesteps: S ≤ K; S = K samples with DDPM, S < K with DDIM and `eta`. scheduling_matrix, uncertainty_scale: the order in
    which the tokens of a chunk are denoised (`scheduling.scheduling_matrix`). condition_scale, history_scale, history_level: how far to
    lean on the conditions and on the past (`composition.compose`); at 1 nothing is added and nothing paid. resample: how often a row is
    walked where part of a token is given (`given.py`). past: how a rollout shows what is finished: `clean`, or at the `same` level as the
    chunk that is sampled, given there (full-sequence diffusion, for networks that know no other levels).
    """

    def __init__(
        self,
        forcing: DiffusionForcing,
        *,
        sampling_timesteps: int,
        scheduling_matrix: str = "autoregressive",
        uncertainty_scale: float = 1.0,
        eta: float = 0.0,
        condition_scale: float = 1.0,
        history_scale: float = 1.0,
        history_level: int | None = None,
        resample: int = 1,
        past: Literal["clean", "same"] = "clean",
    ) -> None:
        if past == "same" and scheduling_matrix != "full_sequence":
            raise UserError(
                f"scheduling_matrix={scheduling_matrix} has tokens of several levels; past=same is one level for all: full_sequence"
            )
        self.past = past
        if resample < 1:
            raise UserError(f"resample is {resample}; a row is walked once or more")
        self.resample = resample
        self.forcing = forcing
        self.sampling_timesteps = sampling_timesteps
        self.scheduling_matrix = scheduling_matrix
        self.uncertainty_scale = uncertainty_scale
        self.eta = eta
        self.levels = sampling_levels(forcing.schedule.timesteps, sampling_timesteps)
        self.ancestral = sampling_timesteps == forcing.schedule.timesteps
        self.composition = compose(
            forcing.schedule.timesteps,
            condition_scale=condition_scale,
            history_scale=history_scale,
            history_level=history_level,
        )

    def matrix(self, horizon: int) -> Tensor:
        """The scheduling matrix for `horizon` tokens: (rows, horizon), entries s ∈ {0…S}."""
        return scheduling_matrix(
            self.scheduling_matrix, horizon, self.sampling_timesteps, uncertainty_scale=self.uncertainty_scale
        )

    def noise(
        self, shape: tuple[int, ...], *, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        """Pure noise tokens of `shape` (b, t, *c), clamped."""
        return self.forcing.clamp_noise(normal(shape, generator=generator, device=device))

    @torch.no_grad()
    def walk(
        self,
        x: Tensor,
        matrix: Tensor,
        *,
        guidance: Guidance | None = None,
        conditions: Tensor | None = None,
        memory: Any = None,
        history_noise: Tensor | None = None,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """Tokens x: (b, t, *c) taken down the rows of `matrix`: (rows, t) or (rows, b, t) of sampling levels; columns that stay at 0 are
        context, columns that stay at S are absent. Returns (b, t, *c).

        history_noise: (b, t, *c), what history guidance puts in the place of clean tokens, to use instead of a draw. given: like x, what
        is known of tokens that are sampled, NaN elsewhere; it comes back as it is, and the rest goes with it (`given.py`). on_row(row, x,
        levels) sees the tokens after each row; levels: (t,) or (b, t) are sampling levels.
        """
        if matrix.shape[-1] != x.shape[1]:
            raise UserError(
                f"the scheduling matrix has {matrix.shape[-1]} columns for {x.shape[1]} tokens; give one column a token"
            )
        k = self.levels[matrix].to(x.device)
        moving = (matrix[0] != matrix[-1]).reshape(-1, x.shape[1]).any(dim=0)
        if history_noise is None:
            history_noise = self._history_noise(x, generator)
        for row in range(len(matrix) - 1):
            if torch.equal(matrix[row], matrix[row + 1]):
                continue
            now, then = k[row].expand(x.shape[:2]), k[row + 1].expand(x.shape[:2])
            for again in reversed(range(1 if given is None else self.resample)):
                if given is not None:
                    x = self._impose(x, given, now, generator)
                moved = self.forcing.step(
                    x,
                    now,
                    then,
                    eta=self.eta,
                    ancestral=self.ancestral,
                    guidance=guidance,
                    composition=self.composition,
                    conditions=conditions,
                    memory=memory,
                    noise=self._step_noise(x, moving, generator),
                    history_noise=history_noise,
                    generator=generator,
                )
                x = self._back(x, moved, then, now, generator) if again else moved
            if given is not None:
                x = self._impose(x, given, then, generator)
            if on_row is not None:
                on_row(row, x, matrix[row + 1])
        return x

    def fill(
        self,
        x: Tensor,
        known: Tensor,
        *,
        guidance: Guidance | None = None,
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
        noise = self.noise(tuple(x.shape), device=x.device, generator=generator)
        start = torch.where(known.reshape(*known.shape, *(1,) * (x.ndim - 2)), x, noise)
        return self.walk(start, matrix, guidance=guidance, conditions=conditions, generator=generator, on_row=on_row)

    def rollout(self, context: Tensor, length: int, **how: Any) -> Tensor:
        """A sequence of `length` tokens (b, length, *c) that begins with the clean `context`: (b, t₀, *c). `how`: as for `stream`."""
        return torch.cat([context, *self.stream(context, length, **how)], dim=1)

    def stream(
        self,
        context: Tensor,
        length: int | None,
        *,
        window: int | None = None,
        chunk_size: int = 1,
        cache: Cache = "none",
        sinks: int = 0,
        guidance: Guidance | None = None,
        conditions: Conditions | None = None,
        memory: Any = None,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Iterator[Tensor]:
        """The chunks (b, chunk, *c) that follow the clean `context`: (b, t₀, *c), each as soon as it is finished, until there are `length`
        tokens with the context (None: for ever). What is kept meanwhile does not grow.

        window: the most tokens the network sees at once; the oldest slide out. chunk_size: tokens denoised together (−1: all that
        remain). cache: `exact` and `streaming` keep the past as a causal network's memory. `exact` gives the same result (but DDPM's own
        noise on the context stays away); `streaming` gives the same until the window slides, then what was computed stays, and the first
        `sinks` tokens of all. Under a cache a return sees the chunk alone. A recurrent network's past is one latent: under either cache no
        window is needed, nor read, and it steps neither waiting nor finished tokens (`recurrent_walk.py`). memory: what such a network
        holds before the context, a latent made from a start state, say. given: (b, length, *c), what is known of tokens to come, NaN
        elsewhere (`given.py`).
        """
        if chunk_size < 0 and length is None:
            raise UserError(
                "chunk_size=-1 denoises all that remain together; a rollout without end needs a chunk_size of 1 or more"
            )
        remaining = chunk_size if length is None else max(0, length - context.shape[1])
        chunk_size = min(chunk_size, remaining) if chunk_size > 0 else remaining
        if self.past == "same" and cache != "none":
            raise UserError(f"cache={cache} with past=same: the past is noised anew in every row; pass cache=none")
        check_cache(cache, self.forcing.network, chunk=chunk_size, window=window, sinks=sinks, length=length)
        if carries(cache, self.forcing.network):
            window = None
        elif memory is not None:
            raise UserError(
                "a memory to begin with is for a recurrent network under cache=exact or streaming; give context instead"
            )
        how = {"guidance": guidance, "generator": generator, "on_row": on_row}
        if given is not None and (length is None or given.shape != (len(context), length, *context.shape[2:])):
            raise UserError(
                f"given has shape {tuple(given.shape)}; ({len(context)}, {length}, …) is needed: every token, the context's too"
            )
        return self._chunks(context, length, window, chunk_size, cache, sinks, conditions, memory, given, how)

    @torch.no_grad()
    def _chunks(
        self,
        context: Tensor,
        length: int | None,
        window: int | None,
        chunk_size: int,
        cache: Cache,
        sinks: int,
        conditions: Conditions | None,
        memory: Any,
        given: Tensor | None,
        how: dict[str, Any],
    ) -> Iterator[Tensor]:
        now = context.shape[1]
        visible = context if window is None else context[:, max(0, now - window) :]
        shown = self._tokens(visible, now, conditions, how["generator"])
        past = past_of(
            cache, self.forcing.network, shown, window=window, sinks=sinks, remember=self._remember, memory=memory
        )
        while length is None or now < length:
            chunk = chunk_size if length is None else min(chunk_size, length - now)
            now += chunk
            noise = self.noise(
                (len(context), chunk, *context.shape[2:]), device=context.device, generator=how["generator"]
            )
            new = self._tokens(noise, now, conditions, how["generator"])
            new = replace(new, given=None if given is None else given[:, now - chunk : now])
            seen, memory = past.before(chunk)
            tokens, rows = seen.then(new), self.matrix(chunk)
            if isinstance(past, Carried) and how["guidance"] is None:
                walk = partial(self.walk, generator=how["generator"])
                finished, fresh, memory = walk_unfinished(
                    new, rows, memory, walk=walk, remember=self._remember, on_row=how["on_row"]
                )
                past.add(fresh, memory)
                yield finished
                continue
            before = rows.new_zeros(len(rows), seen.count)
            if self.past == "same":
                before = rows[:, :1].expand(-1, seen.count)
                tokens = replace(seen, given=seen.x).then(new)
            x = self.walk(
                tokens.x,
                torch.cat([before, rows], dim=1),
                conditions=tokens.conditions,
                memory=memory,
                history_noise=tokens.history_noise,
                given=tokens.given,
                **how,
            )
            finished = x[:, seen.count :].clone()
            past.add(replace(new, x=finished, given=None))
            yield finished

    def _tokens(self, x: Tensor, end: int, conditions: Conditions | None, generator: torch.Generator | None) -> Tokens:
        """Tokens x: (b, t, *c), the last of them number `end` − 1, with what belongs to them."""
        start, told = end - x.shape[1], None
        if conditions is not None and start < end:
            told = conditions(start, end) if callable(conditions) else conditions[:, start:end]
            if told.shape[:2] != x.shape[:2]:
                raise UserError(
                    f"conditions for tokens {start} to {end - 1} have shape {tuple(told.shape)}; "
                    f"({x.shape[0]}, {end - start}, width) is needed: a row for every token, the context's too"
                )
        return Tokens(x, told, self._history_noise(x, generator))

    def _remember(self, tokens: Tokens, memory: Any) -> Any:
        return self.forcing.remember(
            tokens.x,
            conditions=tokens.conditions,
            memory=memory,
            composition=self.composition,
            history_noise=tokens.history_noise,
        )

    def _history_noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if self.composition is None or not self.composition.noises_history:
            return None
        return self.noise(tuple(x.shape), device=x.device, generator=generator)

    def _impose(self, x: Tensor, given: Tensor, k: Tensor, generator: torch.Generator | None) -> Tensor:
        """x: (b, t, *c) at levels k: (b, t), with `given`, as noisy, in its places."""
        noise = self.noise(tuple(x.shape), device=x.device, generator=generator).to(x.dtype)
        return impose(self.forcing.schedule, x, given, k, noise)

    def _back(self, before: Tensor, x: Tensor, k: Tensor, k_to: Tensor, generator: torch.Generator | None) -> Tensor:
        """Tokens x at levels k, noised again to k_to, where they were `before`; those that did not move stay as they were."""
        noise = self.noise(tuple(x.shape), device=x.device, generator=generator).to(x.dtype)
        noised = noise_further(self.forcing.schedule, x, k, k_to, noise)
        return torch.where((k != k_to).reshape(*k.shape, *(1,) * (x.ndim - 2)), noised, before)

    def _step_noise(self, x: Tensor, moving: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """What a step that is not deterministic draws, for the `moving` tokens alone: the draw does not depend on what else is seen."""
        if self.eta == 0 and not self.ancestral:
            return None
        noise = torch.zeros_like(x)
        noise[:, moving] = self.noise(
            (x.shape[0], int(moving.sum()), *x.shape[2:]), device=x.device, generator=generator
        ).to(x.dtype)
        return noise
