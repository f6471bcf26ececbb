"""Clips of video, with actions where there are any: where they come from, how they are split, how a clip is read.

`VideoDataset(options)` does nothing until `prepare()`, which finds the clips (or generates or downloads them), looks once into each file, decodes
once what is compressed where the disk has room, and keeps what it found. Data lies in TECO's layout, `<save_dir>/{training,validation,test}/**`;
`video_files.py` says what else is read. Files that cannot be used are named, counted and left out.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from diffusion_forcing.datasets.video_actions import checked_actions
from diffusion_forcing.datasets.video_cache import VideoCache
from diffusion_forcing.datasets.video_clips import Clips
from diffusion_forcing.datasets.video_files import splits_of
from diffusion_forcing.datasets.video_fit import too_small
from diffusion_forcing.datasets.video_index import open_index, save_index
from diffusion_forcing.datasets.video_inspect import Episode
from diffusion_forcing.datasets.video_options import VideoDatasetOptions
from diffusion_forcing.datasets.video_reading import Frames
from diffusion_forcing.datasets.video_sources import generate_episodes, provide
from diffusion_forcing.errors import UserError

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
