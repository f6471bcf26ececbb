"""What Minetest renders, read from memory: Xvfb keeps its screen in a file (XWD format), which is mapped here.

Rows of squares above and below the image show a number, the *mark*, that the mod changes after every move. The screen
is painted row by row, so a copy of it in which both rows show the new mark contains no row of an older image.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError

SIZE = 128
"""Height and width of the image in pixels."""
STRIP = 16
"""Rows above and below it that show the mark."""
HEIGHT = SIZE + 2 * STRIP
BITS = 12
MARKS = 1 << BITS
"""Marks count from 0 to 4095 and start again."""
_SQUARE = 10
_FIRST = 2
"""Pixels: width of a square, and left edge of the first."""
_DARK, _LIT = 40, 215
"""Brightness of squares; in between, the screen is being painted."""
_HEADER = struct.Struct(">25I")
_COLOUR_BYTES = 12


class Screen:
    """Xvfb's screen of `HEIGHT` rows of `SIZE` pixels in the file `path`."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset, row = pixel_layout(self._memory[: _HEADER.size])
        pixels = np.frombuffer(self._memory, np.uint8, count=HEIGHT * row, offset=offset)
        self._pixels = pixels.reshape(HEIGHT, row // 4, 4)[:, :SIZE, 2::-1]

    def shows(self, mark: int) -> bool:
        """Whether both rows of squares show `mark` now."""
        return read_mark(self._pixels) == mark

    def copy(self, mark: int) -> NDArray[np.uint8] | None:
        """The image (128, 128, 3) uint8 of `mark`; None while the screen shows another one or parts of two."""
        copied = self._pixels.copy()
        return copied[STRIP : STRIP + SIZE] if read_mark(copied) == mark else None


def pixel_layout(header: bytes) -> tuple[int, int]:
    """Offset of the first pixel and bytes of a row, from an XWD header. `UserError` for another screen."""
    fields = _HEADER.unpack(header)
    header_size, width, height, byte_order = fields[0], fields[4], fields[5], fields[7]
    bits, row, colours = fields[11], fields[12], fields[19]
    if (width, height, bits, byte_order) != (SIZE, HEIGHT, 32, 0):
        raise UserError(
            f"Xvfb's screen is {width}x{height} with {bits} bits a pixel in byte order {byte_order}, "
            f"expected {SIZE}x{HEIGHT}, 32, 0; another Xvfb may be first on PATH"
        )
    return header_size + _COLOUR_BYTES * colours, row


def read_mark(screen: NDArray[np.uint8]) -> int | None:
    """The mark on `screen` (HEIGHT, SIZE, 3); None if a square is half painted or the two rows differ."""
    middles = _FIRST + _SQUARE // 2 + _SQUARE * np.arange(BITS)
    squares = screen[[[STRIP // 2], [HEIGHT - STRIP // 2]], middles].astype(np.int64).sum(axis=-1) // 3
    if ((squares > _DARK) & (squares < _LIT)).any():
        return None
    above, below = ((squares > _DARK) @ (1 << np.arange(BITS))).tolist()
    return from_gray(above) if above == below else None


def from_gray(code: int) -> int:
    """The number whose Gray code is `code`."""
    number = code
    while code := code >> 1:
        number ^= code
    return number


def to_gray(number: int) -> int:
    """Gray code: consecutive numbers differ in one bit, also 4095 and 0."""
    return number ^ (number >> 1)


def shrink(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(..., 128, 128, 3) to (..., size, size, 3) by averaging. `UserError` unless `size` divides 128."""
    if size == SIZE:
        return frames
    if size < 1 or SIZE % size:
        raise UserError(f"resolution {size} cannot be averaged from {SIZE} pixels; choose 128, 64, 32 or 16")
    step = SIZE // size
    blocks = frames.reshape(*frames.shape[:-3], size, step, size, step, 3)
    return np.asarray((blocks.sum(axis=(-4, -2), dtype=np.uint32) + step * step // 2) // (step * step), dtype=np.uint8)
