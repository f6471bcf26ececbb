"""Arrays to files a browser shows: PNG (plain zlib) and MP4 (H.264 through PyAV).

Pixels are uint8 in [0, 255], rows first: a picture is (h, w), (h, w, 3) or (h, w, 4), a film (t, h, w, 3).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # channels: PNG colour type (grey, RGB, RGBA)
QUALITY = "20"  # x264's constant rate factor: 0 lossless … 51 worst, 18-23 looks right


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """A PNG file of `pixels`. ValueError for another shape or type than the module's."""
    pixels = np.asarray(pixels)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in COLOUR_TYPES or 0 in pixels.shape:
        raise ValueError(f"a picture is uint8 (h, w), (h, w, 3) or (h, w, 4), got {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * channels).astype(np.int16)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = 2  # filter "up": each row minus the one above, which compresses drawings well
    filtered[:, 1:] = (rows - above).astype(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_mp4(path: Path, frames: NDArray[Any], *, fps: float) -> None:
    """Write `frames: (t, h, w, 3)` uint8 as H.264 at `path`. ValueError for another shape or type, no frame, or fps
    not above 0."""
    film = Mp4(path, fps=fps)
    try:
        film.add(np.asarray(frames))
    finally:
        film.close()


class Mp4:
    """An H.264 film that is written as its frames come; memory does not grow with its length.

    The codec wants even sides: an odd one gets its last row or column repeated once.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        """ValueError for fps not above 0. The file is made with the first frames."""
        if not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        self._path, self._fps = path, fps
        self._container: Any = None
        self._stream: Any = None
        self._shape: tuple[int, int] = (0, 0)
        self.last: NDArray[Any] | None = None
        """The newest frame, (h, w, 3)."""

    def add(self, frames: NDArray[Any]) -> None:
        """Write `frames: (t, h, w, 3)` uint8 behind the others. ValueError for another shape or type, or no frame."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(f"a film is uint8 (t, h, w, 3), got {frames.dtype} {frames.shape}")
        import av

        shape = (frames.shape[1], frames.shape[2])
        if self._container is None:
            self._shape = shape
            self._container = av.open(str(self._path), "w", format="mp4", options={"movflags": "+faststart"})
            options = {"crf": QUALITY, "preset": "medium"}
            self._stream = self._container.add_stream("libx264", rate=_rate(self._fps), options=options)
            self._stream.width, self._stream.height = shape[1] + shape[1] % 2, shape[0] + shape[0] % 2
            self._stream.pix_fmt = "yuv420p"
        if shape != self._shape:
            raise ValueError(f"a film's frames are of one size, got {shape} after {self._shape}")
        odd = (shape[0] % 2, shape[1] % 2)
        for frame in frames:
            if any(odd):
                frame = np.pad(frame, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))
        self.last = frames[-1].copy()

    def close(self) -> None:
        """Finish the file, if there is one."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None


def _rate(fps: float) -> Any:
    from fractions import Fraction

    return Fraction(fps).limit_denominator(1001)
