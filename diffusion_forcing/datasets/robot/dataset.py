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

from diffusion_forcing.datasets.batch import RobotBatch
from diffusion_forcing.datasets.generate import Simulator, generate
from diffusion_forcing.datasets.robot.cache import FrameCache
from diffusion_forcing.datasets.robot.files import RATE, Filming, RobotFiles
from diffusion_forcing.datasets.robot.lerobot import is_lerobot
from diffusion_forcing.datasets.robot.released import is_released
from diffusion_forcing.datasets.robot.source import SPLITS, RobotSource
from diffusion_forcing.errors import UserError
from diffusion_forcing.progress import progress_bar

CAMERAS = ("front", "over")
"""Those of the simulator."""
MOST_BYTES = 8e9
"""Of pictures, which are read all the time."""


@dataclass(frozen=True, kw_only=True)
class RobotOptions:
    """`dataset=robot_swap`. save_dir: generated demonstrations, or a set that was converted, or a LeRobot set v3.0; num_episodes … workers are of
    what is generated. cameras: names, the first n_cameras are used. n_frames: the most tokens of a sequence; tail: tokens behind the end in which the
    arm stays home. cache: keep decoded pictures beside the films. data_mean … action_std: what the algorithm brings pictures in [0, 1] and actions
    (position, rotation matrix, grasp) to one size by."""

    save_dir: str = "data/robot_swap"
    action_stack: int = 15
    n_frames: int = 40
    n_cameras: int = 2
    cameras: tuple[str, ...] = CAMERAS
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
    cache: bool = True
    data_mean: float = 0.5
    data_std: float = 0.5
    action_mean: tuple[float, ...] = (1.265, 0.75, 0.595, *(0.0,) * 9, 0.5)
    action_std: tuple[float, ...] = (0.215, 0.33, 0.18, *(1.0,) * 9, 0.5)

    def __post_init__(self) -> None:
        for name in ("action_stack", "n_frames", "num_episodes", "num_validation_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"dataset.{name} is {getattr(self, name)}; it must be 1 or more")
        if not 1 <= self.n_cameras <= len(self.cameras):
            raise UserError(
                f"dataset.n_cameras is {self.n_cameras}; robot_swap has {len(self.cameras)}: {', '.join(self.cameras)}"
            )
        if len(set(self.cameras)) < len(self.cameras) or not all(self.cameras):
            raise UserError(f"dataset.cameras is {list(self.cameras)}; give different names")
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
    """Demonstrations in `save_dir`: a LeRobot set, a set that was converted, or {training,validation} as the expert made them here; those of its own
    that are missing are made. `prepare()` first."""

    Options = RobotOptions

    def __init__(self, options: RobotOptions) -> None:
        self.options = options
        self._root = Path(options.save_dir).expanduser()
        self._episodes: dict[str, list[dict[str, NDArray[Any]]]] = {}

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras that are used."""
        return tuple(self.options.cameras[: self.options.n_cameras])

    def prepare(self, progress: bool = True) -> None:
        """Make what is missing, and read everything. UserError where that fails."""
        if not self._episodes:
            source = self._source(progress)
            total = sum(source.counts.get(split, 0) for split in SPLITS)
            if source.fps != RATE:
                print(
                    f"{self._root}: {source.fps:g} frames and actions a second, robot_swap's simulator has {RATE}: "
                    f"a stack of {self.options.action_stack} actions lasts {self.options.action_stack / source.fps:.2f} s"
                )
            with progress_bar("reading demonstrations", total=total, unit="episodes", show=progress) as bar:
                cache = FrameCache(source, self.options.resolution, keep=self.options.cache)
                found = {split: cache.read(split, self.cameras, bar, most=MOST_BYTES) for split in SPLITS}
            if not found["training"]:
                raise UserError(f"{self._root} holds no demonstrations to train on; choose another dataset.save_dir")
            self._episodes = {**found, "validation": found["validation"] or found["training"]}

    def generate(self, progress: bool = True) -> list[Path]:
        """The demonstrations' files; those that are missing are made first. UserError where `save_dir` holds others'."""
        options, root = self.options, self._root
        if is_foreign(root):
            raise UserError(
                f"{root} holds demonstrations that were not generated; they are read as they are: "
                "choose another dataset.save_dir to generate some"
            )
        counts = dict(zip(SPLITS, (options.num_episodes, options.num_validation_episodes), strict=True))
        pictures = sum(counts.values()) * 103 * options.n_cameras * 3 * options.resolution**2
        if pictures > MOST_BYTES:
            raise UserError(
                f"{sum(counts.values()):,} demonstrations at resolution {options.resolution} take {pictures / 1e9:.0f} GB of memory, "
                f"{MOST_BYTES / 1e9:.0f} are allowed; lower dataset.num_episodes or dataset.resolution"
            )
        if not set(self.cameras) <= set(CAMERAS):
            raise UserError(
                f"dataset.cameras is {list(self.cameras)}; the simulator's are {', '.join(CAMERAS)}, and {root} holds no other demonstrations"
            )
        return generate(Filming(self._simulator()), root, counts, workers=options.workers, progress=progress)

    def _source(self, progress: bool) -> RobotSource:
        """The set in `save_dir`, generated where there is none."""
        root = self._root
        if is_lerobot(root):
            from diffusion_forcing.datasets.robot.lerobot import LeRobotSet

            return LeRobotSet(root)
        if is_foreign(root):
            return RobotFiles(root)
        if root.is_dir() and not (root / "recipe.json").exists() and is_released(root):
            raise UserError(
                f"{root} looks like the released robot data; bring it into our layout once: "
                f"diffusion-forcing convert-robot {root} NEW --allow-pickle, then dataset.save_dir=NEW"
            )
        self.generate(progress=progress)
        options = self.options
        return RobotFiles(root, dict(zip(SPLITS, (options.num_episodes, options.num_validation_episodes), strict=True)))

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

    def _simulator(self) -> Simulator:
        from diffusion_forcing.environments.swap.expert import SwapEpisodes

        options = self.options
        return SwapEpisodes(
            seed=options.generate_seed,
            size=options.resolution,
            noise=options.noise,
            distractors=options.distractors,
            blocking=options.blocking,
        )


def is_foreign(root: Path) -> bool:
    """Whether a folder holds demonstrations that were not generated here: a LeRobot set, or files of ours without a recipe."""
    ours = any((root / split / "000000.npz").exists() for split in SPLITS)
    return is_lerobot(root) or (ours and not (root / "recipe.json").exists())


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
