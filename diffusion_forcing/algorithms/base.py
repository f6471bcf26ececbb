"""What the algorithms share: options, the method over a network and its averaged weights, the optimiser, and checkpoints.

An algorithm encodes a batch as tokens, asks `diffusion` for the loss, and builds what samples. Its randomness comes from a generator seeded
by (seed, batch): a resumed run draws what the uninterrupted one would have drawn, and several processes what one would have.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import lightning
import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms import parallel
from diffusion_forcing.algorithms.ema import Average, ema_of
from diffusion_forcing.algorithms.objectives import Distillation, teacher_forcing_loss
from diffusion_forcing.algorithms.parallel import SharedGenerator
from diffusion_forcing.checkpoints import load, places, resolve, save
from diffusion_forcing.checkpoints.format import sized_by
from diffusion_forcing.diffusion import (
    DiffusionForcing,
    Loss,
    Sampler,
    build_parameterization,
    build_schedule,
    draw_noise_levels,
    loss_mask,
    per_token,
)
from diffusion_forcing.diffusion.loss_weighting import Weighting
from diffusion_forcing.diffusion.noise import uniform
from diffusion_forcing.diffusion.noise_levels import MATRICES, NoiseLevel
from diffusion_forcing.errors import UserError, check_range, require
from diffusion_forcing.limits import check_limit, limit, reading
from diffusion_forcing.options import (
    Count,
    Decay,
    Natural,
    NotNegative,
    Positive,
    Share,
    build_options,
    check_limits,
    merged,
    whole_numbers,
)

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

A = TypeVar("A", bound="ForcingAlgorithm")
CLASSES = {
    ("planning", "v1.5"): "Planning",
    ("planning", "rnn"): "RecurrentPlanning",
    ("video", "v1.5"): "Video",
    ("video", "rnn"): "RecurrentVideo",
    ("video", "world"): "World",
    ("prediction", ""): "Forecasting",
    ("robot", ""): "Robot",
}
"""The class for each task and line of a checkpoint; without a line where one class has both."""


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """Sizes of `networks.Transformer`; the released planners have 12 layers of width 128."""

    network_size: Count = 128
    num_layers: Count = 12
    attn_heads: Count = 4
    dim_feedforward: Count = 512

    def __post_init__(self) -> None:
        check_limits("algorithm.diffusion.architecture", self)


@dataclass(frozen=True, kw_only=True)
class NoisingOptions:
    """How tokens are noised, what the network predicts, and how many levels sampling takes (docs/method.md §2–5).

    distilled_steps: of a student, the most `sampling_timesteps` that it was distilled for; its checkpoint sets it.
    """

    objective: Literal["pred_noise", "pred_x0", "pred_v", "pred_edm"] = "pred_x0"
    beta_schedule: Literal["linear", "cosine", "sigmoid", "edm"] = "linear"
    schedule_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    clip_noise: Positive = 20.0
    use_fused_snr: bool = False
    snr_clip: Positive = 5.0
    cum_snr_decay: Share = 0.98
    timesteps: int = 1000
    sampling_timesteps: int = 50
    ddim_sampling_eta: Share = 0.0
    stabilization_level: int = 10
    distilled_steps: int | None = None

    def __post_init__(self) -> None:
        where = "algorithm.diffusion"
        check_limits(where, self)
        check_range(f"{where}.timesteps", self.timesteps, 1, limit("NOISE_LEVELS"))
        check_range(f"{where}.sampling_timesteps", self.sampling_timesteps, 1, self.timesteps)
        check_range(f"{where}.stabilization_level", self.stabilization_level, 1, self.timesteps)
        if self.distilled_steps is not None and self.sampling_timesteps > self.distilled_steps:
            raise UserError(
                f"{where}.sampling_timesteps is {self.sampling_timesteps}, but these are the weights of a student that was distilled for at most "
                f"{self.distilled_steps}; pass {where}.sampling_timesteps={self.distilled_steps}, or load its teacher"
            )

    @property
    def weighting(self) -> Weighting:
        """How the loss weighs a token's error (docs/method.md §4)."""
        return "fused_snr" if self.use_fused_snr else "min_snr"

    def token_decay(self, frame_stack: int, frame_skip: int) -> float:
        """How much of the history's SNR remains from one token to the next: `cum_snr_decay` for each frame that lies between."""
        return self.cum_snr_decay ** (frame_stack * frame_skip)


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(NoisingOptions):
    """The same with a transformer."""

    architecture: TransformerOptions = field(default_factory=TransformerOptions)


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions:
    """The options of every algorithm: `algorithm/df_base.yaml`."""

    lr: Positive = 5e-4
    weight_decay: NotNegative = 1e-4
    warmup_steps: Natural = 10000
    optimizer_beta: tuple[float, float] = (0.9, 0.999)
    ema_decay: Decay = 0.999
    frame_stack: Count = 1
    frame_skip: Count = 1
    context_frames: int = 1
    external_cond_dim: int = 0
    noise_level: NoiseLevel = "random_all"
    causal: bool = True
    scheduling_matrix: Literal["full_sequence", "pyramid", "autoregressive", "trapezoid"] = "autoregressive"
    uncertainty_scale: NotNegative = 1.0
    chunk_size: int = 1
    guidance_scale: NotNegative = 0.0
    debug: bool = False
    diffusion: NoisingOptions = field(default_factory=NoisingOptions)

    def __post_init__(self) -> None:
        check_limits("algorithm", self)
        for beta in self.optimizer_beta:
            require(0 <= beta < 1, f"algorithm.optimizer_beta is {list(self.optimizer_beta)}; both must lie in [0, 1)")
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


