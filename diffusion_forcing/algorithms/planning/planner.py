"""Planning as sampling: token 0 is the present and stays clean, the future is denoised, guided to the goal (docs/method.md §10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.guidance import goal_return, reward_return
from diffusion_forcing.algorithms.planning.tokens import Bundle, Steps
from diffusion_forcing.diffusion import DiffusionForcing, GradientGuidance, Sampler, add_noise
from diffusion_forcing.diffusion.guidance import Return
from diffusion_forcing.diffusion.history import OnRow
from diffusion_forcing.errors import UserError, check_range


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """How plans are drawn. max_tokens: T, token 0 included. guidance_scale: 0 draws unguided futures.

    guidance_stop: share of the sampling levels, at the clean end, without guidance: the goal pulls while the way is still open, and the
    data's own dynamics (walls, speed) decide at the end. refine: the finished plan is noised again at this share of the levels and denoised
    once more without guidance; 0: not. foresees: whether the network can predict tokens that are still pure noise; if not (next-token
    prediction), they do not guide.
    """

    max_tokens: int
    guidance_scale: float = 2.0
    guidance_weights: str = "released"
    mcg_samples: int = 1
    use_reward: bool = False
    gamma: float = 1.0
    guidance_stop: float = 0.0
    refine: float = 0.0
    foresees: bool = True


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """What drawing plans may be given; a planner ignores what it has no use for.

    noise, refine_noise: (b, ⌈horizon/f⌉, f·c) to start from, and to refine with, instead of draws; clamped.
    pull: (b,) factors of the guidance scale, one per plan. previous: frames (b, horizon, c) of an earlier plan, moved
    up to now; denoising then starts from them, noised at sampling level `restart`, instead of from pure noise.
    past: the last steps before the start, in data units, for a planner with `context_frames`.
    """

    noise: Tensor | None = None
    refine_noise: Tensor | None = None
    pull: Tensor | None = None
    previous: Tensor | None = None
    restart: int | None = None
    past: Steps | None = None
    generator: torch.Generator | None = None
    on_row: OnRow | None = None


class Planner:
    """Draws plans from a trained DiffusionForcing over bundles."""

    present_tokens = 1
    """Tokens before the planned ones: the present."""
    context_frames = 0
    """Steps before the present that a plan looks back on, at most."""
    guided_by: type[GradientGuidance] = GradientGuidance

    def __init__(
        self, forcing: DiffusionForcing, bundle: Bundle, sampler: Sampler, options: PlannerOptions, *, causal: bool
    ) -> None:
        self.forcing = forcing
        self.bundle = bundle
        self.sampler = sampler
        self.options = options
        self.causal = causal

    def noise_shape(self, horizon: int) -> tuple[int, ...]:
        """Shape of the noise that one plan of `horizon` frames starts from: (tokens, f·c)."""
        return -(-horizon // self.bundle.frame_stack), self.bundle.token_width

    def plan(self, start: Tensor, goal: Tensor, horizon: int, **inputs: Any) -> tuple[Steps, Tensor]:
        """Plans of `horizon` steps from observations `start`: (b, ≥o) to `goal`: (b, 2), both in data units.

        Returns the steps in data units, (b, horizon, …), and the same as normalised frames (b, horizon, c). A goal has no velocity: where
        velocities are planned, their target is 0 in normalised units. inputs: `PlanInputs`.
        """
        o = self.bundle.observation_dim
        mean, std = self.bundle.mean[:o], self.bundle.std[:o]
        target = start.new_zeros(len(start), o)
        target[:, :2] = (goal[:, :2] - mean[:2]) / std[:2]
        frames = self.plan_normalized((start[:, :o] - mean) / std, target, horizon, **inputs)
        return self.bundle.decode(frames), frames

    def plan_normalized(self, start: Tensor, goal: Tensor, horizon: int, **inputs: Any) -> Tensor:
        """Frames (b, horizon, c), normalised, from start to goal, both (b, o) and normalised. inputs: `PlanInputs`."""
        return self.draw(start, goal, horizon, PlanInputs(**inputs))

    def draw(self, start: Tensor, goal: Tensor, horizon: int, given: PlanInputs) -> Tensor:
        """`plan_normalized` as this kind of planner does it."""
        bundle, batch = self.bundle, len(start)
        tokens = -(-horizon // bundle.frame_stack)
        absent = self._absent(horizon, tokens)
        before, memory = self._opening(start, given.past)
        first = before.shape[1]
        shape = (batch, tokens, bundle.token_width)
        future = self._noise(shape, given.noise, start.device, given.generator)
        rows = self.sampler.matrix(tokens)
        if given.previous is not None and given.restart is not None:
            check_range("restart", given.restart, 1, self.sampler.sampling_timesteps)
            rows = rows.clamp(max=given.restart)
            k = self.sampler.levels[torch.full(shape[:2], given.restart)].to(start.device, non_blocking=True)
            missing = tokens * bundle.frame_stack - given.previous.shape[1]
            frames = torch.cat([given.previous, given.previous[:, -1:].expand(-1, missing, -1)], dim=1)
            future = add_noise(self.forcing.schedule, bundle.stack(frames), k, future)
        padding = start.new_zeros(batch, absent, bundle.token_width)
        x = torch.cat([before, future, padding], dim=1)
        stop = round(self.options.guidance_stop * self.sampler.sampling_timesteps)
        guided = int((rows > stop).any(dim=1).sum())
        guidance = self._guidance(start, goal, horizon, given.pull)
        passes = [(rows[: guided + 1], guidance), (rows[guided:], None)] if stop else [(rows, guidance)]
        done = 0

        def denoise(x: Tensor, rows: Tensor, guidance: GradientGuidance | None) -> Tensor:
            """x: (b, T, f·c) down `rows`: (rows, planned); the present is held clean, the last `absent` as noise."""
            last = rows.new_full((len(rows), absent), self.sampler.sampling_timesteps)
            matrix = torch.cat([rows.new_zeros(len(rows), first), rows, last], dim=1)
            on_row, before = given.on_row, done
            numbered = None if on_row is None else lambda row, x, levels: on_row(before + row, x, levels)
            return self.sampler.denoise(
                x, matrix, guidance=guidance, memory=memory, generator=given.generator, on_row=numbered
            )

        for part, pulled in passes:
            x = denoise(x, part, pulled)
            done += len(part) - 1
        if self.options.refine > 0:
            level = max(1, round(self.options.refine * self.sampler.sampling_timesteps))
            k = self.sampler.levels[torch.full(shape[:2], level)].to(start.device, non_blocking=True)
            again = self._noise(shape, given.refine_noise, start.device, given.generator)
            future = add_noise(self.forcing.schedule, x[:, first : first + tokens], k, again)
            x = torch.cat([x[:, :first], future, x[:, first + tokens :]], dim=1)
            down = torch.arange(level, -1, -1)[:, None].expand(-1, tokens)
            x = denoise(x, down, None)
        return bundle.unstack(x[:, first : first + tokens])[:, :horizon]

    def _absent(self, horizon: int, tokens: int) -> int:
        """How many tokens after the planned ones are held as noise. UserError for a horizon that cannot be planned.

        A network that sees all tokens was trained with absent ones as pure noise at the end: so the horizon is flexible.
        """
        window = (self.options.max_tokens - 1) * self.bundle.frame_stack
        if not 1 <= horizon <= window:
            raise UserError(
                f"horizon {horizon} exceeds the window of {window} steps "
                f"({self.options.max_tokens} tokens of {self.bundle.frame_stack}); plan for 1…{window} "
                "steps or train with a larger dataset.episode_len"
            )
        return 0 if self.causal else self.options.max_tokens - 1 - tokens

    def _opening(self, start: Tensor, past: Steps | None) -> tuple[Tensor, Any]:
        """The tokens (b, present_tokens, f·c) that go before the plan from `start`: (b, o), normalised, and the memory of what is before them."""
        return self.bundle.present_normalized(start), None

    def _noise(
        self, shape: tuple[int, ...], noise: Tensor | None, device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        if noise is not None:
            return self.forcing.clamp_noise(noise)
        return self.sampler.noise(shape, device, generator)

    def _guidance(self, start: Tensor, goal: Tensor, horizon: int, pull: Tensor | None) -> GradientGuidance | None:
        options = self.options
        if options.guidance_scale == 0:
            return None
        scale = options.guidance_scale if pull is None else options.guidance_scale * pull
        if options.use_reward:
            returns = reward_return(
                self.bundle, planned=horizon, scale=scale, gamma=options.gamma, present_tokens=self.present_tokens
            )
        else:
            returns = self._goal_return(start, goal, horizon, scale)
        return self.guided_by(returns, samples=options.mcg_samples, started_only=not options.foresees)

    def _goal_return(self, start: Tensor, goal: Tensor, horizon: int, scale: float | Tensor) -> Return:
        weights = self.options.guidance_weights
        return goal_return(self.bundle, start, goal, planned=horizon, scale=scale, weights=weights)
