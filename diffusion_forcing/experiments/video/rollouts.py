"""Clips rolled out and scored chunk by chunk, so that memory does not grow with their length.

A batch is rolled out once; every chunk of predicted frames is compared with the truth as it comes, beside what two trivial predictors say
(the last frame of the context again, and the mean of its frames), and then let go. What is kept of a frame is a few numbers; of the first
`OPENING` predicted frames also the pixels, for distances between distributions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.diffusion import Sampler
from diffusion_forcing.metrics.video import WINDOW, copy_last, frame_curves, mean_frame

OPENING = 16
"""Predicted frames of each clip that are kept whole: the length at which FVD is compared."""
MODEL, TRUTH = "model", "truth"
COPY, MEAN, BLEND, SHUFFLED = "copy_last", "mean_frame", "linear_blend", "shuffled_actions"
OnChunk = Callable[[int, Tensor, Tensor], None]
"""`on_chunk(start, prediction, truth)`: frames start … of the clips, both (b, n, c, h, w) in [0, 1]."""

Curve = NDArray[np.float64]


def frame_metrics(resolution: int) -> list[str]:
    """The metrics of single frames of this many pixels a side: windowed ones need frames larger than their window."""
    return ["mse", "psnr", "ssim", "uiqi"] if resolution >= WINDOW else ["mse", "psnr"]


@dataclass
class Scores:
    """What was measured of `clips` clips so far, in the order of the horizon: frame 0 is the first predicted one."""

    metrics: Sequence[str]
    curves: dict[str, dict[str, list[Curve]]] = field(default_factory=dict)
    """Predictor: metric: an array (b, n) a batch; NaN where a clip has ended."""
    moments: dict[str, list[Curve]] = field(default_factory=dict)
    """Model and truth: an array (b, n, 2) a batch, mean and mean square of each frame's pixels; NaN where a clip has ended."""
    openings: dict[str, list[Tensor]] = field(default_factory=dict)
    """Predictor or truth: the first predicted frames of each batch, (b, ≤ OPENING, c, h, w) uint8, of clips that last so long."""
    seconds: float = 0.0
    frames: int = 0
    """Frames predicted in `seconds`, clips times length."""

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """What was measured of the clips of all `parts`, such as those of several processes."""
        whole = cls(parts[0].metrics)
        for part in parts:
            for who, curves in part.curves.items():
                for metric, found in curves.items():
                    whole.curves.setdefault(who, {}).setdefault(metric, []).extend(found)
            for who, moments in part.moments.items():
                whole.moments.setdefault(who, []).extend(moments)
            for who, openings in part.openings.items():
                whole.openings.setdefault(who, []).extend(openings)
            whole.seconds, whole.frames = whole.seconds + part.seconds, whole.frames + part.frames
        return whole

    @property
    def clips(self) -> int:
        return sum(len(part) for part in self.curves.get(MODEL, {}).get(self.metrics[0], []))

    def curve(self, who: str, metric: str) -> Curve:
        """(clips, n) of a predictor; batches of other lengths are filled up with NaN."""
        return _stacked(self.curves[who][metric])

    def pixels(self, who: str) -> tuple[Curve, Curve]:
        """Mean and variance of the pixels of all clips at each frame, (n,) each; `who` is MODEL or TRUTH."""
        first, second = np.moveaxis(mean_of(_stacked(self.moments[who])), -1, 0)
        return first, second - first**2

    def opening(self, who: str) -> Tensor:
        """(clips, t, c, h, w) in [0, 1]."""
        return torch.cat(self.openings[who]).float() / 255

    def add(self, who: str, found: dict[str, Tensor], valid: Tensor) -> None:
        """The curves (b, n) of one whole batch."""
        keep = valid.cpu().numpy()
        for metric, values in found.items():
            curve = np.where(keep, values.double().numpy(), np.nan)
            self.curves.setdefault(who, {}).setdefault(metric, []).append(curve)


