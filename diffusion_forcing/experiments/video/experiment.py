"""Video: train on clips, then roll out from a context, score against the truth and two trivial baselines, and draw.

`validation` and `test` roll out `limit_batch` batches of clips and leave in the run's folder: metrics.json, a table
with a row for each predicted frame (csv and json), its curves, a grid of frames and videos. `interpolation` does the
same with clips whose both ends are observed. Each validation during training also rolls clips out, with fewer numbers
and a grid. Frames are scored, drawn and written as they come, so long clips need no more memory than short ones.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from diffusion_forcing.algorithms.parallel import gathered
from diffusion_forcing.algorithms.video import Video, VideoOptions
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.checkpointing import compile_network
from diffusion_forcing.experiments.loader import BatchLoader
from diffusion_forcing.experiments.options import ExperimentOptions, TestOptions, ValidationOptions
from diffusion_forcing.experiments.video import report
from diffusion_forcing.experiments.video.judge import JudgeOptions, first_clips, judge, load_inverse_dynamics
from diffusion_forcing.experiments.video.report import Drawing
from diffusion_forcing.experiments.video.rollouts import OPENING, Roller, Scores, frame_metrics
from diffusion_forcing.options import Count, Natural, check_limits
from diffusion_forcing.progress import Bar
from diffusion_forcing.tracking.run import NullRun

TEST_SEED_OFFSET, INTERPOLATION_SEED_OFFSET = 10_000, 20_000
"""The tasks draw other noise than validation."""


@dataclass(frozen=True, kw_only=True)
class InterpolationOptions:
    """The task `interpolation`; its batches and precision are validation's."""

    end_frames: Count = 1
    """Observed frames at the end of a clip, beside its context."""

    def __post_init__(self) -> None:
        check_limits("experiment.interpolation", self)


@dataclass(frozen=True, kw_only=True)
class VideoExperimentOptions(ExperimentOptions):
    """`experiment=exp_video`."""

    rollouts_in_training: bool = True
    """Each validation during training also rolls clips out, and draws them."""
    films: Natural = 4
    """Clips of validation and test that are drawn."""
    shuffled_actions: bool = True
    """For a model conditioned on actions: roll out again with other clips' actions, and compare."""
    save_predictions: bool = False
    """Keep the predicted frames of every batch of the three tasks: predictions/*.npy, (b, n, h, w, 3) uint8."""
    interpolation: InterpolationOptions = field(default_factory=InterpolationOptions)
    judge: JudgeOptions = field(default_factory=JudgeOptions)


