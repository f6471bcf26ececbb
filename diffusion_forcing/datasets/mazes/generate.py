"""Make data like D4RL's maze2d: one long walk of the waypoint controller from random goal to random goal, with noise on its actions.

There are no resets: when the goal's cell centre is reached, or after one episode length without, a new random goal is set and the ball goes on
from where it is (`timeouts` marks these steps). Action noise N(0, 0.5) is what makes the statistics equal the published data's; without it the
ball never touches a wall. Rewards are those of D4RL's "sparse" files: 1 within 0.5 m of the maze's fixed goal.

The walk is cut into shards of 50,000 steps. Each shard is written whole or not at all, draws from its own seed (seed, shard) and carries the
state of simulator and controller at its end, so a killed generation goes on at its last shard and gives the same bytes as one that was never
killed; and the first n steps are the same however many are asked for.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.mazes import d4rl
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import PointMass, build_model, draw_goal, draw_start, reached
from diffusion_forcing.environments.mazes.waypoint import WaypointController
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import replacing, write_atomic
from diffusion_forcing.progress import progress_bar

SHARD_STEPS = 50_000
"""Steps between two points a killed generation can go on from: about two seconds of work."""
_ALGORITHM = 1
"""Raised whenever the same options would give other data, so that partial files of an older version are not continued."""
_STATE_KEYS = ("state/ball", "state/json")

Steps = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the data, except how many steps of it are asked for."""

    maze: str
    action_noise: float = 0.5
    seed: int = 0
    algorithm: int = _ALGORITHM

    def __post_init__(self) -> None:
        if not 0 <= self.action_noise < float("inf"):
            raise UserError(f"action_noise must be at least 0, got {self.action_noise}; D4RL's data has 0.5")
        if self.seed < 0:
            raise UserError(f"generate_seed must be at least 0, got {self.seed}")


