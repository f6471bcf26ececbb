"""What a validation during training also does for video: rolls the same clips out, scores and draws them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_forcing.algorithms.sharing import gathered
from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.datasets.video_batch import VideoBatch
from diffusion_forcing.experiments import video_report
from diffusion_forcing.experiments.rollouts import Roller, Scores
from diffusion_forcing.experiments.video_drawing import Drawing

if TYPE_CHECKING:
    from diffusion_forcing.experiments.video import VideoExperiment


class RolloutsInTraining(Callback):
    """Rolls out every batch that is validated on. The noise belongs to the run's seed, so one validation compares with the next."""

    def __init__(self, experiment: VideoExperiment) -> None:
        self._experiment = experiment
        self._roller: Roller | None = None
        self._scores: Scores | None = None
        self._drawing: Drawing | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Video)
        self._roller = self._experiment.roller(pl_module, seed=self._experiment.seed)
        self._scores = Scores(self._roller.metrics)
        self._drawing = self._experiment.drawing("training", films=False)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: VideoBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._roller is not None and self._scores is not None and self._drawing is not None
        assert isinstance(pl_module, Video)
        clips = VideoBatch(*batch)
        valid = clips.valid.clone()
        valid[pl_module.counted_rows(len(valid)) :] = False  # another process has those
        clips = clips._replace(valid=valid)
        with trainer.precision_plugin.val_step_context(), self._drawing.of(clips, batch_idx) as on_chunk:
            self._roller.roll(clips, batch_idx, self._scores, on_chunk=on_chunk)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._scores is not None and self._drawing is not None
        assert isinstance(pl_module, Video)
        if not self._scores.clips:
            return
        if pl_module.share is not None:
            self._scores = Scores.joined(gathered([replace(self._scores, openings={})]))
        self._drawing.sheet(
            f"Truth and prediction after {trainer.global_step:,} steps; amber: what the model was given"
        )
        for name, value in video_report.in_training(self._scores).items():
            pl_module.log(f"validation/{name}", value, sync_dist=True)
        self._roller = self._scores = self._drawing = None
