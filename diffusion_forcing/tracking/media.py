"""Arrays to files that a browser shows: PNG (zlib alone, so that a run needs no image library) and MP4 (H.264, by
PyAV).

Pixels are uint8 in [0, 255], rows first: an image is (h, w), (h, w, 3) or (h, w, 4), a video (t, h, w, 3).
"""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # channels: PNG colour type (grey, RGB, RGBA)
QUALITY = "20"  # x264's constant rate factor: 0 lossless … 51 worst; 18 to 23 looks right


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """A PNG file of `pixels`. ValueError for another shape or type than the module's."""
    pixels = np.asarray(pixels)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in COLOUR_TYPES or 0 in pixels.shape:
        raise ValueError(f"an image must be uint8 (h, w), (h, w, 3) or (h, w, 4), got {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * channels)
    # Filter "up" (2): each row minus the one above, modulo 256, which compresses drawings well.
    filtered = np.full((height, 1 + width * channels), 2, np.uint8)
    filtered[0, 1:], filtered[1:, 1:] = rows[0], rows[1:] - rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Mp4:
    """An H.264 video that is written while its frames come, so memory does not grow with its length.

    The codec needs even sides: the last row or column of an odd one is repeated.
    """

    def __init__(self, path: Path | BinaryIO, *, fps: float) -> None:
        """path: or an open file, such as one in memory. ValueError for fps not above 0. The file is created with the first frames."""
        if not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        self._path, self._fps = path, fps
        self._container: Any = None
        self._stream: Any = None
        self.last: NDArray[Any] | None = None
        """The newest frame, (h, w, 3)."""

    def add(self, frames: NDArray[Any]) -> None:
        """Append `frames: (t, h, w, 3)` uint8. ValueError for no frame, or another shape or type."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(f"a video must be uint8 (t, h, w, 3), got {frames.dtype} {frames.shape}")
        import av

        height, width = frames.shape[1:3]
        if self._container is None:
            named = isinstance(
                self._path, Path
            )  # only a file with a name can be opened again, to move its index to the front
            target, options = str(self._path) if named else self._path, {"movflags": "+faststart"} if named else {}
            self._container = av.open(target, "w", format="mp4", options=options)
            rate, options = Fraction(self._fps).limit_denominator(1001), {"crf": QUALITY, "preset": "medium"}
            self._stream = self._container.add_stream("libx264", rate=rate, options=options)
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
        elif self.last is not None and self.last.shape != frames.shape[1:]:
            raise ValueError(f"frames of a video must have one size, got {frames.shape[1:]} after {self.last.shape}")
        container, self._container = self._container, None  # after an error, ffmpeg ends the process if called again
        for frame in frames:
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self._container = container
        self.last = frames[-1].copy()

    def close(self) -> None:
        """Finish the file, if there is one."""
        container, self._container = self._container, None
        if container is not None:
            container.mux(self._stream.encode())
            container.close()
