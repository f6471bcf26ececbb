"""What rollouts leave: their scores as numbers for metrics.json, rows of a table, lines for the terminal and curves; and
their videos, a grid of the first clips, and predicted frames as files.

Keys are a metric's name, followed by `_<predictor>` for another predictor than the model. The metrics that need a
pretrained network (LPIPS of single frames, FID and FVD of sets) are computed on the first predicted frames of each clip
(`OPENING` at most). One that cannot be computed becomes a line that says why and what to do.

Frames go straight into the encoders of the videos and to disk; a few are kept for the grid, so memory does not grow
with the clips' length. An interrupted task leaves nothing half-written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError, explaining_os_errors
from diffusion_forcing.experiments.video.rollouts import (
    ACTION,
    BLEND,
    COPY,
    LAPLACIAN,
    MEAN,
    MODEL,
    OPENING,
    SHUFFLED,
    TRUTH,
    OnChunk,
    Scores,
)
from diffusion_forcing.files import replacing
from diffusion_forcing.metrics.frechet import (
    FrechetReport,
    fid_report,
    frechet_ratio,
    fvd_report,
    i3d_features,
    inception_features,
)
from diffusion_forcing.metrics.i3d import load_i3d
from diffusion_forcing.metrics.inception import load_inception
from diffusion_forcing.metrics.lpips import load_lpips, lpips
from diffusion_forcing.metrics.video import Curve, Interval, mean_interval, mean_of, ratio_interval
from diffusion_forcing.metrics.weights import Unavailable, cache_folder
from diffusion_forcing.visualization.charts import Panel, draw_horizon
from diffusion_forcing.visualization.video import SideBySide, draw_grid, grid_frames

SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Predicted frames that are printed, beside the last one."""
CHECKED = (1, 4, 8, 16, 64)
"""Predicted frames with numbers of their own in metrics.json."""
NAMES = {
    MODEL: "model",
    COPY: "last frame, repeated",
    MEAN: "mean of the context",
    BLEND: "blend of both ends",
    SHUFFLED: "model, other clips' actions",
}
"""Predictors as a legend names them."""
HEADLINES = (
    *("clips", "psnr", "psnr_copy_last", "ssim", "ssim_copy_last", "lpips", "fvd", "fvd_ratio", "sharpness_frame_16"),
    *("actions_relative_frames_1_16", "actions_gain", "long_alive", "frames_per_second_p50", "seconds_per_frame"),
)
"""The results to read first."""
COLUMNS = {
    "psnr": "PSNR",
    "psnr_copy_last": "copy last",
    "psnr_mean_frame": "mean frame",
    "psnr_linear_blend": "linear blend",
    "psnr_shuffled_actions": "other actions",
    "ssim": "SSIM",
    "sharpness": "sharpness",
    "actions": "actions",
    "actions_truth": "real's",
    "pixel_variance": "variance",
    "pixel_variance_truth": "truth's",
}
"""Columns of the terminal's table."""


def rows(scores: Scores) -> list[dict[str, float | int]]:
    """One row for each predicted frame, from 1.

    Each metric's mean over clips for every predictor, with the model's 95 % interval; the number of clips; the mean and
    variance of the pixels and of the truth's. Values that are not finite are left out.
    """
    columns: dict[str, Curve] = {}
    for metric in scores.metrics:
        for who in NAMES:
            if (who, metric) in scores.curves:
                mean, low, high = mean_interval(scores.curve(who, metric))
                columns[_key(metric, who)] = mean
                if who == MODEL:
                    columns[f"{metric}_low"], columns[f"{metric}_high"] = low, high
    for who in NAMES:
        if (sharp := sharpness(scores, who)) is not None:
            columns[_key("sharpness", who)] = sharp.value
            if who == MODEL:
                columns["sharpness_low"], columns["sharpness_high"] = sharp.low, sharp.high
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        columns[f"pixel_mean{suffix}"], columns[f"pixel_variance{suffix}"] = scores.pixels(who)
        if (who, ACTION) in scores.curves:
            columns[f"actions{suffix}"] = mean_of(scores.curve(who, ACTION))
    table: list[dict[str, float | int]] = []
    for index, clips in enumerate(np.isfinite(scores.curve(MODEL, scores.metrics[0])).sum(axis=0)):
        table.append({"frame": index + 1, "clips": int(clips)})
        for name, values in columns.items():
            if index < len(values) and np.isfinite(values[index]):
                table[-1][name] = float(values[index])
    return table


