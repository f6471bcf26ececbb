"""What a video experiment can be told beyond every experiment's options: the keys of `experiment/exp_video.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.options import ExperimentOptions


@dataclass(frozen=True, kw_only=True)
class InterpolationOptions:
    """The task `interpolation`; batches and precision are validation's."""

    end_frames: int = 1
    """Frames that are given at the end of a clip, beside its context."""

    def __post_init__(self) -> None:
        if self.end_frames < 1:
            raise UserError(
                f"experiment.interpolation.end_frames is {self.end_frames}; give at least 1 frame at the end (validation rolls out without)"
            )


@dataclass(frozen=True, kw_only=True)
class VideoExperimentOptions(ExperimentOptions):
    """`experiment=exp_video`."""

    rollouts_in_training: bool = True
    """Each validation during training also rolls clips out, and draws them."""
    films: int = 4
    """Clips of validation and test that are drawn."""
    shuffled_actions: bool = True
    """Where the model is told actions: roll out again with other clips' actions, and compare."""
    save_predictions: bool = False
    """Keep the frames that validation, test and interpolation predict, as predictions/*.npy: a file a batch, (b, n, h, w, 3) uint8."""
    interpolation: InterpolationOptions = field(default_factory=InterpolationOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.films < 0:
            raise UserError(f"experiment.films is {self.films}; it must be 0 (no pictures) or more")
