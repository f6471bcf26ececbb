"""Rolls clips out and scores them chunk by chunk, so that memory does not grow with their length.

Each chunk of predicted frames is compared with the truth as it comes, together with trivial baselines, and then
dropped. A few numbers are kept of every frame, and the pixels of the first `OPENING` predicted frames for LPIPS, FID
and FVD.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.diffusion import Sampler
from diffusion_forcing.metrics.video import (
    WINDOW,
    Curve,
    InverseDynamics,
    actions_recognised,
    copy_last,
    frame_curves,
    laplacian_energy,
    mean_frame,
    mean_of,
)

OPENING = 16
"""Predicted frames of each clip whose pixels are kept: the length at which FVD is compared."""
MODEL, TRUTH = "model", "truth"
COPY, MEAN, BLEND, SHUFFLED = "copy_last", "mean_frame", "linear_blend", "shuffled_actions"
PIXEL_MEAN, PIXEL_SQUARE = "pixel_mean", "pixel_square"
"""Curves of MODEL and TRUTH beside the metrics: the mean of each frame's pixels and of their squares."""
LAPLACIAN, ACTION = "laplacian", "action_recognised"
"""Curves of every predictor and TRUTH: the energy of the Laplacian, and whether inverse dynamics tells the action that led to a frame."""

OnChunk = Callable[[int, Tensor, Tensor], None]
"""`on_chunk(start, prediction, truth)`: frames start … of the clips, both (b, n, c, h, w) in [0, 1]."""
Baselines = Callable[[int, int], dict[str, Tensor]]
"""`baselines(start, stop)`: their predictions of frames start … stop - 1, each (b, stop - start, c, h, w)."""


def frame_metrics(resolution: int) -> list[str]:
    """The metrics of frames of this many pixels a side; SSIM and UIQI need frames larger than their window."""
    return ["mse", "psnr", "ssim", "uiqi"] if resolution >= WINDOW else ["mse", "psnr"]