@dataclass(frozen=True, kw_only=True)
class RecurrentDiffusionOptions(NoisingOptions):
    """The RNN line's settings of diffusion.

    use_snr, use_cum_snr: whether a token's own SNR and that of its history weigh the loss. self_condition: each token
    is denoised twice, the second time with the first prediction as an input (Chen et al. 2023).
    """

    cum_snr_decay: Share = 0.9
    use_snr: bool = False
    use_cum_snr: bool = False
    network_size: Count = 32
    num_gru_layers: Natural = 1
    self_condition: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.use_fused_snr, "algorithm.diffusion.use_fused_snr: here it is use_snr=True use_cum_snr=True")

    @property
    def weighting(self) -> Weighting:
        if self.use_cum_snr:
            return "fused_snr" if self.use_snr else "cum_snr"
        return "min_snr" if self.use_snr else "uniform"

    def token_decay(self, frame_stack: int, frame_skip: int) -> float:
        """The RNN line decays for each frame of a token; frames that the data skips do not count."""
        return self.cum_snr_decay**frame_stack


@dataclass(frozen=True, kw_only=True)
class RecurrentMLPOptions(RecurrentDiffusionOptions):
    """The RNN line's settings for tokens that are vectors. num_mlp_layers: on either side of the GRU cells."""

    num_mlp_layers: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        even = self.network_size % 2 == 0 and self.network_size >= 4
        require(even, f"algorithm.diffusion.network_size is {self.network_size}; it must be even and at least 4")


def chosen(options: Any, *names: str) -> dict[str, Any]:
    """The options `names` as plain values, for the metadata of a checkpoint."""
    values = asdict(options)
    return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in names}


FUSED_DEVICES = ("cuda",)
"""Where one kernel updates all weights."""


class Warmup:
    """The factor of the learning rate at step n: (before + n + 1)/steps, at most 1. An object, so that resuming restores it."""

    def __init__(self, steps: int, before: int = 0) -> None:
        self.steps = max(1, steps)
        self.before = before

    def __call__(self, step: int) -> float:
        return min(1.0, (self.before + step + 1) / self.steps)


