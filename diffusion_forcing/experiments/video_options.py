"""What a video experiment can be told beyond every experiment's options: the keys of `experiment/exp_video.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.options import ExperimentOptions


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
    """Keep the frames that validation and test roll out, as predictions/*.npy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.films < 0:
            raise UserError(f"experiment.films is {self.films}; it must be 0 (no pictures) or more")