class VideoExperiment(BaseExperiment):
    """Tasks: generate_dataset, training, validation, test, interpolation."""

    Options = VideoExperimentOptions
    task = "video"
    shared_tasks = frozenset({"training", "distill"})
    options: VideoExperimentOptions
    algorithm: Video

    @staticmethod
    def check(*, dataset: Any, algorithm: Any, experiment: Any) -> None:
        """UserError where the options of dataset and algorithm do not fit together; called before anything is built."""
        if not isinstance(algorithm, VideoOptions):
            return  # a user's own algorithm
        width = getattr(dataset, "num_action_columns", algorithm.action_width)
        if algorithm.external_cond_dim and width != algorithm.action_width:
            raise UserError(
                f"the model is conditioned on actions of {algorithm.action_width} numbers a frame "
                f"(algorithm.external_cond_dim {algorithm.external_cond_dim}, frame_skip {algorithm.frame_skip}, "
                f"{algorithm.action_kind}), the data has {width} "
                f"(dataset.external_cond_dim {getattr(dataset, 'external_cond_dim', 0)}); set "
                f"dataset.external_cond_dim={algorithm.external_cond_dim} for data with such actions, or "
                "algorithm.external_cond_dim=0 for a model without"
            )
        context, frames = algorithm.context_frames, getattr(dataset, "validation_frames", math.inf)
        if context >= frames:
            raise UserError(
                f"dataset.context_length {context} leaves nothing to predict of clips of {frames} frames; "
                "lower it, or raise dataset.n_frames or dataset.validation_multiplier"
            )
        if "interpolation" in experiment.tasks:
            _check_interpolation(algorithm, frames, experiment.interpolation.end_frames)

    def generate_dataset(self) -> None:
        """Make the data with the simulator that `dataset` names, or finish an interrupted generation."""
        if not hasattr(self.dataset, "generate"):
            raise UserError(
                f"{type(self.dataset).__name__} cannot be generated; "
                "choose dataset=video_labmaze or dataset=video_voxel"
            )
        self.dataset.generate(progress=True)

    def validation(self) -> None:
        """Roll out clips of `dataset.validation()`, score and draw them."""
        self._roll_out("validation", self.options.validation, seed=self.seed)

    def test(self) -> None:
        """The same for `dataset.test()`, and what `experiment.judge` asks for beyond it."""
        self._roll_out("test", self.options.test, seed=self.seed + TEST_SEED_OFFSET)

    def interpolation(self) -> None:
        """Fill in the middle of validation's clips, one window long, whose context and last frames are observed."""
        if self.algorithm.options.causal:
            self._say(
                "interpolation: with algorithm.causal=True a frame sees only what comes before it, so the middle does "
                "not know the given end; train with algorithm.causal=False to meet it"
            )
        end_frames = self.options.interpolation.end_frames
        seed = self.seed + INTERPOLATION_SEED_OFFSET
        self._roll_out("interpolation", self.options.validation, seed=seed, end_frames=end_frames)

    def roller(
        self, video: Video, *, seed: int, compiled: bool | str = False, network: nn.Module | None = None
    ) -> Roller:
        """A `Roller` with `network`, or the one that `video` samples with."""
        options = video.options
        if options.cache_used != options.cache:
            self._say_once(
                f"algorithm.cache={options.cache} needs algorithm.causal=True, otherwise frames see the future; "
                "rolling out without a cache"
            )
        forcing = video.sampling_forcing() if network is None else video.forcing.over(network)
        if compiled:
            compile_network(forcing, compiled)
        judged = self.options.judge.inverse_dynamics
        inverse = load_inverse_dynamics(judged).to(video.device) if judged and options.condition_width else None
        metrics = frame_metrics(options.observation_shape[1])
        return Roller(video, video.sampler(forcing), metrics=metrics, seed=seed, inverse=inverse)

    def drawing(self, task: str, *, end_frames: int = 0, videos: bool = True) -> Drawing:
        """A `Drawing` of the first `experiment.films` clips of `task`; videos=False: the grid alone, and no files."""
        options = self.algorithm.options
        keeps = videos and self.options.save_predictions and not isinstance(self.run, NullRun)
        return Drawing(
            self.run,
            task,
            clips=self.options.films,
            context=options.context_frames,
            end_frames=end_frames,
            videos=videos,
            columns=options.external_cond_dim if options.condition_width else 0,
            predictions=self.run.folder / "predictions" if keeps else None,
        )

    def _callbacks(self) -> list[Callback]:
        return [RolloutsInTraining(self)] if self.options.rollouts_in_training else []

    def _roll_out(self, task: str, options: ValidationOptions | TestOptions, *, seed: int, end_frames: int = 0) -> None:
        """`end_frames`: fill in clips of one window whose last so many frames are observed, instead of rolling out."""
        self._prepare()
        self._note_untrained(task)
        device = devices.device()
        video = self.algorithm.to(device).eval()
        context = video.options.context_frames
        roller = self.roller(video, seed=seed, compiled=options.compile)
        scores = Scores(roller.metrics)
        drawing = self.drawing(task, end_frames=end_frames)
        loader = self._loader(task, options)
        count = batches_of(options.limit_batch, len(loader))
        shuffles = not end_frames and self.options.shuffled_actions and bool(video.options.condition_width)
        # The last batch may have fewer clips.
        clips = min(count * options.batch_size, loader.position.samples)
        with contextlib.ExitStack() as stack:
            stack.callback(loader.close)
            stack.enter_context(devices.computing(task, options.precision, device))
            bar: Bar | None = None
            for number, batch in enumerate(itertools.islice(loader, count)):
                batch = VideoBatch(*(part.to(device, non_blocking=True) for part in batch))
                if end_frames:
                    batch = VideoBatch(*(part[:, : video.options.n_frames] for part in batch))
                length = batch.frames.shape[1]
                if not batch.valid[:, context : length - end_frames].any():
                    continue
                if bar is None:
                    predicted = length - context - end_frames
                    total = clips * (predicted + min(predicted, OPENING) * shuffles)
                    bar = stack.enter_context(Bar(task, total=total, unit="frames"))
                    roller.on_frames = bar.advance
                with drawing.of(batch, number) as on_chunk:
                    if end_frames:
                        roller.fill(batch, number, scores, end_frames=end_frames, on_chunk=on_chunk)
                    else:
                        roller.roll(batch, number, scores, on_chunk=on_chunk)
                if shuffles:
                    roller.roll_shuffled(batch, number, scores)
        if not scores.clips:
            raise UserError(
                f"{task}: no clip of {clips} has a frame to predict; lower dataset.context_length (it is {context}) "
                "or give longer clips"
            )
        self._report(task, scores, device, () if end_frames else video.options.metrics)
        if task == "test" and self.options.judge.anything:
            self._judge(task, options, roller, device)
        drawing.grid()
        report.draw_curves(self.run, task, scores)
        self._say_where(task)

    def _report(self, task: str, scores: Scores, device: torch.device, metrics: Sequence[str]) -> None:
        gain = report.action_gain(scores)
        for line in report.lines(scores, gain):
            self._say(line)
        distances = report.distances_of(scores, metrics, device=device, say=self._say)  # may add a curve
        numbers: dict[str, Any] = report.summary(scores) | gain | distances
        memory = numbers["peak_memory_megabytes"] = devices.peak_memory(device)
        self._say(f"  {scores.clips} clips, {numbers['seconds_per_frame']:.3f} s a frame, at most {memory:.0f} MB held")
        self._summary(task, numbers)
        caption = f"Each predicted frame of {scores.clips} clips, {task}"
        self.run.table(f"{task}_frames", report.rows(scores), caption=caption)

    def _judge(self, task: str, options: ValidationOptions | TestOptions, roller: Roller, device: torch.device) -> None:
        """What `experiment.judge` asks for, with the first clips of the task."""
        loader, wanted = self._loader(task, options), self.options.judge
        with contextlib.ExitStack() as stack:
            stack.callback(loader.close)
            stack.enter_context(devices.computing(task, options.precision, device))
            moved = (VideoBatch(*(part.to(device) for part in batch)) for batch in loader)
            batches = first_clips(moved, wanted.rollouts)
            roller.on_frames = stack.enter_context(Bar("judge", total=None, unit="frames")).advance
            numbers = judge(roller, batches, wanted, run=self.run, task=task, say=self._say)
        numbers["peak_memory_megabytes_judge"] = devices.peak_memory(device)
        self._summary(task, numbers)

    def _summary(self, task: str, numbers: dict[str, Any]) -> None:
        first = [f"{task}/{name}" for name in report.HEADLINES]
        self.run.summary({f"{task}/{name}": value for name, value in numbers.items()}, first=first)

    def _say_where(self, task: str) -> None:
        if isinstance(self.run, NullRun):
            return
        self._say(f"{task}: numbers   {self.run.folder / 'metrics.json'}")
        self._say(f"{task}: frames    {self.run.folder / 'tables' / f'{task}_frames.csv'} (and .json)")
        if self.options.films:
            self._say(f"{task}: pictures  {self.run.pictures} (videos, grid, curves)")
        if self.options.save_predictions:
            self._say(f"{task}: pixels    {self.run.folder / 'predictions'}")

    def _loader(self, task: str, options: ValidationOptions | TestOptions) -> BatchLoader:
        clips = getattr(self.dataset, task, self.dataset.validation)()
        return BatchLoader(
            clips,
            batch_size=options.batch_size,
            shuffle=options.data.shuffle,
            seed=self.seed,
            num_workers=options.data.num_workers,
            pin_memory=devices.device().type == "cuda",
        )