@dataclass
class Scores:
    """Measurements of all clips so far. Frame 0 is the first predicted one."""

    metrics: Sequence[str]
    curves: dict[tuple[str, str], list[Curve]] = field(default_factory=lambda: defaultdict(list))
    """(predictor, metric): an array (b, n) for each batch; NaN after the end of a clip."""
    openings: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """Predictor or TRUTH: for each batch the first predicted frames (b, ≤ OPENING, c, h, w), uint8, of long enough clips."""
    seconds: float = 0.0
    frames: int = 0
    """Frames predicted in `seconds`, clips times length."""

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The measurements of all `parts`, such as those of several processes."""
        whole = cls(parts[0].metrics)
        for part in parts:
            for key, batches in part.curves.items():
                whole.curves[key] += batches
            for who, openings in part.openings.items():
                whole.openings[who] += openings
            whole.seconds += part.seconds
            whole.frames += part.frames
        return whole

    @property
    def clips(self) -> int:
        return sum(map(len, self.curves.get((MODEL, self.metrics[0]), [])))

    def curve(self, who: str, metric: str) -> Curve:
        """(clips, n) of a predictor; shorter batches end in NaN."""
        batches = self.curves[who, metric]
        longest = max(batch.shape[1] for batch in batches)
        padded = [np.pad(b, [(0, 0), (0, longest - b.shape[1])], constant_values=np.nan) for b in batches]
        return np.concatenate(padded)

    def pixels(self, who: str) -> tuple[Curve, Curve]:
        """Mean and variance of the pixels of all clips at each frame, (n,) each; `who` is MODEL or TRUTH."""
        mean, square = (mean_of(self.curve(who, metric)) for metric in (PIXEL_MEAN, PIXEL_SQUARE))
        return mean, square - mean**2

    def opening(self, who: str) -> Tensor:
        """(clips, t, c, h, w) in [0, 1]."""
        return torch.cat(self.openings[who]).float() / 255

    def add(self, who: str, curves: dict[str, Tensor], valid: Tensor) -> None:
        """Add the curves (b, n) of a batch; `valid: (b, n)` is false after the end of a clip."""
        for metric, values in curves.items():
            self.curves[who, metric].append(np.where(valid.cpu().numpy(), values.double().numpy(), np.nan))


@dataclass
class Roller:
    """Rolls batches of clips out with `sampler` and scores them.

    metrics: of single frames. inverse: tells the actions of generated frames. on_frames: called with the number of frames
    just predicted, clips times length.
    """

    video: Video
    sampler: Sampler
    _: KW_ONLY
    metrics: Sequence[str]
    seed: int
    inverse: InverseDynamics | None = None
    on_frames: Callable[[int], None] = lambda count: None

    def roll(self, batch: VideoBatch, number: int, scores: Scores, *, on_chunk: OnChunk | None = None) -> None:
        """Predict the clips of batch `number` from their context and add to `scores`, on the model's device."""
        start, length = self.video.options.context_frames, batch.frames.shape[1]
        context = batch.frames[:, :start].float() / 255

        def baselines(start: int, stop: int) -> dict[str, Tensor]:
            if not context.shape[1]:
                return {}
            return {COPY: copy_last(context, stop - start), MEAN: mean_frame(context, stop - start)}

        self._score(self.stream(batch, number, length), batch, slice(start, length), scores, baselines, on_chunk)

    def fill(
        self, batch: VideoBatch, number: int, scores: Scores, *, end_frames: int, on_chunk: OnChunk | None = None
    ) -> None:
        """Fill in the clips of batch `number` between their context and last `end_frames` frames; add to `scores`."""
        start, stop = self.video.options.context_frames, batch.frames.shape[1] - end_frames
        before, after = (batch.frames[:, i, None].float() / 255 for i in (start - 1, stop))

        def baselines(first: int, last: int) -> dict[str, Tensor]:
            weight = torch.arange(first - start + 1, last - start + 1, device=after.device) / (stop - start + 1)
            blend = torch.lerp(before, after, weight[:, None, None, None])
            return {COPY: copy_last(before, last - first), BLEND: blend}

        middle = (frames[:, start:stop] for frames in self._filled(batch, number, end_frames))
        self._score(middle, batch, slice(start, stop), scores, baselines, on_chunk)

    def roll_shuffled(self, batch: VideoBatch, number: int, scores: Scores) -> None:
        """Predict the first `OPENING` frames of the same clips from the same noise with other clips' future actions.

        Each clip gets the actions of the clip before it. The scores of a batch of one clip are NaN.
        """
        start = self.video.options.context_frames
        stop = min(batch.frames.shape[1], start + OPENING)
        valid = batch.valid[:, start:stop]
        if len(batch.frames) == 1:
            scores.add(SHUFFLED, dict.fromkeys(self.metrics, torch.full(valid.shape, torch.nan)), valid)
            return
        mixed = batch._replace(
            actions=torch.cat([batch.actions[:, :start], batch.actions.roll(1, dims=0)[:, start:]], dim=1),
            known=torch.cat([batch.known[:, :start], batch.known.roll(1, dims=0)[:, start:]], dim=1),
        )
        parts, now = [], start
        for prediction in self.stream(mixed, number, stop):
            truth = batch.frames[:, now : now + prediction.shape[1]].float() / 255
            parts.append(frame_curves(prediction, truth, self.metrics))
            now += prediction.shape[1]
        scores.add(SHUFFLED, _concatenated(parts), valid)

    def stream(self, batch: VideoBatch, number: int, length: int) -> Iterator[Tensor]:
        """The model's chunks for the clips of batch `number`; the noise depends on (seed, number) alone."""
        video = self.video
        conditioned = bool(video.options.condition_width)
        chunks = video.stream(
            batch.frames[:, : video.options.context_frames],
            length,
            actions=batch.actions if conditioned else None,
            known=batch.known if conditioned else None,
            sampler=self.sampler,
            generator=self._generator(number),
        )
        for chunk in chunks:
            yield chunk
            self.on_frames(chunk.shape[0] * chunk.shape[1])

    def _filled(self, batch: VideoBatch, number: int, end_frames: int) -> Iterator[Tensor]:
        """Whole clips (b, T, c, h, w) in [0, 1], computed when they are asked for."""
        video, f = self.video, self.video.options.frame_stack
        tokens, _, conditions = video.encode(batch)
        known = torch.zeros(tokens.shape[1], dtype=torch.bool)
        known[: video.options.context_tokens] = True
        known[len(known) - end_frames // f :] = True
        filled = self.sampler.fill(tokens, known, conditions=conditions, generator=self._generator(number))
        yield video.frames(filled).clamp(0, 1)
        self.on_frames(int((~known).sum()) * f * len(tokens))

    def _score(
        self,
        chunks: Iterator[Tensor],
        batch: VideoBatch,
        span: slice,
        scores: Scores,
        baselines: Baselines,
        on_chunk: OnChunk | None,
    ) -> None:
        """Compare `chunks`, the predictions of frames `span`, and the baselines with the truth as they come."""
        curves: dict[str, list[dict[str, Tensor]]] = defaultdict(list)
        openings: dict[str, list[Tensor]] = defaultdict(list)
        before: dict[str, Tensor] = {}
        if self.inverse is not None and span.start:
            last = batch.frames[:, span.start - 1 : span.start].float() / 255
            before = defaultdict(lambda: last)
        now, started = span.start, time.perf_counter()
        for chunk in chunks:
            synchronize(chunk.device)
            scores.seconds += time.perf_counter() - started
            prediction = chunk.float()  # half precision under autocast
            stop = now + prediction.shape[1]
            truth = batch.frames[:, now:stop].float() / 255
            # Compare each predictor with the truth.
            predictions = {MODEL: prediction, **baselines(now, stop)}
            for who, frames in predictions.items():
                curves[who].append(frame_curves(frames, truth, self.metrics))
            curves[MODEL][-1] |= _pixel_statistics(prediction)
            curves[TRUTH].append(_pixel_statistics(truth))
            for who, frames in (*predictions.items(), (TRUTH, truth)):
                curves[who][-1][LAPLACIAN] = laplacian_energy(frames).cpu()
                if self.inverse is not None and span.start:
                    pairs = torch.cat([before[who], frames], dim=1)
                    curves[who][-1][ACTION] = actions_recognised(pairs, batch.actions[:, now:stop], self.inverse)
                    before[who] = frames[:, -1:]
            # Keep the pixels of the first frames.
            left = OPENING - (now - span.start)
            if left > 0:
                for who, frames in (*predictions.items(), (TRUTH, truth)):
                    openings[who].append((frames[:, :left] * 255).round().byte().cpu())
            if on_chunk is not None:
                on_chunk(now, prediction, truth)
            now, started = stop, time.perf_counter()
        scores.frames += (span.stop - span.start) * len(batch.frames)
        valid = batch.valid[:, span]
        for who, parts in curves.items():
            scores.add(who, _concatenated(parts), valid)
        whole = valid[:, :OPENING].all(dim=1).cpu()
        for who, pieces in openings.items():
            scores.openings[who].append(torch.cat(pieces, dim=1)[whole])

    def _generator(self, number: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0]
        return self.video.generator(int(seed) % 2**63)


def _pixel_statistics(frames: Tensor) -> dict[str, Tensor]:
    """Mean and mean square of the pixels of each frame (b, n, c, h, w): (b, n) each, on the CPU."""
    return {
        PIXEL_MEAN: frames.mean(dim=(2, 3, 4)).cpu(),
        PIXEL_SQUARE: frames.square().mean(dim=(2, 3, 4)).cpu(),
    }


def _concatenated(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Curves (b, n) of consecutive chunks as one."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that times measured on the CPU include its work."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
