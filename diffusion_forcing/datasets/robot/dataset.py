"""`dataset=robot_swap`: robot demonstrations as sequences of tokens.

A token is the cameras' images and the `action_stack` actions since the previous token. Every demonstration is used
`action_stack` times, started 0 … action_stack − 1 actions late (an arm that waits at home looks the same), so that
tokens fall on every frame.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.arrays import map_npy, write_npy
from diffusion_forcing.datasets.batch import RobotBatch
from diffusion_forcing.datasets.generate import RECIPE, Simulator, generate
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet, is_lerobot
from diffusion_forcing.datasets.robot.source import (
    RATE,
    SPLITS,
    Demonstration,
    RobotFiles,
    RobotSource,
    check_camera,
    is_released,
    save_demonstration,
)
from diffusion_forcing.errors import check_range, require
from diffusion_forcing.files import replacing
from diffusion_forcing.limits import VARIABLE, Refused, limit
from diffusion_forcing.options import Count, Natural, check_limits
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import say


class FrameCache:
    """Images of `source`, `size` pixels a side, in `<set>/.frames/<size>/<split>-NNNNNN.<camera>.<stamp>.npy`.

    The stamp changes with the source's files, so that changed videos are decoded again. Where nothing can be written, or
    with write=False, images stay in memory. `VideoCache`, in contrast, decodes a whole data set ahead.
    """

    def __init__(self, source: RobotSource, size: int, *, write: bool = True) -> None:
        self._source, self._size, self._write = source, size, write
        self._folder = source.root / ".frames" / str(size)

    def read(self, split: str, cameras: Sequence[str], bar: Bar) -> list[Demonstration]:
        """All demonstrations of a split, with images (N + 1, size, size, 3). `UserError` where one is damaged, or
        images exceed the limit FRAMES_BYTES."""
        for camera in cameras:
            check_camera(self._source, camera)
        demonstrations, size = [], 0
        for index in range(self._source.counts.get(split, 0)):
            episode = self._source.arrays(split, index)
            shape = (len(episode["actions"]) + 1, self._size, self._size, 3)
            size += len(cameras) * int(np.prod(shape))
            require(
                size <= limit("FRAMES_BYTES"),
                f"the images of {self._source.root} at resolution {self._size} exceed {limit('FRAMES_BYTES') / 1e9:g} GB; "
                f"lower dataset.resolution, or raise {VARIABLE}FRAMES_BYTES",
            )
            for camera in cameras:
                episode[camera] = self._images(split, index, camera, shape)
            demonstrations.append(episode)
            bar.advance(1)
        return demonstrations

    def _images(self, split: str, index: int, camera: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        name = f"{split}-{index:06d}.{camera}"
        file = self._folder / f"{name}.{self._source.stamp(split, index, camera)}.npy"
        cached = _map(file, shape) if self._write else None
        if cached is not None:
            return cached
        images = self._source.images(split, index, camera, self._size)
        if self._write:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for old in self._folder.glob(f"{glob.escape(name)}.????????.npy"):
                    old.unlink(missing_ok=True)
                with replacing(file) as temporary:
                    write_npy(temporary, images)
                cached = _map(file, shape)
            except OSError as error:
                say(f"decoded images are kept in memory only: cannot write {self._folder}: {error.strerror or error}")
                self._write = False
        return images if cached is None else cached


def _map(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array in `file`, memory-mapped; None where it is missing or damaged."""
    try:
        array = map_npy(file)
    except (OSError, Refused):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


CAMERAS = ("front", "over")
"""The simulator's cameras."""


