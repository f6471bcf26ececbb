"""Small video files in the formats people have, for the tests of reading them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def moving_pattern(count: int = 12, size: int | tuple[int, int] = 16, *, seed: int = 0) -> Pixels:
    """(count, h, w, 3): a soft pattern that moves, another one for each seed; every frame differs from every other."""
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    phase, speed = rng.uniform(0, 6, 3), rng.uniform(0.1, 0.2, 3)
    rows, columns = np.linspace(0, 3, height)[:, None, None], np.linspace(0, 3, width)[None, :, None]
    times = np.arange(count)[:, None, None, None]
    return (127 + 120 * np.sin(rows + columns + phase + speed * times)).astype(np.uint8)


def noise(count: int = 12, size: int = 16, *, seed: int = 0) -> Pixels:
    """(count, size, size, 3) of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_npz(path: Path, video: Pixels, actions: Any = None, *, packed: bool = False) -> Path:
    """TECO's DMLab layout: `video` and `actions` in one npz, compressed or stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"video": video} if actions is None else {"video": video, "actions": np.asarray(actions)}
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def write_video(path: Path, video: Pixels, *, codec: str = "libx264", actions: Any = None, **words: str) -> Path:
    """An encoded video; with `actions` TECO's Minecraft layout, a npz of them beside it. `words` are the encoder's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        codec, pixels = "gif", "rgb8"
    else:
        pixels = "yuv420p"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=20, options={"crf": "10", **words})
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], pixels
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    if actions is not None:
        np.savez(path.with_suffix(".npz"), actions=np.asarray(actions))
    return path


def decode(path: Path) -> Pixels:
    """(t, h, w, 3): every frame of a video, plainly from the first to the last."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def cut(path: Path, size: int) -> Path:
    """The file without its last `size` bytes."""
    path.write_bytes(path.read_bytes()[:-size])
    return path


def trim(path: Path, *, first: int = 0, last: int = 0) -> Path:
    """A mp4 of `write_video` whose edit list leaves out the `first` and `last` frames; their data stay in the file."""
    with av.open(str(path)) as container:
        step = int(1 / (20 * container.streams.video[0].time_base))
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"elst") + 12
    length, start = struct.unpack(">Ii", raw[entry : entry + 8])  # in ms, in ticks
    raw[entry : entry + 8] = struct.pack(">Ii", length - 50 * (first + last), start + step * first)
    path.write_bytes(raw)
    return path
