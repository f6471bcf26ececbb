"""Camera videos and images: written losslessly or with a common codec, read whole or in part, and squeezed to a square.

Images are squeezed, not cropped, as in the released code: what lies at an edge may matter to an arm. They are never
enlarged for training. Rotations and mirrorings that a file asks for (the display matrix of a video, the EXIF
orientation of a photo) are applied.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from diffusion_forcing.datasets.video.container import Pixels, opened, resize, shown_packets, upright
from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import Refused, check_limit

_TOLERANCE = 0.25
"""Of the time between two frames: how far from its time a frame may be shown."""
_BLOCK_BYTES = 64 << 20
"""Bytes of frames held in memory at their original size at once."""


@dataclass(frozen=True)
class Codec:
    """An encoder of ffmpeg, its pixel format and options."""

    encoder: str
    pixel_format: str
    options: tuple[tuple[str, str], ...]


CODECS = {
    "lossless": Codec("libx264rgb", "rgb24", (("qp", "0"), ("preset", "veryfast"))),
    "h264": Codec("libx264", "yuv420p", (("crf", "10"), ("preset", "veryfast"))),
    "av1": Codec("libsvtav1", "yuv420p", (("crf", "30"), ("preset", "8"), ("svtav1-params", "lp=1"))),
}
"""lossless: h264 in RGB, bit-exact; ffmpeg plays it, browsers do not. h264, av1: any player, but colours at half the
resolution."""


class VideoWriter:
    """A video at `path`, written clip by clip. Every clip starts with a key frame, and `key_every` seconds later
    there is another."""

    def __init__(
        self, path: Path, size: tuple[int, int], fps: float, codec: str = "lossless", *, key_every: float = 1.0
    ) -> None:
        chosen, rate = CODECS[codec], Fraction(fps).limit_denominator(1001)
        if chosen.encoder not in av.codecs_available:
            have = ", ".join(name for name, known in CODECS.items() if known.encoder in av.codecs_available)
            raise UserError(
                f"codec '{codec}' needs ffmpeg's encoder {chosen.encoder}, which PyAV {av.__version__} lacks; install a newer av, or choose of {have}"
            )
        self.frames = self.bytes = 0
        self._time_base = 1 / rate
        container = av.open(str(path), "w", format="mp4")
        self._container: Any = container
        stream: Any = container.add_stream(chosen.encoder, rate=rate, options=dict(chosen.options))
        stream.height, stream.width = size
        stream.pix_fmt = chosen.pixel_format
        stream.codec_context.gop_size = max(1, round(fps * key_every))
        self._stream = stream

    def add(self, images: Pixels) -> None:
        """Append a clip (n, h, w, 3)."""
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.frames, self._time_base
            frame.pict_type = av.video.frame.PictureType.I if number == 0 else av.video.frame.PictureType.NONE
            self._mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Write the frames still in the encoder, and the index; after an error nothing."""
        if self._container is not None:
            self._mux(self._stream.encode())
            self._container.close()

    def _mux(self, packets: Iterable[Any]) -> None:
        container, self._container = self._container, None  # after an error, ffmpeg ends the process if called again
        for packet in packets:
            self.bytes += packet.size
            container.mux(packet)
        self._container = container


def write_video(path: Path, images: Pixels, fps: float, codec: str = "lossless") -> None:
    """Write one clip (n, h, w, 3) with few key frames: it will be read from its beginning."""
    with closing(VideoWriter(path, (images.shape[1], images.shape[2]), fps, codec, key_every=25.0)) as video:
        video.add(images)


def read_video(path: Path, size: int | None = None, *, most: int | None = None) -> Pixels:
    """All frames (n, h, w, 3), or (n, size, size, 3), or the first `most`. `Refused` for a damaged file."""
    with opened(path) as (container, stream):
        return stack(map(_pixels, itertools.islice(container.decode(stream), most)), size)


def read_segment(path: Path, start: float, count: int, fps: float, size: int | None = None) -> Pixels:
    """The `count` frames shown at `start`, `start` + 1 / `fps`, … seconds. `Refused` where one is missing."""
    half = 0.5 / fps
    with opened(path) as (container, stream):
        if start > half:
            container.seek(int((start - half) / stream.time_base), stream=stream)
        # The frames between the key frame and the start are left out.
        shown = (frame for frame in container.decode(stream) if frame.time is not None and frame.time >= start - half)
        images = stack(map(_pixels, _checked(itertools.islice(shown, count), start, fps)), size)
    if len(images) < count:
        raise Refused(f"ends after {len(images)} of {count} frames from {start:.3f} s")
    return images


def _checked(frames: Iterable[Any], start: float, fps: float) -> Iterator[Any]:
    """`frames`; `Refused` where one is not shown at its time."""
    for number, frame in enumerate(frames):
        if abs(frame.time - start - number / fps) > _TOLERANCE / fps:
            raise Refused(f"has no frame at {start + number / fps:.3f} s")
        yield frame


def video_metadata(path: Path) -> tuple[int, float]:
    """Number of frames and frames per second, without decoding. `Refused` for a damaged file."""
    with opened(path) as (container, stream):
        count = len(shown_packets(path, container, stream))
        if not count or not stream.average_rate:
            raise Refused("holds no frames")
        return count, float(stream.average_rate)


def read_image(data: bytes) -> Pixels:
    """(h, w, 3) of a png or jpeg file's bytes. ValueError or OSError for a damaged one."""
    from PIL import Image, ImageOps

    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP", "GIF"))
        check_limit("PIXELS", image.width * image.height, "an image")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8
            grey = (np.asarray(image) // 256).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def squeeze(images: Pixels, size: int) -> Pixels:
    """(n, h, w, 3) → (n, size, size, 3). `Refused` where they would be enlarged."""
    height, width = images.shape[1:3]
    if min(height, width) < size:
        raise Refused(
            f"holds images of {height} x {width}, smaller than {size} x {size}; images are not enlarged",
            remedy="lower dataset.resolution or choose another dataset.save_dir",
        )
    return resize(images, size)


def _pixels(frame: Any) -> Pixels:
    return upright(frame.to_ndarray(format="rgb24"), frame)


def stack(images: Iterable[Pixels], size: int | None = None) -> Pixels:
    """Images (h, w, 3) as one array (n, h, w, 3), or resized block by block to (n, size, size, 3)."""
    images = iter(images)
    blocks: list[Pixels] = []
    whole = 0
    for first in images:
        block = [first, *itertools.islice(images, max(0, _BLOCK_BYTES // first.nbytes - 1))]
        if len({image.shape for image in block}) > 1:
            raise Refused("holds frames of different sizes")
        blocks.append(np.stack(block) if size is None else squeeze(np.stack(block), size))
        whole += blocks[-1].nbytes
        check_limit("ARRAY_BYTES", whole, "a video")
    if not blocks:
        raise Refused("holds no frames")
    return np.concatenate(blocks)
