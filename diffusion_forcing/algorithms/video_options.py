"""Every option of `algorithm=df_video`: what the data is like, the network, how frames are rolled out. Frozen, validated, built from yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffusion_forcing.algorithms.options import AlgorithmOptions, NoisingOptions, not_negative, positive, within
from diffusion_forcing.errors import UserError, did_you_mean

METRICS = ("mse", "psnr", "ssim", "uiqi", "lpips", "fid", "fvd")
"""What `algorithm.metrics` may name; the first four are always there."""


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """Sizes of `networks.UNet3D`. attn_resolutions: feature maps (pixels a side) with attention. patch_size: 1 in released networks."""

    network_size: int = 64
    attn_heads: int = 4
    attn_dim_head: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    attn_resolutions: tuple[int, ...] = (16, 32, 64, 128)
    use_init_temporal_attn: bool = True
    use_linear_attn: bool = True
    time_emb_type: Literal["rotary", "sinusoidal"] = "rotary"
    patch_size: int = 1

    def __post_init__(self) -> None:
        where = "algorithm.diffusion.architecture"
        for name in ("network_size", "attn_heads", "attn_dim_head", "patch_size"):
            positive(f"{where}.{name}", getattr(self, name))
        if not self.dim_mults:
            raise UserError(f"{where}.dim_mults is empty; give one factor of the width a stage, such as [1,2,4,8]")
        for size in (*self.dim_mults, *self.attn_resolutions):
            positive(
                f"{where}.dim_mults and attn_resolutions: {list(self.dim_mults)}, {list(self.attn_resolutions)}", size
            )
        widths = [self.network_size * mult for mult in (1, *self.dim_mults)]
        if any(width % 8 for width in widths):
            raise UserError(
                f"{where}.network_size {self.network_size} with dim_mults {list(self.dim_mults)} gives widths {widths[1:]}; "
                "all must be multiples of 8 (the groups of the normalisation)"
            )
        if self.time_emb_type == "rotary" and self.attn_dim_head % 2:
            raise UserError(
                f"{where}.attn_dim_head is {self.attn_dim_head}; rotary positions turn pairs: an even number"
            )


@dataclass(frozen=True, kw_only=True)
class VideoDiffusionOptions(NoisingOptions):
    """The released video settings: sigmoid schedule, v-prediction, fused SNR."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "sigmoid"
    clip_noise: float = 6.0
    use_fused_snr: bool = True
    cum_snr_decay: float = 0.96
    sampling_timesteps: int = 100
    stabilization_level: int = 15
    architecture: UNetOptions = field(default_factory=UNetOptions)


