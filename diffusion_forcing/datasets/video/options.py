"""Whether the actions on disk are the ones the options speak of. A wrong width is a mistake in the options, so it stops the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video.episodes import Episode
from diffusion_forcing.errors import UserError, did_you_mean

# The options of a video data set, checked when they are built, and the sizes that follow from them.

Source = Literal["auto", "download", "generate", "path"]
Cache = Literal["auto", "memmap", "none"]
ActionKind = Literal["discrete", "continuous"]
Generator = Literal["none", "labmaze", "voxel"]


@dataclass(frozen=True, kw_only=True)
class VideoDatasetOptions:
    """The keys of `dataset.*`. T = n_frames in training, n_frames * validation_multiplier in validation and test, after frame_skip."""

    n_frames: int = 16
    """Frames of a clip."""
    resolution: int = 64
    """Height and width of a frame in pixels. Larger frames are cropped to their middle square and made smaller, never larger."""
    context_length: int = 2
    """Frames a rollout is given."""
    frame_skip: int = 2
    """A clip takes every frame_skip-th frame; the actions between are all kept."""
    validation_multiplier: int = 1
    """Clips of validation and test are this many times as long."""
    data_mean: float | tuple[float, ...] = 0.5
    """Mean of pixels in [0, 1], one number or one a colour."""
    data_std: float | tuple[float, ...] = 0.5
    observation_shape: tuple[int, ...] = (3, 64, 64)
    """Follows from resolution: [3, resolution, resolution]."""
    external_cond_dim: int = 0
    """Columns of one action: how many discrete actions there are, or the width of a continuous one. 0: actions are not used."""
    action_kind: ActionKind = "discrete"
    action_shift: int = 1
    """1: actions[t] on disk was taken after frame t was seen and led to frame t + 1. 0: it led to frame t (TECO's data)."""
    save_dir: str = "data/video"
    """Folder of the data, its index and its cache."""
    source: Source = "auto"
    path: str | None = None
    """A folder of clips elsewhere (`source=path`); its index and cache still lie in save_dir."""
    cache: Cache = "auto"
    """memmap: decode compressed clips once to plain pixels on disk. none: decode at every read. auto: memmap where the disk has room."""
    validation_fraction: float = 0.1
    """Share of the clips kept out of training where the folder has no split of its own; by a hash of their names."""
    urls: tuple[str, ...] = ()
    """Parts of one tar archive, in order (`source=download`)."""
    sha256: tuple[str, ...] = ()
    """SHA-256 of each part; empty where none is published."""
    download_gigabytes: float = 0.0
    """What the parts hold together, to compare with the disk's room before anything is fetched; 0: not known."""
    generator: Generator = "none"
    """The simulator that makes this data set (`source=generate`)."""
    num_episodes: int = 0
    """Training episodes to generate; likewise the next two."""
    num_validation_episodes: int = 0
    num_test_episodes: int = 0
    episode_frames: int = 300
    """Frames of a generated episode."""
    generate_seed: int = 0
    workers: int = 0
    """Processes or threads that generate and decode; 0: one a core."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_statistics()
        for key, allowed in (
            ("source", get_args(Source)),
            ("cache", get_args(Cache)),
            ("action_kind", get_args(ActionKind)),
            ("generator", get_args(Generator)),
        ):
            value = getattr(self, key)
            if value not in allowed:
                hint = did_you_mean(str(value), allowed)
                raise UserError(f"dataset.{key} {value!r} is unknown; choose one of {', '.join(allowed)}{hint}")
        if self.observation_shape != (3, self.resolution, self.resolution):
            raise UserError(
                f"dataset.observation_shape is {list(self.observation_shape)}, but dataset.resolution={self.resolution} makes it "
                f"[3,{self.resolution},{self.resolution}]; set dataset.resolution alone"
            )
        self._check_source()

    @property
    def num_action_columns(self) -> int:
        """A: columns of `VideoBatch.actions`."""
        stacked = self.frame_skip if self.action_kind == "discrete" else 1
        return stacked * self.external_cond_dim

    @property
    def validation_frames(self) -> int:
        """T of validation and test."""
        return self.n_frames * self.validation_multiplier

    @property
    def root(self) -> Path:
        """The folder the clips lie in."""
        return Path(self.path).expanduser() if self.path else Path(self.save_dir).expanduser()

    def _check_source(self) -> None:
        if self.source == "path" and not self.path:
            raise UserError("dataset.source=path needs dataset.path=<folder of clips>")
        if self.path and self.source in ("download", "generate"):
            raise UserError(
                f"dataset.path is not used with dataset.source={self.source}; drop one, or use dataset.source=path"
            )
        if self.source == "download" and not self.urls:
            raise UserError("dataset.source=download needs dataset.urls=[...], the parts of one tar archive")
        if self.source == "generate" and self.generator == "none":
            raise UserError(
                "dataset.source=generate needs a data set with a simulator: dataset=video_labmaze or dataset=video_voxel"
            )
        if self.sha256 and len(self.sha256) != len(self.urls):
            raise UserError(
                f"dataset.sha256 has {len(self.sha256)} sums for {len(self.urls)} dataset.urls; give one for each, or none"
            )

    def _check_numbers(self) -> None:
        least = {
            "n_frames": 1,
            "resolution": 8,
            "context_length": 0,
            "frame_skip": 1,
            "validation_multiplier": 1,
            "external_cond_dim": 0,
            "num_episodes": 0,
            "num_validation_episodes": 0,
            "num_test_episodes": 0,
            "episode_frames": 2,
            "generate_seed": 0,
            "workers": 0,
        }
        for key, smallest in least.items():
            if getattr(self, key) < smallest:
                raise UserError(f"dataset.{key} must be at least {smallest}, got {getattr(self, key)}")
        if self.action_shift not in (0, 1):
            raise UserError(f"dataset.action_shift must be 0 or 1, got {self.action_shift}")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"dataset.validation_fraction must be in [0, 1), got {self.validation_fraction}")

    def _check_statistics(self) -> None:
        for key in ("data_mean", "data_std"):
            values = np.atleast_1d(getattr(self, key))
            if values.shape not in ((1,), (3,)):
                raise UserError(f"dataset.{key} is one number or three, one a colour; got {values.tolist()}")
            if not np.isfinite(values).all():
                raise UserError(f"dataset.{key} must be finite, got {values.tolist()}")
            if key == "data_std" and (values <= 0).any():
                raise UserError(f"dataset.data_std must be above 0, got {values.tolist()}")


def checked_actions(episodes: Sequence[Episode], options: VideoDatasetOptions) -> list[NDArray[Any]] | None:
    """Actions of each episode: (n,) numbers below external_cond_dim, or (n, external_cond_dim) float32. None where they are not used.

    Raises `UserError`, naming the first file at fault, for actions that are missing, broken, too few, of another width or kind, or out of range.
    """
    if options.external_cond_dim == 0:
        return None
    return [_checked(episode, options) for episode in episodes]


def _checked(episode: Episode, options: VideoDatasetOptions) -> NDArray[Any]:
    width, actions, name = options.external_cond_dim, episode.actions, episode.file
    if actions is None:
        reason = episode.action_problem or "no 'actions' in its npz and no npz, npy or csv of its name beside it"
        raise UserError(
            f"{name} has no actions ({reason}), but dataset.external_cond_dim={width} asks for them; add them, or set it to 0"
        )
    needed = episode.frames - options.action_shift
    if len(actions) < needed:
        raise UserError(
            f"{name} has {len(actions)} actions for {episode.frames} frames, at least {needed} are needed "
            f"with dataset.action_shift={options.action_shift}; the file is cut off, delete it or give the rest"
        )
    if options.action_kind == "continuous":
        columns = actions[:, None] if actions.ndim == 1 else actions
        if columns.shape[1] != width:
            raise UserError(
                f"{name} has actions of width {columns.shape[1]}, but dataset.external_cond_dim={width}; "
                f"set dataset.external_cond_dim={columns.shape[1]}"
            )
        return columns.astype(np.float32)
    numbers = actions[:, 0] if actions.ndim == 2 and actions.shape[1] == 1 else actions
    if numbers.ndim != 1 or (numbers != np.round(numbers)).any():
        shape = "" if numbers.ndim == 1 else f" of width {numbers.shape[1]}"
        raise UserError(
            f"{name} has actions{shape} that are no numbers of discrete actions; "
            "set dataset.action_kind=continuous and dataset.external_cond_dim to their width"
        )
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= width):
        raise UserError(
            f"{name} has actions from {numbers.min():g} to {numbers.max():g}, but dataset.external_cond_dim={width} "
            f"allows 0 to {width - 1}; set it to the number of discrete actions"
        )
    return numbers.astype(np.uint8 if width <= 256 else np.int32)
