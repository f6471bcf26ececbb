"""Compressed clips, decoded once into a file of uint8 frames for each episode, from which clips are read by position.

Frames are cropped and resized before they are written. A file is written whole or not at all, and its name holds the
stamp of its source: an interrupted run continues with what is missing, and a changed source is decoded again.
Uncompressed episodes of the right size need no copy.
"""

from __future__ import annotations

import glob
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion_forcing.datasets.video.container import Pixels
from diffusion_forcing.datasets.video.decode import blocks, fit
from diffusion_forcing.datasets.video.episode import Episode
from diffusion_forcing.errors import explaining_os_errors, require
from diffusion_forcing.files import free_bytes, locked, replacing
from diffusion_forcing.limits import Refused, refusing
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import say

_HEADER_BYTES = 128
"""Bytes before the first frame: numpy's header of any array with sides of up to 10 digits."""
_SHARE_OF_FREE = 0.5
"""`cache=auto` uses at most this share of the free disk space."""


class VideoCache:
    """Decoded frames, `resolution` × `resolution`, in `folder` for the clips below `root`."""

    def __init__(self, root: Path, folder: Path, resolution: int) -> None:
        self._root = root
        self._folder = folder / str(resolution)
        self._resolution = resolution

    def place(self, episode: Episode) -> tuple[Path, int] | None:
        """File and first byte of the decoded frames of an episode; None if it is not decoded yet."""
        if self.is_plain(episode):
            return self._root / episode.file, episode.offset
        file = self._file(episode)
        try:
            return (file, _HEADER_BYTES) if file.stat().st_size == _HEADER_BYTES + self._size(episode) else None
        except OSError:
            return None

    def is_plain(self, episode: Episode) -> bool:
        """Whether the episode's own file is uncompressed and of the right size."""
        return episode.kind == "stored" and episode.height == episode.width == self._resolution

    def _missing(self, episodes: Sequence[Episode]) -> list[Episode]:
        return [episode for episode in episodes if self.place(episode) is None]

    def build(
        self, episodes: Sequence[Episode], *, sparing: bool = False, workers: int = 1, progress: bool = True
    ) -> dict[str, Episode]:
        """Decode the missing `episodes`; returns, by stem, those that cannot be decoded, with the reason in `problem`.

        sparing: decode nothing, and print a line, if that takes more than half of the free disk space. `UserError`
        before anything is written if the disk has too little space, and if nothing can be written.
        """
        missing = self._missing(episodes)
        need, free = sum(map(self._size, missing)), free_bytes(self._folder)
        takes = (
            f"decoding {self._root} takes {_gigabytes(need)} of the {_gigabytes(free)} free in {self._folder.parent}"
        )
        if sparing and need > _SHARE_OF_FREE * free:
            say(f"{takes}: clips are decoded at every read (dataset.cache=memmap decodes them once all the same)")
            return {}
        require(need <= free, f"{takes}; make room, choose another dataset.save_dir, or dataset.cache=none")
        if not missing:
            return {}
        with locked(self._folder):
            for leftover in self._folder.rglob("*.tmp"):
                leftover.unlink(missing_ok=True)
            return self._decode(episodes, workers=workers, progress=progress)

    def _decode(self, episodes: Sequence[Episode], *, workers: int, progress: bool) -> dict[str, Episode]:
        missing = self._missing(episodes)  # another process may have decoded some
        done = len(episodes) - len(missing)
        damaged: dict[str, Episode] = {}
        stop = threading.Event()
        with (
            ThreadPoolExecutor(max(workers, 1)) as pool,
            Bar(f"decoding {self._root}", total=len(episodes), done=done, unit="clips", show=progress) as bar,
        ):
            tasks = {pool.submit(self._write, episode, stop): episode for episode in missing}
            try:
                for task in as_completed(tasks):
                    try:
                        task.result()
                    except Refused as reason:
                        episode = tasks[task]
                        damaged[episode.stem] = replace(episode, problem=str(reason), again=reason.again)
                    bar.advance()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return damaged

    def _write(self, episode: Episode, stop: threading.Event) -> None:
        """Decode one episode into its file."""
        file = self._file(episode)
        remedy = "make room, choose another dataset.save_dir, or dataset.cache=none"
        with explaining_os_errors(f"cannot write the cache {self._folder}", remedy):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                shape = (episode.frames, self._resolution, self._resolution, 3)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                with open(temporary, "wb") as stream:
                    np.lib.format.write_array_header_1_0(stream, header)
                    assert stream.tell() == _HEADER_BYTES, "numpy's header has another length"
                    for frames in self._read(episode):
                        if stop.is_set():
                            raise CancelledError
                        stream.write(fit(frames, self._resolution).reshape(-1).data)
                # Remove the frames of an earlier version of the source.
                for old in file.parent.glob(f"{glob.escape(file.name[:-13])}.????????.npy"):
                    old.unlink(missing_ok=True)

    def _read(self, episode: Episode) -> Iterator[Pixels]:
        with refusing(disk=True):
            yield from blocks(self._root, episode)

    def _file(self, episode: Episode) -> Path:
        return self._folder / f"{episode.stem}.{episode.stamp[:8]}.npy"

    def _size(self, episode: Episode) -> int:
        return 0 if self.is_plain(episode) else episode.frames * self._resolution**2 * 3


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