@dataclass(frozen=True, kw_only=True)
class VideoOptions(AlgorithmOptions):
    """`algorithm=df_video`. n_frames: the window, frames a network sees at once; external_cond_dim: numbers in one action (0: none).

    Frames are counted after frame_skip. norm `frame` is causal and can keep a cache, `clip` is the released behaviour. cache: `exact`
    gives the numbers of `none`, `streaming` goes on with old keys and values when the window slides (keeping the first sink_frames).
    """

    data_mean: float | tuple[float, ...] = 0.5
    data_std: float | tuple[float, ...] = 0.5
    observation_shape: tuple[int, int, int] = (3, 128, 128)
    n_frames: int = 10
    context_frames: int = 2
    frame_skip: int = 2
    action_kind: Literal["discrete", "continuous"] = "discrete"
    lr: float = 8e-5
    weight_decay: float = 2e-3
    optimizer_beta: tuple[float, float] = (0.9, 0.99)
    norm: Literal["frame", "clip"] = "frame"
    cache: Literal["exact", "streaming", "none"] = "exact"
    sink_frames: int = 0
    condition_dropout: float = 0.1
    condition_scale: float = 1.0
    history_scale: float = 1.0
    history_level: int | None = None
    metrics: tuple[str, ...] = ("fvd",)
    diffusion: VideoDiffusionOptions = field(default_factory=VideoDiffusionOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_data()
        self._check_lengths()
        self._check_cache()
        within("algorithm.condition_dropout", self.condition_dropout, 0, 1)
        not_negative("algorithm.condition_scale", self.condition_scale)
        not_negative("algorithm.history_scale", self.history_scale)
        if self.history_level is not None:
            within("algorithm.history_level", self.history_level, 0, self.diffusion.timesteps - 2)
        if self.condition_scale != 1 and not self.external_cond_dim:
            raise UserError(
                f"algorithm.condition_scale is {self.condition_scale}, but dataset.external_cond_dim is 0: there are no actions to guide by"
            )
        if self.history_scale != 1 and self.past_shown == "same":
            raise UserError(
                f"algorithm.history_scale={self.history_scale} needs a clean past, which algorithm.noise_level={self.noise_level} never shows "
                "the network; set it to 1"
            )
        if self.guidance_scale:
            raise UserError(
                f"algorithm.guidance_scale is {self.guidance_scale}, but video has no return to climb; "
                "algorithm.condition_scale guides by actions, algorithm.history_scale by the past"
            )
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(
                    f"algorithm.metrics: '{name}' is not known{did_you_mean(name, METRICS)}; allowed: {', '.join(METRICS)}"
                )

    def _check_data(self) -> None:
        channels, height, width = self.observation_shape
        positive("dataset.resolution", height)
        if height != width:
            raise UserError(
                f"dataset.observation_shape is {list(self.observation_shape)}; frames are square: [3,res,res]"
            )
        for name in ("data_mean", "data_std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) not in (1, channels):
                raise UserError(
                    f"dataset.{name} has {len(value)} numbers; give one, or one for each of {channels} channels"
                )
        if any(not value > 0 for value in _numbers(self.data_std)):
            raise UserError(f"dataset.data_std is {self.data_std}; every standard deviation must be above 0")
        not_negative("dataset.external_cond_dim", self.external_cond_dim)
        self._check_size(height)

    def _check_size(self, height: int) -> None:
        architecture = self.diffusion.architecture
        halvings = architecture.patch_size * 2 ** (len(architecture.dim_mults) - 1)
        if height % halvings:
            raise UserError(
                f"dataset.resolution {height} cannot be divided by {halvings} "
                f"(patch_size {architecture.patch_size}, {len(architecture.dim_mults) - 1} halvings of dim_mults); change one of them"
            )

    def _check_lengths(self) -> None:
        f = self.frame_stack
        positive("dataset.n_frames", self.n_frames)
        not_negative("dataset.context_length", self.context_frames)
        for key, value in (("dataset.n_frames", self.n_frames), ("dataset.context_length", self.context_frames)):
            if value % f:
                raise UserError(f"{key} {value} is no multiple of algorithm.frame_stack {f}")
        if self.context_frames >= self.n_frames:
            raise UserError(
                f"dataset.context_length {self.context_frames} leaves no room in the window of {self.n_frames} frames; "
                f"pass dataset.context_length<={self.n_frames - f} or train with a larger dataset.n_frames"
            )
        if self.chunk_size == 0 or self.chunk_size < -1:
            raise UserError(
                f"algorithm.chunk_size is {self.chunk_size}; it must be 1 or more, or -1 for all that remain"
            )
        if self.chunk_size > self.window:
            raise UserError(
                f"algorithm.chunk_size {self.chunk_size} exceeds the window of {self.window} tokens; "
                f"pass algorithm.chunk_size<={self.window} or train with a larger dataset.n_frames"
            )
        not_negative("algorithm.sink_frames", self.sink_frames)
        if self.sink_frames >= self.n_frames:
            raise UserError(
                f"algorithm.sink_frames {self.sink_frames} fill the window of {self.n_frames} frames; keep fewer"
            )

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


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
