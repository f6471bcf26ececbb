"""Videos and images of cameras: turned as their files say, squeezed, counted without decoding."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="the robot extra brings it")
from PIL import ImageOps  # noqa: E402

from diffusion_forcing.datasets.video.container import (  # noqa: E402
    read_image,
    read_segment,
    read_video,
    resize,
    squeeze,
    video_metadata,
    write_video,
)
from diffusion_forcing.limits import Refused  # noqa: E402

y, x = np.mgrid[:16, :24]
PIXELS = np.stack([x * 10, y * 15, 100 + 0 * x], axis=-1).astype(np.uint8)
"""Different at every edge."""


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a display matrix into the header of an mp4's first track."""
    data = bytearray(path.read_bytes())
    box = data.find(b"tkhd")
    start = box + 8 + (32 if data[box + 4] else 20) + 16
    one = 1 << 16
    struct.pack_into(">9i", data, start, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), PIXELS),
        ((0, 1, -1, 0), np.rot90(PIXELS, -1)),  # clockwise
        ((-1, 0, 0, -1), np.rot90(PIXELS, 2)),
        ((0, -1, 1, 0), np.rot90(PIXELS)),
        ((-1, 0, 0, 1), PIXELS[:, ::-1]),
        ((1, 0, 0, -1), PIXELS[::-1]),
        ((0, 1, 1, 0), PIXELS.swapaxes(0, 1)),
    ],
)
def test_a_video_is_read_as_a_player_shows_it(tmp_path: Path, matrix: tuple[int, ...], expected: np.ndarray) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, np.stack([PIXELS] * 3), 10)
    set_matrix(path, *matrix)
    assert np.array_equal(read_video(path), np.stack([expected] * 3))
    assert np.array_equal(read_segment(path, 0.1, 2, 10), np.stack([expected] * 2))
    assert np.array_equal(read_video(path, 8), squeeze(np.stack([expected] * 3), 8))
    assert video_metadata(path) == (3, 10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "JPEG", exif=exif, quality=95, subsampling=0)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data.getvalue())))
    found = read_image(data.getvalue())
    assert np.array_equal(found, np.asarray(upright))
    side = {1: PIXELS, 3: np.rot90(PIXELS, 2), 6: np.rot90(PIXELS, -1), 8: np.rot90(PIXELS)}.get(orientation)
    assert side is None or np.abs(found.astype(int) - side).mean() < 5


def test_grey_images_of_16_bits_keep_their_range_and_damaged_ones_are_value_errors() -> None:
    grey = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    data = io.BytesIO()
    Image.fromarray(grey).save(data, "PNG")
    found = read_image(data.getvalue())
    assert found.shape == (16, 16, 3) and np.array_equal(found[..., 0], grey // 256)
    for damaged in (b"", b"nonsense", data.getvalue()[:60]):
        with pytest.raises((ValueError, OSError)):
            read_image(damaged)


def test_images_are_squeezed_and_not_enlarged() -> None:
    images = PIXELS[None]
    assert squeeze(images, 8).shape == (1, 8, 8, 3)
    assert squeeze(images, 8)[0, 0, -1, 0] > 200 > 30 > squeeze(images, 8)[0, 0, 0, 0]  # both edges are still there
    with pytest.raises(Refused, match="16 x 24"):
        squeeze(images, 20)
    assert resize(images, 32).shape == (1, 32, 32, 3)
