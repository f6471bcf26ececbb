"""Arrays to files that a browser shows: PNG (by Pillow) and MP4 (H.264, by PyAV).

Pixels are uint8 in [0, 255], rows first: an image is (h, w), (h, w, 3) or (h, w, 4), a video (t, h, w, 3).
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

QUALITY = "20"  # x264's constant rate factor: 0 lossless … 51 worst; 18 to 23 looks right


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """A PNG file of `pixels`. ValueError for another shape or type than the module's."""
    from PIL import Image

    pixels = np.asarray(pixels)
    is_image = pixels.dtype == np.uint8 and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)))
    if not is_image or 0 in pixels.shape:
        raise ValueError(f"an image must be uint8 (h, w), (h, w, 3) or (h, w, 4), got {pixels.dtype} {pixels.shape}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


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
            named = isinstance(self._path, Path)  # else it cannot be opened again, to move its index to the front
            options = {"movflags": "+faststart"} if named else {}
            self._container = av.open(str(self._path) if named else self._path, "w", format="mp4", options=options)
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
