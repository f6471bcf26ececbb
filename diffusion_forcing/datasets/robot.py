"""Demonstrations of a robot as sequences of tokens: where they come from, how they are cut.

A token is what the cameras saw and the `action_stack` actions since the token before. An arm that waits at home before it begins shows the same
start later: every demonstration is there `action_stack` times, begun 0 … action_stack − 1 actions late, so that tokens fall everywhere on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.datasets.generate_video import Simulator, episode_file, generate
from diffusion_forcing.datasets.progress import progress_bar
from diffusion_forcing.datasets.robot_batch import RobotBatch
from diffusion_forcing.datasets.robot_files import read_demonstration, save_demonstration
from diffusion_forcing.errors import UserError

CAMERAS = ("front", "over")
SPLITS = ("training", "validation")
MOST_BYTES = 8e9
"""Of pictures, which are kept in memory."""


@dataclass(frozen=True, kw_only=True)
class RobotOptions:
    """`dataset=robot_swap`. n_frames: the most tokens of a sequence; tail: tokens behind the end in which the arm stays home. data_mean … action_std:
    what the algorithm brings pictures in [0, 1] and actions (position, rotation matrix, grasp) to one size by."""

    save_dir: str = "data/robot_swap"
    action_stack: int = 15
    n_frames: int = 40
    n_cameras: int = 2
    resolution: int = 32
    observation_shape: tuple[int, int, int] = (21, 32, 32)
    tail: int = 1
    num_episodes: int = 150
    num_validation_episodes: int = 10
    generate_seed: int = 0
    noise: float = 0.008
    distractors: int = 0
    blocking: float = 0.0
    workers: int = 0
    data_mean: float = 0.5
    data_std: float = 0.5
    action_mean: tuple[float, ...] = (1.265, 0.75, 0.595, *(0.0,) * 9, 0.5)
    action_std: tuple[float, ...] = (0.215, 0.33, 0.18, *(1.0,) * 9, 0.5)

    def __post_init__(self) -> None:
        for name in ("action_stack", "n_frames", "num_episodes", "num_validation_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"dataset.{name} is {getattr(self, name)}; it must be 1 or more")
        if not 1 <= self.n_cameras <= len(CAMERAS):
            raise UserError(
                f"dataset.n_cameras is {self.n_cameras}; robot_swap has {len(CAMERAS)}: {', '.join(CAMERAS)}"
            )
        if self.resolution < 16 or self.resolution % 8 or self.resolution > 512:
            raise UserError(f"dataset.resolution is {self.resolution}; it must be a multiple of 8 from 16 to 512")
        if self.tail < 0:
            raise UserError(f"dataset.tail is {self.tail}; it must be 0 or more")
        shape = (3 * self.n_cameras + self.action_stack, self.resolution, self.resolution)
        if tuple(self.observation_shape) != shape:
            raise UserError(
                f"dataset.observation_shape is {list(self.observation_shape)}; three colours a camera and a plane an action make {list(shape)}"
            )


class RobotDataset:
    """Demonstrations in `save_dir/{training,validation}`; those that are missing are made by the expert. `prepare()` first."""

    Options = RobotOptions

    def __init__(self, options: RobotOptions) -> None:
        self.options = options
        self._episodes: dict[str, list[dict[str, NDArray[Any]]]] = {}

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras that are used."""
        return CAMERAS[: self.options.n_cameras]

    def prepare(self, progress: bool = True) -> None:
        """Make what is missing, and read everything. UserError where that fails."""
        if not self._episodes:
            files = self.generate(progress=progress)
            with progress_bar("reading demonstrations", total=len(files), unit="episodes", show=progress) as bar:
                found: dict[str, list[dict[str, NDArray[Any]]]] = {split: [] for split in SPLITS}
                for file in files:
                    found[file.parent.name].append(self._read(file))
                    bar.advance(1)
            self._episodes = found

    def generate(self, progress: bool = True) -> list[Path]:
        """The demonstrations' files; those that are missing are made first."""
        options = self.options
        root = Path(options.save_dir).expanduser()
        counts = dict(zip(SPLITS, (options.num_episodes, options.num_validation_episodes), strict=True))
        pictures = sum(counts.values()) * 103 * options.n_cameras * 3 * options.resolution**2
        if pictures > MOST_BYTES:
            raise UserError(
                f"{sum(counts.values()):,} demonstrations at resolution {options.resolution} take {pictures / 1e9:.0f} GB of memory, "
                f"{MOST_BYTES / 1e9:.0f} are allowed; lower dataset.num_episodes or dataset.resolution"
            )
        files = [episode_file(root, split, index) for split, count in counts.items() for index in range(count)]
        if all(file.exists() for file in files) and not (root / "recipe.json").exists():
            return files  # converted from elsewhere: there is no recipe
        return generate(_Filming(self._simulator()), root, counts, workers=options.workers, progress=progress)

    def training(self) -> Demonstrations:
        """Every training demonstration, begun at every delay."""
        return self._split("training", range(self.options.action_stack))

    def validation(self) -> Demonstrations:
        """The validation demonstrations, begun at once."""
        return self._split("validation", (0,))

    def _split(self, split: str, delays: Sequence[int]) -> Demonstrations:
        self.prepare(progress=False)
        options = self.options
        return Demonstrations(
            self._episodes[split],
            self.cameras,
            delays,
            stack=options.action_stack,
            most=options.n_frames,
            tail=options.tail,
        )

    def _read(self, file: Path) -> dict[str, NDArray[Any]]:
        episode, size = read_demonstration(file, self.cameras), self.options.resolution
        for camera in self.cameras:
            if episode[camera].shape[1:] != (size, size, 3):
                height, width = episode[camera].shape[1:3]
                raise UserError(
                    f"{file} has pictures of {height} x {width}, dataset.resolution is {size}; choose another dataset.save_dir"
                )
        return episode

    def _simulator(self) -> Simulator:
        from diffusion_forcing.environments.swap_episodes import SwapEpisodes

        options = self.options
        return SwapEpisodes(
            seed=options.generate_seed,
            size=options.resolution,
            noise=options.noise,
            distractors=options.distractors,
            blocking=options.blocking,
        )


