"""What a world model does when it is driven for long: drift, survival and obedience over many frames, memory, speed (docs/metrics.md).

Long rollouts begin with a clip's context and go on with its actions, then with those of the other clips of its batch: inputs that need no
truth. They are compared with the statistics of real video, not with the frames that would have been.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints import resolve
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError, check_minimum
from diffusion_forcing.experiments.video.rollouts import ACTION, LAPLACIAN, PIXEL_SQUARE, Roller, synchronize
from diffusion_forcing.metrics.video import (
    Curve,
    Interval,
    InverseDynamics,
    Life,
    actions_recognised,
    alive,
    bootstrap,
    contrast,
    frame_curves,
    laplacian_energy,
    mean_interval,
    mean_of,
    motion,
    nearest,
    ratio_interval,
    thumbnails,
)
from diffusion_forcing.options import Count, Natural, check_limits
from diffusion_forcing.visualization.charts import Panel, draw_horizon

LATE = 32
"""Frames over which numbers at frame 200 and at the end are averaged."""
MOTION, CONTRAST, CHANNEL, THUMBNAIL = "motion", "contrast", "channel_", "thumbnail"


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """`experiment.judge`: what the task test measures beside the scores of its clips; the long parts are off by default."""

    inverse_dynamics: str | None = None
    """Checkpoint of a classifier that tells actions from frames (tools/train_inverse_dynamics.py); null: obedience is not measured."""
    frames: Natural = 0
    """Predicted frames of the long rollouts; 0: none."""
    rollouts: int = 32
    """How many long rollouts, one from each clip."""
    turns: tuple[Count, ...] = ()
    """Memory: turn so often one way and back, and compare with where it started."""
    turn: tuple[int, int] = (1, 2)
    """Numbers of the actions that turn one way and back."""
    speed_frames: Natural = 0
    """Frames of one clip that are timed, once the window is full; 0: none."""

    def __post_init__(self) -> None:
        check_limits("experiment.judge", self)
        check_minimum("experiment.judge.rollouts", self.rollouts, 2)

    @property
    def anything(self) -> bool:
        """Whether something is measured beside the scores of clips."""
        return bool(self.frames or self.turns or self.speed_frames)


def load_inverse_dynamics(spec: str) -> InverseDynamics:
    """The classifier that `experiment.judge.inverse_dynamics` names; UserError for another kind of checkpoint."""
    loaded = native.load(resolve(spec))
    try:
        return InverseDynamics.of(loaded.metadata, loaded.weights)
    except UserError as error:
        raise UserError(f"experiment.judge.inverse_dynamics={spec}: {error}") from None


@dataclass
class Long:
    """Statistics of long rollouts, and of the real clips they began with: by name, an array (b, n) for each batch."""

    model: dict[str, list[Curve]] = field(default_factory=lambda: defaultdict(list))
    real: dict[str, list[Curve]] = field(default_factory=lambda: defaultdict(list))

    def add(self, who: dict[str, list[Curve]], found: dict[str, Tensor]) -> None:
        for name, values in found.items():
            who[name].append(values.double().cpu().numpy())

    @property
    def rollouts(self) -> int:
        return sum(map(len, self.model[PIXEL_SQUARE]))


def roll_long(roller: Roller, batch: VideoBatch, number: int, frames: int, long: Long) -> None:
    """Roll the clips of batch `number` on for `frames` frames and add their statistics, and those of the real clips, to `long`."""
    context = roller.video.options.context_frames
    driven = endless(batch, context + frames)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    before = batch.frames[:, context - 1 : context].float() / 255
    now = context
    for chunk in roller.stream(driven, number, context + frames):
        shown = torch.cat([before, chunk.float()], dim=1)
        stop = now + chunk.shape[1]
        for name, values in statistics(shown, driven.actions[:, now:stop], roller.inverse).items():
            parts[name].append(values)
        del parts[THUMBNAIL][:-LATE]  # needed of the last frames alone
        before, now = shown[:, -1:], stop
    long.add(long.model, {name: torch.cat(pieces, dim=1) for name, pieces in parts.items()})
    real = batch.frames.float() / 255
    long.add(long.real, statistics(real, batch.actions[:, 1:], roller.inverse))


def statistics(frames: Tensor, actions: Tensor, inverse: InverseDynamics | None) -> dict[str, Tensor]:
    """Of frames 1 … t of `frames`: (b, t + 1, c, h, w) by name, (b, t) each; the thumbnails are (b, t, d). actions: (b, t, A)."""
    own = frames[:, 1:]
    found = {f"{CHANNEL}{i}": own[:, :, i].mean(dim=(2, 3)) for i in range(own.shape[2])}
    found |= {PIXEL_SQUARE: own.square().mean(dim=(2, 3, 4)), LAPLACIAN: laplacian_energy(own), MOTION: motion(frames)}
    found[CONTRAST] = own.std(dim=(3, 4)).mean(dim=2)
    if inverse is not None:
        found[ACTION] = actions_recognised(frames, actions, inverse)
    return found | {THUMBNAIL: thumbnails(own)}


def endless(batch: VideoBatch, length: int) -> VideoBatch:
    """`batch` with actions for `length` frames: a clip's own, and behind them those of the clips after it, as often as needed."""

    def longer(part: Tensor) -> Tensor:
        others = [part[:, 1:].roll(-turn, dims=0) for turn in range(1, -(-length // (part.shape[1] - 1)) + 1)]
        return torch.cat([part, *others], dim=1)[:, :length]

    return batch._replace(actions=longer(batch.actions), known=longer(batch.known))


# ---------------------------------------------------------------------------------------------------- numbers of long rollouts


def long_numbers(long: Long) -> dict[str, float]:
    """For metrics.json: the drift at frames 1–16, 200 and the end, how well actions are obeyed there, and the share of rollouts that live."""
    model, real = _whole(long.model), _whole(long.real)
    length = model[PIXEL_SQUARE].shape[1]
    numbers: dict[str, float] = {"long_frames": length, "long_rollouts": long.rollouts}
    spans = {"16": slice(0, 16), "200": slice(200 - LATE // 2, 200 + LATE // 2), "end": slice(length - LATE, length)}
    for name, span in spans.items():
        if span.stop <= length and span.start >= 0:
            for key, interval in _at(model, real, span).items():
                numbers |= interval.numbers(f"long_{key}_{name}")
    late, clips = (torch.from_numpy(part[THUMBNAIL]) for part in (model, real))
    moved, real_moved = (
        torch.from_numpy(motion) for motion in (model[MOTION][:, -LATE:].mean(1), real[MOTION].mean(1))
    )
    living = alive(
        Life(moved, contrast(late), nearest(late, clips)),
        Life(real_moved, contrast(clips), nearest(clips, clips, same=True)),
    )
    numbers |= mean_interval(living.double().numpy()[:, None]).numbers("long_alive")
    return numbers


def _at(model: dict[str, Curve], real: dict[str, Curve], span: slice) -> dict[str, Interval]:
    """What frames `span` of the rollouts have against all real frames, resampled by rollout."""

    def averaged(name: str) -> Curve:
        return model[name][:, span].mean(axis=1, keepdims=True)

    channels = [name for name in model if name.startswith(CHANNEL)]
    mean = np.mean([averaged(name) for name in channels], axis=0)
    real_mean, real_deviation = _moments(real)
    deviation = bootstrap(
        lambda first, second: np.sqrt(np.maximum(second - first**2, 0)) / real_deviation, mean, averaged(PIXEL_SQUARE)
    )
    worst = np.max([abs(averaged(name).mean() - real[name].mean()) for name in channels])
    found = {
        "mean_difference": mean_interval(mean - real_mean),
        "channel_difference": Interval(*(np.array([end]) for end in (worst, np.nan, np.nan))),
        "deviation_ratio": deviation,
        "contrast_ratio": mean_interval(averaged(CONTRAST) / real[CONTRAST].mean()),
        "sharpness": mean_interval(averaged(LAPLACIAN) / real[LAPLACIAN].mean()),
        "motion_ratio": mean_interval(averaged(MOTION) / real[MOTION].mean()),
    }
    if ACTION in model:
        recognised = averaged(ACTION)
        found["actions"] = mean_interval(recognised)
        found["actions_relative"] = ratio_interval(recognised, np.full_like(recognised, real[ACTION].mean()))
    return found


def _moments(of: dict[str, Curve]) -> tuple[float, float]:
    """Mean and deviation of all pixels."""
    mean = float(np.mean([of[name] for name in of if name.startswith(CHANNEL)]))
    return mean, float(np.sqrt(of[PIXEL_SQUARE].mean() - mean**2))


def _whole(batches: dict[str, list[Curve]]) -> dict[str, Curve]:
    return {name: np.concatenate(parts) for name, parts in batches.items()}


def draw_long(run: Any, task: str, long: Long) -> None:
    """Keep the curves of drift as <task>_drift: each statistic by frame, beside the mean of the real clips."""
    model, real = _whole(long.model), _whole(long.real)
    length = model[PIXEL_SQUARE].shape[1]
    channels = [name for name in model if name.startswith(CHANNEL)]
    mean = np.mean([model[name] for name in channels], axis=0)
    deviation = np.sqrt(np.maximum(mean_of(model[PIXEL_SQUARE]) - mean_of(mean) ** 2, 0))
    real_mean, real_deviation = _moments(real)
    curves: list[tuple[str, Curve, float, Interval | None]] = [
        ("pixel mean", mean_of(mean), real_mean, mean_interval(mean)),
        ("pixel deviation", deviation, real_deviation, None),
    ]
    for title, name in (
        ("contrast within a frame", CONTRAST),
        ("texture (energy of the Laplacian)", LAPLACIAN),
        ("motion", MOTION),
        ("actions recognised", ACTION),
    ):
        if name in model:
            smooth = _smoothed(model[name])
            curves.append((title, mean_of(smooth), float(real[name].mean()), mean_interval(smooth)))
    panels = [
        Panel(
            title=title,
            lines={"model": values, "real video": np.full(length, level)},
            band=None if interval is None else (interval.low, interval.high),
            band_name="its 95 % interval",
        )
        for title, values, level, interval in curves
    ]
    run.image(
        f"{task}_drift",
        draw_horizon(panels),
        caption=f"{long.rollouts} rollouts of {length} frames beside real video, {task}",
    )


def _smoothed(curve: Curve, frames: int = 16) -> Curve:
    """Mean over the last `frames` frames of each (b, n)."""
    total = np.cumsum(np.pad(curve, [(0, 0), (1, 0)]), axis=1)
    end = np.arange(1, curve.shape[1] + 1)
    start = np.maximum(end - frames, 0)
    smooth: Curve = (total[:, end] - total[:, start]) / (end - start)
    return smooth


# ---------------------------------------------------------------------------------------------------- memory and speed


def turning(roller: Roller, batch: VideoBatch, number: int, count: int, turn: Sequence[int]) -> dict[str, Tensor]:
    """PSNR (b,) with the last frame of the context after `count` turns one way (`away`) and as many back (`back`); `stranger`: of the context's
    last frame with another clip's, what a model without memory gets."""
    options = roller.video.options
    context = options.context_frames
    width = options.external_cond_dim
    if not width or options.action_kind != "discrete" or max(turn) >= width or min(turn) < 0:
        raise UserError(
            f"experiment.judge.turn={list(turn)} needs discrete actions of these numbers; the model has {width} ({options.action_kind}); "
            "set experiment.judge.turns=[] or the two actions that turn"
        )
    one_way, back = (F.one_hot(torch.tensor(action), width).repeat(options.frame_skip) for action in turn)
    path = torch.stack([one_way] * count + [back] * count).to(batch.actions)
    actions = torch.cat([batch.actions[:, :context], path.expand(len(batch.frames), -1, -1)], dim=1)
    known = torch.cat([batch.known[:, :context], batch.known.new_ones(len(batch.frames), 2 * count)], dim=1)
    chunks = roller.stream(batch._replace(actions=actions, known=known), number, context + 2 * count)
    frames = torch.cat([chunk.float() for chunk in chunks], dim=1)
    start = batch.frames[:, context - 1 : context].float() / 255
    shown = {"back": frames[:, -1:], "away": frames[:, count - 1 : count], "stranger": start.roll(1, dims=0)}
    scores = {name: frame_curves(frame, start, ["psnr"])["psnr"][:, 0] for name, frame in shown.items()}
    if len(start) == 1:  # the only clip of its batch has no other beside it
        scores["stranger"] = torch.full_like(scores["stranger"], torch.nan)
    return scores


def turn_numbers(count: int, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """For metrics.json: the mean of each kind over all clips, with intervals."""
    numbers: dict[str, float] = {}
    for name in batches[0]:
        values = torch.cat([batch[name] for batch in batches]).double().numpy()
        numbers |= mean_interval(values[:, None]).numbers(f"turn_{count}_{name}_psnr")
    return numbers


def speed(roller: Roller, batch: VideoBatch, frames: int) -> dict[str, float]:
    """Frames a second of one clip, everything included, once the window is full: the median, and the rate that 19 of 20 frames keep."""
    options = roller.video.options
    warm = max(options.n_frames, options.context_frames)
    length = warm + frames
    one = endless(VideoBatch(*(part[:1] for part in batch)), length)
    times, started, now = [], time.perf_counter(), options.context_frames
    for chunk in roller.stream(one, 0, length):
        synchronize(chunk.device)
        now += chunk.shape[1]
        if now > warm:
            times.append((time.perf_counter() - started) / chunk.shape[1])
        started = time.perf_counter()
    middle, slow = np.quantile(times, [0.5, 0.95])
    return {"frames_per_second_p50": 1 / middle, "frames_per_second_p95": 1 / slow}


def judge(
    roller: Roller,
    batches: Sequence[VideoBatch],
    options: JudgeOptions,
    *,
    run: Any,
    task: str,
    say: Callable[[str], None],
) -> dict[str, float]:
    """All that `options` asks for, of the first clips of `batches`, as numbers for metrics.json; the curves of drift go to `run`."""
    clips, context = sum(len(batch.frames) for batch in batches), roller.video.options.context_frames
    if clips < 2 or not context:
        raise UserError(
            f"experiment.judge needs at least 2 clips without padding and a context, got {clips} and dataset.context_length {context}; "
            "give more or longer episodes, or a context"
        )
    numbers: dict[str, float] = {}
    if options.frames:
        long = Long()
        for number, batch in enumerate(batches):
            roll_long(roller, batch, number, options.frames, long)
        numbers |= long_numbers(long)
        draw_long(run, task, long)
    for count in options.turns:
        numbers |= turn_numbers(
            count, [turning(roller, batch, n, count, options.turn) for n, batch in enumerate(batches)]
        )
    if options.speed_frames:
        numbers |= speed(roller, batches[0], options.speed_frames)
    for name, value in numbers.items():
        if not name.endswith(("_low", "_high")):
            ends = [numbers.get(f"{name}_{end}") for end in ("low", "high")]
            interval = "" if None in ends else f" (95 % {ends[0]:.4g} to {ends[1]:.4g})"
            say(f"  {name} {value:.4g}{interval}")
    return numbers


def first_clips(batches: Iterable[VideoBatch], count: int) -> list[VideoBatch]:
    """The first `count` whole clips of batches that are read one after another."""
    kept: list[VideoBatch] = []
    for batch in batches:
        whole = batch.valid.all(dim=1)
        kept.append(VideoBatch(*(part[whole][:count] for part in batch)))
        count -= len(kept[-1].frames)
        if count <= 0:
            break
    return [batch for batch in kept if len(batch.frames)]
