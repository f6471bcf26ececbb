"""Draws rollouts while their frames come: videos and a grid of the first clips, and predicted frames as files.

Frames go straight into the encoders of the videos and to disk; a few are kept for the grid, so memory does not grow
with the clips' length. An interrupted task leaves nothing half-written.
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
from diffusion_forcing.experiments.video.rollouts import OnChunk
from diffusion_forcing.files import replacing
from diffusion_forcing.visualization.video import SideBySide, draw_grid, grid_frames

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
            videos = [self._video(stack, batch, clip) for clip in range(count if self._videos else 0)]
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
    with contextlib.ExitStack() as stack:
        with _errors_name(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(stack.enter_context(replacing(path)), "wb"))
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            begin = file.tell()

        def write(start: int, pieces: Pixels) -> None:
            with _errors_name(path):
                for clip, piece in enumerate(pieces):
                    file.seek(begin + (clip * shape[1] + start) * frame)
                    file.write(piece.tobytes())

        yield write
        with _errors_name(path):
            file.flush()


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room, or leave experiment.save_predictions out"
        ) from error
