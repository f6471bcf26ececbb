"""Windows of maze steps for planning: where the data comes from, how it is cut, and what normalises it.

`Maze2d(options)` does nothing until `prepare()`, which finds, generates or downloads the data and maps it into memory.
Sources: `auto` uses D4RL's file if it is in `save_dir` and otherwise generates (eight seconds for a million steps);
`generate`; `d4rl` downloads the public file; `path` is any file in D4RL's schema (`dataset.path`); `minari` a Minari
data set of PointMaze (`dataset.path`).

The lengths of the configured means decide what a planner sees: x (2 observation columns, no actions), xv (4, none), xva
(4 and 2). Batches always contain all columns, in the units of the data.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.mazes.base import REMEDY, MazeDataset, MazeOptions, Steps, Store, Windows, checked_steps
from diffusion_forcing.environments.mazes.layout import MAZES, Maze, maze_of_id
from diffusion_forcing.environments.mazes.maze2d import (
    Goal,
    PointMass,
    VectorMaze2d,
    WaypointController,
    build_model,
    draw_goal,
    draw_start,
    environment_spec,
    oracle_rewards,
    reached,
)
from diffusion_forcing.errors import UserError, check_minimum, explaining_os_errors, first_line, require
from diffusion_forcing.files import read_json, remove_leftovers, write_atomic
from diffusion_forcing.limits import Refused, bytes_of, check_expansion, reading, refusing
from diffusion_forcing.progress import Bar

# --------------------------------------------------------------------------------------------------------- D4RL's files
# Read and write D4RL's HDF5 schema for maze2d: one run of N steps.
#
# | key | shape | |
# |---|---|---|
# | observations | (N, 4) float32 | x, y, vx, vy in metres and m/s, in D4RL's frame |
# | actions | (N, 2) float32 | pushes in [-1, 1] |
# | rewards | (N,) float32 | 1 within 0.5 m of the maze's fixed goal |
# | terminals, timeouts | (N,) bool | end of an episode; in maze2d data timeouts mark a new goal, and the ball rolls on |
# | infos/goal, infos/qpos, infos/qvel | (N, 2) float32 | the controller's goal at that step; the state again |

REQUIRED: dict[str, tuple[int, ...]] = {"observations": (4,), "actions": (2,), "rewards": (), "terminals": ()}
"""Arrays that a file must have to be read: the shape of one step."""


@contextmanager
def open_hdf5(path: Path, remedy: str) -> Iterator[h5py.File]:
    """`path`, of unknown origin, opened for reading; whatever HDF5 raises inside the block becomes a `UserError`."""
    with reading(path, remedy):
        with refusing("is not a readable HDF5 file, it is empty, cut off or damaged"):
            file = h5py.File(path, "r")
        with file:
            yield file


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What `group` holds under `name`; None where it holds nothing. `Refused` for a link, which may lead in a circle or
    to another file."""
    with refusing():
        link = group.get(name, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise Refused(f"has a link in the place of {name}")
        return None if link is None else group[name]


def numbers(group: h5py.Group, name: str) -> NDArray[Any] | None:
    """The array `name`; None where there is none. `Refused` where it is not of numbers, lies outside the file, or is
    larger than its bytes can be worth."""
    found = member(group, name)
    if not isinstance(found, h5py.Dataset):
        return None
    with refusing(f"is damaged at {name}"):
        if found.external or found.is_virtual:
            raise Refused(f"keeps {name} in another file")
        if found.dtype.kind not in "fiub" or found.shape is None:
            raise Refused(f"has {name} of shape {found.shape} and type {found.dtype}, expected numbers")
        stored = min(found.id.get_storage_size(), group.file.id.get_filesize())
        check_expansion(bytes_of(found.shape, found.dtype.itemsize), stored, name)
        check_expansion(bytes_of(found.chunks or (), found.dtype.itemsize), stored, f"a chunk of {name}")
        return np.asarray(found[()])


def children(group: h5py.Group, pattern: str) -> list[str]:
    """The names in `group` that match `pattern` and a number, by that number."""
    found = [(name, re.fullmatch(rf"{pattern}([0-9]{{1,18}})", name)) for name in group]
    return [name for _, name in sorted((int(match[1]), name) for name, match in found if match)]


def write_d4rl(path: Path, arrays: Mapping[str, NDArray[Any]], *, attributes: Mapping[str, Any]) -> None:
    """Write the arrays of the schema, compressed, and `attributes` of the file, whole or not at all. OSError where the
    disk refuses: HDF5 does not survive a full one, so the file is made in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, chunks=True, compression="gzip", compression_opts=1, shuffle=True)
        file.attrs.update(attributes)
        file.flush()
        image = file.id.get_file_image()
    write_atomic(path, image)


def read_d4rl(path: Path) -> Steps:
    """observations, actions, rewards and `ends` (its terminals) of a file.

    `UserError` for a file that is empty, truncated, damaged, not HDF5, without the required arrays, or with other
    widths, lengths or values that are not finite.
    """
    with open_hdf5(path, f"delete it and {REMEDY}") as file:
        found = {key: numbers(file, key) for key in REQUIRED}
    steps = checked_steps(path, found, REQUIRED, whose="D4RL's maze2d data")
    return {**steps, "ends": steps.pop("terminals") > 0}


# ----------------------------------------------------------------------------------------------------- Minari data sets
# Minari data sets: read those of gymnasium-robotics' PointMaze and our own, and write our data as one.
#
# Minari's HDF5 layout (`data/main_data.hdf5`, one group for each episode) is read directly; other formats need the
# package `minari` (`pip install 'diffusion-forcing[minari]'`). An episode of T actions has T + 1 observations. The last
# has no action and only shows whether the next episode continues from it: in Minari's D4RL/pointmaze sets reaching a goal
# ends an episode, but not the motion.
#
# The origin of PointMaze is the middle of the map, with x to the right and y up. For H rows and W columns `x' = H/2 - 0.7
# - y`, `y' = x + W/2 - 0.7`, the velocity is (-vy, vx) and the action (-ay, ax): the same physics seen from D4RL's
# corner. A data set that `write_minari` made is in D4RL's frame already, as the environment that its metadata names.

_ORIGIN = 0.7
"""m: from the outer corner of D4RL's map to the origin of its frame."""
_SAME = 1e-4
"""Two states nearer than this are the same: the episode continues in the next."""

_EXTRA = "pip install 'diffusion-forcing[minari]'"

Episode = tuple[NDArray[Any], NDArray[Any]]
"""Observations (T + 1, 4) and actions (T, 2) in PointMaze's frame."""


def to_d4rl(
    observations: NDArray[Any], actions: NDArray[Any], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PointMaze's observations (..., 4) and actions (..., 2) in D4RL's frame, for a maze of `shape` (H, W)."""
    height, width = shape
    x, y, vx, vy = np.moveaxis(np.asarray(observations, dtype=np.float64), -1, 0)
    ax, ay = np.moveaxis(np.asarray(actions, dtype=np.float64), -1, 0)
    mapped = np.stack([height / 2 - _ORIGIN - y, x + width / 2 - _ORIGIN, -vy, vx], axis=-1)
    return mapped, np.stack([-ay, ax], axis=-1)


def find_minari(name: str) -> Path:
    """The folder of a Minari data set: `name` itself, or below $MINARI_DATASETS_PATH (~/.minari/datasets)."""
    root = _root()
    for folder in (Path(name).expanduser(), root / name):
        if (folder / "data").is_dir():
            return folder
    raise UserError(f"no Minari data set '{name}', neither as a folder nor under {root}; run `minari download {name}`")


def source_file(folder: Path) -> Path:
    """The file that changes when the data does: the HDF5 file, or the metadata of another format."""
    main = folder / "data" / "main_data.hdf5"
    return main if main.exists() else folder / "data" / "metadata.json"


def read_minari(folder: Path, maze: Maze) -> Steps:
    """Observations, actions, rewards (for the maze's fixed goal) and `ends` of all episodes of `folder`.

    `UserError` if the folder is not a readable PointMaze data set.
    """
    main = folder / "data" / "main_data.hdf5"
    found = _from_hdf5(main) if main.exists() else _from_package(folder)
    episodes = [(observations, actions) for observations, actions in found if len(actions)]
    require(bool(episodes), f"{folder} holds no episodes; record or download the data set again")
    observations = np.concatenate([states[:-1] for states, _ in episodes])
    actions = np.concatenate([actions for _, actions in episodes])
    if not _is_ours(folder):
        observations, actions = to_d4rl(observations, actions, maze.shape)
    ends = np.zeros(len(actions), dtype=bool)
    ends[np.cumsum([len(actions) for _, actions in episodes]) - 1] = [
        not np.allclose(before[-1], after[0], atol=_SAME) for (before, _), (after, _) in itertools.pairwise(episodes)
    ] + [True]
    rewards = reached(observations[:, :2], maze.fixed_goal.astype(np.float64))
    return {"observations": observations, "actions": actions, "rewards": rewards, "ends": ends}


def write_minari(dataset_id: str, store: Store, *, environment: Any, steps: int) -> Path:
    """Write the episodes of `store`, D4RL's or generated, as the local Minari data set `dataset_id`; returns its folder.

    A stretch of motion longer than `steps` becomes several episodes, each of which goes on from the one before it; the
    last action of a stretch has no following observation and is left out. Rewards are those after an action, as
    `environment`, a Gymnasium EnvSpec, gives them. `UserError` without the package, or where the id is taken or malformed.
    """
    try:
        import minari
        from minari.data_collector import EpisodeBuffer
    except ImportError as error:
        raise UserError(f"writing a Minari data set needs {_EXTRA}") from error
    is_id = re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", dataset_id) is not None
    require(is_id, f"'{dataset_id}' cannot be the id of a Minari data set; give one such as mine/medium-v0")
    folder = _root() / dataset_id
    require(not folder.exists(), f"{folder} exists; run `minari delete {dataset_id}` first")
    episodes = []
    for first, end in store.episodes.tolist():
        for begin in range(first, end - 1, steps):
            last = min(begin + steps, end - 1)
            ended = np.arange(begin + 1, last + 1) == last
            episodes.append(
                EpisodeBuffer(
                    observations=np.asarray(store.observations[begin : last + 1], np.float64),
                    actions=np.asarray(store.actions[begin:last]),
                    rewards=np.asarray(store.rewards[begin + 1 : last + 1]),
                    terminations=np.zeros(last - begin, bool),
                    truncations=ended,
                )
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Minari asks for an author and a description
            minari.create_dataset_from_buffers(dataset_id, episodes, env=environment)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, (OSError, ValueError)):
            raise
        raise UserError(f"cannot write the Minari data set {dataset_id}: {first_line(error)}") from error
    return folder


def _root() -> Path:
    """Where Minari keeps its data sets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()


def _is_ours(folder: Path) -> bool:
    """Whether the data was recorded in our environment, in D4RL's frame."""
    file = folder / "data" / "metadata.json"
    metadata = read_json(file, {})
    # Without it nobody knows in which frame the positions are.
    require(bool(metadata) or not file.exists(), f"{file} is damaged; get the data set again")
    return '"diffusion_forcing/maze2d-' in str(metadata.get("env_spec", ""))


def _from_hdf5(path: Path) -> Iterator[Episode]:
    whole = 0
    with open_hdf5(path, "get the data set again") as file:
        for name in children(file, "episode_"):
            group = member(file, name)
            is_group = isinstance(group, h5py.Group)
            observations, actions = (_observations(group), numbers(group, "actions")) if is_group else (None, None)
            if observations is None or actions is None:
                raise UserError(
                    f"{path}: {name} has no observations or actions; it is not a Minari data set of PointMaze"
                )
            whole += observations.nbytes + actions.nbytes
            check_expansion(whole, path.stat().st_size, f"the episodes up to {name}")
            yield _checked((observations, actions), f"{path}: {name}")


def _observations(episode: h5py.Group) -> NDArray[Any] | None:
    found = member(episode, "observations")
    return numbers(found, "observation") if isinstance(found, h5py.Group) else numbers(episode, "observations")


def _from_package(folder: Path) -> Iterator[Episode]:
    try:
        from minari import MinariDataset
    except ImportError as error:
        raise UserError(f"{folder} is not in Minari's HDF5 format; reading it needs {_EXTRA}") from error
    with reading(folder, "get the data set again"):
        for episode in MinariDataset(folder / "data").iterate_episodes():
            observations = episode.observations
            observations = observations["observation"] if isinstance(observations, dict) else observations
            yield _checked((np.asarray(observations), np.asarray(episode.actions)), f"{folder}: episode {episode.id}")


def _checked(episode: Episode, where: str) -> Episode:
    """The episode, without its last action where no observation follows it."""
    observations, actions = episode
    if observations.ndim and observations.shape[:1] == actions.shape[:1]:
        actions = actions[:-1]
    if observations.ndim != 2 or observations.shape[1] != 4 or actions.shape != (len(observations) - 1, 2):
        raise UserError(
            f"{where} has observations {observations.shape} and actions {actions.shape}, expected (T + 1, 4) or (T, 4), and (T, 2)"
        )
    if not all(np.isfinite(values.astype(np.float32)).all() for values in episode):
        raise UserError(f"{where} has numbers that are not finite (NaN or infinity); get the data set again")
    return observations, actions


# ------------------------------------------------------------------------------------------------------- generated data
# Generate data like D4RL's maze2d: one long run of the waypoint controller to random goals, with noise on its actions.
#
# The ball is never reset: when it reaches the centre of the goal's cell, or after one episode length without, a new
# random goal is set (`timeouts` marks these steps). Action noise N(0, 0.5) gives the statistics of the published data;
# without it the ball never touches a wall. Rewards are those of D4RL's "sparse" files: 1 within 0.5 m of the maze's fixed
# goal.
#
# Steps are drawn in shards of 50,000, each from its own seed (seed, shard), so that the first n steps do not depend on how
# many are asked for. The file appears when it is complete.

SHARD_STEPS = 50_000
"""Steps of a shard: about two seconds of work."""

Arrays = dict[str, NDArray[Any]]


def generate(
    maze: Maze,
    path: Path,
    *,
    num_steps: int = 1_000_000,
    action_noise: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write exactly `num_steps` steps in `maze` to the HDF5 file `path`. `UserError` for a folder that cannot be written."""
    collector, shards = Collector(maze, action_noise=action_noise, seed=seed), list[Arrays]()
    with (
        explaining_os_errors(f"cannot write {path}", "make room or choose another dataset.save_dir"),
        Bar(f"generating {maze.name}", total=num_steps, unit="steps", show=progress) as bar,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        for begin in range(0, num_steps, SHARD_STEPS):
            shards.append(collector.collect(len(shards), num_steps=min(SHARD_STEPS, num_steps - begin)))
            bar.advance(len(shards[-1]["rewards"]))
        arrays = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
        attributes = {"maze": maze.text, "action_noise": action_noise, "seed": seed, "generator": "waypoint 1"}
        write_d4rl(path, arrays, attributes=attributes)


class Collector:
    """The run itself: `collect(shard)` makes the next 50,000 steps."""

    def __init__(self, maze: Maze, *, action_noise: float = 0.5, seed: int = 0) -> None:
        self.maze, self.action_noise, self.seed = maze, action_noise, seed
        self._ball = PointMass(build_model(maze))
        self._controller = WaypointController(maze, rng=np.random.default_rng(0))
        self._goal: tuple[float, float] | None = None
        self._steps_to_goal = 0

    def collect(self, shard: int, *, num_steps: int = SHARD_STEPS) -> Arrays:
        """Steps of a shard as D4RL's arrays, at most 50,000; call it for shard 0, 1, 2, … in turn."""
        rng = np.random.default_rng([self.seed, shard])
        # The noise of a whole shard is drawn, so that its first steps do not depend on num_steps.
        noise = (self.action_noise * rng.standard_normal((SHARD_STEPS, 2))).tolist()
        ball, controller, longest = self._ball, self._controller, self.maze.max_steps
        controller.rng = rng
        if shard == 0:
            ball.reset(*draw_start(self.maze, rng))
            self._goal = self._new_goal(rng)
        assert self._goal is not None, "shards are collected in turn from 0"
        goal, since = self._goal, self._steps_to_goal
        rows: list[tuple[float, ...]] = []
        for noise_x, noise_y in noise[:num_steps]:
            x, y = ball.position.tolist()
            vx, vy = ball.velocity.tolist()
            ax, ay, done = controller.act(x, y, vx, vy, goal)
            ax = min(1.0, max(-1.0, ax + noise_x))
            ay = min(1.0, max(-1.0, ay + noise_y))
            is_timeout = done or since >= longest
            rows.append((x, y, vx, vy, ax, ay, goal[0], goal[1], is_timeout))
            ball.step((ax, ay))
            since += 1
            if is_timeout:
                goal, since = self._new_goal(rng), 0
        self._goal, self._steps_to_goal = goal, since
        return self._arrays(np.array(rows))

    def _new_goal(self, rng: np.random.Generator) -> tuple[float, float]:
        x, y = draw_goal(self.maze, rng, "random").tolist()
        return x, y

    def _arrays(self, rows: NDArray[np.float64]) -> Arrays:
        positions, velocities = rows[:, 0:2], rows[:, 2:4]
        return {
            "observations": rows[:, 0:4].astype(np.float32),
            "actions": rows[:, 4:6].astype(np.float32),
            "rewards": reached(positions, self.maze.fixed_goal.astype(np.float64)).astype(np.float32),
            "terminals": np.zeros(len(rows), dtype=bool),
            "timeouts": rows[:, 8] > 0,
            "infos/goal": rows[:, 6:8].astype(np.float32),
            "infos/qpos": positions.astype(np.float32),
            "infos/qvel": velocities.astype(np.float32),
        }


# --------------------------------------------------------------------------------------------------------- the data set

Source = Literal["auto", "d4rl", "generate", "minari", "path"]

_MINARI = "diffusion_forcing"
"""The namespace of what is exported."""
D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/maze2d"


@dataclass(frozen=True, kw_only=True)
class Maze2dOptions(MazeOptions):
    """The keys of `dataset.*`."""

    env_id: str = "maze2d-medium-v1"
    """maze2d-{umaze,medium,large}-v1; ignored if `maze_map` is given."""
    source: Source = "auto"
    """`path` takes a file in D4RL's schema (`dataset.path`), `minari` the folder or id of a Minari data set."""
    d4rl_url: str = D4RL_URL
    """Web folder of maze2d-*-sparse-v1.hdf5."""
    num_steps: int = 1_000_000
    """Steps to generate."""
    validation_fraction: float = 0.02
    """Share of the steps, the last ones, kept out of training; if 0, validation windows are training windows."""

    library = "D4RL"
    _from_path = ("path", "minari")
    _mazes = (MAZES, Maze.from_ascii, maze_of_id)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum("dataset.num_steps", self.num_steps, 2)
        fraction = self.validation_fraction
        require(0 <= fraction < 1, f"dataset.validation_fraction must be in [0, 1), got {fraction}")

    @property
    def public_file(self) -> Path:
        return Path(self.save_dir) / f"maze2d-{self.maze.name}-sparse-v1.hdf5"

    @property
    def generated_file(self) -> Path:
        recipe = f"{self.num_steps}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"maze2d-{self.maze_name}-{recipe}.hdf5"


class Maze2d(MazeDataset):
    """Windows of runs in one maze of D4RL's kind. `prepare()` first, then `training()` and `validation()`."""

    Options = Maze2dOptions
    options: Maze2dOptions

    def training(self) -> Windows:
        return Windows(self.store, self.options.window, skip=self.options.frame_skip, end=self._border())

    def validation(self) -> Windows:
        border = self._border()
        begin = 0 if border == len(self.store) else border
        return Windows(self.store, self.options.window, skip=self.options.frame_skip, begin=begin)

    @property
    def reference(self) -> str | None:  # type: ignore[override]
        """D4RL's name of the maze, if it is one of its three."""
        return None if self.maze.name == "custom" else self.maze.name

    def environment(self, count: int, goal: Goal) -> VectorMaze2d:
        return VectorMaze2d(self.maze, count, goal=goal)

    def oracle(self, episodes: int, *, seed: int, goal: Goal) -> NDArray[np.float64]:
        return oracle_rewards(self.maze, episodes, seed=seed, goal=goal)

    def export_minari(self, dataset_id: str | None = None) -> Path:
        """Write the data as a local Minari data set, `diffusion_forcing/<maze>-v0` unless `dataset_id` is given; its folder."""
        maze, name = self.maze, dataset_id or f"{_MINARI}/{self.options.maze_name}-v0"
        return write_minari(name, self.store, environment=environment_spec(maze), steps=maze.max_steps)

    def _border(self) -> int:
        """First step of the validation part."""
        return len(self.store) - round(self.options.validation_fraction * len(self.store))

    def _find(self, progress: bool) -> Path:
        if self.options.source == "minari":
            return source_file(find_minari(self.options.path or ""))
        return super()._find(progress)

    def _mapped(self, source: Path) -> Store:
        if self.options.source == "minari":
            return self._open(source, lambda: read_minari(source.parents[1], self.maze))
        return self._open(source, lambda: read_d4rl(source))

    def _download(self, public: Path, progress: bool) -> Path:
        options = self.options
        return download(f"{options.d4rl_url}/{public.name}", public, sha256=options.sha256, progress=progress)

    def _generate(self, path: Path, progress: bool) -> None:
        noise, seed = self.options.action_noise, self.options.generate_seed
        generate(self.maze, path, num_steps=self.options.num_steps, action_noise=noise, seed=seed, progress=progress)
