"""The video task: frames as tokens, trained by Diffusion Forcing, rolled out from a context and actions (docs/method.md §4–8, §12).

A token is f consecutive frames stacked on the channel axis and normalised. Padded frames are not in the loss. The actions that led to a
token's frames are its condition, with a flag that says whether they are known; in training they are dropped at random. Frames are uint8, or
floats in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import (
    AlgorithmOptions,
    ForcingAlgorithm,
    NoisingOptions,
    RecurrentDiffusionOptions,
    chosen,
)
from diffusion_forcing.algorithms.ema import Average, ema_of
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.diffusion import DiffusionForcing, Sampler, mask_absent
from diffusion_forcing.diffusion.noise import normal, uniform
from diffusion_forcing.diffusion.sampler import OnRow
from diffusion_forcing.errors import (
    UserError,
    check_choice,
    check_fixed,
    check_not_negative,
    check_positive,
    check_range,
    require,
)
from diffusion_forcing.networks.recurrent import recurrent_unet
from diffusion_forcing.networks.unet3d import UNet3D
from diffusion_forcing.options import Count, Decay, NotNegative, Positive, Share, check_limits

METRICS = ("mse", "psnr", "ssim", "uiqi", "lpips", "fid", "fvd")
"""What `algorithm.metrics` may name; the first four are always there."""


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """Sizes of `networks.UNet3D`. attn_resolutions: feature maps (pixels a side) with attention. patch_size: 1 in released networks."""

    network_size: Count = 64
    attn_heads: Count = 4
    attn_dim_head: Count = 64
    dim_mults: tuple[Count, ...] = (1, 2, 4, 8)
    attn_resolutions: tuple[Count, ...] = (16, 32, 64, 128)
    use_init_temporal_attn: bool = True
    use_linear_attn: bool = True
    time_emb_type: Literal["rotary", "sinusoidal"] = "rotary"
    patch_size: Count = 1

    def __post_init__(self) -> None:
        where = "algorithm.diffusion.architecture"
        check_limits(where, self)
        require(bool(self.dim_mults), f"{where}.dim_mults is empty; give one factor a stage, such as [1,2,4,8]")
        widths = [self.network_size * mult for mult in (1, *self.dim_mults)]
        if any(width % 8 for width in widths):
            raise UserError(
                f"{where}.network_size {self.network_size} with dim_mults {list(self.dim_mults)} gives widths {widths[1:]}; "
                "all must be multiples of 8 (the groups of the normalisation)"
            )
        odd = self.time_emb_type == "rotary" and self.attn_dim_head % 2
        require(not odd, f"{where}.attn_dim_head is {self.attn_dim_head}; rotary positions turn pairs: an even number")


@dataclass(frozen=True, kw_only=True)
class VideoDiffusionOptions(NoisingOptions):
    """The released video settings: sigmoid schedule, v-prediction, fused SNR."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "sigmoid"
    clip_noise: Positive = 6.0
    use_fused_snr: bool = True
    cum_snr_decay: Share = 0.96
    sampling_timesteps: int = 100
    stabilization_level: int = 15
    architecture: UNetOptions = field(default_factory=UNetOptions)


