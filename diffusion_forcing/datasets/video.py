"""Clips of video, with actions where there are any: where they come from, how they are split, how a clip is read.

`VideoDataset(options)` does nothing until `prepare()`, which finds the clips (or generates or downloads them), looks once into each file and keeps
what it found. Data lies in TECO's layout, `<save_dir>/{training,validation,test}/**/<clip>` (`video_files.py` says what else is read).
"""

from __future__ import annotations

import os
from pathlib import Path

from diffusion_forcing.datasets.video_actions import checked_actions
from diffusion_forcing.datasets.video_clips import Clips
from diffusion_forcing.datasets.video_files import splits_of
from diffusion_forcing.datasets.video_fit import too_small
from diffusion_forcing.datasets.video_index import open_index
from diffusion_forcing.datasets.video_inspect import Episode
from diffusion_forcing.datasets.video_options import VideoDatasetOptions
from diffusion_forcing.datasets.video_reading import Frames
from diffusion_forcing.errors import UserError

CACHE_FOLDER = ".cache"
"""In save_dir: the index, and pixels decoded once. Deleting it loses nothing but time."""


class VideoDataset:
    """Clips of a folder of video. `prepare()` first, then `training()`, `validation()`, `test()`."""

    Options = VideoDatasetOptions

    def __init__(self, options: VideoDatasetOptions) -> None:
        self.options = options
        self._episodes: dict[str, list[Episode]] | None = None

    @property
    def episodes(self) -> dict[str, list[Episode]]:
        """Usable episodes of training, validation and test; prepares them first if `prepare` was not called."""
        if self._episodes is None:
            self.prepare(progress=False)
        assert self._episodes is not None
        return self._episodes

    def prepare(self, progress: bool = True) -> None:
        """Make sure that the data is on disk and known. Raises `UserError` where it cannot be had or none of it can be used."""
        root = self.options.root
        found = open_index(root, self._cache / "index.npz", workers=self._workers, progress=progress)
        usable = self._usable(found)
        places = splits_of([episode.stem for episode in usable], self.options.validation_fraction)
        self._episodes = {split: [usable[i] for i in chosen] for split, chosen in places.items()}

    def training(self) -> Clips:
        """Every clip of the training episodes."""
        return self._clips("training", self.options.n_frames, spread=False)

    def validation(self) -> Clips:
        """Few clips, always the same: the first N come from N different episodes."""
        return self._clips("validation", self.options.validation_frames, spread=True)

    def test(self) -> Clips:
        """The same of the test episodes, or of validation's where there are none."""
        return self._clips(
            "test" if self.episodes["test"] else "validation", self.options.validation_frames, spread=True
        )

    def _clips(self, split: str, length: int, *, spread: bool) -> Clips:
        options, episodes = self.options, self.episodes[split]
        if not episodes:
            raise UserError(f"{options.root} has no {split} clips; place some in {options.root / split}")
        return Clips(
            episodes,
            Frames(options.root, episodes, options.resolution, [None] * len(episodes)),
            checked_actions(episodes, options),
            length=length,
            skip=options.frame_skip,
            spread=spread,
            choices=options.external_cond_dim if options.action_kind == "discrete" else 0,
            shift=options.action_shift,
        )

    def _usable(self, found: list[Episode]) -> list[Episode]:
        """Episodes that can be read and are large enough."""
        size = self.options.resolution
        good: list[tuple[Episode, str]] = []
        bad: list[tuple[Episode, str]] = []
        for episode in found:
            problem = episode.problem
            if not problem and too_small(episode.height, episode.width, size):
                problem = (
                    f"has frames of {episode.height}x{episode.width}, smaller than dataset.resolution={size}; "
                    f"set dataset.resolution={min(episode.height, episode.width)} or less"
                )
            (bad if problem else good).append((episode, problem))
        if not good:
            episode, problem = bad[0]
            raise UserError(
                f"none of the {len(bad)} clips in {self.options.root} can be used: {episode.file} {problem}"
            )
        for episode, problem in bad:
            print(f"left out: {episode.file} {problem}")
        if bad:
            print(f"{len(bad)} of {len(found)} clips in {self.options.root} are left out")
        return [episode for episode, _ in good]

    @property
    def _cache(self) -> Path:
        return Path(self.options.save_dir).expanduser() / CACHE_FOLDER

    @property
    def _workers(self) -> int:
        return self.options.workers or os.cpu_count() or 1