@dataclass(frozen=True)
class _Filming:
    """A simulator whose episodes are kept as demonstrations."""

    simulator: Simulator

    @property
    def frames(self) -> int:
        return self.simulator.frames

    @property
    def recipe(self) -> Mapping[str, str | int | float]:
        return self.simulator.recipe

    def make(self, split: str, index: int) -> Mapping[str, NDArray[Any]]:
        return self.simulator.make(split, index)

    def save(self, path: Path, episode: Mapping[str, NDArray[Any]]) -> None:
        save_demonstration(path, episode)

    def close(self) -> None:
        self.simulator.close()


class Demonstrations(Dataset[RobotBatch]):
    """Item e·len(delays) + i is demonstration e begun delays[i] actions late."""

    def __init__(
        self,
        episodes: Sequence[Mapping[str, NDArray[Any]]],
        cameras: Sequence[str],
        delays: Sequence[int],
        *,
        stack: int,
        most: int,
        tail: int = 1,
    ) -> None:
        self.episodes, self.cameras, self.delays = episodes, cameras, delays
        self.stack, self.most, self.tail = stack, most, tail

    def __len__(self) -> int:
        return len(self.episodes) * len(self.delays)

    def __getitem__(self, index: int) -> RobotBatch:
        """One sequence as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> RobotBatch:
        """Sequences as one batch, as long as its longest."""
        items = [(self.episodes[index // len(self.delays)], self.delays[index % len(self.delays)]) for index in indices]
        counts = [self.tokens(len(episode["actions"]), delay) for episode, delay in items]
        length = max(counts)
        parts = [self._sequence(episode, delay, length) for episode, delay in items]
        frames, actions = (torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True))
        valid = torch.arange(length) < torch.tensor(counts)[:, None]
        return RobotBatch(frames, actions, valid)

    def tokens(self, actions: int, delay: int) -> int:
        """Tokens of a demonstration of so many actions: the start, one for every stack begun, and the tail."""
        return min(self.most, 1 + -(-(actions + delay) // self.stack) + self.tail)

    def _sequence(
        self, episode: Mapping[str, NDArray[Any]], delay: int, length: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """frames (length, cameras, 3, h, w) and actions (length, stack, 8)."""
        done = episode["actions"]
        at = np.clip(np.arange(length) * self.stack - delay, 0, len(done))
        frames = np.stack([episode[camera][at] for camera in self.cameras], axis=1)
        steps = (np.arange(length)[:, None] - 1) * self.stack + np.arange(self.stack) - delay
        inside = (steps >= 0) & (steps < len(done))
        waits = np.where(steps[..., None] < 0, waiting(episode), done[-1])
        actions = np.where(inside[..., None], done[np.clip(steps, 0, len(done) - 1)], waits)
        return np.ascontiguousarray(frames.transpose(0, 1, 4, 2, 3)), actions.astype(np.float32)


def waiting(episode: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """(8,): the action that keeps the arm where the demonstration begins: home, as at its end."""
    action: NDArray[np.float32] = episode["actions"][-1].copy()
    action[7] = 0
    return action
