"""Films of a robot's cameras through PyAV: written without loss or with a common codec, read whole or a stretch of them, made smaller on the way.

Pictures are squeezed to a square, as the released code does it: what lies at a picture's edge may be what matters to an arm. They are never made
larger.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_BLOCK = 64
"""Frames that are held in their own size at once."""


@dataclass(frozen=True)
class Codec:
    """How films are written: ffmpeg's encoder, its pixels and options."""

    encoder: str
    pixels: str
    options: tuple[tuple[str, str], ...]


CODECS = {
    "lossless": Codec("libx264rgb", "rgb24", (("qp", "0"), ("preset", "veryfast"))),
    "h264": Codec("libx264", "yuv420p", (("crf", "10"), ("preset", "veryfast"))),
    "av1": Codec("libsvtav1", "yuv420p", (("crf", "30"), ("preset", "8"), ("svtav1-params", "lp=1"))),
}
"""lossless: h264 in RGB, every bit as it was; ffmpeg plays it, browsers do not. h264, av1: every player's, with colours at half the resolution."""


class TooSmall(ValueError):
    """Pictures that would have to be made larger."""


class FilmWriter:
    """A film at `path`, filled clip by clip; each clip begins with a key frame, one follows every `key_every` s. Close it, or leave its `with`."""

    def __init__(
        self, path: Path, size: tuple[int, int], fps: float, codec: str = "lossless", *, key_every: float = 1.0
    ) -> None:
        how, rate = CODECS[codec], Fraction(fps).limit_denominator(1001)
        self.frames = 0
        self._container = av.open(str(path), "w", format="mp4")
        stream: Any = self._container.add_stream(how.encoder, rate=rate, options=dict(how.options))
        stream.height, stream.width = size
        stream.pix_fmt = how.pixels
        stream.codec_context.gop_size = max(1, round(fps * key_every))
        self._stream = stream
        self._base = 1 / rate
        self.bytes = 0

    def add(self, pictures: Pixels) -> None:
        """A clip (n, h, w, 3)."""
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.frames, self._base
            frame.pict_type = av.video.frame.PictureType.I if number == 0 else av.video.frame.PictureType.NONE
            self._mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Write what is still held, and the film's table."""
        self._mux(self._stream.encode())
        self._container.close()

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            self.bytes += packet.size
            self._container.mux(packet)


def write_film(path: Path, pictures: Pixels, fps: float, codec: str = "lossless") -> None:
    """One clip (n, h, w, 3) as a film, which is always read from its start."""
    with FilmWriter(path, (pictures.shape[1], pictures.shape[2]), fps, codec, key_every=25.0) as film:
        film.add(pictures)


def read_film(path: Path, size: int | None = None) -> Pixels:
    """(n, h, w, 3) every frame of a film, (n, size, size, 3) with `size`. av.FFmpegError or ValueError for a damaged one."""
    with av.open(str(path)) as container:
        stream = _video(container)
        return _gathered(container.decode(stream), size)


def read_stretch(path: Path, start: float, count: int, fps: float, size: int | None = None) -> Pixels:
    """(count, …): the frames of a film shown at `start`, `start` + 1 / `fps`, … in s. ValueError where one is not there."""
    half = 0.5 / fps
    with av.open(str(path)) as container:
        stream = _video(container)
        if start > half:
            container.seek(int((start - half) / stream.time_base), stream=stream)

        def shown() -> Iterator[Any]:
            number = 0
            for frame in container.decode(stream):
                if frame.time is None or frame.time < start - half:
                    continue
                if abs(frame.time - start - number / fps) > half:
                    raise ValueError(f"it shows nothing at {start + number / fps:.3f} s")
                yield frame
                number += 1
                if number == count:
                    return
            raise ValueError(f"it ends after {number} of {count} frames from {start:.3f} s on")

        return _gathered(shown(), size)


def read_picture(data: bytes) -> Pixels:
    """(h, w, 3): a picture that is a file by itself (png, jpeg)."""
    with av.open(io.BytesIO(data)) as container:
        return next(iter(container.decode(_video(container)))).to_ndarray(format="rgb24")


def film_facts(path: Path) -> tuple[int, float]:
    """Frames of a film and frames a second, from its table, nothing decoded. av.FFmpegError or ValueError for a damaged one."""
    with av.open(str(path)) as container:
        stream = _video(container)
        packets = [packet for packet in container.demux(stream) if packet.size]
        count = sum(not packet.is_discard for packet in packets)
        rate = stream.average_rate
        if not count or not rate:
            raise ValueError("it holds no frames")
        if len(packets) < stream.frames:
            # The edit list of a trimmed video leaves frames out; those are in the file all the same.
            with av.open(str(path), options={"ignore_editlist": "1"}) as untrimmed:
                stored = sum(1 for packet in untrimmed.demux(_video(untrimmed)) if packet.size)
            if stored < stream.frames:
                raise ValueError(f"it is cut off: {stored} of {stream.frames} frames are there")
        return count, float(rate)


def squeeze(pictures: Pixels, size: int) -> Pixels:
    """(n, h, w, 3) to (n, size, size, 3), filtered (antialiased bilinear). `TooSmall` where they would become larger."""
    height, width = pictures.shape[1:3]
    if height == width == size:
        return pictures
    if min(height, width) < size:
        raise TooSmall(f"it has pictures of {height} x {width}; they are not made larger, to {size} x {size}")
    import torch
    from torch.nn import functional as F

    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    small = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def _video(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("it holds no video")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # small pictures: handing them over costs more than decoding
    return stream


def _gathered(frames: Iterable[Any], size: int | None) -> Pixels:
    """The frames as pictures, a block at a time in their own size."""
    done: list[Pixels] = []
    block: list[Pixels] = []
    for frame in frames:
        block.append(frame.to_ndarray(format="rgb24"))
        if len(block) == _BLOCK:
            done.append(_small(block, size))
            block = []
    if block:
        done.append(_small(block, size))
    if not done:
        raise ValueError("it holds no frames")
    return np.concatenate(done) if len(done) > 1 else done[0]


def _small(block: list[Pixels], size: int | None) -> Pixels:
    if len({picture.shape for picture in block}) > 1:
        raise ValueError("its pictures change their size on the way")
    pictures = np.stack(block)
    return pictures if size is None else squeeze(pictures, size)
