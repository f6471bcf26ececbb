"""The planning task with the paper's own network: the start makes the latent, tokens are the future alone (docs/method.md §9, §10).

Token n holds f bundles [next observation, action]. There is no token of the present and none is absent: a plan is as long as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import RecurrentMLPOptions
from diffusion_forcing.algorithms.planning.algorithm import Draws, Planning, PlanningOptions
from diffusion_forcing.algorithms.planning.guidance import RowGuidance, position_return
from diffusion_forcing.algorithms.planning.planner import Planner, PlannerOptions
from diffusion_forcing.algorithms.planning.tokens import Bundle, Steps
from diffusion_forcing.diffusion import DiffusionForcing, Sampler
from diffusion_forcing.diffusion.guidance import Return
from diffusion_forcing.diffusion.noise import normal
from diffusion_forcing.errors import UserError, check_fixed, check_not_negative, check_positive, check_range, require
from diffusion_forcing.networks.recurrent import Latent, recurrent_mlp


@dataclass(frozen=True, kw_only=True)
class RecurrentPlanningOptions(PlanningOptions):
    """`algorithm=df_planning_rnn`. z_shape: of the latent, [width].

    context_frames: steps before the present that a plan looks back on, a multiple of frame_stack; 0: z is made from the present alone.
    ddim_repeats: the released name of mcg_samples. gt_cond_prob: share of training tokens that are shown clean (level 0);
    gt_first_frame: the same of a sequence's first token.
    """

    warmup_steps: int = 2000
    z_shape: tuple[int, ...] = (128,)
    learnable_init_z: bool = False
    gt_first_frame: float = 0.0
    gt_cond_prob: float = 0.0
    causal: bool = True
    context_frames: int = 0
    guidance_scale: float = 0.1
    ddim_repeats: int | None = None
    diffusion: RecurrentMLPOptions = field(default_factory=lambda: RecurrentMLPOptions(num_mlp_layers=4))  # type: ignore[assignment]

    def __post_init__(self) -> None:
        only = {"causal": True, "learnable_init_z": False, "guidance_weights": "released", "search": "none"}
        check_fixed("algorithm", self, {**only, "padding_mode": "same"}, "df_planning_rnn")
        if self.ddim_repeats is not None:
            check_not_negative("algorithm.ddim_repeats", self.ddim_repeats)
            repeats = max(1, self.ddim_repeats)
            if self.mcg_samples not in (1, repeats):
                raise UserError(
                    f"algorithm.ddim_repeats is {self.ddim_repeats} and algorithm.mcg_samples {self.mcg_samples}; they are the old "
                    "and the new name of one number, give mcg_samples"
                )
            object.__setattr__(self, "mcg_samples", repeats)
        super().__post_init__()
        check_range("algorithm.gt_first_frame", self.gt_first_frame, 0, 1)
        check_range("algorithm.gt_cond_prob", self.gt_cond_prob, 0, 1)
        if len(self.z_shape) != 1:
            raise UserError(f"algorithm.z_shape is {list(self.z_shape)}; a plan's latent is a vector, as [128]")
        check_positive("algorithm.z_shape", self.z_shape[0])
        layers = self.diffusion.num_gru_layers
        if layers and self.z_shape[0] % layers:
            raise UserError(
                f"algorithm.z_shape is {list(self.z_shape)}; it must be a multiple of algorithm.diffusion.num_gru_layers {layers}"
            )

    def _check_context(self) -> None:
        check_not_negative("algorithm.context_frames", self.context_frames)
        if self.context_frames and self.noise_level == "full_sequence":
            raise UserError(
                f"algorithm.context_frames={self.context_frames} looks back on clean steps, which algorithm.noise_level=full_sequence never "
                "shows the network; set it to 0"
            )
        require(
            self.context_frames % self.frame_stack == 0,
            f"algorithm.context_frames is {self.context_frames}; it must be a multiple of frame_stack {self.frame_stack}",
        )


LOSS_SCALE = 10.0  # the released loss carries it


class RecurrentPlanning(Planning):
    """Recurrent Diffusion Forcing for trajectories. `options` is a `RecurrentPlanningOptions`."""

    Options = RecurrentPlanningOptions
    line = "rnn"
    sizes = ("z_shape",), ("network_size", "num_gru_layers", "num_mlp_layers", "self_condition")
    options: RecurrentPlanningOptions

    @staticmethod
    def build_network(options: PlanningOptions, bundle: Bundle) -> nn.Module:
        assert isinstance(options, RecurrentPlanningOptions)
        diffusion = options.diffusion
        return recurrent_mlp(
            bundle.token_width,
            options.z_shape[0],
            network_size=diffusion.network_size,
            num_gru_layers=diffusion.num_gru_layers,
            num_mlp_layers=diffusion.num_mlp_layers,
            self_condition=diffusion.self_condition,
            start_dim=bundle.observation_dim,
        )

    # ------------------------------------------------------------------------------------------------ training

    def draw(self, batch: int, time: int, *, generator: torch.Generator | None = None) -> Draws:
        """What training draws for sequences whose `time` tokens are the present and the future; there is nothing for the present's."""
        shape = (batch, time - 1)
        levels = self.shown_clean(self.draw_levels(*shape, generator=generator), generator)
        noise = normal((*shape, self.bundle.token_width), generator=generator, device=self.device)
        return Draws(None, levels, None, noise)

    def loss(
        self, tokens: Tensor, mask: Tensor, draws: Draws, *, forcing: DiffusionForcing | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training loss, a scalar, and the predicted clean tokens (b, t, f·c) of the future.

        tokens: (b, 1 + t, f·c), the first the present, of which only the observation is read. mask: (b, (1 + t)·f), frames that are real.
        """
        f, o = self.bundle.frame_stack, self.bundle.observation_dim
        start = self.bundle.unstack(tokens[:, :1])[:, -1, :o]
        forcing = forcing or self.forcing
        result = self.masked_loss(
            tokens[:, 1:], draws.levels, noise=draws.noise, memory=after(forcing, start), forcing=forcing
        )
        per_frame = result.per_element.unflatten(-1, (f, -1))
        weight = mask[:, f:].to(tokens.dtype)
        return LOSS_SCALE * (per_frame * weight.unflatten(1, (-1, f))[..., None]).mean(), result.x0

    # ------------------------------------------------------------------------------------------------ planning

    def build_planner(self, forcing: DiffusionForcing, sampler: Sampler, options: PlannerOptions) -> Planner:
        return RecurrentPlanner(forcing, self.bundle, sampler, options, context_frames=self.options.context_frames)


class RecurrentPlanner(Planner):
    """Draws plans whose start is in the latent; guided by the distance to the goal in metres, added to the plan after each row.

    Any horizon can be asked for. context_frames: steps before the present that the latent has seen, where `plan` is given that `past`.
    """

    present_tokens = 0
    guided_by = RowGuidance

    def __init__(
        self,
        forcing: DiffusionForcing,
        bundle: Bundle,
        sampler: Sampler,
        options: PlannerOptions,
        *,
        context_frames: int = 0,
    ) -> None:
        super().__init__(forcing, bundle, sampler, options, causal=True)
        self.context_frames = context_frames

    def _absent(self, horizon: int, tokens: int) -> int:
        require(horizon >= 1, f"horizon {horizon} is no plan; plan for 1 step or more")
        return 0

    @torch.no_grad()
    def _opening(self, start: Tensor, past: Steps | None) -> tuple[Tensor, Latent]:
        """No token, and the latent at `start`: made from it, or from where `past` began and what has happened since."""
        nothing = start.new_zeros(len(start), 0, self.bundle.token_width)
        if past is None or self.context_frames == 0:
            return nothing, after(self.forcing, start)
        bundle, o = self.bundle, self.bundle.observation_dim
        count = past.observations.shape[1]
        whole = count % bundle.frame_stack == 0
        require(whole, f"the past has {count} steps; algorithm.frame_stack {bundle.frame_stack} must divide them")
        mean, std = bundle.mean, bundle.std
        seen = (past.observations[..., :o] - mean[:o]) / std[:o]
        rest = torch.cat([past.actions[..., : bundle.action_dim], past.rewards[..., : bundle.reward_dim]], dim=-1)
        frames = torch.cat([torch.cat([seen[:, 1:], start[:, None]], dim=1), (rest - mean[o:]) / std[o:]], dim=-1)
        return nothing, self.forcing.prefill(bundle.stack(frames), memory=after(self.forcing, seen[:, 0]))

    def _goal_return(self, start: Tensor, goal: Tensor, horizon: int, scale: float | Tensor) -> Return:
        return position_return(self.bundle, goal, planned=horizon, scale=scale)


def after(forcing: DiffusionForcing, start: Tensor) -> Latent:
    """The latent at `start`: (b, o), normalised."""
    network: Any = forcing.network
    latent: Latent = network.starting(start)
    return latent
