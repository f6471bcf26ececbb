"""What one sees of rollouts: films and a contact sheet of the first clips, and their frames as files; all while the frames come.

A `Drawing` lives as long as a task. For each batch it gives a callback for the rolled-out chunks: they go into the films' encoders and, where
asked for, to disk, and a few frames are kept for the sheet, so that memory does not grow with the clips' length. What is interrupted
leaves nothing half-written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.video.rollouts import (
    BLEND,
    COPY,
    MEAN,
    MODEL,
    SHUFFLED,
    TRUTH,
    Curve,
    OnChunk,
    Scores,
    mean_and_interval,
    mean_of,
)
from diffusion_forcing.files import replacing
from diffusion_forcing.visualization.curves import Panel, draw_horizon
from diffusion_forcing.visualization.video import SideBySide, draw_grid, grid_frames

# What a rollout's scores say, as numbers for metrics.json, rows for a table, and a few lines for the terminal.

SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Predicted frames that are printed; the last of the horizon too."""
CHECKED = (1, 4, 8, 16)
"""Predicted frames with numbers of their own in metrics.json."""
NAMES = {
    MODEL: "model",
    COPY: "last frame again",
    MEAN: "mean of the context",
    BLEND: "blend of both ends",
    SHUFFLED: "model, other clips' actions",
}
"""Predictors as a legend calls them."""


def rows(scores: Scores) -> list[dict[str, float | int]]:
    """One row a predicted frame (the first is 1): each metric's mean over clips for every predictor, with the model's 95 % interval, the
    clips it is of, and the pixels' mean and variance beside the truth's."""
    columns: dict[str, Curve] = {}
    for metric in scores.metrics:
        for who in (MODEL, COPY, MEAN, BLEND, SHUFFLED):
            if metric in scores.curves.get(who, {}):
                mean, low, high = mean_and_interval(scores.curve(who, metric))
                columns[_name(metric, who)] = mean
                if who == MODEL:
                    columns[f"{metric}_low"], columns[f"{metric}_high"] = low, high
    columns["clips"] = np.isfinite(scores.curve(MODEL, scores.metrics[0])).sum(axis=0)
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        columns[f"pixel_mean{suffix}"], columns[f"pixel_variance{suffix}"] = scores.pixels(who)
    found = []
    for index in range(len(columns["clips"])):
        row: dict[str, float | int] = {"frame": index + 1, "clips": int(columns["clips"][index])}
        for name, values in columns.items():
            if name != "clips" and index < len(values) and np.isfinite(values[index]):
                row[name] = float(values[index])
        found.append(row)
    return found


def summary(scores: Scores) -> dict[str, float | int]:
    """Headline numbers: each metric's mean over the horizon and at `CHECKED` frames, for every predictor; the pixels' drift; the speed."""
    found: dict[str, float | int] = {"clips": scores.clips}
    for who in (MODEL, COPY, MEAN, BLEND):
        if who not in scores.curves:
            continue
        for metric in scores.metrics:
            curve, _, _ = mean_and_interval(scores.curve(who, metric))
            if np.isfinite(curve).any():
                found[_name(metric, who)] = float(np.nanmean(curve))
            for frame in CHECKED:
                if frame <= len(curve) and np.isfinite(curve[frame - 1]):
                    found[f"{_name(metric, who)}_frame_{frame}"] = float(curve[frame - 1])
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        for what, values in zip(("mean", "variance"), scores.pixels(who), strict=True):
            ends = values[np.isfinite(values)]
            if len(ends):
                found[f"pixel_{what}{suffix}_first"], found[f"pixel_{what}{suffix}_last"] = (
                    float(ends[0]),
                    float(ends[-1]),
                )
    found["frames_predicted"] = scores.frames
    found["seconds_per_frame"] = scores.seconds / max(1, scores.frames)
    return found


def in_training(scores: Scores) -> dict[str, float]:
    """The few numbers of a validation during training: each metric's mean over the horizon, and copying's."""
    kept = [_name(metric, who) for who in (MODEL, COPY) for metric in scores.metrics]
    return {name: float(value) for name, value in summary(scores).items() if name in (*kept, "seconds_per_frame")}


def of_actions(scores: Scores) -> dict[str, float]:
    """How much better the true actions are than other clips' (paired by clip, same noise), in dB of PSNR, with a 95 % interval, at
    `CHECKED` frames and over all that were compared. Nothing where they were not compared."""
    if SHUFFLED not in scores.curves:
        return {}
    other = scores.curve(SHUFFLED, "psnr")
    gain = scores.curve(MODEL, "psnr")[:, : other.shape[1]] - other
    if not np.isfinite(gain).any():
        return {}
    found: dict[str, float] = {}
    mean, low, high = mean_and_interval(gain)
    for frame in CHECKED:
        if frame <= len(mean) and np.isfinite(mean[frame - 1]):
            at = f"actions_gain_frame_{frame}"
            found |= {
                at: float(mean[frame - 1]),
                f"{at}_low": float(low[frame - 1]),
                f"{at}_high": float(high[frame - 1]),
            }
    of_clip = mean_of(gain.T)[:, None]
    (mean,), (low,), (high,) = mean_and_interval(of_clip)
    return found | {"actions_gain": float(mean), "actions_gain_low": float(low), "actions_gain_high": float(high)}