class ForcingAlgorithm(lightning.LightningModule):
    """A LightningModule around `DiffusionForcing`. Subclasses write `training_step`, `describe` and `load_weights`."""

    seed = 0
    Options: type[Any] = AlgorithmOptions
    task = ""
    """What its checkpoints are for, written into their metadata."""
    line = ""
    """The code line of its checkpoints; empty where the options choose it."""
    share: parallel.Share | None = None
    """This process's share of the current batch, where several processes share it. The experiment sets it before each batch."""

    def __init__(self, options: AlgorithmOptions, network: nn.Module | None) -> None:
        """network: None where its sizes are not known yet; then call `put_network` before anything else."""
        super().__init__()
        self.options = options
        self._carried: dict[str, dict[str, Tensor]] = {}
        self._steps_before = 0
        self._sampling: Mapping[str, Any] = {}  # the settings that came with the weights
        # Of a student; in a tuple, because it is neither trained nor a part of the module's state.
        self.teachers: tuple[nn.Module, ...] = ()
        if network is not None:
            self.put_network(network)

    def put_network(self, network: nn.Module) -> None:
        """Build the method, and the average of the weights, over `network`."""
        options, diffusion = self.options, self.options.diffusion
        schedule = build_schedule(
            diffusion.beta_schedule,
            diffusion.timesteps,
            snr_clip=diffusion.snr_clip,
            arguments=diffusion.schedule_fn_kwargs,
        )
        self.forcing = DiffusionForcing(
            network,
            schedule,
            build_parameterization(diffusion.objective, clip_noise=diffusion.clip_noise),
            weighting=diffusion.weighting,
            cum_snr_decay=diffusion.token_decay(options.frame_stack, options.frame_skip),
            clip_noise=diffusion.clip_noise,
            stabilization_level=diffusion.stabilization_level,
        )
        self.ema = ema_of(self.forcing.network, options.ema_decay) if options.ema_decay > 0 else None

    @property
    def averagings(self) -> list[Average]:
        """What averages the weights: one, or none."""
        return [] if self.ema is None else [self.ema]

    @property
    def network(self) -> nn.Module:
        """The network that training moves."""
        return self.forcing.network

    @property
    def sampling_network(self) -> nn.Module:
        """The network for sampling: the averaged one, where averaging is on."""
        return self.forcing.network if self.ema is None else self.ema.module

    def sampling_forcing(self) -> DiffusionForcing:
        """The method over the network for sampling."""
        return self.forcing.over(self.sampling_network)

    def sampler(self, forcing: DiffusionForcing | None = None, **more: Any) -> Sampler:
        """The sampler over the network for sampling, as the options say. more: further arguments of `Sampler`."""
        options, diffusion = self.options, self.options.diffusion
        return Sampler(
            forcing or self.sampling_forcing(),
            sampling_timesteps=diffusion.sampling_timesteps,
            scheduling_matrix=options.scheduling_matrix,
            uncertainty_scale=options.uncertainty_scale,
            eta=diffusion.ddim_sampling_eta,
            past_shown=options.past_shown,
            **more,
        )

    # ------------------------------------------------------------------------------------------------ training

    def training_generator(self) -> torch.Generator:
        """What the present training batch draws from: its own stream of (seed, batch), and of the process where nothing is known of shares."""
        batches_done = self.trainer.fit_loop.total_batch_idx
        process = self.global_rank if self.share is None else 0
        return self.generator(((self.seed * 1_000_003 + batches_done) * 1_000_003 + process) % 2**63)

    def generator(self, seed: int) -> torch.Generator:
        """What the present batch draws from, seeded with `seed`: several processes draw together what one would have."""
        if self.share is None:
            return torch.Generator(self.device).manual_seed(seed)
        return SharedGenerator.of(self.share.total, self.share.rows, device=self.device).manual_seed(seed)

    def counted_rows(self, rows: int) -> int:
        """How many of the `rows` of the present batch count in a metric: all, but for what fills up a process that would have none."""
        return rows if self.share is None else self.share.counted

    @property
    def teacher_forced(self) -> bool:
        """Whether next-token prediction trains all tokens of a sequence at once, by showing the network a clean past beside them."""
        network: Any = self.forcing.network
        return (
            self.options.noise_level == "teacher_forcing"
            and hasattr(network, "teacher_forced")
            and network.keeps_memory
        )

    def draw_levels(
        self, batch: int, time: int, *, context: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Levels (b, t) in −1…K−1 of a training batch, by `algorithm.noise_level`. context: tokens that sampling always begins with."""
        return draw_noise_levels(
            self.options.noise_level,
            batch,
            time,
            timesteps=self.options.diffusion.timesteps,
            context=context,
            teacher_forced=self.teacher_forced,
            generator=generator,
            device=self.device,
        )

    def shown_clean(self, levels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Levels (b, t) of which a share `gt_cond_prob` is 0, and a share `gt_first_frame` of first tokens."""
        options: Any = self.options
        if not (options.gt_cond_prob or options.gt_first_frame):
            return levels
        clean = uniform(levels.shape, generator=generator, device=levels.device) < options.gt_cond_prob
        clean[:, 0] |= uniform(levels.shape[:1], generator=generator, device=levels.device) < options.gt_first_frame
        return torch.where(clean, 0, levels)

    def masked_loss(
        self, x: Tensor, levels: Tensor, *, forcing: DiffusionForcing | None = None, **options: Any
    ) -> Loss:
        """`DiffusionForcing.loss` of tokens x: (b, t, *c) at `levels`: (b, t) from `draw_levels`, 0 where a token is not trained."""
        forcing = forcing or self.forcing
        if self.teacher_forced:
            loss = teacher_forcing_loss(forcing, x, levels, **options)
        else:
            loss = forcing.loss(x, levels, **options)
        mask = loss_mask(self.options.noise_level, levels, teacher_forced=self.teacher_forced)
        return loss._replace(per_element=loss.per_element * per_token(mask, x))

    def rate_factor(self, steps_before: int) -> Callable[[int], float]:
        """The factor of the learning rate at each step. steps_before: what the optimiser's state that was loaded has behind it."""
        return Warmup(self.options.warmup_steps, steps_before)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW; the rate rises linearly over `warmup_steps`, from (1/warmup)·lr at the first."""
        options = self.options
        parameters = list(self.forcing.network.parameters())
        optimizer = torch.optim.AdamW(
            parameters,
            lr=options.lr,
            weight_decay=options.weight_decay,
            betas=options.optimizer_beta,
            fused=all(parameter.device.type in FUSED_DEVICES for parameter in parameters) or None,
        )
        # A fused step would take the scale off the gradients by itself: too late for clipping them.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        for name, parameter in self.forcing.network.named_parameters():
            if name in self._carried:
                optimizer.state[parameter] = {
                    key: _laid_out(value, parameter) for key, value in self._carried[name].items()
                }
                if optimizer.defaults["fused"]:
                    step = optimizer.state[parameter]["step"]
                    optimizer.state[parameter]["step"] = step.to(parameter.device, torch.float32)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor(self._steps_before))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for average in self.averagings:
            average.update_parameters(self.forcing.network)

    # ------------------------------------------------------------------------------------------------ distillation

    def distill(self, *, grid: int, steps: int) -> None:
        """From here on train a student of at most `steps` sampling steps, whose teacher has the present weights for sampling.

        The student starts from them. grid: levels of the teacher's curve (`algorithms/objectives.py`).
        """
        require(not self.teacher_forced, "a network of algorithm.noise_level=teacher_forcing cannot be distilled")
        diffusion = replace(
            self.options.diffusion,
            distilled_steps=steps,
            sampling_timesteps=min(steps, self.options.diffusion.sampling_timesteps),
            ddim_sampling_eta=1.0,
        )
        self.options = replace(self.options, diffusion=diffusion)
        teacher = copy.deepcopy(self.sampling_network).eval().requires_grad_(False)
        self.teachers = (teacher,)
        self.take_weights(self.sampling_weights())
        average = None if self.ema is None else self.ema.module
        self.forcing = Distillation(self.forcing, teacher, target=average, grid=grid)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A student's training state has its teacher, so that resuming needs no other checkpoint."""
        for teacher in self.teachers:
            checkpoint["teacher"] = teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for teacher in self.teachers:
            require("teacher" in checkpoint, "this checkpoint has no teacher; resume it with tasks=[training]")
            teacher.load_state_dict(checkpoint["teacher"])

    # ------------------------------------------------------------------------------------------------ checkpoints

    @classmethod
    def from_pretrained(cls: type[A], source: str | Path, **changes: Any) -> A:
        """The algorithm of a checkpoint with its weights, ready to sample on the CPU.

        source: whatever `load=` takes: a folder, a run or its id in outputs/, a shipped checkpoint's name, or
        `hf://user/repo[@revision][/folder]`. changes: options instead of the checkpoint's, nested ones as mappings:
        `diffusion={"sampling_timesteps": 10}`. What neither says has the default of `Options`.

        UserError where there is no such checkpoint, it is of another class, or an option is wrong.
        """
        checkpoint = load(resolve(str(source)))
        path, metadata = checkpoint.path, checkpoint.metadata
        if checkpoint.kind != "native":
            raise UserError(
                f"{path} is a released checkpoint, which does not hold all options; "
                f"run diffusion-forcing convert, or load={path}"
            )
        line = metadata.get("line", "") if cls.line else ""
        if (metadata.get("task"), line) != (cls.task, cls.line):
            kept = metadata.get("line") or ""
            task = metadata.get("task") or ""
            right = CLASSES.get((task, kept)) or CLASSES.get((task, ""))
            kind = f"for {task or 'another task'}{f' of the {kept} line' if kept else ''}"
            raise UserError(
                f"{path} is a checkpoint {kind}; use {right or 'the command line'}{'.from_pretrained' if right else ''}"
            )
        with reading(path, "take another checkpoint"):
            check_limit("SIZE", max(whole_numbers(metadata.get("structure")), default=0), "a size")
            options = build_options(cls.Options, merged(cls.stored_options(metadata), changes), "algorithm")
            with sized_by(path):
                algorithm: Any = cls(options)  # type: ignore[call-arg]  # a task's own class takes no network
                algorithm.take_data(metadata)
        algorithm.load_weights(checkpoint)
        algorithm._sampling = metadata.get("sampling") or {}
        result: A = algorithm.eval()
        return result

    @classmethod
    def stored_options(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The options of this class, as plain values, in the metadata of a checkpoint: its structure, and the settings to sample with."""
        structure, sampling = (metadata.get(name) or {} for name in ("structure", "sampling"))
        names = {field.name for field in fields(cls.Options)}
        facts = {key: value for key, value in {**metadata, **structure.get("dataset", {})}.items() if key in names}
        own = {key: value for key, value in structure["algorithm"].items() if key in names}
        matrix = MATRICES.get(own.get("noise_level", ""))
        as_trained = {} if matrix is None else {"scheduling_matrix": matrix}
        return merged(merged({**facts, **as_trained}, own), sampling.get("algorithm", {}))

    def take_data(self, metadata: Mapping[str, Any]) -> None:
        """Take what a checkpoint's metadata says of the data, before its weights: for networks that are sized by the data."""

    def push_to_hub(
        self,
        repo: str,
        *,
        card: str | None = None,
        private: bool = False,
        license: str = "mit",
        results: str | Path | None = None,
    ) -> str:
        """Upload the weights to sample with, their metadata and a model card to the Hugging Face Hub; `from_pretrained` loads them back.

        repo: `user/repo`, made where it is not there, or `hf://user/repo[@branch][/folder]`. card: its text in Markdown. private, license:
        of a new repository, and of the card. results: the folder of the run that tested it, or its results.json: the card's model-index.
        Returns the address for `load=`. UserError without a login or the right to write.
        """
        places.place_of(repo)
        with tempfile.TemporaryDirectory() as folder:
            weights = {key: value.contiguous() for key, value in self.sampling_weights().items()}
            path = save(Path(folder) / type(self).__name__, None, metadata=self.metadata(), model=weights, card=card)
            measured = None if results is None else Path(results)
            return places.push(path, repo, private=private, license=license, results=measured)

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of its weights: `describe()`, and how a student is to be sampled."""
        diffusion, sampling = self.options.diffusion, dict(self._sampling)
        if diffusion.distilled_steps is not None:
            settings = chosen(diffusion, "distilled_steps", "sampling_timesteps", "ddim_sampling_eta")
            sampling = merged(sampling, {"algorithm": {"diffusion": settings}})
        return self.describe() | ({"sampling": sampling} if sampling else {})

    def describe(self) -> dict[str, Any]:
        """Metadata of a checkpoint: what its weights are for, and the options that they depend on."""
        raise NotImplementedError

    def sampling_weights(self) -> dict[str, Tensor]:
        """The weights for sampling, by the network's own names."""
        return dict(self.sampling_network.state_dict())

    def check_weights(self, checkpoint: Any, advice: str) -> None:
        """UserError with the first key of a `checkpoints.LoadedCheckpoint` that does not match the network, and `advice`."""
        own, weights = self.forcing.network.state_dict(), checkpoint.weights
        for key, value in own.items():
            require(key in weights, f"{checkpoint.path} lacks '{key}' of shape {tuple(value.shape)}; {advice}")
            if weights[key].shape != value.shape:
                raise UserError(
                    f"{checkpoint.path}: '{key}' has shape {tuple(weights[key].shape)}, this network's {tuple(value.shape)}; {advice}"
                )
        for key in weights:
            require(key in own, f"{checkpoint.path}: '{key}' has no place in this network; {advice}")

    def carry_optimizer(self, checkpoint: Any) -> bool:
        """Go on, in training, with the optimiser's state of a `checkpoints.LoadedCheckpoint` whose weights were taken, and behind its warm-up.

        False where it has none of exactly the weights that are trained here.
        """
        state = checkpoint.optimizer
        trained = {name: value.shape for name, value in self.forcing.network.named_parameters()}
        if state is None or {name: entry["exp_avg"].shape for name, entry in state.items()} != trained:
            return False
        self._carried, self._steps_before = state, checkpoint.step
        return True

    def take_weights(self, weights: dict[str, Tensor]) -> None:
        """Put `weights`, which fit, into the network and its averages."""
        for network in (self.forcing.network, *(average.module for average in self.averagings)):
            network.load_state_dict(weights)


def _laid_out(value: Tensor, parameter: Any) -> Tensor:
    """A copy of `value`; a part of it in each process, where `parameter` is split and has its shape."""
    if not hasattr(parameter, "device_mesh") or value.shape != parameter.shape:
        return value.clone()
    from torch.distributed.tensor import distribute_tensor  # takes its time to import, and is for strategy=fsdp alone

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