def summary(scores: Scores) -> dict[str, float | int]:
    """Each metric's mean over the horizon and at `CHECKED` frames for every predictor; the pixels' drift; the speed."""
    numbers: dict[str, float | int] = {"clips": scores.clips}
    frames: dict[str, float | int] = {}
    for who in (MODEL, COPY, MEAN, BLEND):
        for metric in scores.metrics:
            if (who, metric) not in scores.curves:
                continue
            interval = mean_interval(scores.curve(who, metric))
            curve = interval.value
            if np.isfinite(curve).any():
                numbers[_key(metric, who)] = float(np.nanmean(curve))
            for frame in CHECKED:
                if frame <= len(curve) and np.isfinite(curve[frame - 1]):
                    name = f"{_key(metric, who)}_frame_{frame}"
                    found = interval.numbers(name, frame - 1)
                    frames |= found if who == MODEL else {name: found[name]}
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        for name, values in zip(("mean", "variance"), scores.pixels(who), strict=True):
            finite = values[np.isfinite(values)].tolist()
            if finite:
                numbers[f"pixel_{name}{suffix}_first"], numbers[f"pixel_{name}{suffix}_last"] = finite[0], finite[-1]
    numbers["frames_predicted"] = scores.frames
    numbers["seconds_per_frame"] = scores.seconds / max(1, scores.frames)
    return numbers | frames | judged(scores)


def sharpness(scores: Scores, who: str) -> Interval | None:
    """Energy of the Laplacian of a predictor over the truth's, at each frame; None where it was not measured."""
    if (who, LAPLACIAN) not in scores.curves:
        return None
    return ratio_interval(scores.curve(who, LAPLACIAN), scores.curve(TRUTH, LAPLACIAN))


def judged(scores: Scores) -> dict[str, float]:
    """Sharpness at `CHECKED` frames, and how well inverse dynamics tells the actions up to each and in real video; with intervals.

    `actions_relative`: the model's share of actions recognised over that of the truth.
    """
    numbers: dict[str, float] = {}
    for who in (MODEL, COPY, MEAN, BLEND):
        sharp = sharpness(scores, who)
        for frame in CHECKED:
            if sharp is not None and frame <= len(sharp.value):
                numbers |= sharp.numbers(f"{_key('sharpness', who)}_frame_{frame}", frame - 1)
    if (MODEL, ACTION) not in scores.curves:
        return numbers
    real = scores.curve(TRUTH, ACTION)
    for first, last in ((1, 1), (1, 16), (16, 16), (49, 64)):
        if last <= real.shape[1]:
            recognised, truth = (
                scores.curve(who, ACTION)[:, first - 1 : last].mean(1)[:, None] for who in (MODEL, TRUTH)
            )
            name = f"frame_{first}" if first == last else f"frames_{first}_{last}"
            numbers |= mean_interval(recognised).numbers(f"actions_{name}")
            numbers |= mean_interval(truth).numbers(f"actions_truth_{name}")
            numbers |= ratio_interval(recognised, truth).numbers(f"actions_relative_{name}")
    return numbers


def in_training(scores: Scores) -> dict[str, float]:
    """Numbers of a validation during training: means over the horizon of the model and copy-last, and the speed."""
    kept = [_key(metric, who) for who in (MODEL, COPY) for metric in scores.metrics]
    return {name: float(value) for name, value in summary(scores).items() if name in (*kept, "seconds_per_frame")}


def action_gain(scores: Scores) -> dict[str, float]:
    """How much better the true actions are than other clips', in dB of PSNR, paired by clip and noise.

    With 95 % intervals, at `CHECKED` frames and over all compared ones. Empty where they were not compared.
    """
    if (SHUFFLED, "psnr") not in scores.curves:
        return {}
    other = scores.curve(SHUFFLED, "psnr")
    gain = scores.curve(MODEL, "psnr")[:, : other.shape[1]] - other
    if not np.isfinite(gain).any():
        return {}
    numbers: dict[str, float] = {}
    by_frame = mean_interval(gain)
    for frame in CHECKED:
        if frame <= gain.shape[1]:
            numbers |= by_frame.numbers(f"actions_gain_frame_{frame}", frame - 1)
    return numbers | mean_interval(mean_of(gain.T)[:, None]).numbers("actions_gain")


