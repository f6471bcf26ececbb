"""Clips of video, with actions where there are any: where they come from, how they are split, how a clip is read.

`VideoDataset(options)` does nothing until `prepare()`, which finds the clips (or generates or downloads them), looks once into each file, decodes
once what is compressed where the disk has room, and keeps what it found. Data lies in TECO's layout, `<save_dir>/{training,validation,test}/**`;
`video_files.py` says what else is read. Files that cannot be used are named, counted and left out.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.datasets.generate import Simulator, generate
from diffusion_forcing.datasets.video.archive import Part, fetch_archive, is_unfinished
from diffusion_forcing.datasets.video.cache import VideoCache
from diffusion_forcing.datasets.video.decode import Frames, too_small
from diffusion_forcing.datasets.video.episodes import Episode, Unusable
from diffusion_forcing.datasets.video.files import has_clips, splits_of
from diffusion_forcing.datasets.video.index import open_index, save_index
from diffusion_forcing.datasets.video.options import VideoDatasetOptions, checked_actions
from diffusion_forcing.errors import UserError

# Where the clips of a video data set come from when they are not there yet: a simulator, or an archive in parts.

RECIPE = "recipe.json"
"""What a generator leaves beside its episodes: a folder that has it is generated data, perhaps unfinished."""


def provide(options: VideoDatasetOptions, *, progress: bool = True) -> None:
    """Make sure that clips lie in `options.root`, as far as the source says how. Raises `UserError` where that fails."""
    root, source = options.root, options.source
    if options.path:
        return
    there = has_clips(root)
    if source == "generate" or (source == "auto" and options.generator != "none" and _is_to_generate(root, there)):
        if progress and not there:
            print(
                f"no clips in {root} yet: generating {options.num_episodes:,} training episodes ({options.generator})"
            )
        generate_episodes(options, progress=progress)
    elif options.urls and source in ("auto", "download") and (is_unfinished(root) or not there):
        if progress and not there:
            size = f", about {options.download_gigabytes:g} GB" if options.download_gigabytes else ""
            print(
                f"no clips in {root} yet: downloading {len(options.urls)} parts{size} (dataset.path=<folder> reads another)"
            )
        sums = options.sha256 or [""] * len(options.urls)
        parts = [Part(url, sha256) for url, sha256 in zip(options.urls, sums, strict=True)]
        fetch_archive(parts, root, gigabytes=options.download_gigabytes, progress=progress)


def generate_episodes(options: VideoDatasetOptions, *, progress: bool = True) -> list[Path]:
    """Make the episodes that are missing in `save_dir`; the files of all. `UserError` for a data set without a simulator."""
    counts = {
        "training": options.num_episodes,
        "validation": options.num_validation_episodes,
        "test": options.num_test_episodes,
    }
    counts = {split: count for split, count in counts.items() if count}
    if options.path:
        raise UserError("generating writes to dataset.save_dir; drop dataset.path")
    simulator = _simulator(options)
    if not counts:
        raise UserError("there is nothing to generate: set dataset.num_episodes and dataset.num_validation_episodes")
    return generate(simulator, options.root, counts, workers=options.workers, progress=progress)


def _simulator(options: VideoDatasetOptions) -> Simulator:
    facts = {"seed": options.generate_seed, "frames": options.episode_frames, "size": options.resolution}
    if options.generator == "labmaze":
        from diffusion_forcing.environments.labmaze.simulator import LabMazeEpisodes

        return LabMazeEpisodes(**facts)
    if options.generator == "voxel":
        from diffusion_forcing.environments.voxel.simulator import VoxelEpisodes

        return VoxelEpisodes(**facts)
    raise UserError(
        "this data set has no simulator; choose dataset=video_labmaze or dataset=video_voxel, or place clips in dataset.save_dir"
    )


def _is_to_generate(root: Path, there: bool) -> bool:
    """Generated data may be unfinished; what was placed by hand is left as it is."""
    return not there or (root / RECIPE).exists()


# Clips of T frames out of episodes, as a map-style data set whose `__getitems__` makes a whole batch.
#
# A clip begins at raw frame s and takes frames s, s + f, …, s + (T-1) f with f = frame_skip; it spans T f raw frames, as the released code has it.
# Training has every s from which a whole span follows. Validation has few and always the same: an episode is cut into as many spans as fit, spread
# evenly, and clip k of every episode comes before clip k + 1 of any, so that the first N clips come from N different episodes. An episode shorter
# than a span gives one clip, padded with its last frame and marked so.

_ATTEMPTS = 100
"""Unreadable clips in a row after which the data is taken to be gone."""


class Reader(Protocol):
    """Where the pixels come from."""

    def read(self, number: int, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, h, w, 3): `frames` (rising) of episode `number`. `Unusable` or `OSError` where they cannot be read."""