@dataclass(frozen=True, kw_only=True)
class RobotOptions:
    """`dataset=robot_swap`.

    save_dir: generated demonstrations, a converted set, or a LeRobot set v3.0; num_episodes … workers apply to
    generated ones only. cameras: names, of which the first n_cameras are used. n_frames: maximum tokens of a sequence.
    tail: tokens appended after the end, in which the arm stays home. cache: store decoded images beside the videos.
    data_mean … action_std: normalisation of images in [0, 1] and of actions (position, rotation matrix, grasp).
    """

    save_dir: str = "data/robot_swap"
    action_stack: Count = 15
    n_frames: Count = 40
    n_cameras: int = 2
    cameras: tuple[str, ...] = CAMERAS
    resolution: int = 32
    observation_shape: tuple[int, int, int] = (21, 32, 32)
    tail: Natural = 1
    num_episodes: Count = 150
    num_validation_episodes: Count = 10
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
        check_limits("dataset", self)
        check_range("dataset.n_cameras", self.n_cameras, 1, len(self.cameras))
        require(
            len(set(self.cameras)) == len(self.cameras) and all(self.cameras),
            f"dataset.cameras is {list(self.cameras)}; give different names",
        )
        fits = 16 <= self.resolution <= 512 and self.resolution % 8 == 0
        require(fits, f"dataset.resolution is {self.resolution}; it must be a multiple of 8 from 16 to 512")


class RobotDataset:
    """Demonstrations in `save_dir`: a LeRobot set, a converted set, or those of the expert, which are generated
    where missing. Call `prepare()` first."""

    Options = RobotOptions

    def __init__(self, options: RobotOptions) -> None:
        self.options = options
        self.cameras = tuple(options.cameras[: options.n_cameras])
        self._root = Path(options.save_dir).expanduser()
        self._counts = {"training": options.num_episodes, "validation": options.num_validation_episodes}
        self._episodes: dict[str, list[dict[str, NDArray[Any]]]] = {}

    def prepare(self, progress: bool = True) -> None:
        """Generate what is missing and read everything. UserError where that fails."""
        if self._episodes:
            return
        source = self._source(progress)
        if source.fps != RATE:
            say(
                f"{self._root}: {source.fps:g} frames and actions per second, the simulator of robot_swap has {RATE}: "
                f"a stack of {self.options.action_stack} actions lasts {self.options.action_stack / source.fps:.2f} s"
            )
        total = sum(source.counts.get(split, 0) for split in SPLITS)
        with Bar("reading demonstrations", total=total, unit="episodes", show=progress) as bar:
            cache = FrameCache(source, self.options.resolution, write=self.options.cache)
            episodes = {split: cache.read(split, self.cameras, bar) for split in SPLITS}
        require(
            bool(episodes["training"]), f"{self._root} has no training demonstrations; choose another dataset.save_dir"
        )
        self._episodes = {**episodes, "validation": episodes["validation"] or episodes["training"]}

    def generate(self, progress: bool = True) -> list[Path]:
        """Generate missing demonstrations; returns the files of all. UserError where `save_dir` has others."""
        options, root = self.options, self._root
        require(
            not is_foreign(root), f"{root} has demonstrations that were not generated; choose another dataset.save_dir"
        )
        simulator, total = self._simulator(), sum(self._counts.values())
        most = limit("FRAMES_BYTES")
        size = total * (simulator.frames + 1) * options.n_cameras * 3 * options.resolution**2
        require(
            size <= most,
            f"{total:,} demonstrations at resolution {options.resolution} need {size / 1e9:.0f} GB of memory, "
            f"at most {most / 1e9:g}; lower dataset.num_episodes or dataset.resolution",
        )
        require(
            set(self.cameras) <= set(CAMERAS),
            f"dataset.cameras is {list(self.cameras)}, but {root} has no demonstrations yet, and the simulator has the "
            f"cameras {', '.join(CAMERAS)}",
        )
        return generate(
            simulator, root, self._counts, save=save_demonstration, workers=options.workers, progress=progress
        )

    def _source(self, progress: bool) -> RobotSource:
        """The set in `save_dir`, generated where there is none."""
        root = self._root
        if is_lerobot(root):
            return LeRobotSet(root)
        if is_foreign(root):
            return RobotFiles(root)
        require(
            not root.is_dir() or (root / RECIPE).exists() or not is_released(root),
            f"{root} looks like the released robot data; convert it once: "
            f"diffusion-forcing convert-robot {root} NEW --allow-pickle, then dataset.save_dir=NEW",
        )
        self.generate(progress=progress)
        return RobotFiles(root, self._counts)

    def training(self) -> Demonstrations:
        """Every training demonstration, started at every delay."""
        return self._split("training", range(self.options.action_stack))

    def validation(self) -> Demonstrations:
        """The validation demonstrations, without delay."""
        return self._split("validation", (0,))

    def _split(self, split: str, delays: Sequence[int]) -> Demonstrations:
        self.prepare(progress=False)
        options = self.options
        return Demonstrations(
            self._episodes[split],
            self.cameras,
            delays,
            stack=options.action_stack,
            max_tokens=options.n_frames,
            tail=options.tail,
        )

    def _simulator(self) -> Simulator:
        from diffusion_forcing.environments.swap import SwapEpisodes

        options = self.options
        return SwapEpisodes(
            seed=options.generate_seed,
            size=options.resolution,
            noise=options.noise,
            distractors=options.distractors,
            blocking=options.blocking,
        )


