"""Options that every algorithm shares: the diffusion and its network. Frozen, validated, built once from yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusion_forcing.diffusion.loss_weighting import Weighting
from diffusion_forcing.diffusion.noise_levels import MATRICES, NoiseLevel
from diffusion_forcing.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """Sizes of `networks.Transformer`; the released planners have 12 layers of width 128."""

    network_size: int = 128
    num_layers: int = 12
    attn_heads: int = 4
    dim_feedforward: int = 512

    def __post_init__(self) -> None:
        for name in ("network_size", "num_layers", "attn_heads", "dim_feedforward"):
            positive(f"algorithm.diffusion.architecture.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class NoisingOptions:
    """How tokens are noised, what the network predicts and how sampling walks down (METHOD §2–5)."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_x0"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "linear"
    schedule_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    clip_noise: float = 20.0
    use_fused_snr: bool = False
    snr_clip: float = 5.0
    cum_snr_decay: float = 0.98
    timesteps: int = 1000
    sampling_timesteps: int = 50
    ddim_sampling_eta: float = 0.0
    stabilization_level: int = 10

    def __post_init__(self) -> None:
        where = "algorithm.diffusion"
        positive(f"{where}.timesteps", self.timesteps)
        within(f"{where}.sampling_timesteps", self.sampling_timesteps, 1, self.timesteps)
        within(f"{where}.stabilization_level", self.stabilization_level, 1, self.timesteps)
        within(f"{where}.cum_snr_decay", self.cum_snr_decay, 0, 1)
        within(f"{where}.ddim_sampling_eta", self.ddim_sampling_eta, 0, 1)
        positive(f"{where}.clip_noise", self.clip_noise)
        positive(f"{where}.snr_clip", self.snr_clip)

    @property
    def weighting(self) -> Weighting:
        """How the loss weighs a token's error (METHOD §4)."""
        return "fused_snr" if self.use_fused_snr else "min_snr"


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(NoisingOptions):
    """The same with a transformer."""

    architecture: TransformerOptions = field(default_factory=TransformerOptions)


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions:
    """What every Diffusion Forcing algorithm can be told: `algorithm/df_base.yaml`."""

    lr: float = 5e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 10000
    optimizer_beta: tuple[float, float] = (0.9, 0.999)
    ema_decay: float = 0.999
    frame_stack: int = 1
    frame_skip: int = 1
    context_frames: int = 1
    external_cond_dim: int = 0
    noise_level: NoiseLevel = "random_all"
    causal: bool = True
    scheduling_matrix: Literal["full_sequence", "pyramid", "autoregressive", "trapezoid"] = "autoregressive"
    uncertainty_scale: float = 1.0
    chunk_size: int = 1
    guidance_scale: float = 0.0
    debug: bool = False
    diffusion: NoisingOptions = field(default_factory=NoisingOptions)

    def __post_init__(self) -> None:
        positive("algorithm.frame_stack", self.frame_stack)
        positive("algorithm.frame_skip", self.frame_skip)
        positive("algorithm.lr", self.lr)
        for name in ("guidance_scale", "uncertainty_scale", "weight_decay", "warmup_steps"):
            not_negative(f"algorithm.{name}", getattr(self, name))
        for beta in self.optimizer_beta:
            if not 0 <= beta < 1:
                raise UserError(
                    f"algorithm.optimizer_beta is {list(self.optimizer_beta)}; both must lie in 0…1, 1 excluded"
                )
        within("algorithm.ema_decay", self.ema_decay, 0, 0.999999)
        self._check_noise_level()

    def _check_noise_level(self) -> None:
        kind, matrix = self.noise_level, MATRICES.get(self.noise_level)
        if matrix is None:
            return
        if self.scheduling_matrix != matrix:
            raise UserError(
                f"algorithm.noise_level={kind} trains no levels that algorithm.scheduling_matrix={self.scheduling_matrix} shows the network; "
                f"pass algorithm.scheduling_matrix={matrix}, or leave it out"
            )
        for name in ("gt_cond_prob", "gt_first_frame"):
            if getattr(self, name, 0):
                raise UserError(
                    f"algorithm.{name}={getattr(self, name)} shows some tokens at another level than algorithm.noise_level={kind} says; set it to 0"
                )

    @property
    def baseline(self) -> bool:
        """Whether the levels are those of another method, next-token prediction or full-sequence diffusion."""
        return self.noise_level in MATRICES

    @property
    def past_shown(self) -> Literal["clean", "same"]:
        """How sampling shows the network what is finished: as its training did."""
        return "same" if self.noise_level == "full_sequence" else "clean"


def positive(key: str, value: float) -> None:
    """Refuse a value that is not above 0."""
    if not value > 0:
        raise UserError(f"{key} is {value}; it must be above 0")


def not_negative(key: str, value: float) -> None:
    """Refuse a value below 0, or one that is no finite number."""
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{key} is {value}; it must be 0 or more")


def within(key: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside low…high."""
    if not low <= value <= high:
        raise UserError(f"{key} is {value}; it must lie in {low}…{high}")
