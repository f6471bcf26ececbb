"""Generate data like D4RL's maze2d: one long run of the waypoint controller to random goals, with noise on its actions.

The ball is never reset: when it reaches the centre of the goal's cell, or after one episode length without, a new
random goal is set (`timeouts` marks these steps). Action noise N(0, 0.5) gives the statistics of the published data;
without it the ball never touches a wall. Rewards are those of D4RL's "sparse" files: 1 within 0.5 m of the maze's fixed
goal.

The run is cut into shards of 50,000 steps. A shard is written whole or not at all, draws from its own seed (seed,
shard), and contains the state of simulator and controller at its end. So an interrupted generation continues at its
last shard and gives the same bytes as an uninterrupted one, and the first n steps do not depend on how many are asked
for.
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
from diffusion_forcing.errors import UserError, check_minimum, explaining_os_errors
from diffusion_forcing.files import replacing, write_atomic
from diffusion_forcing.progress import Bar

SHARD_STEPS = 50_000
"""Steps of a shard: about two seconds of work."""
_ALGORITHM = 1
"""Raised whenever the same options give other data, so that shards of an older version are not continued."""

Steps = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the data, except the number of steps."""

    maze: str
    action_noise: float = 0.5
    seed: int = 0
    algorithm: int = _ALGORITHM

    def __post_init__(self) -> None:
        if not 0 <= self.action_noise < float("inf"):
            raise UserError(f"action_noise must be at least 0, got {self.action_noise}; D4RL's data has 0.5")
        check_minimum("generate_seed", self.seed, 0)


def generate(
    maze: Maze,
    path: Path,
    *,
    num_steps: int = 1_000_000,
    action_noise: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Write exactly `num_steps` steps in `maze` to the HDF5 file `path` and return their statistics.

    Continues from `<path>.partial/` if an earlier call with the same options was interrupted, and removes it when the
    file is complete. Raises `UserError` for options out of range or a folder that cannot be written.
    """
    check_minimum("num_steps", num_steps, 1)
    recipe = Recipe(maze=maze.text, action_noise=action_noise, seed=seed)
    attributes = {"maze": maze.text, "action_noise": action_noise, "seed": seed, "generator": f"waypoint {_ALGORITHM}"}
    partial = path.with_name(path.name + ".partial")
    with explaining_os_errors(f"cannot write {path}", "make room or choose another dataset.save_dir"):
        _open_partial(partial, recipe)
        shards = _collect(maze, partial, recipe, num_steps=num_steps, progress=progress)
        statistics = d4rl.write(path, map(_load_steps, shards), num_steps=num_steps, attributes=attributes)
    shutil.rmtree(partial)
    return statistics


class Collector:
    """The run itself: `collect(shard)` makes the next 50,000 steps; `state` and `set_state` carry it over a restart."""

    def __init__(self, maze: Maze, recipe: Recipe) -> None:
        self.maze = maze
        self.recipe = recipe
        self._ball = PointMass(build_model(maze))
        self._controller = WaypointController(maze, rng=np.random.default_rng(0))
        self._goal: tuple[float, float] | None = None
        self._steps_to_goal = 0

    def state(self) -> Steps:
        """Simulator and controller as arrays."""
        state = {"controller": self._controller.state(), "goal": self._goal, "steps_to_goal": self._steps_to_goal}
        return {"state/ball": self._ball.state(), "state/json": np.array(json.dumps(state))}

    def set_state(self, arrays: Steps) -> None:
        """Continue from an earlier `state`."""
        state = json.loads(str(arrays["state/json"]))
        self._ball.set_state(np.asarray(arrays["state/ball"], dtype=np.float64))
        self._controller.set_state(state["controller"])
        self._goal = (state["goal"][0], state["goal"][1])
        self._steps_to_goal = state["steps_to_goal"]

    def collect(self, shard: int, *, num_steps: int = SHARD_STEPS) -> Steps:
        """Steps of a shard as D4RL's arrays, at most 50,000; call it for shard 0, 1, 2, … in turn."""
        rng = np.random.default_rng([self.recipe.seed, shard])
        # The noise of a whole shard is drawn, so that its first steps do not depend on num_steps.
        noise = (self.recipe.action_noise * rng.standard_normal((SHARD_STEPS, 2))).tolist()
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


def _collect(maze: Maze, partial: Path, recipe: Recipe, *, num_steps: int, progress: bool) -> list[Path]:
    """Make the missing shards in `partial`; return the files of all, in order."""
    count = -(-num_steps // SHARD_STEPS)
    files = [partial / f"shard-{shard:05d}.npz" for shard in range(count)]
    sizes = [min(SHARD_STEPS, num_steps - shard * SHARD_STEPS) for shard in range(count)]
    ready = 0
    while ready < count and _is_complete(files[ready], sizes[ready], is_last=ready == count - 1):
        ready += 1
    collector = Collector(maze, recipe)
    if 0 < ready < count:
        with np.load(files[ready - 1]) as previous:
            collector.set_state({key: previous[key] for key in previous.files if key.startswith("state/")})
    done = sum(sizes[:ready])
    with Bar(f"generating {maze.name}", total=num_steps, done=done, unit="steps", show=progress) as bar:
        for shard in range(ready, count):
            steps = collector.collect(shard, num_steps=sizes[shard])
            with replacing(files[shard]) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, **steps, **collector.state())  # type: ignore[arg-type]
            bar.advance(sizes[shard])
    return files


def _is_complete(file: Path, size: int, *, is_last: bool) -> bool:
    """Whether a shard exists with enough steps; one that others continue must have all of them."""
    if not file.exists():
        return False
    with np.load(file) as shard:
        length = len(shard["rewards"])
    return length >= size if is_last else length == SHARD_STEPS


def _open_partial(partial: Path, recipe: Recipe) -> None:
    """Make the folder of shards; empty it first if it belongs to another recipe."""
    text = json.dumps(asdict(recipe) | {"shard_steps": SHARD_STEPS}, indent=1)
    file = partial / "recipe.json"
    if partial.exists() and not (file.exists() and file.read_text() == text):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text)


def _load_steps(file: Path) -> Steps:
    with np.load(file) as shard:
        return {key: shard[key] for key in shard.files if not key.startswith("state/")}