@dataclass(frozen=True, kw_only=True)
class VideoOptions(AlgorithmOptions):
    """`algorithm=df_video`. n_frames: the window, frames a network sees at once; external_cond_dim: numbers in one action (0: none).

    Frames are counted after frame_skip. norm `frame` is causal and can keep a cache, `clip` is the released behaviour. cache: `exact`
    gives the numbers of `none`, `streaming` goes on with old keys and values when the window slides (keeping the first sink_frames).
    second_ema_decay: of a second average of the weights, 0: none; validations during training choose the one that rolls out better.
    """

    data_mean: float | tuple[float, ...] = 0.5
    data_std: float | tuple[float, ...] = 0.5
    observation_shape: tuple[int, int, int] = (3, 128, 128)
    n_frames: int = 10
    context_frames: int = 2
    frame_skip: Count = 2
    action_kind: Literal["discrete", "continuous"] = "discrete"
    lr: Positive = 8e-5
    weight_decay: NotNegative = 2e-3
    optimizer_beta: tuple[float, float] = (0.9, 0.99)
    norm: Literal["frame", "clip"] = "frame"
    cache: Literal["exact", "streaming", "none"] = "exact"
    sink_frames: int = 0
    condition_dropout: Share = 0.1
    condition_scale: NotNegative = 1.0
    history_scale: NotNegative = 1.0
    history_level: int | None = None
    second_ema_decay: Decay = 0.0
    metrics: tuple[str, ...] = ("fvd",)
    diffusion: VideoDiffusionOptions = field(default_factory=VideoDiffusionOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_data()
        self._check_lengths()
        self._check_cache()
        needs_first = self.second_ema_decay and not self.ema_decay
        require(not needs_first, "algorithm.second_ema_decay needs a first average; set algorithm.ema_decay too")
        if self.history_level is not None:
            check_range("algorithm.history_level", self.history_level, 0, self.diffusion.timesteps - 2)
        if self.condition_scale != 1 and not self.external_cond_dim:
            raise UserError(
                f"algorithm.condition_scale is {self.condition_scale}, but dataset.external_cond_dim is 0: there are no actions to guide by"
            )
        if self.history_scale != 1 and self.past_shown == "same":
            raise UserError(
                f"algorithm.history_scale={self.history_scale} needs a clean past, which algorithm.noise_level={self.noise_level} never shows "
                "the network; set it to 1"
            )
        check_fixed(
            "algorithm", self, {"guidance_scale": 0}, "video, which is guided by condition_scale and history_scale,"
        )
        for name in self.metrics:
            check_choice("algorithm.metrics", name, METRICS)

    def _check_data(self) -> None:
        channels, height, width = self.observation_shape
        check_positive("dataset.resolution", height)
        require(height == width, f"dataset.observation_shape is {list(self.observation_shape)}; frames are square")
        for name in ("data_mean", "data_std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) not in (1, channels):
                raise UserError(
                    f"dataset.{name} has {len(value)} numbers; give one, or one for each of {channels} channels"
                )
        stds = self.data_std if isinstance(self.data_std, tuple) else (self.data_std,)
        require(min(stds) > 0, f"dataset.data_std is {self.data_std}; every standard deviation must be above 0")
        check_not_negative("dataset.external_cond_dim", self.external_cond_dim)
        require(
            height % self.halvings == 0,
            f"dataset.resolution {height} cannot be divided by {self.halvings}, as the network's halvings need; change it",
        )

    @property
    def halvings(self) -> int:
        """What the sides of a frame must be a multiple of."""
        architecture = self.diffusion.architecture
        return architecture.patch_size * 2 ** (len(architecture.dim_mults) - 1)

    def _check_lengths(self) -> None:
        f = self.frame_stack
        check_positive("dataset.n_frames", self.n_frames)
        check_not_negative("dataset.context_length", self.context_frames)
        for key, value in (("dataset.n_frames", self.n_frames), ("dataset.context_length", self.context_frames)):
            require(value % f == 0, f"{key} {value} is no multiple of algorithm.frame_stack {f}")
        if self.context_frames >= self.n_frames:
            raise UserError(
                f"dataset.context_length {self.context_frames} leaves no room in the window of {self.n_frames} frames; "
                f"pass dataset.context_length<={self.n_frames - f} or train with a larger dataset.n_frames"
            )
        fits = self.chunk_size == -1 or self.chunk_size >= 1
        require(fits, f"algorithm.chunk_size is {self.chunk_size}; it must be 1 or more, or -1 for all that remain")
        if self.chunk_size > self.window:
            raise UserError(
                f"algorithm.chunk_size {self.chunk_size} exceeds the window of {self.window} tokens; "
                f"pass algorithm.chunk_size<={self.window} or train with a larger dataset.n_frames"
            )
        check_range("algorithm.sink_frames", self.sink_frames, 0, self.n_frames - 1)

    def _check_cache(self) -> None:
        if self.cache != "none" and self.norm == "clip":
            raise UserError(
                f"algorithm.cache={self.cache} with norm=clip: the released normalisation takes its statistics over all frames, so every "
                "new frame changes what was computed for the past, and no cache of it can be right; pass algorithm.cache=none, or train "
                "with algorithm.norm=frame"
            )
        if self.cache == "streaming" and not self.causal:
            raise UserError(
                "algorithm.cache=streaming with causal=False: the past sees the future, so it is never finished; pass algorithm.cache=none"
            )

    @property
    def window(self) -> int:
        """The most tokens a network sees at once."""
        return self.n_frames // self.frame_stack

    @property
    def context_tokens(self) -> int:
        """Tokens of the context."""
        return self.context_frames // self.frame_stack

    @property
    def cache_used(self) -> Literal["exact", "streaming", "none"]:
        """`cache`, or `none` where frames see the future or the past is noised anew in every row, and nothing can be kept."""
        return self.cache if self.causal and self.past_shown == "clean" else "none"

    @property
    def chunk_used(self) -> int:
        """`chunk_size`; full-sequence diffusion of all that remain takes at most what the window has room for behind the context."""
        if self.past_shown == "same" and self.chunk_size == -1:
            return self.window - self.context_tokens
        return self.chunk_size

    @property
    def action_width(self) -> int:
        """A: numbers that lead to one frame. Discrete actions of skipped frames lie side by side, continuous ones are summed."""
        return self.external_cond_dim * (self.frame_skip if self.action_kind == "discrete" else 1)

    @property
    def condition_width(self) -> int:
        """d: numbers in one token's condition, its frames' actions and a flag a frame that says whether they are known; 0: none."""
        return self.frame_stack * (self.action_width + 1) if self.external_cond_dim else 0


class Clips(NamedTuple):
    """Clips as the network sees them. tokens: (b, t, f·c, h, w) normalised; mask: (b, t·f) bool, real frames; conditions: (b, t, d), or
    None for a model without actions."""

    tokens: Tensor
    mask: Tensor
    conditions: Tensor | None


class VideoDraws(NamedTuple):
    """What training draws for a batch. levels: (b, t); noise: (b, t, f·c, h, w) standard normal; dropped: (b,) bool, sequences whose
    conditions are dropped, or None."""

    levels: Tensor
    noise: Tensor
    dropped: Tensor | None


class Video(ForcingAlgorithm):
    """Diffusion Forcing for video. `options` is a `VideoOptions`."""

    Options: type[VideoOptions] = VideoOptions
    task = "video"
    line = "v1.5"
    hides_absent = True
    """Whether training shows tokens that are all padding as pure noise (docs/method.md §4)."""
    options: VideoOptions
    data_mean: Tensor
    data_std: Tensor

    def __init__(self, options: VideoOptions) -> None:
        super().__init__(options, self.build_network(options))
        self.register_buffer("data_mean", _per_channel(options.data_mean), persistent=False)
        self.register_buffer("data_std", _per_channel(options.data_std), persistent=False)

    def put_network(self, network: nn.Module) -> None:
        super().put_network(network)
        decay = self.options.second_ema_decay
        self.second_ema = ema_of(self.forcing.network, decay) if decay > 0 else None
        self.samples_second = False
        """Whether the second average is the one to sample with."""

    @property
    def averages(self) -> list[nn.Module]:
        """The averaged networks among which rollouts choose: two, or none."""
        return [] if self.second_ema is None else [average.module for average in self.averagings]

    @property
    def averagings(self) -> list[Average]:
        return super().averagings + ([] if self.second_ema is None else [self.second_ema])

    @property
    def sampling_network(self) -> nn.Module:
        return self.averages[self.samples_second] if self.averages else super().sampling_network

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["samples_second"] = self.samples_second

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.samples_second = bool(checkpoint.get("samples_second", False))

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
        conditions = self.conditions(batch.actions, batch.known) if self.options.condition_width else None
        return Clips(self.tokens(batch.frames), batch.valid, conditions)

    def tokens(self, frames: Tensor) -> Tensor:
        """Frames (b, t·f, c, h, w), uint8 or in [0, 1], as normalised tokens (b, t, f·c, h, w), frame-major."""
        b, time, c, h, w = frames.shape
        f = self.options.frame_stack
        require(time % f == 0, f"{time} frames do not fit algorithm.frame_stack {f}; pass a multiple of it")
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
                f"the model takes actions of {options.action_width} numbers a frame (dataset.external_cond_dim {options.external_cond_dim}, "
                f"frame_skip {options.frame_skip}, {options.action_kind}), got {what}; use data with such actions"
            )
        flags = actions.new_ones(actions.shape[:2]) if known is None else known.to(actions.dtype)
        actions = actions * flags[..., None]
        f = options.frame_stack
        return torch.cat([actions.unflatten(1, (-1, f)).flatten(2), flags.unflatten(1, (-1, f))], dim=-1)

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
        """The random numbers of one training batch (docs/method.md §4)."""
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
        real_frames = mask.unflatten(1, (-1, f))
        levels = draws.levels
        if self.hides_absent:
            levels = mask_absent(levels, real_frames.any(dim=-1), self.options.diffusion.timesteps)
        if conditions is not None and draws.dropped is not None:
            conditions = torch.where(draws.dropped[:, None, None], 0, conditions)
        result = self.masked_loss(tokens, levels, noise=draws.noise, conditions=conditions, forcing=forcing)
        per_frame = result.per_element.unflatten(2, (f, -1))
        return (per_frame * real_frames[..., None, None, None]).mean(), result.x0

    # ------------------------------------------------------------------------------------------------ sampling

    def sampler(self, forcing: DiffusionForcing | None = None, **more: Any) -> Sampler:
        options = self.options
        scales = {name: getattr(options, name) for name in ("condition_scale", "history_scale", "history_level")}
        return super().sampler(forcing, **scales, **more)

    def predict(self, context: Tensor, length: int, **options: Any) -> Tensor:
        """A clip of `length` frames that begins with `context`: (b, t₀, c, h, w) → (b, length, c, h, w), in [0, 1].

        options: as for `stream`.
        """
        context = context.float() / 255 if context.dtype == torch.uint8 else context
        return torch.cat([context, *self.stream(context, length, **options)], dim=1)

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

        actions: (b, length, A), those that led to each frame, for a model that takes them; known: (b, length) bool, None: all.
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
        given = actions.shape[1]
        require(given >= length, f"there are actions for {given} of {length} frames; give an action for each")
        known = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device) if known is None else known
        return self.conditions(_up_to(actions, whole), _up_to(known, whole))

    # ------------------------------------------------------------------------------------------------ checkpoints

    sizes: tuple[tuple[str, ...], tuple[str, ...]] = ("causal", "norm"), ("architecture",)
    """The options of `algorithm` and of `algorithm.diffusion` that decide the network's weights, beside the data and the schedule."""

    def describe(self) -> dict[str, Any]:
        """Metadata of a checkpoint: what it is, and the options that its weights depend on."""
        options = self.options
        of_algorithm, of_diffusion = self.sizes
        schedule = ("objective", "beta_schedule", "schedule_fn_kwargs", "timesteps", "clip_noise")
        dataset = chosen(options, "data_mean", "data_std", "n_frames", "frame_skip", "external_cond_dim", "action_kind")
        structure = {
            "dataset": {**dataset, "resolution": options.observation_shape[1]},
            "algorithm": {
                **chosen(options, "noise_level", "n_frames", "frame_stack", *of_algorithm),
                "diffusion": chosen(options.diffusion, *schedule, *of_diffusion),
            },
        }
        return {"task": self.task, "line": self.line, "structure": structure}

    @classmethod
    def stored_options(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        side = metadata["structure"]["dataset"]["resolution"]
        return {"observation_shape": [3, side, side], **super().stored_options(metadata)}

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


def _up_to(part: Tensor, length: int) -> Tensor:
    """(b, T, …) cut to `length` along time, or lengthened by zeros."""
    more = part.new_zeros(part.shape[0], max(0, length - part.shape[1]), *part.shape[2:])
    return torch.cat([part[:, :length], more], dim=1)


HALVINGS = 8  # a transition of images halves its feature maps three times


@dataclass(frozen=True, kw_only=True)
class RecurrentUNetOptions(RecurrentDiffusionOptions):
    """The RNN line's settings with a transition of images."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "sigmoid"
    clip_noise: Positive = 6.0
    use_snr: bool = True
    use_cum_snr: bool = True
    sampling_timesteps: int = 100
    network_size: Count = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "algorithm.diffusion"
        require(
            self.network_size % 8 == 0 and self.num_gru_layers in (0, 1),
            f"{where}.network_size is {self.network_size}, num_gru_layers {self.num_gru_layers}; for images they must be a "
            "multiple of 8, and 0 or 1",
        )


@dataclass(frozen=True, kw_only=True)
class RecurrentVideoOptions(VideoOptions):
    """`algorithm=df_video_rnn`. z_shape: of the latent, [channels, resolution, resolution].

    n_frames: frames of a training clip; a rollout has no window. gt_cond_prob: share of training tokens that are shown clean (level 0);
    gt_first_frame: the same of a clip's first token.
    """

    z_shape: tuple[int, int, int] = (16, 64, 64)
    learnable_init_z: bool = True
    gt_first_frame: Share = 0.0
    gt_cond_prob: Share = 0.0
    cache: Literal["exact", "streaming", "none"] = "streaming"
    diffusion: RecurrentUNetOptions = field(default_factory=RecurrentUNetOptions)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_fixed("algorithm", self, {"causal": True, "norm": "frame", "sink_frames": 0}, "a recurrent network")
        super().__post_init__()
        check_positive("algorithm.z_shape", min(self.z_shape))
        if tuple(self.z_shape[1:]) != tuple(self.observation_shape[1:]):
            raise UserError(
                f"algorithm.z_shape is {list(self.z_shape)}; its sides must be the frame's, dataset.resolution {self.observation_shape[1]}"
            )

    halvings = HALVINGS


class RecurrentVideo(Video):
    """Video with the RNN line's network: a latent carries the past, so a rollout has no window (docs/method.md §9).

    All but the network, and the tokens that training shows clean, is `Video`. `options` is a `RecurrentVideoOptions`.
    """

    Options = RecurrentVideoOptions
    line = "rnn"
    sizes = ("z_shape", "learnable_init_z"), ("network_size", "num_gru_layers", "self_condition")
    hides_absent = False  # as released: padding comes last, and no token sees a later one
    options: RecurrentVideoOptions

    @staticmethod
    def build_network(options: VideoOptions) -> nn.Module:
        assert isinstance(options, RecurrentVideoOptions)
        diffusion = options.diffusion
        return recurrent_unet(
            options.observation_shape[0] * options.frame_stack,
            options.z_shape,
            network_size=diffusion.network_size,
            num_gru_layers=diffusion.num_gru_layers,
            external_cond_dim=options.condition_width,
            learnable_init_z=options.learnable_init_z,
            self_condition=diffusion.self_condition,
        )

    def draw(self, clips: Clips, *, generator: torch.Generator | None = None) -> VideoDraws:
        """As for `Video`, and then which tokens are shown clean, at level 0."""
        draws = super().draw(clips, generator=generator)
        return draws._replace(levels=self.shown_clean(draws.levels, generator))
