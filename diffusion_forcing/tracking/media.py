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
    not above 0.

    The codec wants even sides: an odd one gets its last row or column repeated once.
    """
    import av

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a film is uint8 (t, h, w, 3), got {frames.dtype} {frames.shape}")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    height, width = frames.shape[1:3]
    odd = (height % 2, width % 2)
    options = {"crf": QUALITY, "preset": "medium"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=_rate(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = width + odd[1], height + odd[0], "yuv420p"
        for frame in frames:
            if any(odd):
                frame = np.pad(frame, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _rate(fps: float) -> Any:
    from fractions import Fraction

    return Fraction(fps).limit_denominator(1001)
