"""The world model: the video task with a network that copies from the last frames, and the training that fits its rollouts.

All but the network, its noise levels and its loss is `Video`. Frames are noised as in EDM; by default each is trained as the next frame behind a
past that is as noisy as a rollout shows it (docs/world_model.md has the reason for every option).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import NoisingOptions, Warmup
from diffusion_forcing.algorithms.video import Clips, Video, VideoOptions
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.diffusion import (
    DiffusionForcing,
    NoiseSchedule,
    Sampler,
    add_noise,
    build_parameterization,
    build_schedule,
    mask_absent,
    per_token,
)
from diffusion_forcing.diffusion.noise import normal, uniform
from diffusion_forcing.errors import UserError, check_fixed, check_not_negative, check_positive, check_range
from diffusion_forcing.networks.world import WorldNetwork
from diffusion_forcing.networks.world_layers import Warped
from diffusion_forcing.options import Count, Decay, Natural, NotNegative, Share, check_limits


@dataclass(frozen=True, kw_only=True)
class LevelDensity:
    """Which noise σ the frames of a world model are trained at: ln σ is normal, with other means for frames that serve as past and as target.

    past: (mean, deviation) of ln σ of frames that others look back to, cut at past_max; target: the same of frames that are denoised; pure:
    share of targets at the last level, pure noise, where sampling begins.
    """

    past: tuple[float, float] = (-3.0, 1.0)
    past_max: float = 0.3
    target: tuple[float, float] = (-0.4, 1.4)
    pure: float = 0.2

    def __post_init__(self) -> None:
        check_positive("levels.past_max", self.past_max)
        check_range("levels.pure", self.pure, 0, 1)
        for name in ("past", "target"):
            check_not_negative(f"levels.{name}[1]", getattr(self, name)[1])

    def draw_past(self, sigmas: Tensor, shape: Sequence[int], *, generator: torch.Generator | None) -> Tensor:
        """Levels of `shape` (b, …) like those of a rollout's past. sigmas: (K,), rising."""
        drawn = normal(shape, generator=generator, device=sigmas.device)
        return _level_of((self.past[0] + self.past[1] * drawn).exp().clamp(max=self.past_max), sigmas)

    def draw_target(self, sigmas: Tensor, shape: Sequence[int], *, generator: torch.Generator | None) -> Tensor:
        """Levels of `shape` (b, …) like those that a frame passes while it is sampled."""
        drawn = normal(shape, generator=generator, device=sigmas.device)
        levels = _level_of((self.target[0] + self.target[1] * drawn).exp(), sigmas)
        pure = uniform(shape, generator=generator, device=sigmas.device) < self.pure
        return torch.where(pure, len(sigmas) - 1, levels)

    def draw_mixture(self, sigmas: Tensor, shape: Sequence[int], *, generator: torch.Generator | None) -> Tensor:
        """Levels of `shape` (b, …), each with probability ½ of a past and of a target: any combination occurs, as in Diffusion Forcing, but the
        ones that sampling meets occur most."""
        past = uniform(shape, generator=generator, device=sigmas.device) < 0.5
        as_past = self.draw_past(sigmas, shape, generator=generator)
        return torch.where(past, as_past, self.draw_target(sigmas, shape, generator=generator))


