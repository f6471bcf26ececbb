"""What one sees of rollouts: films and a contact sheet of the first clips, and their frames as files; all while the frames come.

A `Drawing` lives as long as a task. For each batch it gives a callback for the rolled-out chunks: they go into the films' encoders and, where
asked for, to disk, and a few frames are kept for the sheet, so that memory does not grow with the clips' length. What is interrupted
leaves nothing half-written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from diffusion_forcing.datasets.video_batch import VideoBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import video_report
from diffusion_forcing.experiments.rollouts import OnChunk, Scores
from diffusion_forcing.visualization.horizon import draw_horizon
from diffusion_forcing.visualization.video import SideBySide, draw_sheet, sheet_frames

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
        self.run.picture(
            f"{self.task}_sheet",
            draw_sheet(self._truths, self._shown, frames, given),
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
            self.run.filming(f"{self.task}_clip_{number}", FPS, f"Clip {number}: prediction and truth")
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
            self._layout = (sheet_frames(given), given) if count else None
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
    run.picture(
        f"{task}_curves",
        draw_horizon(video_report.metric_panels(scores)),
        caption=f"Each predicted frame compared with the truth: mean of {over}",
    )
    run.picture(
        f"{task}_pixels",
        draw_horizon(video_report.pixel_panels(scores)),
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    frame = int(np.prod(shape[2:]))
    try:
        with contextlib.ExitStack() as stack:
            with _naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(temporary, "wb"))
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
        with _naming(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room, or leave experiment.save_predictions out"
        ) from error
