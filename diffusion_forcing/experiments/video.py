"""Video: train on clips, then roll out from a context, score against the truth and against two trivial baselines, and draw."""

from __future__ import annotations

from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.video_options import VideoExperimentOptions


class VideoExperiment(BaseExperiment):
    """Tasks: generate_dataset, training, validation, test, interpolation."""

    Options = VideoExperimentOptions
    task = "video"
    options: VideoExperimentOptions
    algorithm: Video

    def generate_dataset(self) -> None:
        """Make the data with the simulator that `dataset` names, or finish what was begun."""
        self.dataset.generate(progress=True)
