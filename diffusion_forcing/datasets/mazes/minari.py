"""Minari data sets: read those of gymnasium-robotics' PointMaze and our own, and write our data as one.

Minari's HDF5 layout (`data/main_data.hdf5`, one group for each episode) is read directly; other formats need the
package `minari` (`pip install 'diffusion-forcing[minari]'`). An episode of T actions has T + 1 observations. The last
has no action and only shows whether the next episode continues from it: in Minari's D4RL/pointmaze sets reaching a goal
ends an episode, but not the motion.

The origin of PointMaze is the middle of the map, with x to the right and y up. For H rows and W columns `x' = H/2 - 0.7
- y`, `y' = x + W/2 - 0.7`, the velocity is (-vy, vx) and the action (-ay, ax): the same physics seen from D4RL's
corner. A data set that `write` made is in D4RL's frame already, as the environment that its metadata names.
"""

from __future__ import annotations

import itertools
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.mazes import d4rl
from diffusion_forcing.datasets.windows import Steps, Store
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import reached
from diffusion_forcing.errors import UserError, first_line, require
from diffusion_forcing.files import read_json
from diffusion_forcing.limits import check_expansion, reading

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


def find(name: str) -> Path:
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


def read(folder: Path, maze: Maze) -> Steps:
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


def write(dataset_id: str, store: Store, *, environment: Any, steps: int) -> Path:
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
    with d4rl.open_hdf5(path, "get the data set again") as file:
        for name in d4rl.children(file, "episode_"):
            group = d4rl.member(file, name)
            is_group = isinstance(group, h5py.Group)
            observations, actions = (_observations(group), d4rl.numbers(group, "actions")) if is_group else (None, None)
            if observations is None or actions is None:
                raise UserError(
                    f"{path}: {name} has no observations or actions; it is not a Minari data set of PointMaze"
                )
            whole += observations.nbytes + actions.nbytes
            check_expansion(whole, path.stat().st_size, f"the episodes up to {name}")
            yield _checked((observations, actions), f"{path}: {name}")


def _observations(episode: h5py.Group) -> NDArray[Any] | None:
    found = d4rl.member(episode, "observations")
    return (
        d4rl.numbers(found, "observation") if isinstance(found, h5py.Group) else d4rl.numbers(episode, "observations")
    )


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