def _level_of(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """The first level with at least the noise σ, the last where none has."""
    return torch.searchsorted(sigmas, sigma).clamp(max=len(sigmas) - 1)


@dataclass(frozen=True, kw_only=True)
class WorldNetworkOptions:
    """Sizes of `networks.world.WorldNetwork`. window: frames that attention spans, past_frames: frames beside the frame itself in the first
    convolution; registers: learned tokens of each attention."""

    size: Literal["A", "B", "C"] = "A"
    window: int = 16
    past_frames: Count = 2
    registers: Natural = 4
    warp: bool = True

    def __post_init__(self) -> None:
        where = "algorithm.diffusion.architecture"
        check_limits(where, self)
        if self.window <= self.past_frames:
            raise UserError(f"{where}.window is {self.window}; it must exceed past_frames, {self.past_frames}")


@dataclass(frozen=True, kw_only=True)
class WorldDiffusionOptions(NoisingOptions):
    """EDM's schedule and preconditioning. stabilization_level: what the past of a rollout is shown at; noisy_context: with noise in it."""

    objective: Literal["pred_noise", "pred_x0", "pred_v", "pred_edm"] = "pred_edm"
    beta_schedule: Literal["linear", "cosine", "sigmoid", "edm"] = "edm"
    sampling_timesteps: int = 2
    stabilization_level: int = 190
    noisy_context: bool = True
    offset_noise: NotNegative = 0.2
    levels: LevelDensity = field(default_factory=LevelDensity)
    architecture: WorldNetworkOptions = field(default_factory=WorldNetworkOptions)


@dataclass(frozen=True, kw_only=True)
class WorldOptions(VideoOptions):
    """`algorithm=df_world`. noise_level: `noisy_past` or `mixture`, see `World`. lr_decay: last part of `training.max_steps` over
    which the learning rate falls to 0. warp_loss: weight of the warped frames' own error.
    unscored_frames: first frames of a clip that are left out of the loss. quantize: round finished frames to 8 bits.
    self_rollout: share of past frames that are replaced by the network's own predictions, from the part self_rollout_start of
    `training.max_steps` on; self_rollout_rounds: how often they are predicted anew behind such a past."""

    noise_level: Literal["noisy_past", "mixture"] = "noisy_past"  # type: ignore[assignment]
    weight_decay: NotNegative = 1e-2
    optimizer_beta: tuple[float, float] = (0.9, 0.95)
    warmup_steps: Natural = 200
    ema_decay: Decay = 0.998
    cache: Literal["exact", "streaming", "none"] = "streaming"
    lr_decay: Share = 0.35
    warp_loss: NotNegative = 0.3
    unscored_frames: int = 2
    quantize: bool = True
    self_rollout: Share = 0.0
    self_rollout_start: Share = 0.67
    self_rollout_rounds: Count = 2
    diffusion: WorldDiffusionOptions = field(default_factory=WorldDiffusionOptions)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.self_rollout and self.noise_level != "noisy_past":
            raise UserError(
                f"algorithm.self_rollout={self.self_rollout} replaces a past that stands beside the frames that are denoised; "
                f"algorithm.noise_level={self.noise_level} has none: pass noise_level=noisy_past, or self_rollout=0"
            )
        check_range("algorithm.unscored_frames", self.unscored_frames, 0, self.n_frames - 1)
        only = {"frame_stack": 1, "causal": True, "norm": "frame", "sink_frames": 0}
        check_fixed("algorithm", self, only, "this network, causal, with one frame a token and registers for sinks,")
        if self.noise_level == "noisy_past" and self.scheduling_matrix != "autoregressive":
            raise UserError(
                f"algorithm.noise_level=noisy_past trains one frame behind a nearly clean past; scheduling_matrix={self.scheduling_matrix} "
                "denoises several together: pass algorithm.noise_level=mixture, or scheduling_matrix=autoregressive"
            )

    halvings = 8


class WorldDraws(NamedTuple):
    """What training draws for a batch. levels: (b, t) and noise: (b, t, c, h, w) of the frames that are denoised; past_levels and past_noise:
    the same of the past that they are shown behind, None where they are each other's past; dropped: as in `VideoDraws`; replaced: (b, t) bool,
    past frames that the network predicts itself, None: none."""

    levels: Tensor
    noise: Tensor
    past_levels: Tensor | None
    past_noise: Tensor | None
    dropped: Tensor | None
    replaced: Tensor | None = None


class WorldLoss(NamedTuple):
    """error: the loss of the denoised frames, a scalar; warp: that of the warped past frames; x0: (b, t, c, h, w), frames as predicted."""

    error: Tensor
    warp: Tensor
    x0: Tensor


class BehindPast(nn.Module):
    """The network, which sees before each token what is before its place in `past`: tokens and levels like (x, k)."""

    def __init__(self, network: nn.Module, past: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.network, self.past = network, past
        self.static_outputs = getattr(network, "static_outputs", False)

    def forward(self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None) -> tuple[Tensor, Any]:
        output: tuple[Tensor, Any] = self.network(x, k, conditions, memory, self.past)
        return output


class WarmupAndDecay(Warmup):
    """`Warmup`, and linearly to 0 over the last `decay` of `total` steps."""

    # Not part of what a checkpoint keeps of it, so that a resumed run takes its own number of steps.
    __slots__ = ("decay", "total")

    def __init__(self, steps: int, before: int, *, decay: float, total: int) -> None:
        super().__init__(steps, before)
        self.decay, self.total = decay, total

    def __call__(self, step: int) -> float:
        left = (self.total - step) / (self.decay * self.total)
        return super().__call__(step) * min(1.0, max(0.0, left))


class World(Video):
    """A world model. `options` is a `WorldOptions`.

    noise_level=noisy_past: each frame has a target's level behind a past of a past's levels, so every frame trains what a rollout does;
    the past runs through the encoder once more. mixture: one level a frame, that of a past or of a target, so that frames serve as each
    other's past at any combination of levels, as Diffusion Forcing has it.
    """

    Options = WorldOptions
    line = "world"
    options: WorldOptions
    trained_window: int | None = None
    """Frames that attention spanned where the weights that were loaded were trained; None once they are trained here."""

    @staticmethod
    def build_network(options: VideoOptions) -> nn.Module:
        assert isinstance(options, WorldOptions)
        diffusion = options.diffusion
        schedule = build_schedule(diffusion.beta_schedule, diffusion.timesteps, arguments=diffusion.schedule_fn_kwargs)
        channels, resolution, _ = options.observation_shape
        network: Any = WorldNetwork(
            channels,
            resolution,
            sigmas=schedule.sigmas,
            start_weights=start_weights(schedule, diffusion.objective, diffusion.clip_noise),
            external_cond_dim=options.condition_width,
            **asdict(diffusion.architecture),
        )
        return network.to(memory_format=torch.channels_last)

    def put_network(self, network: nn.Module) -> None:
        super().put_network(network)
        self.forcing.offset_noise = self.options.diffusion.offset_noise

    # ------------------------------------------------------------------------------------------------ training

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        clips = self.encode(batch)
        generator = self.training_generator()
        draws = self.draw(clips, generator=generator)
        if self._rolls_out():
            replaced = uniform(clips.mask.shape, device=self.device, generator=generator) < self.options.self_rollout
            draws = draws._replace(replaced=replaced)
        error, warp, _ = self.losses(clips, draws)
        self.log("training/loss", error, prog_bar=True)
        if not self.options.diffusion.architecture.warp:
            return error
        self.log("training/warp", warp)
        return error + self.options.warp_loss * warp

    def rate_factor(self, steps_before: int) -> Callable[[int], float]:
        decay, total = self.options.lr_decay, self.trainer.max_steps
        if not decay or total <= 0:
            return super().rate_factor(steps_before)
        return WarmupAndDecay(self.options.warmup_steps, steps_before, decay=decay, total=total)

    def draw(self, clips: Clips, *, generator: torch.Generator | None = None) -> WorldDraws:  # type: ignore[override]
        """The random numbers of one training batch, by `noise_level`."""
        options, sigmas = self.options, self.forcing.schedule.sigmas
        density = options.diffusion.levels
        shape = clips.tokens.shape
        past_levels = past_noise = dropped = None
        if options.noise_level == "noisy_past":
            levels = density.draw_target(sigmas, shape[:2], generator=generator)
            past_levels = density.draw_past(sigmas, shape[:2], generator=generator)
            past_noise = self.forcing.draw_noise(shape, device=self.device, generator=generator)
        else:
            levels = density.draw_mixture(sigmas, shape[:2], generator=generator)
        noise = self.forcing.draw_noise(shape, device=self.device, generator=generator)
        if clips.conditions is not None and options.condition_dropout > 0:
            dropped = uniform(shape[:1], device=self.device, generator=generator) < options.condition_dropout
        return WorldDraws(levels, noise, past_levels, past_noise, dropped)

    def loss(  # type: ignore[override]
        self, clips: Clips, draws: WorldDraws, *, forcing: DiffusionForcing | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of the denoised frames, a scalar, and the predicted clean frames (b, t, c, h, w)."""
        error, _, x0 = self.losses(clips, draws, forcing=forcing)
        return error, x0

    def losses(self, clips: Clips, draws: WorldDraws, *, forcing: DiffusionForcing | None = None) -> WorldLoss:
        """The weighted squared error of the denoised frames and that of the warped frames, over the frames that count."""
        forcing = self.forcing if forcing is None else forcing
        x, present, conditions = clips
        levels = mask_absent(draws.levels, present, forcing.schedule.timesteps)
        if conditions is not None and draws.dropped is not None:
            conditions = torch.where(draws.dropped[:, None, None], 0, conditions)

        if draws.past_levels is not None and draws.past_noise is not None:
            past_levels = mask_absent(draws.past_levels, present, forcing.schedule.timesteps)
            shown = x if draws.replaced is None else self._own_past(clips, draws, past_levels, conditions, forcing)
            past = add_noise(forcing.schedule, shown, past_levels, draws.past_noise), past_levels
            forcing = forcing.wrapped(partial(BehindPast, past=past))
        loss = forcing.loss(x, levels, conditions=conditions, noise=draws.noise)
        counted = self._counted(present)
        warped = loss.memory.warped
        warp = x.new_zeros(()) if warped is None else warp_error(warped, x, counted)
        return WorldLoss((per_token(counted, x) * loss.per_element).mean(), warp, loss.x0)

    def _rolls_out(self) -> bool:
        """Whether training has come to where the past is partly the network's own."""
        options, total = self.options, self.trainer.max_steps
        return options.self_rollout > 0 and self.global_step >= options.self_rollout_start * max(0, total)

    @torch.no_grad()
    def _own_past(
        self, clips: Clips, draws: WorldDraws, past_levels: Tensor, conditions: Tensor | None, forcing: DiffusionForcing
    ) -> Tensor:
        """Clean frames (b, t, c, h, w) of which those of `draws.replaced` are what the network predicts in one step, all in one call: first behind
        the true past, then behind the past that this gave. A rollout in parallel, so that training meets its own mistakes."""
        assert draws.replaced is not None and draws.past_noise is not None
        x = shown = clips.tokens
        pure = torch.full_like(past_levels, forcing.schedule.timesteps - 1)
        for _ in range(self.options.self_rollout_rounds):
            past = add_noise(forcing.schedule, shown, past_levels, draws.past_noise), past_levels
            prediction, _ = forcing(draws.noise, pure, conditions, None, past)
            shown = torch.where(per_token(draws.replaced, x), self.quantized(prediction.x0), x)
        return shown

    def _counted(self, present: Tensor) -> Tensor:
        """(b, t): weights of mean about 1 of the frames that count: those that are there, behind the first ones, which have no past to copy."""
        time = present.shape[1]
        first = min(self.options.unscored_frames, time - 1)
        behind = torch.arange(time, device=present.device) >= first
        return (present & behind).float() * time / (time - first)

    # ------------------------------------------------------------------------------------------------ sampling

    def load_weights(self, checkpoint: Any) -> None:
        super().load_weights(checkpoint)
        window = checkpoint.metadata.get("structure", {})
        for key in ("algorithm", "diffusion", "architecture", "window"):
            window = window.get(key) if isinstance(window, dict) else None
        self.trained_window = window if isinstance(window, int) else None

    def on_train_start(self) -> None:
        self.trained_window = None

    def sampler(self, forcing: DiffusionForcing | None = None, **more: Any) -> Sampler:
        window = self.options.diffusion.architecture.window
        if self.trained_window is not None and window > self.trained_window:
            raise UserError(
                f"algorithm.diffusion.architecture.window is {window}, but these weights were trained with a window of {self.trained_window} "
                f"frames and have never seen farther; leave it out, or train on with the longer one (experiment.tasks=[training])"
            )
        finish = self.quantized if self.options.quantize else None
        return super().sampler(forcing, noisy_context=self.options.diffusion.noisy_context, finish=finish, **more)

    def quantized(self, tokens: Tensor) -> Tensor:
        """Finished frames as a screen would show them, clamped and rounded to 8 bits: so that a rollout's past is what training's is."""
        return self.tokens((self.frames(tokens).clamp(0, 1) * 255).round() / 255)


def start_weights(schedule: NoiseSchedule, objective: str, clip_noise: float) -> Tensor:
    """(K,): by how much the target moves with the clean frame at each level, so that an output can start from a guess of the frame."""
    k = torch.arange(schedule.timesteps)[None]
    parameterization = build_parameterization(objective, clip_noise=clip_noise)
    return parameterization.target(schedule, torch.ones(k.shape), k, torch.zeros(k.shape))[0]


def warp_error(warped: Warped, x: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the warped past frames, where they show anything, and of their blend, against frames x: (b, t, c, h, w); weight: (b, t).

    Also of averages over 4 and 8 pixels: a flow finds a motion of many pixels by those, where single pixels say nothing.
    """
    apart = (warped.frames - x[:, :, None]) * warped.inside.detach()
    errors = torch.cat([(warped.start - x)[:, :, None], apart], dim=2)  # (b, t, 1 + p, c, h, w)
    images = errors.flatten(0, 2)
    total = x.new_zeros(x.shape[:2])
    for pixels, share in ((1, 1.0), (4, 2.0), (8, 2.0)):
        squared = F.avg_pool2d(images, pixels) ** 2
        total = total + share * squared.mean((-3, -2, -1)).unflatten(0, errors.shape[:3]).sum(dim=2)
    return (weight * total).mean()