def lines(scores: Scores, gain: dict[str, float]) -> list[str]:
    """The table of the terminal at a few frames, and the gain of the true actions."""
    table = rows(scores)
    shown = sorted({frame for frame in SHOWN if frame <= len(table)} | {len(table)})
    present = {key: title for key, title in COLUMNS.items() if any(key in row for row in table)}
    text = ["  frame  " + "  ".join(f"{title:>13s}" for title in present.values())]
    for frame in shown:
        cells = [f"{table[frame - 1][key]:13.4g}" if key in table[frame - 1] else f"{'–':>13s}" for key in present]
        text.append(f"  {frame:5d}  " + "  ".join(cells))
    for frame in CHECKED:
        name = f"actions_gain_frame_{frame}"
        if name in gain:
            ends = [gain.get(f"{name}_{end}", float("nan")) for end in ("low", "high")]
            interval = f"95 % {ends[0]:+.3f} to {ends[1]:+.3f}"
            text.append(f"  true actions over other clips' at frame {frame}: {gain[name]:+.3f} dB ({interval})")
    return text


def draw_curves(run: Any, task: str, scores: Scores) -> None:
    """Keep the scores over the horizon as <task>_curves, and the pixels' statistics as <task>_pixels, in `run`."""
    panels = []
    for metric, title in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if metric in scores.metrics:
            means = {NAMES[who]: mean_of(scores.curve(who, metric)) for who in NAMES if (who, metric) in scores.curves}
            finite = {name: mean for name, mean in means.items() if np.isfinite(mean).any()}
            _, low, high = mean_interval(scores.curve(MODEL, metric))
            panels.append(Panel(title=title, lines=finite, band=(low, high), band_name="its 95 % interval"))
    sharp = {NAMES[who]: curve for who in NAMES if (curve := sharpness(scores, who)) is not None}
    if NAMES[MODEL] in sharp:
        ours = sharp[NAMES[MODEL]]
        lines = {name: curve.value for name, curve in sharp.items()}
        panels.append(
            Panel(
                title="sharpness (1: as real)", lines=lines, band=(ours.low, ours.high), band_name="its 95 % interval"
            )
        )
    if (MODEL, ACTION) in scores.curves:
        recognised = {"model": MODEL, "real video": TRUTH}
        lines = {name: mean_of(scores.curve(who, ACTION)) for name, who in recognised.items()}
        panels.append(Panel(title="actions recognised by inverse dynamics", lines=lines))
    run.image(
        f"{task}_curves",
        draw_horizon(panels),
        caption=f"Each predicted frame compared with the truth: mean of {scores.clips} clips, {task}",
    )
    model, truth = scores.pixels(MODEL), scores.pixels(TRUTH)
    panels = [
        Panel(title=title, lines={"model": ours, "real video": real})
        for title, ours, real in zip(("pixel mean", "pixel variance"), model, truth, strict=True)
    ]
    run.image(
        f"{task}_pixels",
        draw_horizon(panels),
        caption=f"Mean and variance of the pixels in [0, 1] beside real video's: {scores.clips} clips, {task}",
    )


def _key(metric: str, who: str) -> str:
    return metric if who == MODEL else f"{metric}_{who}"


# ---------------------------------------------------------------------------------------------------- distances

Say = Callable[[str], None]
Features = dict[str, NDArray[np.float32]]


def distances_of(scores: Scores, metrics: Sequence[str], *, device: torch.device, say: Say) -> dict[str, Any]:
    """Numbers of lpips, fid and fvd as far as `metrics` names them; the reason where one cannot be computed.

    LPIPS is added to `scores` as one more curve of every predictor, and so has no numbers here.
    """
    known = (("lpips", load_lpips, _lpips), ("fid", load_inception, _fid), ("fvd", load_i3d, _fvd))
    numbers: dict[str, Any] = {}
    for name, load, measure in known:
        if name not in metrics:
            continue
        network = load()
        if not isinstance(network, Unavailable):
            try:
                numbers |= measure(scores, network.to(device), say)
                continue
            except UserError as error:  # too few clips, too short ones, too small frames
                how = (
                    "rolling out more, longer or larger clips "
                    "(limit_batch, dataset.validation_multiplier, dataset.resolution)"
                )
                network = Unavailable(name.upper(), str(error), how)
        say(f"  {network.name}: {network}")
        numbers[name] = str(network)
    return numbers


