"""Every option of `algorithm=df_video_rnn`: the video task with the paper's own recurrent network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffusion_forcing.algorithms.options import not_negative, positive, within
from diffusion_forcing.algorithms.recurrent_options import RecurrentDiffusionOptions
from diffusion_forcing.algorithms.video_options import VideoOptions
from diffusion_forcing.errors import UserError

HALVINGS = 8  # a transition of images halves its feature maps three times


@dataclass(frozen=True, kw_only=True)
class RecurrentUNetOptions(RecurrentDiffusionOptions):
    """The RNN line's settings with a transition of images."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "sigmoid"
    clip_noise: float = 6.0
    use_snr: bool = True
    use_cum_snr: bool = True
    sampling_timesteps: int = 100
    network_size: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "algorithm.diffusion"
        if self.network_size % 8:
            raise UserError(
                f"{where}.network_size is {self.network_size}; it must be a multiple of 8 (groups of a normalisation)"
            )
        if self.num_gru_layers not in (0, 1):
            raise UserError(f"{where}.num_gru_layers is {self.num_gru_layers}; a transition of images has 0 or 1")


@dataclass(frozen=True, kw_only=True)
class RecurrentVideoOptions(VideoOptions):
    """`algorithm=df_video_rnn`. z_shape: of the latent, [channels, resolution, resolution].

    n_frames: frames of a training clip; a rollout has no window. gt_cond_prob: share of training tokens that are shown clean (level 0);
    gt_first_frame: the same of a clip's first token.
    """

    z_shape: tuple[int, int, int] = (16, 64, 64)
    learnable_init_z: bool = True
    gt_first_frame: float = 0.0
    gt_cond_prob: float = 0.0
    cache: Literal["exact", "streaming", "none"] = "streaming"
    diffusion: RecurrentUNetOptions = field(default_factory=RecurrentUNetOptions)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not self.causal:
            raise UserError("algorithm.causal=False: a recurrent network sees the past alone; use algorithm=df_video")
        if self.norm != "frame":
            raise UserError(
                f"algorithm.norm={self.norm} is df_video's; a recurrent network normalises each frame: frame"
            )
        super().__post_init__()
        within("algorithm.gt_first_frame", self.gt_first_frame, 0, 1)
        within("algorithm.gt_cond_prob", self.gt_cond_prob, 0, 1)
        positive("algorithm.z_shape", min(self.z_shape))
        if tuple(self.z_shape[1:]) != tuple(self.observation_shape[1:]):
            raise UserError(
                f"algorithm.z_shape is {list(self.z_shape)}; its sides must be the frame's, dataset.resolution {self.observation_shape[1]}"
            )
        not_negative("algorithm.sink_frames", self.sink_frames)
        if self.sink_frames:
            raise UserError(
                f"algorithm.sink_frames is {self.sink_frames}; a recurrent network keeps one latent and no frames: 0"
            )

    def _check_size(self, height: int) -> None:
        if height % HALVINGS:
            raise UserError(
                f"dataset.resolution {height} cannot be divided by {HALVINGS} (three halvings of a transition of images); change it"
            )
