"""Compressed clips decoded once: a file of plain uint8 frames for each episode, of the size asked for, so that a clip is a few reads by position.

An episode's file is written whole or not at all, under a name that holds the stamp of its source: a killed run goes on where it was, a changed
source is decoded again. What is plain already, and of the right size, gets no copy. Frames are cropped and made smaller here, once.
"""

from __future__ import annotations

import glob
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np

from diffusion_forcing.datasets.video.decode import Pixels, blocks, fit, fits
from diffusion_forcing.datasets.video.episodes import Episode, Unusable
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import locked, replacing
from diffusion_forcing.progress import progress_bar

_HEADER = 128
"""Bytes before the first frame: what numpy writes for any array of up to 10 digits a side."""
_SHARE_OF_FREE = 0.5
"""`cache=auto` takes at most this share of the disk's free space."""


class _Away(Unusable):
    """The source could not be read this time."""


class VideoCache:
    """Decoded frames of `resolution` below `folder` for clips below `root`."""

    def __init__(self, root: Path, folder: Path, resolution: int) -> None:
        self._root = root
        self._folder = folder / str(resolution)
        self._resolution = resolution

    def place(self, episode: Episode) -> tuple[Path, int] | None:
        """File and first byte of the plain frames of an episode; None where they were not decoded yet."""
        if self.is_plain(episode):
            return self._root / episode.file, episode.offset
        file = self._file(episode)
        try:
            return (file, _HEADER) if file.stat().st_size == _HEADER + self._size(episode) else None
        except OSError:
            return None

    def missing(self, episodes: Iterable[Episode]) -> list[Episode]:
        """Episodes that are not decoded yet."""
        return [episode for episode in episodes if self.place(episode) is None]

    def has_room(self, episodes: Iterable[Episode]) -> bool:
        """Whether decoding `episodes` would leave half of what is free now; says so in a line where not."""
        need, free = sum(map(self._size, episodes)), self._free()
        if need <= _SHARE_OF_FREE * free:
            return True
        print(
            f"decoded, {self._root} would take {_gigabytes(need)} of the {_gigabytes(free)} free in {self._folder.parent}: "
            "clips are decoded at every read (dataset.cache=memmap decodes them once all the same)"
        )
        return False

    def build(self, episodes: Sequence[Episode], *, workers: int = 1, progress: bool = True) -> dict[str, Episode]:
        """Decode the `episodes` that are missing; returns those that cannot be decoded, with their `problem`, by stem.

        Raises `UserError` where there is no room, before anything is written, or nothing can be written.
        """
        if not self.missing(episodes):
            return {}
        with locked(self._folder):
            missing = self.missing(episodes)
            need, free = sum(map(self._size, missing)), self._free()
            if need > free:
                raise UserError(
                    f"decoding the clips of {self._root} takes {_gigabytes(need)}, {_gigabytes(free)} are free in {self._folder.parent}; "
                    "make room, choose another dataset.save_dir, or dataset.cache=none"
                )
            for rest in self._folder.rglob("*.tmp"):
                rest.unlink(missing_ok=True)
            return self._decode(missing, workers=workers, progress=progress, done=len(episodes) - len(missing))

    def _decode(self, missing: Sequence[Episode], *, workers: int, progress: bool, done: int) -> dict[str, Episode]:
        damaged: dict[str, Episode] = {}
        stop = threading.Event()
        with (
            ThreadPoolExecutor(max(workers, 1)) as pool,
            progress_bar(
                f"decoding {self._root}", total=done + len(missing), done=done, unit="clips", show=progress
            ) as bar,
        ):
            tasks = {pool.submit(self._write, episode, stop): episode for episode in missing}
            try:
                for task in as_completed(tasks):
                    episode = tasks[task]
                    try:
                        task.result()
                    except Unusable as reason:
                        damaged[episode.stem] = replace(episode, problem=str(reason), again=isinstance(reason, _Away))
                    bar.advance(1)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return damaged

    def _write(self, episode: Episode, stop: threading.Event) -> None:
        """Decode one episode into its file."""
        file = self._file(episode)
        with _writing(self._folder):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                with open(temporary, "wb") as stream:
                    stream.write(self._header(episode))
                    for frames in self._read(episode):
                        if stop.is_set():
                            raise CancelledError
                        stream.write(fit(frames, self._resolution).reshape(-1).data)
                for old in file.parent.glob(f"{glob.escape(file.name[:-13])}.????????.npy"):
                    old.unlink(missing_ok=True)

    def _read(self, episode: Episode) -> Iterator[Pixels]:
        try:
            yield from blocks(self._root, episode)
        except OSError as error:
            raise _Away(f"cannot be read: {error.strerror or error}") from error

    def _header(self, episode: Episode) -> bytes:
        header = BytesIO()
        shape = (episode.frames, self._resolution, self._resolution, 3)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert len(header.getvalue()) == _HEADER, "numpy's header has another length"
        return header.getvalue()

    def _file(self, episode: Episode) -> Path:
        return self._folder / f"{episode.stem}.{episode.stamp[:8]}.npy"

    def _size(self, episode: Episode) -> int:
        return 0 if self.is_plain(episode) else episode.frames * self._resolution**2 * 3

    def is_plain(self, episode: Episode) -> bool:
        """Whether the episode's own file is read by position."""
        return episode.kind == "stored" and fits(episode.height, episode.width, self._resolution)

    def _free(self) -> int:
        folder = self._folder
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Errors in here are of writing."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror or error}; make room, choose another dataset.save_dir, "
            "or dataset.cache=none"
        ) from error


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