def generate(
    maze: Maze,
    path: Path,
    *,
    num_steps: int = 1_000_000,
    action_noise: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Write exactly `num_steps` steps in `maze` to the HDF5 file `path` and return their statistics (`statistics.py`).

    Goes on from `<path>.partial/` if an earlier call with the same options was killed, and removes it when the file is complete.
    Raises `UserError` for options out of range or a folder that cannot be written.
    """
    if num_steps < 1:
        raise UserError(f"num_steps must be at least 1, got {num_steps}")
    recipe = Recipe(maze=maze.text, action_noise=action_noise, seed=seed)
    partial = path.with_name(path.name + ".partial")
    try:
        _open_partial(partial, recipe)
        shards = _collect(maze, partial, recipe, num_steps=num_steps, progress=progress, label=maze.name)
        attributes = {
            "maze": recipe.maze,
            "action_noise": action_noise,
            "seed": seed,
            "generator": f"waypoint {_ALGORITHM}",
        }
        statistics = d4rl.write(
            path, (_load_steps(file) for file in shards), num_steps=num_steps, attributes=attributes
        )
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another dataset.save_dir") from error
    shutil.rmtree(partial)
    return statistics


class Collector:
    """The walk itself: `collect(shard)` makes the next 50,000 steps; `state` / `set_state` carry it over a restart."""

    def __init__(self, maze: Maze, recipe: Recipe) -> None:
        self.maze = maze
        self.recipe = recipe
        self._ball = PointMass(build_model(maze))
        self._controller = WaypointController(maze, rng=np.random.default_rng(0))
        self._goal: tuple[float, float] | None = None
        self._steps_to_goal = 0

    def state(self) -> Steps:
        """Simulator and controller as arrays."""
        facts = {"controller": self._controller.state(), "goal": self._goal, "steps_to_goal": self._steps_to_goal}
        return {"state/ball": self._ball.state(), "state/json": np.array(json.dumps(facts))}

    def set_state(self, state: Steps) -> None:
        """Continue from an earlier `state`."""
        facts = json.loads(str(state["state/json"]))
        self._ball.set_state(np.asarray(state["state/ball"], dtype=np.float64))
        self._controller.set_state(facts["controller"])
        self._goal = (facts["goal"][0], facts["goal"][1])
        self._steps_to_goal = facts["steps_to_goal"]

    def collect(self, shard: int, *, num_steps: int = SHARD_STEPS) -> Steps:
        """Steps shard * 50,000 .. of the walk as D4RL's arrays; call it for shard 0, 1, 2, … in turn. At most 50,000 `num_steps`."""
        rng = np.random.default_rng([self.recipe.seed, shard])
        noise = (self.recipe.action_noise * rng.standard_normal((SHARD_STEPS, 2))).tolist()
        self._controller.rng = rng
        if shard == 0:
            self._ball.reset(*draw_start(self.maze, rng))
            self._goal = self._new_goal(rng)
        assert self._goal is not None, "shards are collected in turn from 0"
        rows: list[tuple[float, ...]] = []
        ball, controller, goal, since, longest = (
            self._ball,
            self._controller,
            self._goal,
            self._steps_to_goal,
            self.maze.max_steps,
        )
        for push_x, push_y in noise[:num_steps]:
            x, y = ball.position.tolist()
            vx, vy = ball.velocity.tolist()
            ax, ay, done = controller.act(x, y, vx, vy, goal)
            ax = min(1.0, max(-1.0, ax + push_x))
            ay = min(1.0, max(-1.0, ay + push_y))
            switch = done or since >= longest
            rows.append((x, y, vx, vy, ax, ay, goal[0], goal[1], switch))
            ball.step((ax, ay))
            since += 1
            if switch:
                goal, since = self._new_goal(rng), 0
        self._goal, self._steps_to_goal = goal, since
        return self._as_steps(np.array(rows))

    def _new_goal(self, rng: np.random.Generator) -> tuple[float, float]:
        x, y = draw_goal(self.maze, rng, "random").tolist()
        return x, y

    def _as_steps(self, rows: NDArray[np.float64]) -> Steps:
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


def _collect(maze: Maze, partial: Path, recipe: Recipe, *, num_steps: int, progress: bool, label: str) -> list[Path]:
    """Make the shards that are missing in `partial`; return the files of all, in order."""
    count = -(-num_steps // SHARD_STEPS)
    files = [partial / f"shard-{shard:05d}.npz" for shard in range(count)]
    sizes = [min(SHARD_STEPS, num_steps - shard * SHARD_STEPS) for shard in range(count)]
    ready = 0
    while ready < count and _is_complete(files[ready], sizes[ready], last=ready == count - 1):
        ready += 1
    collector = Collector(maze, recipe)
    if 0 < ready < count:
        with np.load(files[ready - 1]) as previous:
            collector.set_state({key: previous[key] for key in _STATE_KEYS})
    with progress_bar(
        f"generating {label}", total=num_steps, done=sum(sizes[:ready]), unit="steps", show=progress
    ) as bar:
        for shard in range(ready, count):
            steps = collector.collect(shard, num_steps=sizes[shard])
            _save_shard(files[shard], {**steps, **collector.state()})
            bar.advance(sizes[shard])
    return files


def _is_complete(file: Path, size: int, *, last: bool) -> bool:
    """Whether a shard is there with enough steps; one that others continue must have all of them."""
    if not file.exists():
        return False
    with np.load(file) as shard:
        length = len(shard["rewards"])
    return length >= size if last else length == SHARD_STEPS


def _open_partial(partial: Path, recipe: Recipe) -> None:
    """Make the folder of shards, or empty it when another recipe left it."""
    facts = json.dumps(asdict(recipe) | {"shard_steps": SHARD_STEPS}, indent=1)
    note = partial / "recipe.json"
    if partial.exists() and not (note.exists() and note.read_text() == facts):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    if not note.exists():
        write_atomic(note, facts)


def _save_shard(file: Path, arrays: Steps) -> None:
    with replacing(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _load_steps(file: Path) -> Steps:
    with np.load(file) as shard:
        return {key: shard[key] for key in shard.files if key not in _STATE_KEYS}
