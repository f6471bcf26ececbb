"""The paper: torch only; no task, no configuration, no file. Read `forcing.py` first."""

from diffusion_forcing.diffusion.composition import Composition, compose
from diffusion_forcing.diffusion.ema import ema_of
from diffusion_forcing.diffusion.forcing import DiffusionForcing, Loss
from diffusion_forcing.diffusion.guidance import Guidance
from diffusion_forcing.diffusion.noise_levels import counted, draw_noise_levels, mask_absent
from diffusion_forcing.diffusion.parameterization import Prediction, add_noise, build_parameterization
from diffusion_forcing.diffusion.sampler import Sampler
from diffusion_forcing.diffusion.schedules import NoiseSchedule, build_schedule
from diffusion_forcing.diffusion.scheduling import sampling_levels, scheduling_matrix, validate_matrix

__all__ = [
    "Composition",
    "DiffusionForcing",
    "Guidance",
    "Loss",
    "NoiseSchedule",
    "Prediction",
    "Sampler",
    "add_noise",
    "build_parameterization",
    "build_schedule",
    "compose",
    "counted",
    "draw_noise_levels",
    "ema_of",
    "mask_absent",
    "sampling_levels",
    "scheduling_matrix",
    "validate_matrix",
]