def _lpips(scores: Scores, network: Any, say: Say) -> dict[str, Any]:
    truth = scores.opening(TRUTH)
    curves = {who: lpips(scores.opening(who), truth, network) for who in scores.openings if who != TRUTH}
    for who, curve in curves.items():
        scores.curves[who, "lpips"] = [curve.double().numpy()]
        say(f"    LPIPS of {who:12s} {curve.mean():.4f} (first {curve.shape[1]} frames of {len(curve)} clips)")
    scores.metrics = [*scores.metrics, "lpips"]
    return {}


def _fid(scores: Scores, network: Any, say: Say) -> dict[str, Any]:
    features = {who: inception_features(scores.opening(who), network) for who in _compared(scores)}
    say(f"  FID of the first {features[TRUTH].shape[1]} predicted frames of each clip")
    return _beside_copying(features, fid_report, say)


def _fvd(scores: Scores, network: Any, say: Say) -> dict[str, Any]:
    features: Features = {}
    for who in _compared(scores):
        features[who] = i3d_features(scores.opening(who), network, cache=cache_folder() if who == TRUTH else None)
    say(f"  FVD of {scores.opening(TRUTH).shape[1]} predicted frames (at most {OPENING})")
    numbers = _beside_copying(features, fvd_report, say)
    if COPY in features:
        ratio = frechet_ratio(features[TRUTH], features[MODEL], features[COPY])
        numbers |= {"fvd_ratio": ratio.value, "fvd_ratio_low": ratio.low, "fvd_ratio_high": ratio.high}
        say(f"    model over copy_last {ratio.value:.3f} (95 % interval {ratio.low:.3f} to {ratio.high:.3f})")
    return numbers


def _compared(scores: Scores) -> list[str]:
    return [who for who in (TRUTH, MODEL, COPY) if who in scores.openings]


def _beside_copying(features: Features, report_of: Callable[..., FrechetReport], say: Say) -> dict[str, Any]:
    """The model's distance from the truth, and copy-last's under names such as fvd_copy_last_low."""
    numbers: dict[str, Any] = {}
    for who, suffix in ((MODEL, ""), (COPY, f"_{COPY}")):
        if who in features:
            report = report_of(features[TRUTH], features[who], paired=True)
            key = report.name.lower()
            numbers |= {name.replace(key, f"{key}{suffix}"): value for name, value in report.metrics().items()}
            say(f"    {who:12s} {report}")
    return numbers


# --------------------------------------------------------------------------------------------------- videos and frames

Pixels = NDArray[np.uint8]
FPS = 10
"""Frames a second of a video, few enough to compare the two sides."""