def lines(scores: Scores, actions: dict[str, float]) -> list[str]:
    """The table of the terminal: PSNR of every predictor and SSIM of the model at a few frames."""
    table = rows(scores)
    shown = sorted({frame for frame in SHOWN if frame <= len(table)} | {len(table)})
    columns = {
        "psnr": "PSNR",
        "psnr_copy_last": "copy last",
        "psnr_mean_frame": "mean frame",
        "psnr_linear_blend": "linear blend",
        "psnr_shuffled_actions": "other actions",
        "ssim": "SSIM",
        "pixel_variance": "variance",
        "pixel_variance_truth": "truth's",
    }
    present = {key: title for key, title in columns.items() if any(key in row for row in table)}
    text = ["  frame  " + "  ".join(f"{title:>13s}" for title in present.values())]
    for frame in shown:
        row = table[frame - 1]
        text.append(f"  {frame:5d}  " + "  ".join(_cell(row.get(key)) for key in present))
    for frame in CHECKED:
        at = f"actions_gain_frame_{frame}"
        if at in actions:
            low, high = actions[f"{at}_low"], actions[f"{at}_high"]
            text.append(
                f"  true actions over other clips' at frame {frame}: {actions[at]:+.3f} dB (95 % {low:+.3f} to {high:+.3f})"
            )
    return text


def metric_panels(scores: Scores) -> list[Panel]:
    """PSNR of every predictor over the horizon with the model's 95 % interval, and SSIM where there is."""
    found = []
    for metric, title in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if metric in scores.metrics:
            means = {NAMES[who]: mean_of(scores.curve(who, metric)) for who in NAMES if who in scores.curves}
            lines = {name: mean for name, mean in means.items() if np.isfinite(mean).any()}
            _, low, high = mean_and_interval(scores.curve(MODEL, metric))
            found.append(Panel(title=title, lines=lines, band=(low, high), band_name="its 95 % interval"))
    return found


def pixel_panels(scores: Scores) -> list[Panel]:
    """Mean and variance of the pixels over the horizon, the model's and the real video's."""
    model, truth = scores.pixels(MODEL), scores.pixels(TRUTH)
    return [
        Panel(title=title, lines={"model": ours, "real video": real})
        for title, ours, real in zip(("pixel mean", "pixel variance"), model, truth, strict=True)
    ]


def _name(metric: str, who: str) -> str:
    return metric if who == MODEL else f"{metric}_{who}"


def _cell(value: Any) -> str:
    return f"{'–':>13s}" if value is None else f"{value:13.4g}"


Pixels = NDArray[np.uint8]
FPS = 10
"""Films are slow enough to compare the two sides."""


