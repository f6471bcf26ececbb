"""A folder of video clips, with actions where there are any: its options, where the clips come from, their splits.

`VideoDataset(options)` does nothing until `prepare()`, which finds the clips (or generates or downloads them), inspects
each file once, and decodes compressed clips once if the disk has room. Data lies in TECO's layout,
`<save_dir>/{training,validation,test}/**`; `episode.py` says what else is read. Files that cannot be used are named,
counted and left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.generate import RECIPE, Simulator, generate, worker_count
from diffusion_forcing.datasets.video.archive import Part, fetch_archive, is_unfinished
from diffusion_forcing.datasets.video.clips import Clips, FrameReader, VideoCache
from diffusion_forcing.datasets.video.episode import Episode, has_clips, open_index, save_index, splits_of
from diffusion_forcing.errors import UserError, check_minimum, require
from diffusion_forcing.options import Count, Natural, check_limits
from diffusion_forcing.terminal import counted, say

Source = Literal["auto", "download", "generate", "path"]
Cache = Literal["auto", "memmap", "none"]
ActionKind = Literal["discrete", "continuous"]
Generator = Literal["none", "labmaze", "voxel"]

CACHE_FOLDER = ".cache"
"""In save_dir: the index and the decoded frames. Deleting it costs only the time to make it again."""
_MAX_NAMED = 10
"""Files left out that are named; any more are only counted."""


@dataclass(frozen=True, kw_only=True)
class VideoDatasetOptions:
    """The keys of `dataset.*`. After frame_skip, T = n_frames, times validation_multiplier outside training."""

    n_frames: Count = 16
    """Frames of a clip."""
    resolution: int = 64
    """Height and width of a frame. Larger frames are cropped to a square and reduced; none is ever enlarged."""
    context_length: Natural = 2
    """Context frames of a rollout."""
    frame_skip: Count = 2
    """A clip takes every frame_skip-th frame; all actions in between are kept."""
    validation_multiplier: Count = 1
    """Clips of validation and test are this many times as long."""
    data_mean: float | tuple[float, ...] = 0.5
    """Mean of pixels in [0, 1]: one number, or one for each colour."""
    data_std: float | tuple[float, ...] = 0.5
    observation_shape: tuple[int, ...] = (3, 64, 64)
    """Follows from resolution: [3, resolution, resolution]."""
    external_cond_dim: Natural = 0
    """Number of discrete actions, or width of a continuous action. 0: actions are not used."""
    action_kind: ActionKind = "discrete"
    action_shift: int = 1
    """1: actions[t] on disk was taken after frame t and led to frame t + 1. 0: it led to frame t (TECO's data)."""
    save_dir: str = "data/video"
    """Folder of the data, its index and its cache."""
    source: Source = "auto"
    path: str | None = None
    """A folder of clips elsewhere (`source=path`); its index and cache are still kept in save_dir."""
    cache: Cache = "auto"
    """memmap: decode compressed clips once, to disk. none: at every read. auto: memmap if the disk has room."""
    validation_fraction: float = 0.1
    """Share of the clips for validation if the folder has no split of its own; by a hash of their names."""
    urls: tuple[str, ...] = ()
    """Parts of one tar archive, in order (`source=download`)."""
    sha256: tuple[str, ...] = ()
    """SHA-256 of each part; empty if none is published."""
    download_gigabytes: float = 0.0
    """Size of all parts together, compared with the free disk space before downloading; 0: unknown."""
    generator: Generator = "none"
    """The simulator of this data set (`source=generate`)."""
    num_episodes: Natural = 0
    """Training episodes to generate; likewise the next two."""
    num_validation_episodes: Natural = 0
    num_test_episodes: Natural = 0
    episode_frames: int = 300
    """Frames of a generated episode."""
    generate_seed: Natural = 0
    workers: Natural = 0
    """Processes or threads that generate and decode; 0: one for each core."""

    def __post_init__(self) -> None:
        check_limits("dataset", self)
        check_minimum("dataset.resolution", self.resolution, 8)
        check_minimum("dataset.episode_frames", self.episode_frames, 2)
        require(self.action_shift in (0, 1), f"dataset.action_shift must be 0 or 1, got {self.action_shift}")
        fraction = self.validation_fraction
        require(0 <= fraction < 1, f"dataset.validation_fraction must be in [0, 1), got {fraction}")
        require(
            self.observation_shape == (3, self.resolution, self.resolution),
            f"dataset.observation_shape is {list(self.observation_shape)}, but follows from "
            f"dataset.resolution={self.resolution}; set dataset.resolution alone",
        )
        for key, above in (("data_mean", -np.inf), ("data_std", 0.0)):
            values = np.atleast_1d(getattr(self, key))
            require(
                values.shape in ((1,), (3,)) and bool((np.isfinite(values) & (values > above)).all()),
                f"dataset.{key} must be one or three finite numbers (data_std: above 0), got {values.tolist()}",
            )
        require(
            not self.path or self.source not in ("download", "generate"),
            f"dataset.path is not used with dataset.source={self.source}; drop one, or use dataset.source=path",
        )
        missing = {
            "path": not self.path and "dataset.path=<folder of clips>",
            "download": not self.urls and "dataset.urls=[...], the parts of one tar archive",
            "generate": self.generator == "none" and "dataset=video_labmaze or dataset=video_voxel",
        }.get(self.source)
        require(not missing, f"dataset.source={self.source} needs {missing}")
        require(
            len(self.sha256) in (0, len(self.urls)),
            f"dataset.sha256 has {len(self.sha256)} sums for {len(self.urls)} dataset.urls; give equally many",
        )

    @property
    def num_action_columns(self) -> int:
        """A: columns of `VideoBatch.actions`."""
        return self.external_cond_dim * (self.frame_skip if self.action_kind == "discrete" else 1)

    @property
    def validation_frames(self) -> int:
        """T of validation and test."""
        return self.n_frames * self.validation_multiplier

    @property
    def root(self) -> Path:
        """The folder of the clips."""
        return Path(self.path or self.save_dir).expanduser()


class VideoDataset:
    """Clips of a folder of video. `prepare()` first, then `training()`, `validation()`, `test()`."""

    Options = VideoDatasetOptions

    def __init__(self, options: VideoDatasetOptions) -> None:
        self.options = options
        self._episodes: dict[str, list[Episode]] | None = None
        self._cache = VideoCache(options.root, self._folder, options.resolution)
        self._workers = worker_count(options.workers)

    @property
    def episodes(self) -> dict[str, list[Episode]]:
        """Usable episodes of training, validation and test; calls `prepare` if that was not done."""
        if self._episodes is None:
            self.prepare(progress=False)
        assert self._episodes is not None
        return self._episodes

    def prepare(self, progress: bool = True) -> None:
        """Make sure that the data is on disk and indexed. `UserError` if it is unavailable or unusable."""
        options = self.options
        provide(options, progress=progress)
        index = self._folder / "index.npz"
        found = open_index(options.root, index, workers=self._workers, progress=progress)
        usable = self._usable(found)
        if options.cache != "none":
            sparing = options.cache == "auto"
            damaged = self._cache.build(usable, sparing=sparing, workers=self._workers, progress=progress)
            if damaged:
                found = [damaged.get(episode.stem, episode) for episode in found]
                save_index(index, found)
                usable = self._usable(found)
        self._print_left_out(found)
        places = splits_of([episode.stem for episode in usable], options.validation_fraction)
        self._episodes = {split: [usable[i] for i in chosen] for split, chosen in places.items()}

    def training(self) -> Clips:
        """Every clip of the training episodes."""
        return self._clips("training", self.options.n_frames, spread=False)

    def validation(self) -> Clips:
        """Few clips, always the same: the first N come from N different episodes."""
        return self._clips("validation", self.options.validation_frames, spread=True)

    def test(self) -> Clips:
        """The same of the test episodes, or of the validation episodes if there are none for test."""
        split = "test" if self.episodes["test"] else "validation"
        return self._clips(split, self.options.validation_frames, spread=True)

    def generate(self, progress: bool = True) -> Path:
        """Generate the missing episodes of these options, print where they are, and return their folder."""
        files = generate_episodes(self.options, progress=progress)
        self._episodes = None
        say(f"{self.options.root}: {counted(len(files), 'episode')} of {counted(self.options.episode_frames, 'frame')}")
        return self.options.root

    def _clips(self, split: str, length: int, *, spread: bool) -> Clips:
        options, cache, episodes = self.options, self._cache, self.episodes[split]
        require(bool(episodes), f"{options.root} has no {split} clips; place some in {options.root / split}")
        cached = [cache.place(e) if options.cache != "none" or cache.is_plain(e) else None for e in episodes]
        return Clips(
            episodes,
            FrameReader(options.root, episodes, options.resolution, cached),
            [checked_actions(episode, options) for episode in episodes] if options.external_cond_dim else None,
            length=length,
            skip=options.frame_skip,
            spread=spread,
            choices=options.external_cond_dim if options.action_kind == "discrete" else 0,
            shift=options.action_shift,
            threads=self._workers if None in cached else 1,
        )

    def _usable(self, found: list[Episode]) -> list[Episode]:
        """Episodes that can be read and are large enough. `UserError` if there are none."""
        usable = [episode for episode in found if not self._problem(episode)]
        first = f"{found[0].file} {self._problem(found[0])}"
        require(bool(usable), f"none of the clips in {self.options.root} can be used ({len(found)} found): {first}")
        return usable

    def _problem(self, episode: Episode) -> str:
        """Why an episode cannot be used with these options; empty if it can."""
        resolution, side = self.options.resolution, min(episode.height, episode.width)
        if episode.problem or side >= resolution:
            return episode.problem
        return (
            f"has frames of {episode.height}x{episode.width}, smaller than dataset.resolution={resolution} "
            f"(frames are never enlarged); set dataset.resolution={side} or less"
        )

    def _print_left_out(self, found: list[Episode]) -> None:
        unusable = [episode for episode in found if self._problem(episode)]
        for episode in unusable[:_MAX_NAMED]:
            say(f"left out: {episode.file} {self._problem(episode)}")
        if unusable:
            say(f"{len(unusable):,} of {len(found):,} clips in {self.options.root} are left out")

    @property
    def _folder(self) -> Path:
        """Folder of index and cache: in save_dir, under a name of its own for clips from elsewhere."""
        folder = Path(self.options.save_dir).expanduser() / CACHE_FOLDER
        if not self.options.path:
            return folder
        root = self.options.root.resolve()
        return folder / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"


def provide(options: VideoDatasetOptions, *, progress: bool = True) -> None:
    """Generate or download the clips of `options.root` if they are missing. `UserError` if that fails."""
    root, source = options.root, options.source
    if options.path:
        return
    is_empty = not has_clips(root)
    # Generated data may be unfinished; clips that were placed by hand are left as they are.
    may_generate = source == "auto" and options.generator != "none" and (is_empty or (root / RECIPE).exists())
    if source == "generate" or may_generate:
        if progress and is_empty:
            episodes = options.num_episodes + options.num_validation_episodes + options.num_test_episodes
            say(f"no clips in {root} yet: generating {counted(episodes, 'episode')} ({options.generator})")
        generate_episodes(options, progress=progress)
    elif options.urls and source in ("auto", "download") and (is_unfinished(root) or is_empty):
        if progress and is_empty:
            size = f", about {options.download_gigabytes:g} GB" if options.download_gigabytes else ""
            say(f"no clips in {root} yet: downloading {len(options.urls)} parts{size}")
        sums = options.sha256 or [""] * len(options.urls)
        parts = [Part(url, sha256) for url, sha256 in zip(options.urls, sums, strict=True)]
        fetch_archive(parts, root, gigabytes=options.download_gigabytes, progress=progress)


def generate_episodes(options: VideoDatasetOptions, *, progress: bool = True) -> list[Path]:
    """Generate the missing episodes in `save_dir`; returns the files of all. `UserError` without a simulator."""
    require(not options.path, "generating writes to dataset.save_dir; drop dataset.path")
    simulator = _simulator(options)
    counts = {
        "training": options.num_episodes,
        "validation": options.num_validation_episodes,
        "test": options.num_test_episodes,
    }
    counts = {split: count for split, count in counts.items() if count}
    require(bool(counts), "there is nothing to generate: set dataset.num_episodes and dataset.num_validation_episodes")
    return generate(simulator, options.root, counts, workers=options.workers, progress=progress)


def _simulator(options: VideoDatasetOptions) -> Simulator:
    sizes = {"seed": options.generate_seed, "frames": options.episode_frames, "size": options.resolution}
    if options.generator == "labmaze":
        from diffusion_forcing.environments.labmaze import LabMazeEpisodes

        return LabMazeEpisodes(**sizes)
    if options.generator == "voxel":
        from diffusion_forcing.environments.voxel import VoxelEpisodes

        return VoxelEpisodes(**sizes)
    raise UserError("this data set has no simulator; choose dataset=video_labmaze or dataset=video_voxel")


def checked_actions(episode: Episode, options: VideoDatasetOptions) -> NDArray[Any]:
    """(n,) integers below external_cond_dim, or (n, external_cond_dim) float32.

    `UserError`, naming the file, if the actions are missing, damaged, too few, of another width or kind than the
    options say, or out of range: a mistake in the options concerns every file, so it stops the run.
    """
    width, actions, name = options.external_cond_dim, episode.actions, episode.file
    if actions is None:
        reason = episode.action_problem or "no 'actions' in its npz and no npz, npy or csv of its name beside it"
        raise UserError(f"{name} has no actions ({reason}); add them, or set dataset.external_cond_dim={width} to 0")
    needed = episode.frames - options.action_shift
    require(
        len(actions) >= needed,
        f"{name} has {len(actions)} actions for {episode.frames} frames, at least {needed} are needed "
        f"with dataset.action_shift={options.action_shift}; the file is cut off, replace or delete it",
    )
    columns = actions[:, None] if actions.ndim == 1 else actions
    if options.action_kind == "continuous":
        require(
            columns.shape[1] == width,
            f"{name} has actions of width {columns.shape[1]}; set dataset.external_cond_dim to it, not to {width}",
        )
        return columns.astype(np.float32)
    require(
        columns.shape[1] == 1 and bool((columns == np.round(columns)).all()),
        f"{name} has actions of width {columns.shape[1]} that are not integers from 0 on; "
        "set dataset.action_kind=continuous and dataset.external_cond_dim to their width",
    )
    numbers = columns[:, 0]
    least, most = numbers.min(initial=0), numbers.max(initial=0)
    require(
        least >= 0 and most < width,
        f"{name} has actions from {least:g} to {most:g}, but dataset.external_cond_dim={width} allows 0 to {width - 1}; "
        "set it to the number of discrete actions",
    )
    return numbers.astype(np.uint8 if width <= 256 else np.int32)
