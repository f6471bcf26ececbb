"""The paper, in torch alone: it knows no task and no configuration.

Read `forcing.py` (the loss, one step), then `sampler.py` (the rollout), and of `history.py` the class `SlidingWindow`. docs/concepts.md maps
both algorithms of the paper to these lines.
"""

from diffusion_forcing.diffusion.forcing import DiffusionForcing, Loss
from diffusion_forcing.diffusion.guidance import GradientGuidance, classifier_free_guidance, history_guidance
from diffusion_forcing.diffusion.noise_levels import draw_noise_levels, loss_mask, mask_absent
from diffusion_forcing.diffusion.parameterization import Prediction, add_noise, build_parameterization
from diffusion_forcing.diffusion.sampler import Sampler
from diffusion_forcing.diffusion.schedules import NoiseSchedule, build_schedule, per_token
from diffusion_forcing.diffusion.scheduling import sampling_levels, scheduling_matrix, validate_matrix

__all__ = [
    "DiffusionForcing",
    "GradientGuidance",
    "Loss",
    "NoiseSchedule",
    "Prediction",
    "Sampler",
    "add_noise",
    "build_parameterization",
    "build_schedule",
    "classifier_free_guidance",
    "draw_noise_levels",
    "history_guidance",
    "loss_mask",
    "mask_absent",
    "per_token",
    "sampling_levels",
    "scheduling_matrix",
    "validate_matrix",
]