class Drawing:
    """Draws the first `clips` clips of `task` into `run`; 0 draws nothing.

    given: frames before those that are predicted; given_after: behind them. films: also films, not the sheet alone; columns: numbers of one
    action (0: actions are not shown); predictions: a folder for the predicted frames of every batch, (b, n, h, w, 3) uint8, or None.
    """

    def __init__(
        self,
        run: Any,
        task: str,
        *,
        clips: int,
        given: int,
        given_after: int = 0,
        films: bool = True,
        columns: int = 0,
        predictions: Path | None = None,
    ) -> None:
        self.run, self.task, self.clips = run, task, clips
        self._before, self._behind = given, given_after
        self._films, self._columns, self._predictions = films, columns, predictions
        self._drawn = 0
        self._truths: list[Pixels] = []
        self._shown: list[Pixels] = []
        self._layout: tuple[NDArray[np.int64], NDArray[np.bool_]] | None = None

    @contextlib.contextmanager
    def of(self, batch: VideoBatch, number: int) -> Iterator[OnChunk]:
        """`on_chunk` for the rollout of batch `number`, whose clips all have the batch's length."""
        count = max(0, min(self.clips - self._drawn, len(batch.frames)))
        length = batch.frames.shape[1]
        given = np.zeros(length, dtype=bool)
        given[: self._before] = True
        given[length - self._behind :] = True
        with contextlib.ExitStack() as stack:
            receivers: list[Callable[[int, Pixels, Pixels], None]] = []
            for clip in range(count if self._films else 0):
                receivers.append(self._film(stack, batch, clip, given))
            finish = self._collect(receivers, batch, count, given)
            if self._predictions is not None:
                shape = (len(batch.frames), int((~given).sum()), *batch.frames.shape[-2:], 3)
                path = self._predictions / f"{self.task}_{number:04d}.npy"
                write = stack.enter_context(writing(path, shape))
            else:
                write = None

            def on_chunk(now: int, prediction: Tensor, truth: Tensor) -> None:
                if write is not None:
                    write(now - self._before, pixels_of(prediction))
                if count:
                    guess, real = pixels_of(prediction[:count]), pixels_of(truth[:count])
                    for receive in receivers:
                        receive(now, guess, real)

            if count and self._before:
                self._show_given(receivers, batch, count, slice(0, self._before))
            yield on_chunk
            if count and self._behind:
                self._show_given(receivers, batch, count, slice(length - self._behind, length))
            finish()
        self._drawn += count

    def sheet(self, caption: str = "") -> None:
        """Keep the contact sheet of what was drawn, as <task>_sheet; nothing where nothing was."""
        if self._layout is None or not self._truths:
            return
        frames, given = self._layout
        many = f"{len(self._truths)} clips" if len(self._truths) > 1 else "one clip"
        self.run.image(
            f"{self.task}_sheet",
            draw_grid(self._truths, self._shown, frames, given),
            caption=caption or f"Truth and prediction of {many}; amber: what the model was given",
        )

    def _film(
        self, stack: contextlib.ExitStack, batch: VideoBatch, clip: int, given: NDArray[np.bool_]
    ) -> Callable[[int, Pixels, Pixels], None]:
        number = self._drawn + clip + 1
        side_by_side = SideBySide(
            (batch.frames.shape[-2], batch.frames.shape[-1]),
            given,
            actions=batch.actions[clip].cpu().numpy() if self._columns else None,
            known=batch.known[clip].cpu().numpy() if self._columns else None,
            columns=self._columns,
        )
        add = stack.enter_context(
            self.run.video_writer(f"{self.task}_clip_{number}", FPS, f"Clip {number}: prediction and truth")
        )

        def receive(now: int, guess: Pixels, real: Pixels) -> None:
            for i in range(guess.shape[1]):  # one at a time: an enlarged chunk may be large
                add(side_by_side.frames(now + i, guess[clip, i : i + 1], real[clip, i : i + 1]))

        return receive

    def _collect(
        self, receivers: list[Callable[[int, Pixels, Pixels], None]], batch: VideoBatch, count: int, given: NDArray[Any]
    ) -> Callable[[], None]:
        """Add what keeps the sheet's frames; returns what hands them over when the batch is done."""
        if self._layout is None:
            self._layout = (grid_frames(given), given) if count else None
        if self._layout is None or len(self._layout[1]) != len(given):
            return lambda: None
        frames = self._layout[0]
        height, width = batch.frames.shape[-2:]
        guesses, reals = (np.zeros((count, len(frames), height, width, 3), np.uint8) for _ in range(2))

        def receive(now: int, guess: Pixels, real: Pixels) -> None:
            here = (frames >= now) & (frames < now + guess.shape[1])
            guesses[:, here], reals[:, here] = guess[:, frames[here] - now], real[:, frames[here] - now]

        def finish() -> None:
            self._truths += list(reals)
            self._shown += list(guesses)

        receivers.append(receive)
        return finish

    def _show_given(
        self, receivers: list[Callable[[int, Pixels, Pixels], None]], batch: VideoBatch, count: int, where: slice
    ) -> None:
        real = pixels_of(batch.frames[:count, where])
        for receive in receivers:
            receive(where.start, real, real)


def draw_curves(run: Any, task: str, scores: Scores) -> None:
    """Keep the curves over the horizon as <task>_curves, and the pixels' statistics beside the real video's as <task>_pixels."""
    if not scores.clips:
        return
    over = f"{scores.clips} clips, {task}"
    run.image(
        f"{task}_curves",
        draw_horizon(metric_panels(scores)),
        caption=f"Each predicted frame compared with the truth: mean of {over}",
    )
    run.image(
        f"{task}_pixels",
        draw_horizon(pixel_panels(scores)),
        caption=f"Mean and variance of the pixels in [0, 1] beside the real video's: {over}",
    )


def pixels_of(frames: Tensor) -> Pixels:
    """Frames (…, c, h, w), uint8 or in [0, 1], as (…, h, w, 3) uint8 on the CPU, of their own; one channel is grey."""
    bytes_ = frames if not frames.is_floating_point() else (frames.clamp(0, 1) * 255).round().byte()
    found = bytes_.movedim(-3, -1).cpu().numpy()
    return np.ascontiguousarray(np.broadcast_to(found, (*found.shape[:-1], 3)))


@contextlib.contextmanager
def writing(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[int, Pixels], None]]:
    """Write a uint8 array (b, n, h, w, 3) as `path` (.npy) by pieces: `write(start, (b, m, h, w, 3))`. It is there when the block ends well.

    Plain writes instead of a memory map, so that a full disk is an error and not a crash. Raises UserError where it cannot be written.
    """
    frame = int(np.prod(shape[2:]))
    with contextlib.ExitStack() as stack:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(stack.enter_context(replacing(path)), "wb"))
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            begin = file.tell()

        def write(start: int, pieces: Pixels) -> None:
            with _naming(path):
                for clip, piece in enumerate(pieces):
                    file.seek(begin + (clip * shape[1] + start) * frame)
                    file.write(piece.tobytes())

        yield write
        with _naming(path):
            file.flush()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room, or leave experiment.save_predictions out"
        ) from error