class Drawing:
    """Draws the first `clips` clips of `task` into `run`."""

    def __init__(
        self,
        run: Any,
        task: str,
        *,
        clips: int,
        context: int,
        end_frames: int = 0,
        videos: bool = True,
        columns: int = 0,
        predictions: Path | None = None,
    ) -> None:
        """context, end_frames: observed frames at both ends of a clip. videos: draw videos beside the grid. columns:
        numbers of one action, 0 to draw no actions. predictions: folder for the predicted frames of every batch."""
        self.run, self.task, self.clips = run, task, clips
        self._context, self._end_frames = context, end_frames
        self._videos, self._columns, self._predictions = videos, columns, predictions
        self._truths: list[Pixels] = []
        self._shown: list[Pixels] = []
        self._observed = np.zeros(0, dtype=bool)

    @contextlib.contextmanager
    def of(self, batch: VideoBatch, number: int) -> Iterator[OnChunk]:
        """`on_chunk` for the rollout of batch `number`."""
        count = max(0, min(self.clips - len(self._truths), len(batch.frames)))
        length, *_, height, width = batch.frames.shape[1:]
        end = length - self._end_frames
        self._observed = np.ones(length, dtype=bool)
        self._observed[self._context : end] = False
        chosen = grid_frames(self._observed)
        truths, shown = (np.zeros((count, len(chosen), height, width, 3), np.uint8) for _ in range(2))
        with contextlib.ExitStack() as stack:
            # The stack closes the last one first, and the page shows them in the order in which they were closed.
            videos = [self._video(stack, batch, clip) for clip in reversed(range(count if self._videos else 0))][::-1]
            write = None
            if self._predictions is not None:
                path = self._predictions / f"{self.task}_{number:04d}.npy"
                write = stack.enter_context(writing(path, (len(batch.frames), end - self._context, height, width, 3)))

            def draw(start: int, prediction: Tensor, truth: Tensor) -> None:
                guess, real = pixels_of(prediction[:count]), pixels_of(truth[:count])
                for clip, add in enumerate(videos):
                    add(start, guess[clip], real[clip])
                here = (chosen >= start) & (chosen < start + guess.shape[1])
                truths[:, here], shown[:, here] = real[:, chosen[here] - start], guess[:, chosen[here] - start]

            def on_chunk(start: int, prediction: Tensor, truth: Tensor) -> None:
                if write is not None:
                    write(start - self._context, pixels_of(prediction))
                if count:
                    draw(start, prediction, truth)

            if count and self._context:
                draw(0, batch.frames[:, : self._context], batch.frames[:, : self._context])
            yield on_chunk
            if count and self._end_frames:
                draw(end, batch.frames[:, end:], batch.frames[:, end:])
        self._truths += list(truths)
        self._shown += list(shown)

    def grid(self, caption: str = "") -> None:
        """Keep the grid of what was drawn as <task>_sheet; nothing where nothing was drawn."""
        if self._truths:
            clips = f"{len(self._truths)} clips" if len(self._truths) > 1 else "one clip"
            self.run.image(
                f"{self.task}_sheet",
                draw_grid(self._truths, self._shown, grid_frames(self._observed), self._observed),
                caption=caption or f"Truth and prediction of {clips}; amber: observed frames",
            )

    def _video(
        self, stack: contextlib.ExitStack, batch: VideoBatch, clip: int
    ) -> Callable[[int, Pixels, Pixels], None]:
        """A function that adds frames start … of a clip to its video."""
        number = len(self._truths) + clip + 1
        side_by_side = SideBySide(
            (batch.frames.shape[-2], batch.frames.shape[-1]),
            self._observed,
            actions=batch.actions[clip].cpu().numpy() if self._columns else None,
            known=batch.known[clip].cpu().numpy() if self._columns else None,
            columns=self._columns,
        )
        add = stack.enter_context(
            self.run.video_writer(f"{self.task}_clip_{number}", FPS, f"Clip {number}: prediction and truth")
        )

        def add_frames(start: int, guess: Pixels, real: Pixels) -> None:
            for i in range(len(guess)):  # one at a time: an enlarged chunk may be large
                add(side_by_side.frames(start + i, guess[i : i + 1], real[i : i + 1]))

        return add_frames


def pixels_of(frames: Tensor) -> Pixels:
    """Frames (…, c, h, w), uint8 or in [0, 1], as (…, h, w, 3) uint8 on the CPU; one channel is repeated."""
    integers = frames if not frames.is_floating_point() else (frames.clamp(0, 1) * 255).round().byte()
    pixels = integers.movedim(-3, -1).cpu().numpy()
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)))


@contextlib.contextmanager
def writing(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[int, Pixels], None]]:
    """Write the uint8 array (b, n, h, w, 3) `path` (.npy) in pieces: `write(start, (b, m, h, w, 3))`.

    The file is there when the block succeeds. Plain writes instead of a memory map, so that a full disk is an error and
    not a crash. UserError where it cannot be written.
    """
    frame = int(np.prod(shape[2:]))
    remedy = "make room, or leave experiment.save_predictions out"
    with contextlib.ExitStack() as stack:
        with explaining_os_errors(f"cannot write {path}", remedy):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(stack.enter_context(replacing(path)), "wb"))
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            begin = file.tell()

        def write(start: int, pieces: Pixels) -> None:
            with explaining_os_errors(f"cannot write {path}", remedy):
                for clip, piece in enumerate(pieces):
                    file.seek(begin + (clip * shape[1] + start) * frame)
                    file.write(piece.tobytes())

        yield write
        with explaining_os_errors(f"cannot write {path}", remedy):
            file.flush()