class Roller:
    """Rolls batches out with the network one samples with. `metrics`: of single frames."""

    def __init__(
        self,
        video: Video,
        sampler: Sampler,
        *,
        metrics: Sequence[str],
        seed: int,
        on_frames: Callable[[int], None] = lambda count: None,
    ) -> None:
        """on_frames: told how many frames were just predicted, clips times length."""
        self.video = video
        self.sampler = sampler
        self.metrics = metrics
        self.seed = seed
        self.on_frames = on_frames

    def roll(
        self,
        batch: VideoBatch,
        number: int,
        scores: Scores,
        *,
        on_chunk: OnChunk | None = None,
        baselines: bool = True,
    ) -> None:
        """Roll the clips of batch `number` out from their context, on the device of the model, and add to `scores`."""
        given, length = self.video.options.context_frames, batch.frames.shape[1]
        context = batch.frames[:, :given].float() / 255

        def rivals(start: int, stop: int) -> dict[str, Tensor]:
            if not baselines or not given:
                return {}
            return {COPY: copy_last(context, stop - start), MEAN: mean_frame(context, stop - start)}

        self._score(self.stream(batch, number, length), batch, given, length, scores, rivals, on_chunk)

    def fill(
        self, batch: VideoBatch, number: int, scores: Scores, *, end_frames: int, on_chunk: OnChunk | None = None
    ) -> None:
        """Fill in what lies between the context of the clips of batch `number` and their last `end_frames` frames; add to `scores`."""
        given, stop = self.video.options.context_frames, batch.frames.shape[1] - end_frames
        first, last = batch.frames[:, :given].float() / 255, batch.frames[:, stop:].float() / 255

        def rivals(start: int, end: int) -> dict[str, Tensor]:
            far = torch.arange(start - given + 1, end - given + 1, device=last.device) / (stop - given + 1)
            blend = torch.lerp(first[:, -1:], last[:, :1], far[:, None, None, None])
            return {COPY: copy_last(first, end - start), BLEND: blend}

        middle = (frames[:, given:stop] for frames in self._filled(batch, number, end_frames))
        self._score(middle, batch, given, stop, scores, rivals, on_chunk)

    def _filled(self, batch: VideoBatch, number: int, end_frames: int) -> Iterator[Tensor]:
        """Whole clips (b, T, c, h, w) in [0, 1], when they are asked for."""
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
        given: int,
        stop: int,
        scores: Scores,
        rivals: Callable[[int, int], dict[str, Tensor]],
        on_chunk: OnChunk | None,
    ) -> None:
        """Compare the `chunks` of frames given … stop - 1 with the truth as they come, beside what `rivals(start, stop)` say of them."""
        parts: dict[str, list[dict[str, Tensor]]] = {}
        moments: dict[str, list[Tensor]] = {MODEL: [], TRUTH: []}
        openings: dict[str, list[Tensor]] = {}
        now, began = given, time.perf_counter()
        for prediction in chunks:
            scores.seconds += time.perf_counter() - began
            count = prediction.shape[1]
            truth = batch.frames[:, now : now + count].float() / 255
            predictors = {MODEL: prediction, **rivals(now, now + count)}
            for who, frames in predictors.items():
                parts.setdefault(who, []).append(frame_curves(frames, truth, self.metrics))
            for who, frames in ((MODEL, prediction), (TRUTH, truth)):
                moments[who].append(_moments(frames))
            left = OPENING - (now - given)
            if left > 0:
                for who, frames in (*predictors.items(), (TRUTH, truth)):
                    openings.setdefault(who, []).append((frames[:, :left] * 255).round().byte().cpu())
            if on_chunk is not None:
                on_chunk(now, prediction, truth)
            now += count
            began = time.perf_counter()
        scores.frames += (stop - given) * len(batch.frames)
        valid = batch.valid[:, given:stop]
        for who, found in parts.items():
            scores.add(who, {name: torch.cat([part[name] for part in found], dim=1) for name in self.metrics}, valid)
        for who, each in moments.items():
            keep = valid[..., None].cpu().numpy()
            scores.moments.setdefault(who, []).append(np.where(keep, torch.cat(each, dim=1).double().numpy(), np.nan))
        whole = valid[:, :OPENING].all(dim=1).cpu()
        for who, chunks_of in openings.items():
            scores.openings.setdefault(who, []).append(torch.cat(chunks_of, dim=1)[whole])

    def roll_shuffled(self, batch: VideoBatch, number: int, scores: Scores, *, frames: int = OPENING) -> None:
        """The same clips from the same noise, but each with the future actions of the clip before it; the first `frames` frames.

        A batch of one clip has no other: its scores are NaN.
        """
        given = self.video.options.context_frames
        length = min(batch.frames.shape[1], given + frames)
        if len(batch.frames) == 1:
            nothing = torch.full((1, length - given), torch.nan)
            scores.add(SHUFFLED, dict.fromkeys(self.metrics, nothing), batch.valid[:, given:length])
            return
        mixed = batch._replace(
            actions=torch.cat([batch.actions[:, :given], batch.actions.roll(1, dims=0)[:, given:]], dim=1),
            known=torch.cat([batch.known[:, :given], batch.known.roll(1, dims=0)[:, given:]], dim=1),
        )
        found = []
        now = given
        for prediction in self.stream(mixed, number, length):
            truth = batch.frames[:, now : now + prediction.shape[1]].float() / 255
            found.append(frame_curves(prediction, truth, self.metrics))
            now += prediction.shape[1]
        curves = {name: torch.cat([part[name] for part in found], dim=1) for name in self.metrics}
        scores.add(SHUFFLED, curves, batch.valid[:, given:length])

    def stream(self, batch: VideoBatch, number: int, length: int) -> Iterator[Tensor]:
        """The model's chunks for the clips of batch `number`; the noise belongs to (seed, number)."""
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

    def _generator(self, number: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0]
        return self.video.generator(int(seed) % 2**63)


def _moments(frames: Tensor) -> Tensor:
    """Mean and mean square of the pixels of each frame: (b, n, 2)."""
    return torch.stack([frames.mean(dim=(2, 3, 4)), frames.square().mean(dim=(2, 3, 4))], dim=-1).cpu()


def _stacked(parts: Sequence[Curve]) -> Curve:
    """Arrays (b, n, …) of several batches as one; shorter ones end in NaN."""
    longest = max(part.shape[1] for part in parts)
    filled = [
        np.pad(part, [(0, 0), (0, longest - part.shape[1]), *[(0, 0)] * (part.ndim - 2)], constant_values=np.nan)
        for part in parts
    ]
    return np.concatenate(filled)


def mean_of(values: Curve) -> Curve:
    """The mean over clips where there are any, else NaN, without a warning."""
    count = np.isfinite(values).sum(axis=0)
    total = np.nansum(values, axis=0)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def mean_and_interval(values: Curve) -> tuple[Curve, Curve, Curve]:
    """(clips, n) to the mean over clips at each frame and its 95 % interval (normal, from the clips' spread): (n,) each."""
    mean, count = mean_of(values), np.isfinite(values).sum(axis=0)
    spread = mean_of((values - mean) ** 2)
    error = 1.96 * np.sqrt(spread / np.maximum(count - 1, 1))
    error = np.where(count > 1, error, np.nan)
    return mean, mean - error, mean + error
