"""A demonstration on disk: NNNNNN.<camera>.mp4, without loss, and NNNNNN.npz with the arrays; what has its npz is whole."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError

RATE = 10
"""Frames and actions a second."""


def save_demonstration(path: Path, episode: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as `path` (.npz), pictures (n, h, w, 3) uint8 among them as films beside it; the npz last."""
    pictures = {name: array for name, array in episode.items() if array.ndim == 4 and array.dtype == np.uint8}
    for name, frames in pictures.items():
        _put(film_of(path, name), lambda temporary, frames=frames: _write_film(temporary, frames))  # type: ignore[misc]
    rest = {name: array for name, array in episode.items() if name not in pictures}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            np.savez(stream, **rest)  # type: ignore[arg-type]

    _put(path, write)


def film_of(path: Path, camera: str) -> Path:
    """Where a camera's film of the demonstration `path` lies."""
    return path.with_name(f"{path.stem}.{camera}.mp4")


def read_demonstration(path: Path, cameras: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of `path` and its cameras' pictures (n, h, w, 3) uint8. UserError for what is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            episode = {name: stored[name] for name in stored.files}
        actions = episode["actions"]
        if actions.ndim != 2 or actions.shape[1] != 8 or not np.isfinite(actions).all():
            raise ValueError(f"its actions have shape {actions.shape}, (n, 8) finite numbers are needed")
        for camera in cameras:
            frames = read_film(film_of(path, camera))
            if len(frames) != len(actions) + 1:
                raise ValueError(
                    f"camera {camera} has {len(frames)} frames for {len(actions)} actions; one more is needed"
                )
            episode[camera] = frames
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, av.FFmpegError) as failure:
        said = f"there is no {failure}" if isinstance(failure, KeyError) else failure
        raise UserError(f"{path} cannot be read: {said}; remove it, and generate it again") from failure
    return episode


def read_film(path: Path) -> NDArray[np.uint8]:
    """(n, h, w, 3) every frame of a film."""
    with av.open(str(path)) as container:
        container.streams.video[
            0
        ].codec_context.thread_count = 1  # small pictures: handing them over costs more than decoding
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _write_film(path: Path, frames: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264rgb", rate=RATE, options={"qp": "0", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def _put(path: Path, write: Any) -> None:
    """`write(temporary)`, then the file is there, whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
