"""Video: train on clips, then roll out from a context, score against the truth and against two trivial baselines, and draw.

`validation` and `test` roll out `limit_batch` batches of clips and leave in the run's folder: metrics.json, a table with a row for each
predicted frame (csv and json), its curves, a contact sheet and films. Each validation during training does the same, with fewer numbers.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from lightning.pytorch import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.algorithms.video_options import VideoOptions
from diffusion_forcing.datasets.video_batch import VideoBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import devices, video_report
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.loader import BatchLoader
from diffusion_forcing.experiments.options import TestOptions, ValidationOptions
from diffusion_forcing.experiments.rollouts import Roller, Scores, frame_metrics
from diffusion_forcing.experiments.video_distances import fvd_of
from diffusion_forcing.experiments.video_options import VideoExperimentOptions
from diffusion_forcing.experiments.weights import compile_network

TEST_SEED_OFFSET = 10_000  # the test task draws other noise than validation


class VideoExperiment(BaseExperiment):
    """Tasks: generate_dataset, training, validation, test, interpolation."""

    Options = VideoExperimentOptions
    task = "video"
    options: VideoExperimentOptions
    algorithm: Video

    @staticmethod
    def check(*, dataset: Any, algorithm: Any, experiment: Any) -> None:
        """UserError where the options of dataset and algorithm do not go together; called before anything is built."""
        if not isinstance(algorithm, VideoOptions):
            return  # somebody's own
        there = getattr(dataset, "num_action_columns", algorithm.action_width)
        if algorithm.external_cond_dim and there != algorithm.action_width:
            raise UserError(
                f"the model is told actions of {algorithm.action_width} numbers a frame (algorithm.external_cond_dim "
                f"{algorithm.external_cond_dim}, frame_skip {algorithm.frame_skip}, {algorithm.action_kind}), the data has {there} "
                f"(dataset.external_cond_dim {getattr(dataset, 'external_cond_dim', 0)}); set dataset.external_cond_dim="
                f"{algorithm.external_cond_dim} for data with such actions, or algorithm.external_cond_dim=0 for a model without"
            )
        given, frames = algorithm.context_frames, getattr(dataset, "validation_frames", math.inf)
        if given >= frames:
            raise UserError(
                f"dataset.context_length {given} leaves nothing to predict of clips of {frames} frames; "
                "lower it, or raise dataset.n_frames or dataset.validation_multiplier"
            )

    def generate_dataset(self) -> None:
        """Make the data with the simulator that `dataset` names, or finish what was begun."""
        if not hasattr(self.dataset, "generate"):
            raise UserError(
                f"{type(self.dataset).__name__} cannot be generated; choose dataset=video_labmaze or dataset=video_voxel"
            )
        self.dataset.generate(progress=True)

    def validation(self) -> None:
        """Roll out clips of `dataset.validation()`, score and draw them."""
        self._roll_out("validation", self.options.validation, seed=self.seed)

    def test(self) -> None:
        """The same for `dataset.test()`, all metrics too."""
        self._roll_out("test", self.options.test, seed=self.seed + TEST_SEED_OFFSET)

    # ------------------------------------------------------------------------------------------------ rolling out

    def _callbacks(self) -> list[Callback]:
        from diffusion_forcing.experiments.video_training import RolloutsInTraining

        return [RolloutsInTraining(self)] if self.options.rollouts_in_training else []

    def roller(self, video: Video, *, seed: int, compiled: bool | str = False) -> Roller:
        """Rolls clips out with `video`'s sampling network as the options say. A line says so where they cannot be followed."""
        options = video.options
        if options.cache_used != options.cache:
            self._say_once(
                f"algorithm.cache={options.cache}: with causal=False frames see the future and nothing can be kept; computing without"
            )
        forcing = video.sampling_forcing()
        if compiled:
            compile_network(forcing, compiled)
        return Roller(video, video.sampler(forcing), metrics=frame_metrics(options.observation_shape[1]), seed=seed)

    def _roll_out(self, task: str, options: ValidationOptions | TestOptions, *, seed: int) -> None:
        self._prepare()
        if not self.step:
            self._say(f"{task}: the weights are not trained (no load=, no resume=, no training before)")
        where = devices.device()
        video = self.algorithm.to(where).eval()
        roller = self.roller(video, seed=seed, compiled=options.compile)
        scores = Scores(roller.metrics)
        loader = self._loader(task, options)
        count = batches_of(options.limit_batch, len(loader))
        shuffling = self.options.shuffled_actions and bool(video.options.condition_width)
        with devices.computing(task, options.precision, where), self._progress() as progress:
            bar = progress.add_task(f"{task}: batches", total=count)
            for number, batch in enumerate(itertools.islice(loader, count)):
                batch = VideoBatch(*(part.to(where) for part in batch))
                roller.roll(batch, number, scores)
                if shuffling and len(batch.frames) > 1:
                    roller.roll_shuffled(batch, number, scores)
                progress.update(bar, completed=number + 1)
        loader.close()
        self._report(task, scores, where)

    def _report(self, task: str, scores: Scores, where: torch.device) -> None:
        metrics: dict[str, Any] = video_report.summary(scores)
        actions = video_report.of_actions(scores)
        for line in video_report.lines(scores, actions):
            self._say(line)
        metrics |= actions
        if "fvd" in self.algorithm.options.metrics:
            metrics |= fvd_of(scores, where=where, say=self._say)
        metrics["peak_memory_megabytes"] = devices.peak_memory(where)
        rows = video_report.rows(scores)
        self._say(
            f"  {scores.clips} clips, {metrics['seconds_per_frame']:.3f} s a frame, at most {metrics['peak_memory_megabytes']:.0f} MB held"
        )
        self.run.summary({f"{task}/{name}": value for name, value in metrics.items()})
        self.run.table(f"{task}_frames", rows, caption=f"Each predicted frame of {scores.clips} clips, {task}")

    def _loader(self, task: str, options: ValidationOptions | TestOptions) -> BatchLoader:
        own = getattr(self.dataset, task, None) or self.dataset.validation
        return BatchLoader(
            own(),
            batch_size=options.batch_size,
            shuffle=options.data.shuffle,
            seed=self.seed,
            num_workers=options.data.num_workers,
        )

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            transient=True,
        )


def batches_of(limit: int | float | None, there: int) -> int:
    """How many of `there` batches `limit_batch` means: a number, a share, or all; at least one."""
    if limit is None:
        return there
    wanted = math.ceil(limit * there) if isinstance(limit, float) else limit
    return max(1, min(wanted, there))
