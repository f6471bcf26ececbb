"""The video task: frames as tokens, trained by Diffusion Forcing, rolled out from a context and from actions (METHOD §4–8, §12).

A token is f consecutive frames stacked on the channels, normalised; padded frames count nothing in the loss. What is known of the actions
that led to a token's frames is its condition; where they are unknown, or dropped in training, a flag says so. This adapter encodes a batch,
asks `diffusion` for the loss, and turns sampled tokens back into frames. Pixels here are uint8, or real numbers in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import ForcingAlgorithm
from diffusion_forcing.algorithms.video_options import VideoOptions
from diffusion_forcing.datasets.video_batch import VideoBatch
from diffusion_forcing.diffusion import DiffusionForcing, Sampler, mask_absent
from diffusion_forcing.diffusion.rows import normal, uniform
from diffusion_forcing.diffusion.sampler import OnRow
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.unet3d import UNet3D


class Clips(NamedTuple):
    """Clips as the network sees them. tokens: (b, t, f·c, h, w) normalised; mask: (b, t·f) bool, frames that are there; conditions:
    (b, t, d), or None where the model is not told actions."""

    tokens: Tensor
    mask: Tensor
    conditions: Tensor | None


class VideoDraws(NamedTuple):
    """What training draws for a batch. levels: (b, t); noise: (b, t, f·c, h, w) standard normal; dropped: (b,) bool, sequences whose
    conditions the network is not told, or None."""

    levels: Tensor
    noise: Tensor
    dropped: Tensor | None


class Video(ForcingAlgorithm):
    """Diffusion Forcing for video. `options` is a `VideoOptions`."""

    Options: type[VideoOptions] = VideoOptions
    task = "video"
    line = "v1.5"
    options: VideoOptions
    data_mean: Tensor
    data_std: Tensor

    def __init__(self, options: VideoOptions) -> None:
        super().__init__(options, self.build_network(options))
        self.register_buffer("data_mean", _per_channel(options.data_mean), persistent=False)
        self.register_buffer("data_std", _per_channel(options.data_std), persistent=False)

    @staticmethod
    def build_network(options: VideoOptions) -> nn.Module:
        """The network for tokens (b, t, f·c, h, w), as the options say."""
        channels, resolution, _ = options.observation_shape
        return UNet3D(
            channels * options.frame_stack,
            resolution,
            causal=options.causal,
            norm=options.norm,
            external_cond_dim=options.condition_width,
            **asdict(options.diffusion.architecture),
        )

    # ------------------------------------------------------------------------------------------------ frames ⇄ tokens

    def encode(self, batch: VideoBatch) -> Clips:
        """A batch as tokens, mask and conditions."""
        conditions = None
        if self.options.condition_width:
            conditions = self.conditions(batch.actions, batch.known)
        return Clips(self.tokens(batch.frames), batch.valid, conditions)

    def tokens(self, frames: Tensor) -> Tensor:
        """Frames (b, t·f, c, h, w), uint8 or in [0, 1], as normalised tokens (b, t, f·c, h, w), frame-major."""
        b, time, c, h, w = frames.shape
        f = self.options.frame_stack
        if time % f:
            raise UserError(f"{time} frames do not fit algorithm.frame_stack {f}; pass a multiple of it")
        if (c, h, w) != self.options.observation_shape:
            raise UserError(
                f"the frames have shape {(c, h, w)} (channels, height, width), the model takes {self.options.observation_shape}; "
                "set dataset.resolution as the model was trained"
            )
        x = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        return ((x - self.data_mean) / self.data_std).reshape(b, time // f, f * c, h, w)

    def frames(self, tokens: Tensor) -> Tensor:
        """Normalised tokens (b, t, f·c, h, w) as frames (b, t·f, c, h, w) in data units: [0, 1] but for what the model oversteps."""
        b, t, _, h, w = tokens.shape
        return tokens.reshape(b, t * self.options.frame_stack, -1, h, w) * self.data_std + self.data_mean

    def conditions(self, actions: Tensor | None, known: Tensor | None = None) -> Tensor:
        """Actions (b, t·f, A) that led to each frame, and whether they are known (b, t·f) (None: all), as conditions (b, t, d): the
        actions of a token's frames, then a flag for each, 1 where they are known. Unknown actions are 0."""
        options = self.options
        width = 0 if actions is None else actions.shape[-1]
        if actions is None or width != options.action_width:
            what = "none" if width == 0 else f"{width} numbers a frame"
            raise UserError(
                f"the model is told actions of {options.action_width} numbers a frame (dataset.external_cond_dim {options.external_cond_dim}, "
                f"frame_skip {options.frame_skip}, {options.action_kind}), got {what}; use data with such actions"
            )
        flags = actions.new_ones(actions.shape[:2]) if known is None else known.to(actions.dtype)
        told = actions * flags[..., None]
        f = options.frame_stack
        return torch.cat([told.unflatten(1, (-1, f)).flatten(2), flags.unflatten(1, (-1, f))], dim=-1)

    # ------------------------------------------------------------------------------------------------ training

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        clips = self.encode(batch)
        loss, _ = self.loss(clips, self.draw(clips, generator=self.training_generator()))
        self.log("training/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        """The training loss on held-out clips, of the averaged network, with draws that depend on the batch's number alone."""
        window = self.options.n_frames
        clips = self.encode(VideoBatch(*(part[:, :window] for part in batch)))
        generator = self.generator(batch_idx)
        draws = self.draw(clips, generator=generator)._replace(dropped=None)
        loss, _ = self.loss(clips, draws, forcing=self.sampling_forcing())
        self.log("validation/loss", loss, batch_size=self.counted_rows(len(clips.tokens)), sync_dist=True)

    def draw(self, clips: Clips, *, generator: torch.Generator | None = None) -> VideoDraws:
        """The random numbers of one training batch (METHOD §4)."""
        options, device = self.options, self.device
        batch, time = clips.tokens.shape[:2]
        levels = self.draw_levels(batch, time, generator=generator)
        noise = normal(clips.tokens.shape, generator=generator, device=device)
        dropped = None
        if clips.conditions is not None and options.condition_dropout > 0:
            dropped = uniform((batch,), generator=generator, device=device) < options.condition_dropout
        return VideoDraws(levels, noise, dropped)

    def loss(
        self, clips: Clips, draws: VideoDraws, *, forcing: DiffusionForcing | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training loss, a scalar, and the predicted clean tokens (b, t, f·c, h, w)."""
        tokens, mask, conditions = clips
        f = self.options.frame_stack
        per_token = mask.unflatten(1, (-1, f))
        levels = mask_absent(draws.levels, per_token.any(dim=-1), self.options.diffusion.timesteps)
        if conditions is not None and draws.dropped is not None:
            conditions = torch.where(draws.dropped[:, None, None], 0, conditions)
        result = self.counted_loss(tokens, levels, noise=draws.noise, conditions=conditions, forcing=forcing)
        per_frame = result.per_element.unflatten(2, (f, -1))
        return (per_frame * per_token[..., None, None, None]).mean(), result.x0

    # ------------------------------------------------------------------------------------------------ sampling

    def sampler(self, forcing: DiffusionForcing | None = None) -> Sampler:
        """The sampler over the network one samples with, as the options say."""
        options, diffusion = self.options, self.options.diffusion
        return Sampler(
            forcing or self.sampling_forcing(),
            sampling_timesteps=diffusion.sampling_timesteps,
            scheduling_matrix=options.scheduling_matrix,
            uncertainty_scale=options.uncertainty_scale,
            eta=diffusion.ddim_sampling_eta,
            condition_scale=options.condition_scale,
            history_scale=options.history_scale,
            history_level=options.history_level,
            past=options.past_shown,
        )

    def predict(self, context: Tensor, length: int, **how: Any) -> Tensor:
        """A clip of `length` frames that begins with `context`: (b, t₀, c, h, w) → (b, length, c, h, w), in [0, 1].

        `how`: as in `stream`.
        """
        context = context.float() / 255 if context.dtype == torch.uint8 else context
        return torch.cat([context, *self.stream(context, length, **how)], dim=1)

    def stream(
        self,
        context: Tensor,
        length: int,
        *,
        actions: Tensor | None = None,
        known: Tensor | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Iterator[Tensor]:
        """What follows `context`: (b, t₀, c, h, w), uint8 or in [0, 1], up to `length` frames in all, chunk by chunk: (b, n, c, h, w) in
        [0, 1]. Memory does not grow with `length`.

        actions: (b, length, A), those that led to each frame, for a model that is told them; known: (b, length) bool, None: all.
        """
        options = self.options
        f, done = options.frame_stack, context.shape[1]
        whole = -(-length // f)
        conditions = None
        if options.condition_width:
            conditions = self._conditions_of_clip(actions, known, length, whole * f)
        chunks = (sampler or self.sampler()).stream(
            self.tokens(context),
            whole,
            window=options.window,
            chunk_size=options.chunk_used,
            cache=options.cache_used,
            sinks=options.sink_frames // f,
            conditions=conditions,
            generator=generator,
            on_row=on_row,
        )
        for tokens in chunks:
            frames = self.frames(tokens)[:, : length - done].clamp(0, 1)
            done += frames.shape[1]
            yield frames

    def _conditions_of_clip(self, actions: Tensor | None, known: Tensor | None, length: int, whole: int) -> Tensor:
        """Conditions of a clip of `length` frames, made `whole` by frames whose actions are unknown."""
        if actions is None:
            return self.conditions(None)
        if actions.shape[1] < length:
            raise UserError(
                f"there are actions for {actions.shape[1]} frames and {length} to roll out; give an action for each"
            )
        known = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device) if known is None else known
        return self.conditions(_up_to(actions, whole), _up_to(known, whole))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def describe(self) -> dict[str, Any]:
        """Facts that go into a checkpoint: what it is, and the options that its weights depend on."""
        options, diffusion = self.options, self.options.diffusion
        structure = {
            "dataset": {
                "data_mean": _plain(options.data_mean),
                "data_std": _plain(options.data_std),
                "resolution": options.observation_shape[1],
                "n_frames": options.n_frames,
                "frame_skip": options.frame_skip,
                "external_cond_dim": options.external_cond_dim,
                "action_kind": options.action_kind,
            },
            "algorithm": {
                "noise_level": options.noise_level,
                "n_frames": options.n_frames,
                "frame_stack": options.frame_stack,
                **self.sizes["algorithm"],
                "diffusion": {
                    "objective": diffusion.objective,
                    "beta_schedule": diffusion.beta_schedule,
                    "schedule_fn_kwargs": dict(diffusion.schedule_fn_kwargs),
                    "timesteps": diffusion.timesteps,
                    "clip_noise": diffusion.clip_noise,
                    **self.sizes["diffusion"],
                },
            },
        }
        return {"task": self.task, "line": self.line, "structure": structure}

    @property
    def sizes(self) -> dict[str, dict[str, Any]]:
        """What the network's weights depend on beside the data and the schedule, under `algorithm` and under `algorithm.diffusion`."""
        options = self.options
        return {
            "algorithm": {"causal": options.causal, "norm": options.norm},
            "diffusion": {"architecture": asdict(options.diffusion.architecture)},
        }

    def load_weights(self, checkpoint: Any) -> None:
        """Take the weights and statistics of a `checkpoints.LoadedCheckpoint`, into the network and its average.

        Refuses what does not match, naming the first key that differs.
        """
        self.check_weights(
            checkpoint,
            "set dataset.resolution, dataset.external_cond_dim, dataset.frame_skip, algorithm.frame_stack and "
            "algorithm.diffusion.architecture as it was trained",
        )
        for name, buffer in (("data_mean", self.data_mean), ("data_std", self.data_std)):
            value = checkpoint.statistics.get(name)
            if value is not None:
                buffer.data = value.reshape(-1, 1, 1).to(buffer)
        self.take_weights(checkpoint.weights)


def _per_channel(value: float | tuple[float, ...]) -> Tensor:
    """(c, 1, 1), or (1, 1, 1) for one number."""
    return torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


def _plain(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value


def _up_to(part: Tensor, length: int) -> Tensor:
    """(b, T, …) cut to `length` along time, or lengthened by zeros."""
    more = part.new_zeros(part.shape[0], max(0, length - part.shape[1]), *part.shape[2:])
    return torch.cat([part[:, :length], more], dim=1)
