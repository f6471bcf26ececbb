"""The robot task: images and actions predicted together by a network with memory (Chen et al. 2024 §4.4; docs/method.md
§11).

A token is what the cameras see now and the stack of actions that led here. Trained on demonstrations like any sequence,
the model is a policy: given what was seen and done, it samples the next token, whose actions are executed
(`policy.py`). The parts of a token, each camera and the actions, may be noisier than the token. The network is
conditioned on by how much, so that a blocked camera can be shown as a very noisy one.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    chosen,
)
from diffusion_forcing.algorithms.robot.augmentation import jitter, paste_patches, random_shift
from diffusion_forcing.algorithms.robot.tokens import NUMBERS, Flat, Layout, Tiled, from_vector, to_vector
from diffusion_forcing.algorithms.video import UNetOptions
from diffusion_forcing.datasets.batch import RobotBatch
from diffusion_forcing.diffusion import DiffusionForcing, mask_absent, per_token
from diffusion_forcing.diffusion.noise import normal, uniform
from diffusion_forcing.diffusion.parameterization import noise_further
from diffusion_forcing.errors import check_fixed, check_positive, check_range, require
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp, recurrent_unet
from diffusion_forcing.networks.sensors import SensorNetwork
from diffusion_forcing.networks.unet3d import UNet3D
from diffusion_forcing.options import Count, Natural, Positive, Share, check_limits

DOWNSAMPLING = 8
"""Factor by which every network for robots downsamples images."""


@dataclass(frozen=True, kw_only=True)
class ImageEncoderOptions:
    """The convolutional encoder of action_packing=vector (`networks.sensors`). features: numbers per token; width:
    channels."""

    features: Count = 128
    width: int = 16

    def __post_init__(self) -> None:
        check_limits("algorithm.diffusion.eyes", self)
        fits = self.width >= 8 and self.width % 8 == 0
        require(fits, f"algorithm.diffusion.eyes.width is {self.width}; it must be a multiple of 8")


@dataclass(frozen=True, kw_only=True)
class RobotDiffusionOptions(RecurrentMLPOptions):
    """network_size, num_gru_layers, num_mlp_layers: for network=rnn. architecture: for network=attention with tiled
    actions; transformer: with actions as vectors. eyes: for either network with vectors."""

    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    sampling_timesteps: int = 25
    num_mlp_layers: Natural = 2
    architecture: UNetOptions = field(
        default_factory=lambda: UNetOptions(network_size=32, attn_dim_head=32, attn_resolutions=(4, 8))
    )
    transformer: TransformerOptions = field(
        default_factory=lambda: TransformerOptions(network_size=256, num_layers=4, dim_feedforward=1024)
    )
    eyes: ImageEncoderOptions = field(default_factory=ImageEncoderOptions)


@dataclass(frozen=True, kw_only=True)
class RobotPolicyOptions(AlgorithmOptions):
    """`algorithm=df_robot`. A token is the images of `n_cameras` and the `action_stack` actions that led there.

    action_mean, action_std: of position, rotation matrix and grasp, 13 numbers. network: `rnn`, the paper's, or
    `attention`. action_packing: `tiled`, actions as planes beside the images, as released; `vector`, images and actions
    as numbers. z_shape: of the RNN's latent, [channels, res, res] with tiled actions, [width] with vectors. n_frames:
    window of network=attention, in tokens.

    Training. gt_first_frame: fraction of sequences whose first token is clean. gt_cond_prob: fraction of clean tokens;
    1 is next-token prediction, like noise_level=teacher_forcing: the past is clean, and no part is noisier.
    random_start: fraction of sequences that start anywhere, with unknown actions before. part_noise: fraction of parts
    that are noisier than their token, half of them pure noise. crop: maximum shift of images, in pixels. jitter: amount
    by which brightness and contrast vary. patches: maximum number of rectangles pasted into a camera's images.
    action_share: weight of the actions in the loss; null: that of as many colour planes.

    Acting. memory: False forgets everything between two tokens. detect_blocked: treat a camera with a contrast below
    blocked_contrast as pure noise. observation_noise_level: assumed noise of the cameras, 0 … timesteps − 1, one number
    or one per camera. Without part_noise, a token has the level of its noisiest camera.
    """

    lr: Positive = 5e-4
    warmup_steps: Natural = 2000
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
    gt_first_frame: Share = 0.5
    gt_cond_prob: Share = 0.0
    random_start: Share = 0.0
    part_noise: Share = 0.0
    crop: Natural = 2
    jitter: Share = 0.1
    patches: Natural = 0
    action_share: Share | None = None
    memory: bool = True
    detect_blocked: bool = True
    blocked_contrast: Share = 0.02
    observation_noise_level: int | tuple[int, ...] = 0
    diffusion: RobotDiffusionOptions = field(default_factory=RobotDiffusionOptions)

    def __post_init__(self) -> None:
        if self.gt_cond_prob == 1 or self.noise_level == "teacher_forcing":
            baseline = {"noise_level": "teacher_forcing", "gt_cond_prob": 0.0, "gt_first_frame": 0.0, "part_noise": 0.0}
            for name, value in baseline.items():
                object.__setattr__(self, name, value)
        super().__post_init__()
        for name in ("n_cameras", "action_stack", "n_frames", "data_std"):
            check_positive(f"dataset.{name}", getattr(self, name))
        self._check_tokens()
        self._check_network()
        if self.network == "rnn":
            self._check_recurrent()
        levels = self.observation_noise_levels
        require(
            len(levels) == self.n_cameras,
            f"algorithm.observation_noise_level has {len(levels)} numbers; give one, or one for each of "
            f"{self.n_cameras} cameras",
        )
        for level in levels:
            check_range("algorithm.observation_noise_level", level, 0, self.diffusion.timesteps - 1)

    def _check_tokens(self) -> None:
        channels, height, width = self.observation_shape
        expected = 3 * self.n_cameras + self.action_stack
        require(
            channels == expected and height == width and height % DOWNSAMPLING == 0,
            f"dataset.observation_shape is {list(self.observation_shape)}; {self.n_cameras} cameras and "
            f"{self.action_stack} actions make [{expected}, resolution, resolution], a multiple of {DOWNSAMPLING}",
        )
        require(self.crop < height // 2, f"algorithm.crop is {self.crop}; it must be below half of {height} pixels")
        for name in ("action_mean", "action_std"):
            require(
                len(getattr(self, name)) == NUMBERS,
                f"dataset.{name} has {len(getattr(self, name))} numbers, expected {NUMBERS}: position (3), rotation "
                "matrix (9), grasp",
            )
        require(min(self.action_std) > 0, f"dataset.action_std is {list(self.action_std)}; all must be above 0")

    def _check_network(self) -> None:
        require(
            self.noise_level != "full_sequence",
            "algorithm.noise_level=full_sequence has one noise level for all tokens, but a policy remembers a clean "
            "past; use random_all, shared or teacher_forcing",
        )
        only = {"causal": True, "guidance_scale": 0, "frame_stack": 1, "frame_skip": 1}
        check_fixed(
            "algorithm", self, only, "a policy, whose token is one observation and dataset.action_stack actions,"
        )
        require(
            not self.part_noise or self.diffusion.objective == "pred_x0",
            f"algorithm.part_noise is {self.part_noise} with objective={self.diffusion.objective}; parts of pure noise "
            "need pred_x0",
        )
        chunk = self.chunk_size
        require(chunk == -1 or chunk >= 1, f"algorithm.chunk_size is {chunk}; it must be at least 1, or -1 for all")

    def _check_recurrent(self) -> None:
        z, size, layers = list(self.z_shape), self.observation_shape[1], self.diffusion.num_gru_layers
        if self.action_packing == "vector":
            require(
                len(z) == 1 and z[0] % max(1, layers) == 0,
                f"algorithm.z_shape is {z}; with actions as vectors it is [width], for example [512], a multiple of "
                f"diffusion.num_gru_layers={layers}",
            )
            return
        fits = len(z) == 3 and z[1:] == [size, size]
        require(fits, f"algorithm.z_shape is {z}; with tiled actions it is [channels,{size},{size}]")
        width = self.diffusion.network_size
        require(
            width % 8 == 0 and layers <= 1,
            f"algorithm.diffusion.network_size is {width}, num_gru_layers {layers}; with tiled actions they must be a "
            "multiple of 8, and 0 or 1",
        )

    @property
    def observation_noise_levels(self) -> tuple[int, ...]:
        """One per camera."""
        level = self.observation_noise_level
        return level if isinstance(level, tuple) else (level,) * self.n_cameras

    @property
    def parts(self) -> int:
        """The cameras, and the actions."""
        return self.n_cameras + 1


class RobotDraws(NamedTuple):
    """The random numbers of a training batch. part_levels and part_noise are None without part_noise."""

    levels: Tensor
    """(b, t)."""
    noise: Tensor
    """Standard normal, like the tokens."""
    part_levels: Tensor | None
    """(b, t, parts), at least `levels`."""
    part_noise: Tensor | None
    """Like `noise`."""


class Robot(ForcingAlgorithm):
    """Diffusion Forcing for imitation. `options` is a `RobotPolicyOptions`."""

    Options = RobotPolicyOptions
    task = "robot"
    options: RobotPolicyOptions
    token_mean: Tensor
    token_std: Tensor
    part_of: Tensor

    def __init__(self, options: RobotPolicyOptions) -> None:
        size = options.observation_shape[1]
        kind = Tiled if options.action_packing == "tiled" else Flat
        self.layout: Layout = kind(options.n_cameras, options.action_stack, size)
        super().__init__(options, self.build_network(options))
        for name, pixel, numbers in (
            ("token_mean", options.data_mean, options.action_mean),
            ("token_std", options.data_std, options.action_std),
        ):
            images = torch.full((1, 1, options.n_cameras, 3, size, size), pixel)
            vectors = torch.tensor(numbers).expand(1, 1, options.action_stack, -1)
            self.register_buffer(name, self.layout.pack(images, vectors)[0, 0], persistent=False)
        self.register_buffer("part_of", self.layout.parts(), persistent=False)

    def build_network(self, options: RobotPolicyOptions) -> nn.Module:
        """The network of the options, with fresh weights."""
        diffusion, size = options.diffusion, options.observation_shape[1]
        # The conditions of a token: how much noisier each of its parts is, if parts are.
        conditions = options.parts if options.part_noise else 0
        recurrent = {
            "network_size": diffusion.network_size,
            "num_gru_layers": diffusion.num_gru_layers,
            "external_cond_dim": conditions,
            "learnable_init_z": options.learnable_init_z,
            "self_condition": diffusion.self_condition,
        }
        if options.action_packing == "tiled":
            channels = self.layout.shape[0]
            if options.network == "attention":
                return UNet3D(channels, size, external_cond_dim=conditions, **asdict(diffusion.architecture))
            return recurrent_unet(channels, options.z_shape, **recurrent)  # type: ignore[arg-type]
        channels = 3 * options.n_cameras
        numbers = self.layout.shape[0] - channels * size**2
        width = diffusion.eyes.features + numbers
        inner: nn.Module
        if options.network == "attention":
            inner = Transformer(width, causal=True, external_cond_dim=conditions, **asdict(diffusion.transformer))
        else:
            inner = recurrent_mlp(
                width,
                options.z_shape[0],
                num_mlp_layers=diffusion.num_mlp_layers,
                **recurrent,  # type: ignore[arg-type]
            )
        return SensorNetwork(inner, channels=channels, size=size, numbers=numbers, **asdict(diffusion.eyes))

    def tokens(self, frames: Tensor, actions: Tensor) -> Tensor:
        """Frames (b, t, cameras, 3, h, w), uint8 or in [0, 1], and actions (b, t, n, 8) → normalised tokens (b, t,
        *shape)."""
        options, size = self.options, self.options.observation_shape[1]
        found, expected = (
            (*frames.shape[2:], actions.shape[2]),
            (options.n_cameras, 3, size, size, options.action_stack),
        )
        require(
            found == expected,
            f"a token has (cameras, 3, height, width, actions) {found}, the policy expects {expected}; set "
            "dataset.n_cameras, dataset.resolution and dataset.action_stack as in training",
        )
        images = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        return (self.layout.pack(images, to_vector(actions)) - self.token_mean) / self.token_std

    def decode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b, t, *shape) → frames (b, t, cameras, 3, h, w), approximately in [0, 1], and actions (b, t, n,
        8)."""
        images, vectors = self.layout.unpack(tokens * self.token_std + self.token_mean)
        return images, from_vector(vectors)

    def training_step(self, batch: RobotBatch, batch_idx: int) -> Tensor:
        generator = self.training_generator()
        batch, started_late = self.augment(batch, generator=generator)
        tokens = self.tokens(batch.frames, batch.actions)
        loss, action_error = self.loss(tokens, batch.valid, self.draw(tokens, started_late, generator=generator))
        self.log_dict({"training/loss": loss, "training/action_error": action_error}, prog_bar=True)
        return loss

    def validation_step(self, batch: RobotBatch, batch_idx: int) -> None:
        """The training loss of the averaged network on held-out demonstrations; its draws depend only on
        `batch_idx`."""
        tokens = self.tokens(batch.frames, batch.actions)
        draws = self.draw(tokens, None, generator=self.generator(batch_idx))
        loss, action_error = self.loss(tokens, batch.valid, draws, forcing=self.sampling_forcing())
        metrics = {"validation/loss": loss, "validation/action_error": action_error}
        self.log_dict(metrics, batch_size=self.counted_rows(len(tokens)), sync_dist=True)

    def augment(
        self, batch: RobotBatch, *, generator: torch.Generator | None = None
    ) -> tuple[RobotBatch, Tensor | None]:
        """A batch with augmented images in [0, 1] and some sequences started late; and which ones: (b,) bool or
        None."""
        options, device = self.options, batch.frames.device
        started_late = None
        if options.random_start:
            count, time = batch.valid.shape
            started_late = uniform((count,), generator=generator, device=device) < options.random_start
            length = batch.valid.sum(dim=1)
            start = (uniform((count,), generator=generator, device=device) * (length - 1).clamp(min=1)).long()
            # Shift each sequence to its start; what comes after its end is not valid.
            token = torch.arange(time, device=device) + torch.where(started_late, start, 0)[:, None]
            inside, token = token < time, token.clamp(max=time - 1)
            row = torch.arange(count, device=device)[:, None]
            batch = RobotBatch(batch.frames[row, token], batch.actions[row, token], batch.valid[row, token] & inside)
        frames = random_shift(batch.frames, options.crop, generator=generator)
        frames = paste_patches(frames, options.patches, generator=generator)
        return batch._replace(frames=jitter(frames, options.jitter, generator=generator)), started_late

    def draw(
        self, tokens: Tensor, started_late: Tensor | None, *, generator: torch.Generator | None = None
    ) -> RobotDraws:
        """The random numbers for tokens (b, t, *shape). started_late: (b,) bool, sequences whose first actions are
        unknown."""
        options, device, shape = self.options, tokens.device, tokens.shape[:2]
        last = options.diffusion.timesteps - 1
        levels = self.shown_clean(self.draw_levels(*shape, generator=generator), generator)
        noise = normal(tokens.shape, generator=generator, device=device)
        if not options.part_noise:
            return RobotDraws(levels, noise, None, None)
        # Some parts are noisier than their token: half of them pure noise, the others anywhere in between.
        parts = (*shape, options.parts)
        noisier = uniform(parts, generator=generator, device=device) < options.part_noise
        hidden = uniform(parts, generator=generator, device=device) < 0.5
        share = uniform(parts, generator=generator, device=device)
        own = levels[..., None]
        raised = torch.where(hidden, last, own + (share * (last + 1 - own)).long().clamp(max=last))
        part_levels = torch.where(noisier, raised.clamp(max=last), own)
        if started_late is not None:
            part_levels[:, 0, -1] = torch.where(started_late, last, part_levels[:, 0, -1])
        return RobotDraws(levels, noise, part_levels, normal(tokens.shape, generator=generator, device=device))

    def loss(
        self, tokens: Tensor, valid: Tensor, draws: RobotDraws, *, forcing: DiffusionForcing | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training loss, and the mean squared error of the predicted actions in normalised numbers; both scalars.

        tokens: (b, t, *shape); valid: (b, t) bool, False after the end of a demonstration.
        """
        levels = mask_absent(draws.levels, valid, self.options.diffusion.timesteps)
        forcing, conditions = forcing or self.forcing, None
        if draws.part_levels is not None and draws.part_noise is not None:
            part_levels = torch.maximum(draws.part_levels, levels[..., None])
            conditions = self.part_conditions(part_levels, levels)
            forcing = forcing.over(NoisierParts(forcing.network, self, levels, part_levels, draws.part_noise))
        result = self.masked_loss(tokens, levels, noise=draws.noise, conditions=conditions, forcing=forcing)
        present = per_token(valid, tokens).to(tokens.dtype)
        is_action = self.part_of == self.options.n_cameras
        images = (result.per_element * present)[..., ~is_action].mean()
        actions = (result.per_element * present)[..., is_action].mean()
        error = (((result.x0 - tokens) ** 2 * present)[..., is_action].mean() / present.mean()).detach()
        share = self.action_share
        return (1 - share) * images + share * actions, error

    @property
    def action_share(self) -> float:
        """Weight of the actions in the loss: `algorithm.action_share`, or the share of planes that tiled actions
        have."""
        options = self.options
        if options.action_share is not None:
            return options.action_share
        return options.action_stack / (options.action_stack + 3 * options.n_cameras)

    def part_conditions(self, part_levels: Tensor, levels: Tensor) -> Tensor:
        """Conditions (b, t, parts): how much noisier each part is than its token, in [0, 1]."""
        return (part_levels - levels[..., None]).float() / (self.options.diffusion.timesteps - 1)

    def noise_parts(self, x: Tensor, levels: Tensor, part_levels: Tensor, noise: Tensor) -> Tensor:
        """Tokens x at levels (b, t), −1 clean, with each part noised further to its own level (b, t, parts); noise
        like x."""
        for part in range(self.options.parts):
            noisier = noise_further(self.forcing.schedule, x, levels, part_levels[..., part], noise)
            chosen = (self.part_of == part) & per_token(part_levels[..., part] > levels, x)
            x = torch.where(chosen, noisier, x)
        return x

    def describe(self) -> dict[str, Any]:
        """What goes into a checkpoint: the task, and the options that the weights depend on."""
        options = self.options
        schedule = ("objective", "beta_schedule", "schedule_fn_kwargs", "timesteps", "clip_noise")
        recurrent = ("network_size", "num_gru_layers", "num_mlp_layers", "self_condition")
        sizes = (*recurrent, "architecture", "transformer", "eyes")
        inputs = ("noise_level", "network", "action_packing", "z_shape", "learnable_init_z", "part_noise")
        data = chosen(options, "n_cameras", "action_stack", "action_mean", "action_std")
        data["resolution"] = options.observation_shape[1]
        algorithm = {**chosen(options, *inputs), "diffusion": chosen(options.diffusion, *schedule, *sizes)}
        line = "rnn" if options.network == "rnn" else "v1.5"
        return {"task": self.task, "line": line, "structure": {"dataset": data, "algorithm": algorithm}}

    @classmethod
    def stored_options(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        data = metadata["structure"]["dataset"]
        channels, side = 3 * data["n_cameras"] + data["action_stack"], data["resolution"]
        return {"observation_shape": [channels, side, side], **super().stored_options(metadata)}

    def load_weights(self, checkpoint: Any) -> None:
        """Load a `checkpoints.LoadedCheckpoint` into the network and its average. UserError naming the first key that
        differs.

        A released checkpoint also brings the mean and deviation of its tokens.
        """
        advice = (
            "set dataset.resolution, dataset.n_cameras, dataset.action_stack, algorithm.network, "
            "algorithm.action_packing and algorithm.diffusion as in training"
        )
        self.check_weights(checkpoint, advice)
        for own, name in ((self.token_mean, "data_mean"), (self.token_std, "data_std")):
            value = checkpoint.statistics.get(name)
            if value is not None and value.shape == own.shape:
                own.copy_(value)
        self.take_weights(checkpoint.weights)


class NoisierParts(nn.Module):
    """A network that sees each part of its tokens at the part's own level; see `Robot.noise_parts`."""

    def __init__(self, network: nn.Module, robot: Robot, levels: Tensor, part_levels: Tensor, noise: Tensor) -> None:
        super().__init__()
        self.network = network
        self._noise_parts = partial(robot.noise_parts, levels=levels, part_levels=part_levels, noise=noise)

    def forward(self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None) -> tuple[Tensor, Any]:
        return self.network(self._noise_parts(x), k, conditions, memory)
