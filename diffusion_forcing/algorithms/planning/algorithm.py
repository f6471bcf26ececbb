"""The planning task: trajectories as sequences of bundles, trained by Diffusion Forcing, planned with by guided sampling (docs/method.md §10).

This adapter encodes a batch, asks `diffusion` for the loss, and hands out a `Planner`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import AlgorithmOptions, DiffusionOptions, ForcingAlgorithm, chosen
from diffusion_forcing.algorithms.planning.candidates import (
    CandidateOptions,
    CandidatePlanner,
    GoalTokenPlanner,
    Support,
)
from diffusion_forcing.algorithms.planning.guidance import GuidanceWeights
from diffusion_forcing.algorithms.planning.planner import Planner, PlannerOptions
from diffusion_forcing.algorithms.planning.stitching import StitchedNetwork
from diffusion_forcing.algorithms.planning.tokens import Bundle
from diffusion_forcing.algorithms.planning.tree_search import TreeOptions, TreeSearchPlanner
from diffusion_forcing.datasets.batch import SequenceBatch
from diffusion_forcing.diffusion import DiffusionForcing, Sampler, mask_absent
from diffusion_forcing.diffusion.noise import integers, normal, uniform
from diffusion_forcing.errors import UserError, check_fixed, check_positive, check_range, require
from diffusion_forcing.networks import Transformer
from diffusion_forcing.terminal import say

PADDING_WEIGHT = 0.05  # what a token past the drawn end still counts in the loss (docs/method.md §10)
NEARLY_CLEAN_SHARE = 0.5  # share of batches whose token 0 is nearly clean
GOAL_SHARE = 0.5  # share of sequences that end in a goal token, with `goal_token`


@dataclass(frozen=True, kw_only=True)
class PlanningOptions(AlgorithmOptions):
    """Every option of `algorithm=df_planning`; statistics and the episode's length come from the dataset's."""

    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    reward_mean: float = 0.0
    reward_std: float = 1.0
    episode_len: int = 600
    env_id: str = "maze2d-medium-v1"
    gamma: float = 1.0
    frame_stack: int = 10
    causal: bool = False
    padding_mode: Literal["same", "zero"] = "same"
    use_reward: bool = False
    scheduling_matrix: Literal["full_sequence", "pyramid", "autoregressive", "trapezoid"] = "pyramid"
    chunk_size: int = -1
    guidance_scale: float = 2.0
    guidance_weights: GuidanceWeights = "released"
    guidance_stop: float = 0.0
    refine: float = 0.0
    mcg_samples: int = 1
    open_loop_horizon: int = 50
    warm_start: float = 0.0
    controller: Literal["pd", "pursuit"] = "pd"
    stay_at_goal: bool = False
    ease_when_stuck: bool = False
    goal: Literal["dataset", "random"] = "dataset"
    goal_token: bool = False
    search: Literal["none", "candidates", "mctd", "fast_mctd"] = "none"
    candidates: int = 32
    roots: int = 0
    branch_at: float = 0.5
    tree: TreeOptions = field(default_factory=TreeOptions)
    stitched_len: int = 0
    plot_start_goal: bool = True
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in ("observation", "action"):
            mean, std = getattr(self, f"{kind}_mean"), getattr(self, f"{kind}_std")
            require(
                len(mean) == len(std), f"dataset.{kind}_mean has {len(mean)} numbers, dataset.{kind}_std {len(std)}"
            )
            if any(not value > 0 for value in std):
                raise UserError(f"dataset.{kind}_std is {list(std)}; every standard deviation must be above 0")
        for name, allowed in (("observation_mean", (2, 4)), ("action_mean", (0, 2))):
            count = len(getattr(self, name))
            require(
                count in allowed, f"dataset.{name} has {count} numbers; a maze plan has {allowed[0]} or {allowed[1]}"
            )
        self._check_context()
        if self.search == "candidates" and not self.goal_token:
            raise UserError(
                "algorithm.search=candidates draws plans that end in a goal token; train with algorithm.goal_token=True"
            )
        if self.search in ("mctd", "fast_mctd") and (self.goal_token or not self.guidance_scale):
            raise UserError(
                f"algorithm.search={self.search} chooses how strongly the goal guides; set algorithm.guidance_scale above 0 "
                "and leave algorithm.goal_token at False"
            )
        self.candidate_options()
        ahead = not (self.goal_token and self.causal)
        require(ahead, "algorithm.goal_token=True needs a network that sees ahead: algorithm.causal=False")
        if self.stitched_len:
            require(
                self.goal_token and self.stitched_len > self.episode_len and self.stitched_len % self.frame_stack == 0,
                f"algorithm.stitched_len is {self.stitched_len}; with algorithm.goal_token=True, a multiple of algorithm.frame_stack "
                f"{self.frame_stack} above dataset.episode_len {self.episode_len} joins windows, and 0 plans within one",
            )
            require(
                self.max_tokens >= 5,
                f"windows of {self.max_tokens} tokens are too short to overlap; lower algorithm.frame_stack",
            )
        if self.goal_token and self.baseline:
            raise UserError(
                f"algorithm.goal_token=True holds two tokens clean, which algorithm.noise_level={self.noise_level} never "
                "shows the network; use noise_level=random_all"
            )
        check_fixed("algorithm", self, {"external_cond_dim": 0}, "planning")
        check_positive("dataset.episode_len", self.episode_len)
        require(
            self.episode_len % self.frame_stack == 0,
            f"dataset.episode_len {self.episode_len} is no multiple of algorithm.frame_stack {self.frame_stack}",
        )
        check_positive("algorithm.open_loop_horizon", self.open_loop_horizon)
        check_positive("algorithm.mcg_samples", self.mcg_samples)
        require(0 < self.gamma <= 1, f"algorithm.gamma is {self.gamma}; it must be above 0 and at most 1")
        for name in ("warm_start", "guidance_stop", "refine"):
            check_range(f"algorithm.{name}", getattr(self, name), 0, 1)
        if self.warm_start > 0 and self.open_loop_horizon >= self.plan_len * self.frame_skip:
            raise UserError(
                f"algorithm.warm_start is {self.warm_start}, but nothing of a plan of {self.plan_len * self.frame_skip} steps is left "
                f"when replanning after algorithm.open_loop_horizon {self.open_loop_horizon}; replan earlier or set warm_start to 0"
            )
        if self.warm_start > 0 and self.open_loop_horizon % self.frame_skip:
            raise UserError(
                f"algorithm.open_loop_horizon is {self.open_loop_horizon}, no multiple of dataset.frame_skip {self.frame_skip}, "
                "so algorithm.warm_start cannot go on with a plan; change one of the three"
            )
        for name in ("warm_start", "refine"):
            if getattr(self, name) and self.noise_level == "teacher_forcing":
                raise UserError(
                    f"algorithm.{name}={getattr(self, name)} noises a plan's tokens together, which algorithm.noise_level=teacher_forcing "
                    "never shows the network; set it to 0"
                )
        if self.chunk_size not in (-1, self.episode_len):
            raise UserError(
                f"algorithm.chunk_size is {self.chunk_size}; a plan is drawn whole: dataset.episode_len ({self.episode_len}) or -1"
            )

    def candidate_options(self) -> CandidateOptions:
        """The options of `search=candidates`, checked."""
        return CandidateOptions(candidates=self.candidates, roots=self.roots, branch_at=self.branch_at)

    def _check_context(self) -> None:
        check_fixed("algorithm", self, {"context_frames": 1}, "a plan, which starts from one observation,")

    @property
    def plan_len(self) -> int:
        """Steps of the longest plan."""
        return self.stitched_len or self.episode_len

    @property
    def max_tokens(self) -> int:
        """T: token 0 and episode_len/f future ones."""
        return self.episode_len // self.frame_stack + 1


class Draws(NamedTuple):
    """What training draws for a batch. end: (b,) first absent token, or None; levels: (b, t); first_levels: (b,) levels of token 0
    instead of those, or None; noise: (b, t, f·c) standard normal. goal_levels: (b,) levels of a goal token in the place of the first
    absent one, −1 where a sequence has none; None without goal tokens."""

    end: Tensor | None
    levels: Tensor
    first_levels: Tensor | None
    noise: Tensor
    goal_levels: Tensor | None = None


class Planning(ForcingAlgorithm):
    """Diffusion Forcing for trajectories. `options` is a `PlanningOptions`."""

    Options: type[PlanningOptions] = PlanningOptions
    task = "planning"
    line = "v1.5"
    options: PlanningOptions

    def __init__(self, options: PlanningOptions) -> None:
        bundle = Bundle(
            options.observation_mean,
            options.observation_std,
            options.action_mean,
            options.action_std,
            (options.reward_mean, options.reward_std) if options.use_reward else None,
            frame_stack=options.frame_stack,
            padding_mode=options.padding_mode,
        )
        super().__init__(options, self.build_network(options, bundle))
        self.bundle = bundle
        self.support: Support | None = None

    @staticmethod
    def build_network(options: PlanningOptions, bundle: Bundle) -> nn.Module:
        """The network the options ask for, with fresh weights."""
        return Transformer(bundle.token_width, causal=options.causal, **asdict(options.diffusion.architecture))

    # ------------------------------------------------------------------------------------------------ training

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        tokens, mask = self.encode(batch)
        loss, _ = self.loss(tokens, mask, self.draw(*tokens.shape[:2], generator=self.training_generator()))
        self.log("training/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """The training loss on held-out windows, of the averaged network, with draws that depend on the batch's number alone."""
        tokens, mask = self.encode(batch)
        generator = self.generator(batch_idx)
        draws = self.draw(*tokens.shape[:2], generator=generator)
        loss, _ = self.loss(tokens, mask, draws, forcing=self.sampling_forcing())
        self.log("validation/loss", loss, batch_size=self.counted_rows(len(tokens)), sync_dist=True)

    def encode(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """A batch as tokens (b, t, f·c) and the mask (b, t·f) of frames that are real."""
        # a step leads on where the next one is real
        return self.bundle.encode(batch.observations, batch.actions, batch.rewards, batch.valid[:, 1:])

    def draw(self, batch: int, time: int, *, generator: torch.Generator | None = None) -> Draws:
        """The random numbers of one training batch, in the order and with the ranges of docs/method.md §10."""
        timesteps, device = self.options.diffusion.timesteps, self.device
        causal = self.options.causal
        end = None if causal else integers(2, time + 1, (batch,), generator=generator, device=device)
        levels = self.draw_levels(batch, time, context=1, generator=generator)
        first = None
        if not self.options.baseline:
            nearly_clean = uniform((), generator=generator, device=device) < NEARLY_CLEAN_SHARE
            low = integers(0, max(1, timesteps // 4), (batch,), generator=generator, device=device)
            first = torch.where(nearly_clean, low, levels[:, 0])
        noise = normal((batch, time, self.bundle.token_width), generator=generator, device=device)
        if not self.options.goal_token:
            return Draws(end, levels, first, noise)
        # Half of the sequences end in a goal; half of these have one level for all tokens between start and goal.
        assert end is not None and first is not None
        coin = uniform((batch,), generator=generator, device=device)
        has_goal, one_level = coin < GOAL_SHARE, coin < GOAL_SHARE / 2
        goal_levels = integers(0, max(1, timesteps // 4), (batch,), generator=generator, device=device)
        levels = torch.where(one_level[:, None], levels[:, 1:2], levels)
        return Draws(
            torch.where(has_goal, end.clamp(max=time - 1), end),
            levels,
            torch.where(has_goal, low, first),
            noise,
            torch.where(has_goal, goal_levels, -1),
        )

    def loss(
        self, tokens: Tensor, mask: Tensor, draws: Draws, *, forcing: DiffusionForcing | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training loss, a scalar, and the predicted clean tokens (b, t, f·c). mask: (b, t·f), frames that are real."""
        f = self.bundle.frame_stack
        weight = mask.to(tokens.dtype)
        if draws.end is not None:
            # tokens from `end` on are absent: pure noise to the network, and nearly nothing to the loss
            before_end = torch.arange(tokens.shape[1], device=tokens.device) < draws.end[:, None]
            before_end = before_end.repeat_interleave(f, dim=1)
            weight = weight * before_end.to(tokens.dtype).clamp(min=PADDING_WEIGHT)
            mask = mask & before_end
        present = mask.unflatten(1, (-1, f)).any(dim=-1)
        if draws.goal_levels is not None:
            tokens, shown = self._with_goals(tokens, present, draws)
            present = present | shown
            draws = draws._replace(levels=torch.where(shown, draws.goal_levels[:, None], draws.levels))
        levels = mask_absent(draws.levels, present, self.options.diffusion.timesteps)
        if draws.first_levels is not None:
            levels = torch.cat([draws.first_levels[:, None], levels[:, 1:]], dim=1)
        result = self.masked_loss(tokens, levels, noise=draws.noise, forcing=forcing)
        per_frame = result.per_element.unflatten(-1, (f, -1))
        return (per_frame * weight.unflatten(1, (-1, f))[..., None]).mean(), result.x0

    def _with_goals(self, tokens: Tensor, present: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Tokens (b, t, f·c) whose first absent one is the goal where one was drawn: the state just before it. Also where: (b, t) bool.

        A sequence that stops before its drawn end has no goal. present: (b, t) bool, tokens before the end that hold a real frame.
        """
        assert draws.end is not None and draws.goal_levels is not None
        rows, before_end = torch.arange(len(tokens), device=tokens.device), draws.end - 1
        last_frame = tokens[rows, before_end].unflatten(-1, (self.bundle.frame_stack, -1))[:, -1]
        goal = self.bundle.present_normalized(last_frame[:, : self.bundle.observation_dim])
        reaches_end = present[rows, before_end] & (draws.goal_levels >= 0)
        shown = (torch.arange(tokens.shape[1], device=tokens.device) == draws.end[:, None]) & reaches_end[:, None]
        return torch.where(shown[..., None], goal, tokens), shown

    # ------------------------------------------------------------------------------------------------ planning

    def planner(self, *, guidance_scale: float | None = None) -> Planner:
        """The planner over the network one samples with, as the options say; with another guidance scale where one is given."""
        options, forcing = self.options, self.sampling_forcing()
        if options.stitched_len:
            stitched = StitchedNetwork(
                forcing.network,
                tokens=options.max_tokens,
                width=self.bundle.token_width,
                overlap=(options.max_tokens - 2) // 2,
                timesteps=options.diffusion.timesteps,
            )
            forcing = forcing.over(stitched.to(self.device))
        sampler = self.sampler(forcing)
        drawn = PlannerOptions(
            max_tokens=options.plan_len // options.frame_stack + 1,
            guidance_scale=options.guidance_scale if guidance_scale is None else guidance_scale,
            guidance_weights=options.guidance_weights,
            mcg_samples=options.mcg_samples,
            use_reward=options.use_reward,
            gamma=options.gamma,
            guidance_stop=options.guidance_stop,
            refine=options.refine,
            foresees=options.noise_level != "teacher_forcing",
        )
        return self.build_planner(sampler.forcing, sampler, drawn)

    def build_planner(self, forcing: DiffusionForcing, sampler: Sampler, options: PlannerOptions) -> Planner:
        """The planner of this line, with the search that the options ask for."""
        build: Any = GoalTokenPlanner if self.options.goal_token else Planner
        if self.options.search == "candidates":
            if self.support is None:
                raise UserError(
                    "algorithm.search=candidates judges plans by where the data has been, and these weights come without; "
                    "train with algorithm.goal_token=True, or use algorithm.search=none"
                )
            build = partial(CandidatePlanner, search=self.options.candidate_options(), support=self.support)
        elif self.options.search in ("mctd", "fast_mctd"):
            parallel = self.options.search == "fast_mctd"
            build = partial(TreeSearchPlanner, tree=self.options.tree, parallel=parallel, support=self.support)
        planner: Planner = build(forcing, self.bundle, sampler, options, causal=self.options.causal)
        return planner

    # ------------------------------------------------------------------------------------------------ checkpoints

    sizes: tuple[tuple[str, ...], tuple[str, ...]] = (), ("architecture",)
    """The options of `algorithm` and of `algorithm.diffusion` that decide the network's weights, beside the data and the schedule."""

    def describe(self) -> dict[str, Any]:
        """Metadata of a checkpoint: what it is, and the options that its weights depend on."""
        options = self.options
        of_algorithm, of_diffusion = self.sizes
        statistics = ("observation_mean", "observation_std", "action_mean", "action_std")
        tokens = ("frame_stack", "causal", "padding_mode", "use_reward", "goal_token")
        schedule = ("objective", "beta_schedule", "schedule_fn_kwargs", "timesteps")
        structure = {
            "dataset": chosen(options, *statistics, "episode_len", "frame_skip"),
            "algorithm": {
                **chosen(options, "noise_level", *tokens, *of_algorithm),
                "diffusion": chosen(options.diffusion, *schedule, *of_diffusion),
            },
        }
        described = {"task": "planning", "line": self.line, "env_id": options.env_id, "structure": structure}
        return described if self.support is None else {**described, "statistics": self.support.statistics()}

    def load_weights(self, checkpoint: Any) -> None:
        """Take the weights and statistics of a `checkpoints.LoadedCheckpoint`, into the network and its average.

        Refuses what does not match, naming the first key that differs.
        """
        where = "algorithm.diffusion" + (".architecture" if "architecture" in self.sizes[1] else "")
        advice = f"set dataset.observation_mean, dataset.action_mean and {where} as it was trained"
        trained_for = checkpoint.metadata.get("env_id", self.options.env_id)
        if trained_for not in (self.options.env_id, self.options.env_id.replace("antmaze-", "pointmaze-")):
            advice = f"it was trained for {trained_for}, this is {self.options.env_id}: choose that dataset"
            say(
                f"note: {checkpoint.path} was trained for {trained_for}, not for {self.options.env_id}; "
                "its plans may lead through walls"
            )
        self.check_weights(checkpoint, advice)
        for name, buffer in (("data_mean", self.bundle.mean), ("data_std", self.bundle.std)):
            value = checkpoint.statistics.get(name)
            if value is None:
                continue
            if value.shape != buffer.shape:
                raise UserError(
                    f"{checkpoint.path} models {len(value)} numbers a step ({name}), the configuration {len(buffer)}; {advice}"
                )
            buffer.copy_(value)
        self.support = Support.from_statistics(checkpoint.statistics) or self.support
        self.take_weights(checkpoint.weights)