class Clips(Dataset[VideoBatch]):
    """Clips of `length` frames, every `skip`-th, of `episodes`. `spread`: validation's few clips instead of all."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        reader: Reader,
        actions: Sequence[NDArray[Any]] | None = None,
        *,
        length: int,
        skip: int = 1,
        spread: bool = False,
        choices: int = 0,
        shift: int = 1,
        threads: int = 1,
    ) -> None:
        """actions: of each episode, (n,) numbers of discrete actions below `choices`, or (n, a) continuous ones (`choices` 0); None:
        not used. shift: see `VideoDatasetOptions.action_shift`."""
        self.episodes = episodes
        self.length = length
        self.skip = skip
        self.unreadable: set[str] = set()
        """Files that could not be read since."""
        self._reader = reader
        self._actions = actions
        self._choices = choices
        self._shift = shift
        self._threads = threads
        self._frames = np.array([episode.frames for episode in episodes], dtype=np.int64)
        self._table = self._spread_out() if spread else None
        counts = np.maximum(self._frames - length * skip + 1, 1)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        """(E + 1,) number of the first clip of each episode, and the number of all."""

    def __len__(self) -> int:
        return int(self._first[-1]) if self._table is None else len(self._table)

    def __getitem__(self, index: int) -> VideoBatch:
        """Clip `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> VideoBatch:
        """Clips `indices` as one batch; `IndexError` for one out of range. A clip that cannot be read is named, and another taken."""
        places = self.places(np.asarray(indices, dtype=np.int64))
        tasks = [(int(i), (int(number), int(start))) for i, (number, start) in zip(indices, places, strict=True)]
        if self._threads > 1 and len(tasks) > 1 and get_worker_info() is None:
            with ThreadPoolExecutor(min(self._threads, len(tasks))) as pool:
                clips = list(pool.map(self._read, *zip(*tasks, strict=True)))
        else:
            clips = [self._read(*task) for task in tasks]
        number, start = np.array([place for _, place in clips], dtype=np.int64).T
        raw = start[:, None] + self.skip * np.arange(self.length)
        valid = raw < self._frames[number][:, None]
        frames = torch.from_numpy(np.stack([pixels for pixels, _ in clips])).permute(0, 1, 4, 2, 3).contiguous()
        actions, known = self._conditions(number, raw, valid)
        return VideoBatch(frames, torch.from_numpy(actions), torch.from_numpy(known), torch.from_numpy(valid))

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(b, 2) episode number and first raw frame of each clip."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"clip index out of range 0..{len(self) - 1}")
        if self._table is not None:
            return self._table[indices]
        number = np.searchsorted(self._first, indices, side="right") - 1
        return np.stack([number, indices - self._first[number]], axis=1)

    def _spread_out(self) -> NDArray[np.int64]:
        span = self.length * self.skip
        rows = []
        for number, frames in enumerate(self._frames.tolist()):
            count = max(frames // span, 1)
            starts = np.linspace(0, max(frames - span, 0), count).round().astype(np.int64)
            rows += [(turn, number, start) for turn, start in enumerate(starts.tolist())]
        return np.array([row[1:] for row in sorted(rows)], dtype=np.int64).reshape(-1, 2)

    def _read(self, index: int, place: tuple[int, int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """(T, h, w, 3) pixels of the clip at `place`, or of the next one after clip `index` that can be read; and its place."""
        reason: Exception | None = None
        for attempt in range(_ATTEMPTS):
            number, start = place
            episode = self.episodes[number]
            try:
                raw = np.minimum(start + self.skip * np.arange(self.length), episode.frames - 1)
                return self._reader.read(number, raw), place
            except (Unusable, OSError) as failure:
                reason = failure
                self._name(episode, failure)
            # a step that is prime and long, so that the next try is in another episode and none is asked for ever
            place = tuple(self.places(np.array([(index + (attempt + 1) * 7919) % len(self)]))[0].tolist())
        raise UserError(
            f"{_ATTEMPTS} clips in a row cannot be read, the last because: {reason}; check dataset.save_dir"
        )

    def _name(self, episode: Episode, reason: Exception) -> None:
        if episode.file not in self.unreadable:
            self.unreadable.add(episode.file)
            print(
                f"{episode.file}: {reason}; another clip is taken instead ({len(self.unreadable)} unreadable so far)",
                file=sys.stderr,
            )

    def _conditions(
        self, number: NDArray[np.int64], raw: NDArray[np.int64], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(b, T, A) actions that led to raw frames `raw`, and (b, T) whether all of them are known."""
        if self._actions is None:
            return np.zeros((*raw.shape, 0), dtype=np.float32), np.zeros(raw.shape, dtype=bool)
        reached = raw[..., None] + np.arange(1 - self.skip, 1)  # (b, T, f): raw frames reached by each action of a row
        rows = reached - self._shift
        parts, known = [], valid & (reached[..., 0] >= 1)  # nothing is known to have led to an episode's first frame
        for i, episode in enumerate(number.tolist()):
            actions = self._actions[episode]
            known[i] &= (rows[i] >= 0).all(-1) & (rows[i] < len(actions)).all(-1)
            if not len(actions):
                actions = np.zeros((1, *actions.shape[1:]), dtype=actions.dtype)
            parts.append(actions[np.clip(rows[i], 0, len(actions) - 1)])  # (T, f) or (T, f, a)
        chosen = np.stack(parts)
        if self._choices:
            chosen = np.eye(self._choices, dtype=np.float32)[chosen].reshape(*raw.shape, -1)
        else:
            chosen = chosen.sum(axis=2, dtype=np.float32)
        return chosen * known[..., None], known


CACHE_FOLDER = ".cache"
"""In save_dir: the index, and pixels decoded once. Deleting it loses nothing but time."""
_NAMED = 10
"""Files left out that are named; of more, the rest is only counted."""


class VideoDataset:
    """Clips of a folder of video. `prepare()` first, then `training()`, `validation()`, `test()`."""

    Options = VideoDatasetOptions

    def __init__(self, options: VideoDatasetOptions) -> None:
        self.options = options
        self._episodes: dict[str, list[Episode]] | None = None
        self._cache = VideoCache(options.root, self._folder, options.resolution)

    @property
    def episodes(self) -> dict[str, list[Episode]]:
        """Usable episodes of training, validation and test; prepares them first if `prepare` was not called."""
        if self._episodes is None:
            self.prepare(progress=False)
        assert self._episodes is not None
        return self._episodes

    def prepare(self, progress: bool = True) -> None:
        """Make sure that the data is on disk and known. Raises `UserError` where it cannot be had or none of it can be used."""
        options = self.options
        provide(options, progress=progress)
        index = self._folder / "index.npz"
        found = open_index(options.root, index, workers=self._workers, progress=progress)
        damaged = self._decode(self._usable(found), progress)
        if damaged:
            found = [damaged.get(episode.stem, episode) for episode in found]
            save_index(index, found)
        usable = self._usable(found)
        self._say_left_out(found)
        places = splits_of([episode.stem for episode in usable], options.validation_fraction)
        self._episodes = {split: [usable[i] for i in chosen] for split, chosen in places.items()}

    def training(self) -> Clips:
        """Every clip of the training episodes."""
        return self._clips("training", self.options.n_frames, spread=False)

    def validation(self) -> Clips:
        """Few clips, always the same: the first N come from N different episodes."""
        return self._clips("validation", self.options.validation_frames, spread=True)

    def test(self) -> Clips:
        """The same of the test episodes, or of validation's where there are none."""
        split = "test" if self.episodes["test"] else "validation"
        return self._clips(split, self.options.validation_frames, spread=True)

    def generate(self, progress: bool = True) -> Path:
        """Generate the episodes of these options that are not there yet, say where they are, and return their folder."""
        files = generate_episodes(self.options, progress=progress)
        self._episodes = None
        print(f"{self.options.root}: {len(files):,} episodes of {self.options.episode_frames:,} frames")
        return self.options.root

    def _clips(self, split: str, length: int, *, spread: bool) -> Clips:
        options, episodes = self.options, self.episodes[split]
        if not episodes:
            raise UserError(f"{options.root} has no {split} clips; place some in {options.root / split}")
        plain = [self._cache.place(e) if options.cache != "none" or self._cache.is_plain(e) else None for e in episodes]
        return Clips(
            episodes,
            Frames(options.root, episodes, options.resolution, plain),
            checked_actions(episodes, options),
            length=length,
            skip=options.frame_skip,
            spread=spread,
            choices=options.external_cond_dim if options.action_kind == "discrete" else 0,
            shift=options.action_shift,
            threads=self._workers if None in plain else 1,
        )

    def _decode(self, episodes: list[Episode], progress: bool) -> dict[str, Episode]:
        """Decode what is not decoded yet, where the options and the disk say so; returns the episodes that proved damaged, by stem."""
        cache, missing = self.options.cache, self._cache.missing(episodes)
        if not missing or cache == "none" or (cache == "auto" and not self._cache.has_room(missing)):
            return {}
        return self._cache.build(episodes, workers=self._workers, progress=progress)

    def _usable(self, found: list[Episode]) -> list[Episode]:
        """Episodes that can be read and are large enough. `UserError` where there are none."""
        usable = [episode for episode in found if not self._problem(episode)]
        if not usable:
            what = "the only clip" if len(found) == 1 else f"none of the {len(found)} clips"
            can = "cannot" if len(found) == 1 else "can"
            raise UserError(f"{what} in {self.options.root} {can} be used: {found[0].file} {self._problem(found[0])}")
        return usable

    def _problem(self, episode: Episode) -> str:
        """Why an episode cannot be used with these options; '' if it can."""
        size, side = self.options.resolution, min(episode.height, episode.width)
        if episode.problem or not too_small(episode.height, episode.width, size):
            return episode.problem
        return (
            f"has frames of {episode.height}x{episode.width}, smaller than dataset.resolution={size} "
            f"(frames are never made larger); set dataset.resolution={side} or less"
        )

    def _say_left_out(self, found: list[Episode]) -> None:
        bad = [episode for episode in found if self._problem(episode)]
        for episode in bad[:_NAMED]:
            print(f"left out: {episode.file} {self._problem(episode)}")
        if bad:
            print(f"{len(bad):,} of {len(found):,} clips in {self.options.root} are left out")

    @property
    def _folder(self) -> Path:
        """Where index and cache lie: in save_dir, under a name of their own for clips from elsewhere."""
        folder = Path(self.options.save_dir).expanduser() / CACHE_FOLDER
        if not self.options.path:
            return folder
        root = self.options.root.resolve()
        return folder / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"

    @property
    def _workers(self) -> int:
        return self.options.workers or os.cpu_count() or 1
