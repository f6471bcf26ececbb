"""The robot task: video and actions predicted together, by a network that remembers (Chen et al. 2024 §4.4; docs/method.md §11).

A token is what the cameras see now and the stack of actions that led here. Trained on demonstrations as any sequence, the model is a policy: shown
what was seen and done, it samples the next token, and its actions are carried out (`policy.py`). Parts of a token, each camera and the actions, may
be noisier than the token: the network is told, and a camera that is blocked is shown as one that is very noisy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import (
    AlgorithmOptions,
    ForcingAlgorithm,
    RecurrentMLPOptions,
    TransformerOptions,
    not_negative,
    positive,
    within,
)
from diffusion_forcing.algorithms.robot.tokens import (
    GRID,
    NUMBERS,
    Flat,
    Tiled,
    from_vector,
    jittered,
    moved,
    pasted,
    to_vector,
)
from diffusion_forcing.algorithms.video import UNetOptions
from diffusion_forcing.datasets.batch import RobotBatch
from diffusion_forcing.diffusion import DiffusionForcing, Sampler, mask_absent
from diffusion_forcing.diffusion.noise import normal, uniform
from diffusion_forcing.diffusion.observed import noise_further
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp, recurrent_unet
from diffusion_forcing.networks.sensors import SensorNetwork
from diffusion_forcing.networks.unet3d import UNet3D

# Every option of `algorithm=df_robot`: what the robot sees and does, the network, how it is trained and how it acts.

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


class RobotDraws(NamedTuple):
    """What training draws for a batch. levels: (b, t); noise: like the tokens, standard normal; part_levels: (b, t, parts), at least
    `levels`, and part_noise, like the tokens, or None, None."""

    levels: Tensor
    noise: Tensor
    part_levels: Tensor | None
    part_noise: Tensor | None


class Robot(ForcingAlgorithm):
    """Diffusion Forcing for imitation. `options` is a `RobotPolicyOptions`."""

    Options = RobotPolicyOptions
    task = "robot"
    options: RobotPolicyOptions
    token_mean: Tensor
    token_std: Tensor
    part_of: Tensor

    def __init__(self, options: RobotPolicyOptions) -> None:
        self.layout = (Tiled if options.action_packing == "tiled" else Flat)(
            options.n_cameras, options.action_stack, options.observation_shape[1]
        )
        super().__init__(options, self.build_network(options))
        for name, pixel, numbers in (
            ("token_mean", options.data_mean, options.action_mean),
            ("token_std", options.data_std, options.action_std),
        ):
            pictures = torch.full((1, 1, options.n_cameras, 3, *options.observation_shape[1:]), pixel)
            every = torch.tensor(numbers).expand(1, 1, options.action_stack, -1)
            self.register_buffer(name, self.layout.pack(pictures, every)[0, 0], persistent=False)
        self.register_buffer("part_of", self.layout.parts(), persistent=False)

    def build_network(self, options: RobotPolicyOptions) -> nn.Module:
        """The network the options ask for, with fresh weights."""
        diffusion, size, width = options.diffusion, options.observation_shape[1], options.condition_width
        if options.action_packing == "tiled":
            if options.network == "attention":
                return UNet3D(self.layout.shape[0], size, external_cond_dim=width, **asdict(diffusion.architecture))
            return recurrent_unet(
                self.layout.shape[0],
                options.z_shape,  # type: ignore[arg-type]
                network_size=diffusion.network_size,
                num_gru_layers=diffusion.num_gru_layers,
                external_cond_dim=width,
                learnable_init_z=options.learnable_init_z,
                self_condition=diffusion.self_condition,
            )
        eyes, channels = diffusion.eyes, 3 * options.n_cameras
        numbers = self.layout.shape[0] - channels * size**2
        inner: nn.Module
        if options.network == "attention":
            inner = Transformer(
                eyes.features + numbers, causal=True, external_cond_dim=width, **asdict(diffusion.transformer)
            )
        else:
            inner = recurrent_mlp(
                eyes.features + numbers,
                options.z_shape[0],
                network_size=diffusion.network_size,
                num_gru_layers=diffusion.num_gru_layers,
                num_mlp_layers=diffusion.num_mlp_layers,
                external_cond_dim=width,
                learnable_init_z=options.learnable_init_z,
                self_condition=diffusion.self_condition,
            )
        return SensorNetwork(
            inner, channels=channels, size=size, numbers=numbers, features=eyes.features, width=eyes.width
        )

    # ------------------------------------------------------------------------------------------------ data ⇄ tokens

    def tokens(self, frames: Tensor, actions: Tensor) -> Tensor:
        """Frames (b, t, cameras, 3, h, w), uint8 or in [0, 1], and actions (b, t, n, 8) as tokens (b, t, *shape), normalised."""
        options = self.options
        size = options.observation_shape[1]
        if tuple(frames.shape[2:]) != (options.n_cameras, 3, size, size):
            raise UserError(
                f"the pictures have shape {tuple(frames.shape[2:])} (cameras, 3, height, width), the policy takes "
                f"{(options.n_cameras, 3, size, size)}; set dataset.n_cameras and dataset.resolution as it was trained"
            )
        if actions.shape[2] != options.action_stack:
            raise UserError(
                f"there are {actions.shape[2]} actions a token, the policy takes {options.action_stack}; set dataset.action_stack"
            )
        pictures = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        return (self.layout.pack(pictures, to_vector(actions)) - self.token_mean) / self.token_std

    def decode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b, t, *shape) as frames (b, t, cameras, 3, h, w) in [0, 1] but for what the model oversteps, and actions (b, t, n, 8)."""
        pictures, numbers = self.layout.unpack(tokens * self.token_std + self.token_mean)
        return pictures, from_vector(numbers)

    # ------------------------------------------------------------------------------------------------ training

    def training_step(self, batch: RobotBatch, batch_idx: int) -> Tensor:
        generator = self.training_generator()
        batch, begun = self.varied(batch, generator=generator)
        tokens = self.tokens(batch.frames, batch.actions)
        loss, actions = self.loss(tokens, batch.valid, self.draw(tokens, begun, generator=generator))
        self.log_dict({"training/loss": loss, "training/action_error": actions}, prog_bar=True)
        return loss

    def validation_step(self, batch: RobotBatch, batch_idx: int) -> None:
        """The training loss on held-out demonstrations, of the averaged network, with draws that depend on the batch's number alone."""
        tokens = self.tokens(batch.frames, batch.actions)
        draws = self.draw(tokens, None, generator=self.generator(batch_idx))
        loss, actions = self.loss(tokens, batch.valid, draws, forcing=self.sampling_forcing())
        told = {"validation/loss": loss, "validation/action_error": actions}
        self.log_dict(told, batch_size=self.counted_rows(len(tokens)), sync_dist=True)

    def varied(
        self, batch: RobotBatch, *, generator: torch.Generator | None = None
    ) -> tuple[RobotBatch, Tensor | None]:
        """A batch as training sees it: moved and jittered pictures in [0, 1], a share of sequences begun later. And which: (b,) bool or None."""
        options, device = self.options, batch.frames.device
        begun, later = None, batch
        if options.random_start:
            count, time = batch.valid.shape
            begun = uniform((count,), generator=generator, device=device) < options.random_start
            known = batch.valid.sum(dim=1)
            start = (uniform((count,), generator=generator, device=device) * (known - 1).clamp(min=1)).long()
            at = torch.arange(time, device=device) + torch.where(begun, start, 0)[:, None]
            inside = at < time
            index = at.clamp(max=time - 1)
            rows = torch.arange(count, device=device)[:, None]
            later = RobotBatch(batch.frames[rows, index], batch.actions[rows, index], batch.valid[rows, index] & inside)
        pictures = pasted(moved(later.frames, options.crop, generator=generator), options.patches, generator=generator)
        return later._replace(frames=jittered(pictures, options.jitter, generator=generator)), begun

    def draw(self, tokens: Tensor, begun: Tensor | None, *, generator: torch.Generator | None = None) -> RobotDraws:
        """The random numbers of one training batch. begun: (b,) bool, sequences whose actions before the first token are not known."""
        options, device, shape = self.options, tokens.device, tokens.shape[:2]
        last = options.diffusion.timesteps - 1
        levels = self.draw_levels(*shape, generator=generator)
        if options.gt_cond_prob or options.gt_first_frame:
            clean = uniform(shape, generator=generator, device=device) < options.gt_cond_prob
            clean[:, 0] |= uniform((shape[0],), generator=generator, device=device) < options.gt_first_frame
            levels = torch.where(clean, 0, levels)
        noise = normal(tokens.shape, generator=generator, device=device)
        if not options.part_noise:
            return RobotDraws(levels, noise, None, None)
        parts = (*shape, options.parts)
        noisier = uniform(parts, generator=generator, device=device) < options.part_noise
        hidden = uniform(parts, generator=generator, device=device) < 0.5
        share = uniform(parts, generator=generator, device=device)
        own = levels[..., None]
        up_to = torch.where(hidden, last, own + (share * (last + 1 - own)).long().clamp(max=last))
        part_levels = torch.where(noisier, up_to.clamp(max=last), own)
        if begun is not None:
            part_levels[:, 0, -1] = torch.where(begun, last, part_levels[:, 0, -1])
        part_noise = normal(tokens.shape, generator=generator, device=device)
        return RobotDraws(levels, noise, part_levels, part_noise)

    def loss(
        self, tokens: Tensor, valid: Tensor, draws: RobotDraws, *, forcing: DiffusionForcing | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training loss, and the mean squared error of actions predicted at any level, in normalised numbers; both scalars.

        tokens: (b, t, *shape); valid: (b, t) bool, what is not behind a demonstration's end.
        """
        levels = mask_absent(draws.levels, valid, self.options.diffusion.timesteps)
        forcing, conditions = forcing or self.forcing, None
        if draws.part_levels is not None and draws.part_noise is not None:
            part_levels, part_noise = torch.maximum(draws.part_levels, levels[..., None]), draws.part_noise
            conditions = self.told(part_levels, levels)
            noisier = NoisierParts(forcing.network, self, levels, part_levels, part_noise)
            forcing = forcing.over(noisier)
        result = self.masked_loss(tokens, levels, noise=draws.noise, conditions=conditions, forcing=forcing)
        there = valid.reshape(*valid.shape, *(1,) * (tokens.ndim - 2)).to(tokens.dtype)
        of_actions = (self.part_of == self.options.n_cameras).expand(self.layout.shape)
        pictures = (result.per_element * there)[..., ~of_actions].mean()
        actions = (result.per_element * there)[..., of_actions].mean()
        error = (((result.x0 - tokens) ** 2 * there)[..., of_actions].mean() / there.mean()).detach()
        share = self.action_share
        return (1 - share) * pictures + share * actions, error

    @property
    def action_share(self) -> float:
        """Of the loss: `algorithm.action_share`, or what tiled actions have by the number of their planes."""
        options = self.options
        if options.action_share is not None:
            return options.action_share
        return options.action_stack / (options.action_stack + 3 * options.n_cameras)

    # ------------------------------------------------------------------------------------------------ noisy parts

    def told(self, part_levels: Tensor, levels: Tensor) -> Tensor:
        """Conditions (b, t, parts): how much noisier than its token each part is, in [0, 1]."""
        return (part_levels - levels[..., None]).float() / (self.options.diffusion.timesteps - 1)

    def noised_parts(self, x: Tensor, levels: Tensor, part_levels: Tensor, noise: Tensor) -> Tensor:
        """Tokens x at levels (b, t), −1 clean, with each part noised on to its own level (b, t, parts); noise like x."""
        for part in range(self.options.parts):
            noisier = noise_further(self.forcing.schedule, x, levels, part_levels[..., part], noise)
            mine = (self.part_of == part) & (part_levels[..., part] > levels).reshape(
                *levels.shape, *(1,) * (x.ndim - 2)
            )
            x = torch.where(mine, noisier, x)
        return x

    # ------------------------------------------------------------------------------------------------ acting

    def sampler(self) -> Sampler:
        """The sampler over the network one samples with, as the options say."""
        options, diffusion = self.options, self.options.diffusion
        return Sampler(
            self.sampling_forcing(),
            sampling_timesteps=diffusion.sampling_timesteps,
            scheduling_matrix=options.scheduling_matrix,
            uncertainty_scale=options.uncertainty_scale,
            eta=diffusion.ddim_sampling_eta,
            past=options.past_shown,
        )

    # ------------------------------------------------------------------------------------------------ checkpoints

    def describe(self) -> dict[str, Any]:
        """Facts that go into a checkpoint: what it is, and the options that its weights depend on."""
        options, diffusion = self.options, self.options.diffusion
        data = {
            "n_cameras": options.n_cameras,
            "action_stack": options.action_stack,
            "resolution": options.observation_shape[1],
            "action_mean": list(options.action_mean),
            "action_std": list(options.action_std),
        }
        sizes = (
            "objective",
            "beta_schedule",
            "schedule_fn_kwargs",
            "timesteps",
            "clip_noise",
            "network_size",
            "num_gru_layers",
            "num_mlp_layers",
            "self_condition",
        )
        algorithm = {
            "noise_level": options.noise_level,
            "network": options.network,
            "action_packing": options.action_packing,
            "z_shape": list(options.z_shape),
            "learnable_init_z": options.learnable_init_z,
            "part_noise": options.part_noise,
            "diffusion": {
                **{name: getattr(diffusion, name) for name in sizes},
                **{name: asdict(getattr(diffusion, name)) for name in ("architecture", "transformer", "eyes")},
            },
        }
        line = "rnn" if options.network == "rnn" else "v1.5"
        return {"task": self.task, "line": line, "structure": {"dataset": data, "algorithm": algorithm}}

    def load_weights(self, checkpoint: Any) -> None:
        """Take the weights of a `checkpoints.LoadedCheckpoint`, into the network and its average.

        Refuses what does not match, naming the first key that differs. A released checkpoint brings the statistics of its tokens.
        """
        self.check_weights(
            checkpoint,
            "set dataset.resolution, dataset.n_cameras, dataset.action_stack, algorithm.network, algorithm.action_packing and "
            "algorithm.diffusion as it was trained",
        )
        for ours, theirs in ((self.token_mean, "data_mean"), (self.token_std, "data_std")):
            value = checkpoint.statistics.get(theirs)
            if value is not None and value.shape == ours.shape:
                ours.copy_(value)
        self.take_weights(checkpoint.weights)


class NoisierParts(nn.Module):
    """A network that sees each part of its tokens at the part's own level. The arguments: as for `Robot.noised_parts`."""

    def __init__(self, network: nn.Module, robot: Robot, levels: Tensor, part_levels: Tensor, noise: Tensor) -> None:
        super().__init__()
        self.network = network
        self._noised = partial(robot.noised_parts, levels=levels, part_levels=part_levels, noise=noise)

    def forward(self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None) -> tuple[Tensor, Any]:
        return self.network(self._noised(x), k, conditions, memory)
