"""Every option of `algorithm=df_robot`: what the robot sees and does, the network, how it is trained and how it acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffusion_forcing.algorithms.options import AlgorithmOptions, TransformerOptions, not_negative, positive, within
from diffusion_forcing.algorithms.recurrent_options import RecurrentMLPOptions
from diffusion_forcing.algorithms.robot_actions import GRID, NUMBERS
from diffusion_forcing.algorithms.video_options import UNetOptions
from diffusion_forcing.errors import UserError

HALVINGS = 8
"""Every network for robots halves its pictures three times."""


@dataclass(frozen=True, kw_only=True)
class EyesOptions:
    """Of action_packing=vector: what turns pictures into numbers (`networks.sensors`)."""

    features: int = 128
    width: int = 16

    def __post_init__(self) -> None:
        positive("algorithm.diffusion.eyes.features", self.features)
        if self.width < 8 or self.width % 8:
            raise UserError(f"algorithm.diffusion.eyes.width is {self.width}; it must be a multiple of 8")


@dataclass(frozen=True, kw_only=True)
class RobotDiffusionOptions(RecurrentMLPOptions):
    """network_size, num_gru_layers, num_mlp_layers: of network=rnn. architecture: of network=attention with tiled actions; transformer: with
    actions as vectors; eyes: of either network with vectors."""

    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    sampling_timesteps: int = 25
    num_mlp_layers: int = 2
    architecture: UNetOptions = field(
        default_factory=lambda: UNetOptions(network_size=32, attn_dim_head=32, attn_resolutions=(4, 8))
    )
    transformer: TransformerOptions = field(
        default_factory=lambda: TransformerOptions(network_size=256, num_layers=4, dim_feedforward=1024)
    )
    eyes: EyesOptions = field(default_factory=EyesOptions)


@dataclass(frozen=True, kw_only=True)
class RobotPolicyOptions(AlgorithmOptions):
    """A token is what `n_cameras` see and the `action_stack` actions that led there.

    action_mean, action_std: of position, rotation matrix and grasp, 13 numbers. network: `rnn`, the paper's, or `attention`. action_packing:
    `tiled`, the actions as planes beside the pictures, as released; `vector`, pictures and actions as numbers. z_shape: of the RNN's latent,
    [channels, res, res] with tiled actions, [width] with vectors. n_frames: the window of network=attention, tokens.

    Training: gt_first_frame: share of sequences whose first token is shown clean; gt_cond_prob: share of all tokens; 1 is next-token prediction, as
    noise_level=teacher_forcing: the past is clean, whole, and nothing of these is drawn. random_start: share of
    sequences that begin anywhere, with the actions before unknown. part_noise: share of a token's parts, each camera and the actions, that are
    shown noisier than the token, half of them not at all; the network is told. crop: pixels that pictures are moved by at most; jitter: how much
    brightness and contrast vary; patches: rectangles of any colour pasted into a camera's pictures, at most. action_share: of the loss; null: a plane
    counts like a colour.

    Acting: memory: False forgets everything between two tokens. detect_blocked: a camera that shows nothing (contrast below blocked_contrast)
    is told to be noise. observation_noise_level: how noisy the cameras are told to be, 0 … timesteps − 1, one number or one a camera. Without
    part_noise a token has one level: that of its worst camera.
    """

    lr: float = 5e-4
    warmup_steps: int = 2000
    observation_shape: tuple[int, int, int] = (21, 32, 32)
    n_cameras: int = 2
    action_stack: int = 15
    n_frames: int = 40
    action_mean: tuple[float, ...] = (0.0,) * NUMBERS
    action_std: tuple[float, ...] = (1.0,) * NUMBERS
    data_mean: float = 0.5
    data_std: float = 0.5
    network: Literal["rnn", "attention"] = "rnn"
    action_packing: Literal["tiled", "vector"] = "tiled"
    z_shape: tuple[int, ...] = (32, 32, 32)
    learnable_init_z: bool = True
    gt_first_frame: float = 0.5
    gt_cond_prob: float = 0.0
    random_start: float = 0.0
    part_noise: float = 0.0
    crop: int = 2
    jitter: float = 0.1
    patches: int = 0
    action_share: float | None = None
    memory: bool = True
    detect_blocked: bool = True
    blocked_contrast: float = 0.02
    observation_noise_level: int | tuple[int, ...] = 0
    diffusion: RobotDiffusionOptions = field(default_factory=RobotDiffusionOptions)

    def __post_init__(self) -> None:
        if self.gt_cond_prob == 1 or self.noise_level == "teacher_forcing":
            clean = {"noise_level": "teacher_forcing", "gt_cond_prob": 0.0, "gt_first_frame": 0.0, "part_noise": 0.0}
            for name, value in clean.items():
                object.__setattr__(self, name, value)
        super().__post_init__()
        for name in ("n_cameras", "action_stack", "n_frames", "data_std"):
            positive(f"dataset.{name}", getattr(self, name))
        for name in ("gt_first_frame", "gt_cond_prob", "random_start", "part_noise", "jitter", "blocked_contrast"):
            within(f"algorithm.{name}", getattr(self, name), 0, 1)
        if self.action_share is not None:
            within("algorithm.action_share", self.action_share, 0, 1)
        not_negative("algorithm.crop", self.crop)
        not_negative("algorithm.patches", self.patches)
        self._check_tokens()
        self._check_network()
        self._check_acting()

    def _check_tokens(self) -> None:
        channels, height, width = self.observation_shape
        wanted = 3 * self.n_cameras + self.action_stack
        if channels != wanted or height != width:
            raise UserError(
                f"dataset.observation_shape is {list(self.observation_shape)}; {self.n_cameras} cameras and {self.action_stack} actions make "
                f"[{wanted},res,res]"
            )
        if height % HALVINGS or height % GRID:
            raise UserError(f"dataset.resolution is {height}; it must be a multiple of {HALVINGS}")
        if self.crop >= height // 2:
            raise UserError(f"algorithm.crop is {self.crop} pixels; pictures have {height}: move them less")
        for name in ("action_mean", "action_std"):
            if len(getattr(self, name)) != NUMBERS:
                raise UserError(
                    f"dataset.{name} has {len(getattr(self, name))} numbers; an action has {NUMBERS}: position (3), rotation matrix (9), grasp"
                )
        if not min(self.action_std) > 0:
            raise UserError(f"dataset.action_std is {list(self.action_std)}; all must be above 0")
        if self.frame_stack != 1 or self.frame_skip != 1:
            raise UserError(
                f"algorithm.frame_stack={self.frame_stack} algorithm.frame_skip={self.frame_skip}: a token is one look and "
                "dataset.action_stack actions: 1 and 1"
            )

    def _check_network(self) -> None:
        if self.noise_level == "full_sequence":
            raise UserError(
                "algorithm.noise_level=full_sequence: a policy remembers what it saw, full-sequence diffusion has one level for all, the past too; "
                "use random_all, shared or teacher_forcing"
            )
        size, z = self.observation_shape[1], list(self.z_shape)
        if not self.causal:
            raise UserError("algorithm.causal=False: a policy knows the past alone; leave it True")
        if self.guidance_scale:
            raise UserError(f"algorithm.guidance_scale is {self.guidance_scale}; imitation has no goal to climb to: 0")
        if self.network == "rnn" and self.action_packing == "tiled" and (len(z) != 3 or z[1:] != [size, size]):
            raise UserError(f"algorithm.z_shape is {z}; with tiled actions it is [channels,{size},{size}]")
        if self.network == "rnn" and self.action_packing == "vector" and len(z) != 1:
            raise UserError(f"algorithm.z_shape is {z}; with actions as vectors it is [width], as [512]")
        if self.network == "rnn" and self.action_packing == "tiled":
            if self.diffusion.network_size % 8 or self.diffusion.num_gru_layers > 1:
                raise UserError(
                    f"algorithm.diffusion.network_size is {self.diffusion.network_size}, num_gru_layers {self.diffusion.num_gru_layers}; "
                    "with tiled actions: a multiple of 8, and 0 or 1"
                )
        elif self.network == "rnn" and z[0] % max(1, self.diffusion.num_gru_layers):
            raise UserError(
                f"algorithm.z_shape is {z}; it must be a multiple of algorithm.diffusion.num_gru_layers {self.diffusion.num_gru_layers}"
            )
        if self.part_noise and self.diffusion.objective != "pred_x0":
            raise UserError(
                f"algorithm.part_noise is {self.part_noise} with objective={self.diffusion.objective}; what is not seen can only be "
                "predicted by pred_x0"
            )

    def _check_acting(self) -> None:
        if self.chunk_size == 0 or self.chunk_size < -1:
            raise UserError(f"algorithm.chunk_size is {self.chunk_size}; it must be 1 or more tokens, looked ahead")
        levels = self.observation_noise_levels
        if len(levels) != self.n_cameras:
            raise UserError(
                f"algorithm.observation_noise_level has {len(levels)} numbers; give one, or one for each of {self.n_cameras} cameras"
            )
        for level in levels:
            within("algorithm.observation_noise_level", level, 0, self.diffusion.timesteps - 1)

    @property
    def observation_noise_levels(self) -> tuple[int, ...]:
        """One a camera."""
        given = self.observation_noise_level
        return given if isinstance(given, tuple) else (given,) * self.n_cameras

    @property
    def parts(self) -> int:
        """The cameras, and the actions."""
        return self.n_cameras + 1

    @property
    def condition_width(self) -> int:
        """Numbers the network is told of a token: how much noisier each part is, where training has such."""
        return self.parts if self.part_noise else 0
