"""The options of a maze data set, checked when they are built, and the file names that follow from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from diffusion_forcing.environments.maze2d import as_maze
from diffusion_forcing.environments.mazes import MAZES, Maze
from diffusion_forcing.errors import UserError, did_you_mean

Source = Literal["auto", "d4rl", "generate", "minari", "path"]

D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/maze2d"


@dataclass(frozen=True, kw_only=True)
class Maze2dOptions:
    """The keys of `dataset.*`. Lengths of the means: observations 2 (x) or 4 (x and v), actions 0 or 2."""

    env_id: str = "maze2d-medium-v1"
    """maze2d-{umaze,medium,large}-v1; not looked at when `maze_map` is given."""
    maze_map: str | None = None
    r"""Any maze as text, rows separated by `\`: '#####\#OOG#\#####'."""
    episode_len: int = 600
    """Steps of 0.01 s in a window after its first."""
    gamma: float = 1.0
    """Discount of returns, in (0, 1]; goals are reached by guidance here, so nothing discounts."""
    observation_mean: tuple[float, ...] = (3.5092521, 3.4765592, 4.1e-5, 3.85e-5)
    observation_std: tuple[float, ...] = (1.3371079, 1.52102, 2.3407657, 2.3693702)
    action_mean: tuple[float, ...] = (0.0, 0.0)
    action_std: tuple[float, ...] = (0.740, 0.746)
    reward_mean: float = 0.0
    reward_std: float = 1.0
    save_dir: str = "data/maze2d"
    """Folder of the data files and their caches."""
    source: Source = "auto"
    path: str | None = None
    """File in D4RL's schema (`source=path`), or folder or id of a Minari data set (`source=minari`)."""
    d4rl_url: str = D4RL_URL
    """Folder on the web that holds maze2d-*-sparse-v1.hdf5."""
    sha256: str = ""
    """SHA-256 the downloaded file must have; D4RL publishes none."""
    num_steps: int = 1_000_000
    """Steps to generate."""
    action_noise: float = 0.5
    """Standard deviation of the noise on generated actions; 0.5 gives D4RL's statistics."""
    generate_seed: int = 0
    validation_fraction: float = 0.02
    """Share of the steps, the last ones, kept out of training; with 0 validation windows are training windows."""

    def __post_init__(self) -> None:
        maze = self.maze
        self._check_statistics()
        if self.source not in get_args(Source):
            hint = did_you_mean(str(self.source), get_args(Source))
            raise UserError(
                f"dataset.source {self.source!r} is unknown; choose one of {', '.join(get_args(Source))}{hint}"
            )
        if self.source in ("path", "minari") and not self.path:
            raise UserError(f"dataset.source={self.source} needs dataset.path=<file or folder>")
        if self.path and self.source in ("d4rl", "generate"):
            raise UserError(
                f"dataset.path is not used with dataset.source={self.source}; drop one, or use dataset.source=path"
            )
        if self.source == "d4rl" and maze.name == "custom":
            raise UserError(
                "dataset.source=d4rl has no data for a dataset.maze_map of your own; use dataset.source=generate"
            )
        for key, least in (("episode_len", 1), ("num_steps", 2), ("generate_seed", 0)):
            if getattr(self, key) < least:
                raise UserError(f"dataset.{key} must be at least {least}, got {getattr(self, key)}")
        if not 0 < self.gamma <= 1:
            raise UserError(f"dataset.gamma must be in (0, 1], got {self.gamma}")
        if not 0 <= self.action_noise < float("inf"):
            raise UserError(f"dataset.action_noise must be at least 0, got {self.action_noise}; D4RL's data has 0.5")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"dataset.validation_fraction must be in [0, 1), got {self.validation_fraction}")

    @property
    def maze(self) -> Maze:
        """The maze itself."""
        if self.maze_map is not None:
            try:
                custom = Maze.from_ascii(self.maze_map)
            except UserError as refusal:
                raise UserError(f"dataset.maze_map: {refusal}") from refusal
            return next((maze for maze in MAZES.values() if maze.rows == custom.rows), custom)
        if not (self.env_id.startswith("maze2d-") and self.env_id.endswith("-v1")):
            raise UserError(
                f"dataset.env_id {self.env_id!r} is unknown; choose maze2d-umaze-v1, maze2d-medium-v1 or maze2d-large-v1, or give dataset.maze_map"
            )
        return as_maze(self.env_id)

    @property
    def window(self) -> int:
        """L: steps in a window."""
        return self.episode_len + 1

    @property
    def d4rl_file(self) -> Path:
        """Where D4RL's public file of this maze is looked for."""
        return Path(self.save_dir) / f"maze2d-{self.maze.name}-sparse-v1.hdf5"

    @property
    def generated_file(self) -> Path:
        """Where generated data lies; its name says all that decides its content."""
        maze = self.maze
        name = maze.name if maze.name != "custom" else f"custom-{hashlib.sha256(maze.text.encode()).hexdigest()[:8]}"
        recipe = f"{self.num_steps}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"maze2d-{name}-{recipe}.hdf5"

    def cache_folder(self, source: Path) -> Path:
        """Where the memory-mapped copy of `source` lies: beside it in `save_dir`, and in `save_dir` too for a file from elsewhere."""
        folder = Path(self.save_dir)
        if source.parent.resolve() == folder.resolve():
            return folder / f"{source.name}.cache"
        digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
        return folder / f"{source.name}-{digest}.cache"

    def _check_statistics(self) -> None:
        for kind, widths in (("observation", (2, 4)), ("action", (0, 2))):
            mean, std = getattr(self, f"{kind}_mean"), getattr(self, f"{kind}_std")
            if len(mean) not in widths:
                allowed = " or ".join(map(str, widths))
                raise UserError(
                    f"dataset.{kind}_mean has {len(mean)} numbers, allowed are {allowed}; see docs on x, xv and xva"
                )
            if len(mean) != len(std):
                raise UserError(
                    f"dataset.{kind}_mean has {len(mean)} numbers and dataset.{kind}_std {len(std)}; give both the same length"
                )
            if not np.isfinite([*mean, *std]).all():
                raise UserError(
                    f"dataset.{kind}_mean and dataset.{kind}_std must be finite, got {list(mean)} and {list(std)}"
                )
            if any(value <= 0 for value in std):
                raise UserError(f"dataset.{kind}_std must be above 0, got {list(std)}")
        if not self.reward_std > 0:
            raise UserError(f"dataset.reward_std must be above 0, got {self.reward_std}")
