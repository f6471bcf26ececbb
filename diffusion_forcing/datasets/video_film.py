"""Films (mp4, webm, mkv, avi, mov, gif) frame by frame through PyAV, which brings its own ffmpeg.

A few frames cost the frames between the keyframe before them and the last of them. Frames are counted as they are shown; each has the presentation
time that `Episode.times` keeps, so that after a seek it is known which frame came. Where a container seeks badly, decoding begins at the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video_inspect import Episode, Unusable

Pixels = NDArray[np.uint8]
_TABLED = (".mp4", ".mov")
"""Containers with a table of all their frames; of the others every frame is decoded once to know how many there are."""
_TIMED = (*_TABLED, ".mkv", ".webm")
"""Containers that say when each frame is shown; of the others clips are decoded from the start."""


class _Astray(Exception):
    """After a seek another frame came than the times say."""


def inspect_film(path: Path) -> dict[str, Any]:
    """Size, number of frames, their times and the keyframes of a film, as `Episode` holds them. `Unusable` for a damaged one."""
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise Unusable("holds no frame that can be decoded")
        height, width = _pixels(first, _Converter()).shape[:2]
    with _opened(path) as (container, stream):
        if path.suffix.lower() in _TABLED:
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            entries = [(packet.pts, packet.is_keyframe) for packet in packets]
            if len(entries) < stream.frames:
                raise Unusable(f"is cut off: {len(entries)} of {stream.frames} frames are there")
        else:
            entries = [(frame.pts, frame.key_frame) for frame in _decoded(container, stream)]
    frames = len(entries)
    sizes = {"kind": "film", "frames": frames, "height": height, "width": width}
    distinct = {time for time, _ in entries} - {None}
    if path.suffix.lower() not in _TIMED or len(distinct) < frames:
        return sizes
    entries.sort()
    times = np.array([time for time, _ in entries], dtype=np.int64)
    keyframes = np.flatnonzero([key for _, key in entries])
    steps = np.diff(times)
    even = frames > 2 and bool((steps == steps[0]).all())
    return sizes | {"keyframes": keyframes, "times": np.array([times[0], steps[0]]) if even else times}


def read_film(path: Path, episode: Episode, frames: NDArray[np.int64]) -> Pixels:
    """(n, h, w, 3): `frames` (rising, repeats allowed) of a film. `Unusable` where they cannot be decoded."""
    wanted, places = np.unique(frames, return_inverse=True)
    times = _all_times(episode)
    found: dict[int, Pixels] = {}
    if len(times):
        before = episode.keyframes[episode.keyframes <= wanted[0]]
        with suppress(_Astray, Unusable):
            found = _seek_and_decode(path, times, int(before[-1]) if len(before) else 0, wanted)
    if len(found) < len(wanted):
        found = _decode_from_start(path, wanted)
    missing = [number for number in wanted.tolist() if number not in found]
    if missing:
        raise Unusable(f"has no frame {missing[0]} that can be decoded, but should have {episode.frames}")
    pixels = np.stack([found[number] for number in wanted.tolist()])
    if pixels.shape[1:3] != (episode.height, episode.width):
        raise Unusable("changes its size on the way")
    return pixels[places]


def film_blocks(path: Path, episode: Episode, block: int) -> Iterator[Pixels]:
    """All frames in turn, at most `block` at a time, (n, h, w, 3). `Unusable` where the film ends early."""
    converter, buffer, count = _Converter(), [], 0
    with _opened(path) as (container, stream):
        for frame in _decoded(container, stream):
            if count == episode.frames:
                break
            pixels = _pixels(frame, converter)
            if pixels.shape[:2] != (episode.height, episode.width):
                raise Unusable("changes its size on the way")
            buffer.append(pixels)
            count += 1
            if len(buffer) == block:
                yield np.stack(buffer)
                buffer = []
    if buffer:
        yield np.stack(buffer)
    if count < episode.frames:
        raise Unusable(f"is damaged: only {count} of its {episode.frames} frames can be decoded")


def _seek_and_decode(path: Path, times: NDArray[np.int64], key: int, wanted: NDArray[np.int64]) -> dict[int, Pixels]:
    """`wanted` frames by number, decoded from keyframe `key` on. `_Astray` when the container went elsewhere."""
    targets = {int(times[number]): number for number in wanted.tolist()}
    first, last = int(times[wanted[0]]), int(times[wanted[-1]])
    found: dict[int, Pixels] = {}
    converter = _Converter()
    with _opened(path) as (container, stream):
        if key:
            container.seek(int(times[key]), stream=stream)
        started = False
        for packet in container.demux(stream):
            # frames that nothing refers to and nobody asked for are not decoded
            unasked = packet.pts is not None and packet.pts < first
            stream.codec_context.skip_frame = "NONREF" if unasked else "DEFAULT"
            for frame in packet.decode():
                if frame.pts is None or (not started and frame.pts > first):
                    raise _Astray
                started = True
                if frame.pts in targets:
                    found[targets[frame.pts]] = _pixels(frame, converter)
                if frame.pts >= last:
                    return found
    return found


def _decode_from_start(path: Path, wanted: NDArray[np.int64]) -> dict[int, Pixels]:
    """`wanted` frames by number, counted from the first."""
    found: dict[int, Pixels] = {}
    converter, numbers = _Converter(), set(wanted.tolist())
    with _opened(path) as (container, stream):
        for number, frame in enumerate(_decoded(container, stream)):
            if number in numbers:
                found[number] = _pixels(frame, converter)
            if number >= wanted[-1]:
                break
    return found


def _all_times(episode: Episode) -> NDArray[np.int64]:
    """Presentation time of every frame; empty where the film has none."""
    times = episode.times
    if len(times) == 2 and episode.frames != 2:
        return times[0] + times[1] * np.arange(episode.frames)
    return times


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and its video stream; `Unusable` in place of ffmpeg's errors while it is open."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Unusable("holds no video")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # clips are short and many; they are decoded side by side instead
            yield container, stream
    except FileNotFoundError:
        raise
    except av.error.FFmpegError as error:
        raise Unusable(f"cannot be decoded ({error.strerror or error})") from error


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise Unusable("is damaged")
        yield frame


class _Converter:
    """Decoded frames to RGB, by one thread where this PyAV can be told: starting threads costs more than converting a small frame."""

    def __init__(self) -> None:
        self._reformatter = av.video.reformatter.VideoReformatter()
        told = "threads" in (self._reformatter.reformat.__doc__ or "")
        self._words: dict[str, Any] = {
            "format": "rgb24",
            "interpolation": "FAST_BILINEAR",
            **({"threads": 1} if told else {}),
        }

    def __call__(self, frame: Any) -> Pixels:
        return np.asarray(self._reformatter.reformat(frame, **self._words).to_ndarray())


def _pixels(frame: Any, converter: _Converter) -> Pixels:
    """(h, w, 3) as shown: a film that was recorded on its side is turned upright."""
    pixels = converter(frame)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
