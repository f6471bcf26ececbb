"""Every option of `algorithm=df_planning_rnn`: the planning task with the paper's own recurrent network."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusion_forcing.algorithms.options import not_negative, positive, within
from diffusion_forcing.algorithms.planning import PlanningOptions
from diffusion_forcing.algorithms.recurrent_options import RecurrentMLPOptions
from diffusion_forcing.errors import UserError


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
        if not self.causal:
            raise UserError(
                "algorithm.causal=False: a recurrent network sees the past alone; use algorithm=df_planning"
            )
        if self.ddim_repeats is not None:
            not_negative("algorithm.ddim_repeats", self.ddim_repeats)
            repeats = max(1, self.ddim_repeats)
            if self.mcg_samples not in (1, repeats):
                raise UserError(
                    f"algorithm.ddim_repeats is {self.ddim_repeats} and algorithm.mcg_samples {self.mcg_samples}; they are the old "
                    "and the new name of one number, give mcg_samples"
                )
            object.__setattr__(self, "mcg_samples", repeats)
        super().__post_init__()
        within("algorithm.gt_first_frame", self.gt_first_frame, 0, 1)
        within("algorithm.gt_cond_prob", self.gt_cond_prob, 0, 1)
        if len(self.z_shape) != 1:
            raise UserError(f"algorithm.z_shape is {list(self.z_shape)}; a plan's latent is a vector, as [128]")
        positive("algorithm.z_shape", self.z_shape[0])
        layers = self.diffusion.num_gru_layers
        if layers and self.z_shape[0] % layers:
            raise UserError(
                f"algorithm.z_shape is {list(self.z_shape)}; it must be a multiple of algorithm.diffusion.num_gru_layers {layers}"
            )
        if self.learnable_init_z:
            raise UserError(
                "algorithm.learnable_init_z=True: the latent of a plan is made from its start; leave it False"
            )
        if self.guidance_weights != "released":
            raise UserError(
                f"algorithm.guidance_weights={self.guidance_weights} is df_planning's; this line's guidance is the summed distance"
            )
        if self.padding_mode != "same":
            raise UserError(
                f"algorithm.padding_mode={self.padding_mode} is df_planning's; this line has no token of the present: same"
            )

    def _check_context(self) -> None:
        not_negative("algorithm.context_frames", self.context_frames)
        if self.context_frames and self.noise_level == "full_sequence":
            raise UserError(
                f"algorithm.context_frames={self.context_frames} looks back on clean steps, which algorithm.noise_level=full_sequence never "
                "shows the network; set it to 0"
            )
        if self.context_frames % self.frame_stack:
            raise UserError(
                f"algorithm.context_frames is {self.context_frames}; it must be a multiple of algorithm.frame_stack {self.frame_stack}"
            )
