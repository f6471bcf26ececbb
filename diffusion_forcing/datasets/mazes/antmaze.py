"""Windows of OGBench's AntMaze for planning: positions (x, y) of the torso, every `frame_skip`-th step.

Sources as for PointMaze. Generated data: the expert (`dataset.expert`) walks to a dead end or crossing, then to the next,
as in OGBench's `navigate`; noise of standard deviation `dataset.action_noise` is added to its torques. A file has OGBench's
arrays (29 numbers an observation, 8 an action), of which planning reads the positions. The executor, which moves the ant
along a plan, was cloned from such files (`tools/train_ant.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from diffusion_forcing.checkpoints import load, resolve
from diffusion_forcing.checkpoints.places import shipped
from diffusion_forcing.datasets.mazes.base import Steps, Store
from diffusion_forcing.datasets.mazes.pointmaze import (
    MAX_JUMP,
    Arrays,
    Collector,
    Kind,
    PointMaze,
    PointMazeOptions,
    read_ogbench,
)
from diffusion_forcing.environments.mazes.ant import (
    ACTION_SIZE,
    GOAL_DISTANCE,
    STATE_SIZE,
    Ant,
    Executor,
    VectorAntMaze,
    build_ant_model,
)
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.point import POINT_MAZES, as_point_maze, point_maze
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.options import Count, NotNegative

REQUIRED = {"observations": (STATE_SIZE,), "actions": (ACTION_SIZE,), "terminals": ()}
EXPERT = "ogbench_ant_expert"
TASK = "ant_executor"
"""What the checkpoints of executors and of the expert are for."""


def executor_folder(spec: str, option: str = "dataset.executor") -> Path:
    """The folder of the network that `option` names: a shipped one, or a folder. `UserError` where there is none."""
    known = shipped()
    if not (spec in known or "://" in spec or Path(spec).exists()):
        raise UserError(
            f"{option}={spec} is neither a folder nor a shipped network; shipped: "
            f"{', '.join(name for name in known if name.startswith('ogbench_ant_'))}; tools/train_ant.py trains one"
        )
    try:
        return resolve(spec)
    except UserError as error:
        raise UserError(f"{option}={spec}: {error}") from None


def load_executor(spec: str, option: str = "dataset.executor") -> Executor:
    """The network that `option` names. `UserError` for another kind of checkpoint."""
    folder = executor_folder(spec, option)
    try:
        checkpoint = load(folder)
        task = checkpoint.metadata.get("task")
        require(task == TASK, f"a checkpoint for {task}, not an ant's executor; tools/train_ant.py trains one")
        return Executor({name: tensor.numpy() for name, tensor in checkpoint.weights.items()})
    except UserError as error:
        raise UserError(f"{option}={spec}: {error}") from None


def read_antmaze(path: Path) -> Steps:
    """All arrays of a file in OGBench's format of AntMaze, as `read_ogbench` returns them."""
    return read_ogbench(path, REQUIRED, "OGBench's AntMaze data")


class AntCollector(Collector):
    """Makes trajectories of `expert`, which knows the map, in `maze`."""

    def __init__(self, maze: Maze, expert: Executor, *, kind: Kind = "navigate", action_noise: float = 0.2) -> None:
        self._expert = expert
        super().__init__(maze, kind=kind, action_noise=action_noise)

    def _build(self) -> Ant:
        return Ant(build_ant_model(self.maze))

    def trajectory(self, rng: np.random.Generator, steps: int) -> Arrays:
        """Arrays of one trajectory, `steps` rows."""
        maze, ant = self.maze, self._body
        start, goals = self._start(rng)
        ant.reset(start, rng)
        noise = self.action_noise * rng.standard_normal((steps, ACTION_SIZE))
        states, actions = np.empty((steps, STATE_SIZE)), np.empty((steps, ACTION_SIZE))
        aims, *goal = self._goal(goals, rng)
        for step in range(steps):
            states[step] = ant.state
            here = states[step, :2]
            i, j = maze.cell_at(here)
            aim = goal if (i, j) == maze.cell_at(np.array(goal)) else aims[i][j]
            torques = self._expert(states[step, None], (aim - here)[None])[0]
            actions[step] = np.clip(torques + noise[step], -1, 1)
            ant.step(actions[step])
            if self.kind == "navigate" and np.linalg.norm(ant.state[:2] - goal) <= GOAL_DISTANCE:
                aims, *goal = self._goal(goals, rng)
        return {
            "observations": states.astype(np.float32),
            "actions": actions.astype(np.float32),
            "terminals": np.arange(steps) == steps - 1,
            "qpos": states[:, :15].astype(np.float32),
            "qvel": states[:, 15:].astype(np.float32),
        }


@dataclass(frozen=True, kw_only=True)
class AntMazeOptions(PointMazeOptions):
    """The keys of `dataset.*`."""

    env_id: str = "antmaze-medium-v0"
    """antmaze-{medium,large,giant}-v0; ignored if `maze_map` is given."""
    num_episodes: Count = 250
    """Trajectories to generate, about a second each, and a tenth as many for validation."""
    action_noise: NotNegative = 0.2
    """Standard deviation of the noise on generated torques."""
    executor: str = "ogbench_ant_executor"
    """Checkpoint of the network that moves the ant to the subgoals of a plan."""
    expert: str = EXPERT
    """Checkpoint of the network whose walks are generated."""

    family: ClassVar[str] = "antmaze"
    _acted = (0,)
    _mazes = (POINT_MAZES, point_maze, partial(as_point_maze, family="antmaze"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.simulator == "built_in",
            f"dataset.simulator is {self.simulator}; AntMaze always runs OGBench's model of the ant: leave it out",
        )

    @property
    def generated_file(self) -> Path:
        """Walks of another expert than the shipped one have another name, by its weights."""
        path = super().generated_file
        if self.expert == EXPERT:
            return path
        weights = (executor_folder(self.expert, "dataset.expert") / "model.safetensors").read_bytes()
        return path.with_name(f"{path.stem}-{hashlib.sha256(weights).hexdigest()[:8]}{path.suffix}")


class AntMaze(PointMaze):
    """Windows of an ant's trajectories in one of OGBench's mazes, or one of your own with its cells."""

    Options = AntMazeOptions
    options: AntMazeOptions

    def environment(self, count: int, goal: Goal) -> VectorAntMaze:
        options = self.options
        executor = load_executor(options.executor)
        return VectorAntMaze(self.maze, count, executor=executor, goal=goal, protocol=options.protocol)

    def _collector(self) -> Collector:
        options = self.options
        expert = load_executor(options.expert, "dataset.expert")
        return AntCollector(self.maze, expert, kind=options.kind, action_noise=options.action_noise)

    def _mapped(self, source: Path) -> Store:
        def positions() -> Steps:
            steps = read_antmaze(source)
            return {**steps, "observations": steps["observations"][:, :2]}

        return self._open(source, positions, max_jump=MAX_JUMP)