class RolloutsInTraining(Callback):
    """Rolls out, scores and draws every batch of a validation during training.

    The noise depends on the run's seed alone, so one validation compares with the next.
    """

    def __init__(self, experiment: VideoExperiment) -> None:
        self._experiment = experiment

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Video)
        # One for each average of the weights, where there are two; the one that is sampled with comes first.
        networks = pl_module.averages[:: -1 if pl_module.samples_second else 1] or [pl_module.sampling_network]
        self._rollers = [self._experiment.roller(pl_module, seed=self._experiment.seed, network=n) for n in networks]
        self._scores = [Scores(roller.metrics) for roller in self._rollers]
        self._drawing = self._experiment.drawing("training", videos=False)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: VideoBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Video)
        clips = VideoBatch(*batch)
        valid = clips.valid.clone()
        valid[pl_module.counted_rows(len(valid)) :] = False  # clips of another process
        clips = clips._replace(valid=valid)
        with trainer.precision_plugin.val_step_context(), self._drawing.of(clips, batch_idx) as on_chunk:
            for roller, scores, draw in zip(self._rollers, self._scores, (on_chunk, None), strict=False):
                roller.roll(clips, batch_idx, scores, on_chunk=draw)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Video)
        if not self._scores[0].clips:
            return
        if pl_module.share is not None:
            self._scores = [Scores.joined(gathered([replace(scores, openings={})])) for scores in self._scores]
        self._drawing.grid(f"Truth and prediction after {trainer.global_step:,} steps; amber: observed frames")
        found = [report.in_training(scores) for scores in self._scores]
        for name, value in found[0].items():
            pl_module.log(f"validation/{name}", value, sync_dist=True)
        if len(found) > 1:
            pl_module.log("validation/psnr_other_average", found[1]["psnr"], sync_dist=True)
            pl_module.samples_second ^= found[1]["psnr"] > found[0]["psnr"]
        del self._rollers, self._scores, self._drawing


def batches_of(limit: int | float | None, available: int) -> int:
    """How many of the `available` batches `limit_batch` means: a number, a share, or all; at least one."""
    if limit is None:
        return available
    wanted = math.ceil(limit * available) if isinstance(limit, float) else limit
    return max(1, min(wanted, available))


def _check_interpolation(algorithm: VideoOptions, frames: float, end_frames: int) -> None:
    """UserError where clips of `frames` frames, cut to the window, have no middle between context and `end_frames`."""
    f, context, length = algorithm.frame_stack, algorithm.context_frames, min(algorithm.n_frames, frames)
    key = "experiment.interpolation.end_frames"
    require(end_frames % f == 0, f"{key} {end_frames} is no multiple of algorithm.frame_stack {f}; pass {key}={f}")
    require(bool(context), f"interpolation needs frames at both ends; pass dataset.context_length={f} or more")
    if context + end_frames >= length:
        raise UserError(
            f"dataset.context_length {context} and {key} {end_frames} leave nothing to fill in of {length} frames; "
            "lower one of them, or take a model with a longer window"
        )