def is_foreign(root: Path) -> bool:
    """Whether a folder has demonstrations that were not generated here: a LeRobot set, or our layout without a
    recipe."""
    ours = any((root / split / "000000.npz").exists() for split in SPLITS)
    return is_lerobot(root) or (ours and not (root / RECIPE).exists())


class Demonstrations(Dataset[RobotBatch]):
    """Item e·len(delays) + i is demonstration e, started delays[i] actions late."""

    def __init__(
        self,
        episodes: Sequence[Mapping[str, NDArray[Any]]],
        cameras: Sequence[str],
        delays: Sequence[int],
        *,
        stack: int,
        max_tokens: int,
        tail: int = 1,
    ) -> None:
        self.episodes, self.cameras, self.delays = episodes, cameras, delays
        self.stack, self.max_tokens, self.tail = stack, max_tokens, tail

    def __len__(self) -> int:
        return len(self.episodes) * len(self.delays)

    def __getitem__(self, index: int) -> RobotBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> RobotBatch:
        """Sequences as one batch, as long as the longest."""
        items = [(self.episodes[index // len(self.delays)], self.delays[index % len(self.delays)]) for index in indices]
        counts = [self._token_count(len(episode["actions"]), delay) for episode, delay in items]
        length = max(counts)
        sequences = [self._sequence(episode, delay, length) for episode, delay in items]
        frames, actions = (torch.from_numpy(np.stack(part)) for part in zip(*sequences, strict=True))
        valid = torch.arange(length) < torch.tensor(counts)[:, None]
        return RobotBatch(frames, actions, valid)

    def _token_count(self, actions: int, delay: int) -> int:
        """The first token, one for every started stack, and the tail."""
        return min(self.max_tokens, 1 + -(-(actions + delay) // self.stack) + self.tail)

    def _sequence(
        self, episode: Mapping[str, NDArray[Any]], delay: int, length: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """frames (length, cameras, 3, h, w) and actions (length, stack, 8)."""
        done = episode["actions"]
        # The frame of each token: before the start the first one, after the end the last one.
        frame = np.clip(np.arange(length) * self.stack - delay, 0, len(done))
        frames = np.stack([episode[camera][frame] for camera in self.cameras], axis=1)
        # The actions before each token (length, stack); outside the demonstration the arm stays where it is.
        step = (np.arange(length)[:, None] - 1) * self.stack + np.arange(self.stack) - delay
        inside = (step >= 0) & (step < len(done))
        stays = np.where(step[..., None] < 0, waiting_action(episode), done[-1])
        actions = np.where(inside[..., None], done[np.clip(step, 0, len(done) - 1)], stays)
        return np.ascontiguousarray(frames.transpose(0, 1, 4, 2, 3)), actions.astype(np.float32)


def waiting_action(episode: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """(8,): the action that keeps the arm at the start of the demonstration: the last one, at home, with an open
    gripper."""
    action: NDArray[np.float32] = episode["actions"][-1].copy()
    action[7] = 0
    return action
