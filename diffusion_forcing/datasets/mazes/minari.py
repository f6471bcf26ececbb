"""Read a local Minari data set of gymnasium-robotics' PointMaze into D4RL's frame.

Minari's HDF5 layout (`data/main_data.hdf5`, one group for each episode) is read directly; other formats need the
package `minari` (`pip install 'diffusion-forcing[minari]'`). An episode of T actions has T + 1 observations. The last
has no action and only shows whether the next episode continues from it: in Minari's D4RL/pointmaze sets reaching a goal
ends an episode, but not the motion.

The origin of PointMaze is the middle of the map, with x to the right and y up. For H rows and W columns `x' = H/2 - 0.7
- y`, `y' = x + W/2 - 0.7`, the velocity is (-vy, vx) and the action (-ay, ax): the same physics seen from D4RL's
corner.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.mazes import d4rl
from diffusion_forcing.datasets.windows import Steps
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import reached
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.limits import check_expansion, reading

_ORIGIN = 0.7
"""m: from the outer corner of D4RL's map to the origin of its frame."""
_SAME = 1e-4
"""Two states nearer than this are the same: the episode continues in the next."""

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
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
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
    observations, actions = to_d4rl(
        np.concatenate([states[:-1] for states, _ in episodes]),
        np.concatenate([actions for _, actions in episodes]),
        maze.shape,
    )
    ends = np.zeros(len(actions), dtype=bool)
    ends[np.cumsum([len(actions) for _, actions in episodes]) - 1] = [
        not np.allclose(before[-1], after[0], atol=_SAME) for (before, _), (after, _) in itertools.pairwise(episodes)
    ] + [True]
    rewards = reached(observations[:, :2], maze.fixed_goal.astype(np.float64))
    return {"observations": observations, "actions": actions, "rewards": rewards, "ends": ends}


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
        raise UserError(
            f"{folder} is not in Minari's HDF5 format; reading it needs pip install 'diffusion-forcing[minari]'"
        ) from error
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
