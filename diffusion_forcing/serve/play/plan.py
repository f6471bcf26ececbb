"""The plan view: a plan condenses out of noise row by row, then the ball runs it in MuJoCo, replanned for as in an evaluation.

The episode is `experiments.planning.play`. What is added here watches it: an environment that tells where the ball is, and a planner that draws
candidates and tells its rows. Walls that are drawn change the simulator and the choice of a candidate; the model knows nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.algorithms.planning.tokens import Steps
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints import resolve, shipped
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import VectorMaze
from diffusion_forcing.errors import UserError, check_choice, require
from diffusion_forcing.experiments.planning import play
from diffusion_forcing.serve.play.messages import Message
from diffusion_forcing.serve.play.models import built, command, plan_of
from diffusion_forcing.serve.play.session import Session

DATASETS = {"maze2d": "maze2d_", "pointmaze": "ogbench_pointmaze_"}
"""Kind of an environment: what the name of its data sets begins with."""
MAZES = ("umaze", "medium", "large", "giant")
MOST_ROWS = 80
"""Rows of a plan that are shown; more are thinned."""
THINNED = 4
"""Every how many-th step of a row is shown."""
MOST_CANDIDATES = 16
AT_ONCE = 8
"""Steps of the ball in one message."""
AT_THE_GOAL = 40
"""Steps that the ball still does there."""


class Superseded(Exception):
    """The page asks for something else, or the ball has arrived: the episode ends."""


@dataclass(frozen=True)
class Ask:
    """A plan that was asked for, in the environment of one body whose maze may have other walls than the model's."""

    message: Message
    env: VectorMaze


@dataclass(frozen=True)
class Place:
    """A maze and its planner: the words that load both, what they say (a `launch.run.Plan`), and the planner."""

    words: tuple[str, ...]
    planned: Any
    model: Planning

    @property
    def options(self) -> PlanningOptions:
        """The planner's, as it is shipped."""
        options: PlanningOptions = self.planned.options["algorithm"]
        return options

    def environment(self, text: str | None) -> VectorMaze:
        """One body in the maze, or in the one whose map is `text`."""
        options = self.planned.options["dataset"]
        options = options if text is None else replace(options, maze_map=text)
        env: VectorMaze = self.planned.classes["dataset"](options).environment(1, "random")
        return env


def shipped_planners() -> dict[str, tuple[str, ...]]:
    """The words that load each shipped planner that sees ahead, by the name of its maze: those of D4RL first."""
    found = {}
    for name in shipped():
        metadata = native.read_header(resolve(name)).get("facts", {})
        kind, _, maze = str(metadata.get("env_id", "")).rpartition("-v")[0].partition("-")
        if metadata.get("task") == "planning" and metadata.get("line") == "v1.5" and kind in DATASETS and maze in MAZES:
            has_goal = metadata.get("structure", {}).get("algorithm", {}).get("goal_token", False)
            parts = (maze, "OGBench" if kind == "pointmaze" else "", "goal token" if has_goal else "")
            found[kind, MAZES.index(maze), ", ".join(filter(None, parts))] = (
                f"dataset={DATASETS[kind]}{maze}",
                f"load={name}",
            )
    return {label: words for (_, _, label), words in sorted(found.items())}


class PlanPlayer:
    """Plans with the shipped planners, each loaded when its maze is chosen first."""

    def __init__(self, places: dict[str, Place] | None = None) -> None:
        self._places = {} if places is None else places
        self._words = shipped_planners() if places is None else {name: place.words for name, place in places.items()}
        require(bool(self._words), "no planner is shipped with this installation; install the package again")

    def play(self, session: Session) -> None:
        self.name = next((name for name in self._words if name.startswith("medium")), next(iter(self._words)))
        session.send("mazes", mazes=list(self._words), chosen=self.name)
        self._choose(self.name, None)
        self._show_maze(session)
        while True:
            try:
                message = session.receive()
                match message:
                    case {"do": "maze", "maze": name, "rows": rows}:
                        self._choose(name, rows)
                        self._show_maze(session)
                    case {"do": "plan"}:
                        self._answer(session, Ask(message, self.env))
            except UserError as mistake:
                session.send("error", text=str(mistake))

    def close(self) -> None:
        self._places.clear()

    @property
    def place(self) -> Place:
        """The chosen maze and its planner."""
        if self.name not in self._places:
            planned = plan_of(self._words[self.name])
            self._places[self.name] = Place(self._words[self.name], planned, built(planned))
        return self._places[self.name]

    def _choose(self, name: str, rows: list[str] | None) -> None:
        """UserError for a maze that is not known, is not of the model's size, or is not closed and connected."""
        check_choice("maze", name, list(self._words))
        before, self.name = getattr(self, "name", name), name
        try:
            env = own = self.place.environment(None)
            if rows is not None and tuple(rows) != own.maze.rows:
                drawn = Maze.from_ascii("\\".join(rows), name=name)
                if drawn.shape != own.maze.shape:
                    raise UserError(f"the drawn maze has {drawn.shape} cells, '{name}' {own.maze.shape}; keep its size")
                env = self.place.environment(drawn.text)
        except UserError:
            self.name = before
            raise
        self.env, self.changed = env, env is not own

    def _show_maze(self, session: Session) -> None:
        options, maze = self.place.options, self.env.maze
        session.send(
            "maze",
            name=self.name,
            rows=maze.rows,
            changed=self.changed,
            unit=maze.unit,
            offset=maze.offset,
            start=maze.free_cells[-1].tolist(),
            goal=maze.free_cells[0].tolist(),
            radius=self.env.goal_distance,
            matrix=options.scheduling_matrix,
            sampling_rows=options.diffusion.sampling_timesteps,
            guidance=options.guidance_scale,
            candidates=1 if options.search == "none" else min(options.candidates, MOST_CANDIDATES),
            guided=not options.goal_token,
        )

    def _answer(self, session: Session, ask: Ask) -> None:
        """Plan, and play the episode, until the page asks for something else."""
        message, place = ask.message, self.place
        model, options = place.model, place.options
        searches = options.search != "none"  # then the candidates are the planner's own
        model.options = replace(
            options,
            scheduling_matrix=message["matrix"],
            guidance_scale=message["guidance"],
            candidates=message["candidates"] if searches else options.candidates,
            diffusion=replace(options.diffusion, sampling_timesteps=message["rows"]),
        )
        session.send("command", text=self._command(ask))
        watched: Any = WatchedMaze(ask.env, session)
        count = 1 if searches else message["candidates"]
        planner: Any = WatchedPlanner(model.planner(), ask, session, watched, candidates=count)
        try:
            start, goal, seed = message["start"], message["goal"], message["seed"]
            play(watched, planner, model.options, seed=seed, start=start, goal=goal, device=model.device)
        except Superseded:
            if watched.arrived is None:
                return
        watched.tell()

    def _command(self, ask: Ask) -> str:
        message = ask.message
        return command(
            *self.place.words,
            "experiment.tasks=[validation]",
            "experiment.episodes=1",
            f"experiment.episode_seed={message['seed']}",
            *(f"experiment.{name}=[{','.join(f'{x:.10g}' for x in message[name])}]" for name in ("start", "goal")),
            f"algorithm.scheduling_matrix={message['matrix']}",
            f"algorithm.diffusion.sampling_timesteps={message['rows']}",
            f"algorithm.guidance_scale={message['guidance']:g}",
            *(() if self.place.options.search == "none" else (f"algorithm.candidates={message['candidates']}",)),
            *((f'dataset.maze_map="{ask.env.maze.text}"',) if self.changed else ()),
            "+name=plan",
        )


class WatchedMaze:
    """An environment of one body; the page hears where it is."""

    def __init__(self, env: VectorMaze, session: Session) -> None:
        self._env, self._session = env, session
        self._path: list[NDArray[np.float64]] = []
        self.arrived: int | None = None
        """The step at which it reached the goal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, actions: NDArray[np.floating]) -> Any:
        done = self._env.step(actions)
        self._path.append(done[0][0, :2].copy())
        if self.arrived is None and done[1][0] > 0:
            self.arrived = self.steps
        if len(self._path) >= AT_ONCE:
            self._send()
        if self._session.waiting or (self.arrived is not None and self.steps >= self.arrived + AT_THE_GOAL):
            raise Superseded
        return done

    def _send(self) -> None:
        data = np.array(self._path, np.float32).tobytes()
        self._session.send("ball", data, step=self.steps - len(self._path), steps=len(self._path))
        self._path.clear()

    def tell(self) -> None:
        """The rest of the way, and how it ended."""
        self._send()
        self._session.send(
            "end", arrived=self.arrived is not None, step=self.arrived or self.steps, most=self.max_steps
        )


class WatchedPlanner:
    """A planner that draws several candidates in one batch and follows the best. The first plan's rows go to the page."""

    def __init__(self, planner: Any, ask: Ask, session: Session, watched: WatchedMaze, *, candidates: int) -> None:
        self._planner, self._ask, self._session, self._candidates = planner, ask, session, candidates
        self._watched = watched
        self._plans = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)

    def plan(self, start: Tensor, goal: Tensor, horizon: int, **options: Any) -> tuple[Steps, Tensor]:
        count, planner = self._candidates, self._planner
        for name in ("noise", "refine_noise"):  # the episode's own, and further draws for the other candidates
            if options.get(name) is not None:
                shape = (count - 1, *options[name].shape[1:])
                more = planner.sampler.noise(shape, start.device, options["generator"])
                options[name] = torch.cat([options[name], more])
        for name in ("pull", "previous"):
            if options.get(name) is not None:
                options[name] = options[name].expand(count, *options[name].shape[1:])
        on_row = self._rows(horizon) if self._plans == 0 else self._heed
        steps, frames = planner.plan(start.expand(count, -1), goal.expand(count, -1), horizon, on_row=on_row, **options)
        positions = steps.observations[..., :2].cpu().numpy().astype(np.float64)
        best = max(range(count), key=lambda number: self._merit(positions[number]))
        chosen = Steps(*(part[best : best + 1] for part in steps)), frames[best : best + 1]
        if self._watched.arrived is not None:
            return chosen  # a scrap of a way, around the goal
        self._session.send(
            "plan",
            positions[:, ::2].astype(np.float32).tobytes(),
            candidates=count,
            best=best,
            number=self._plans,
            valid=[self._merit(one)[0] == 1 for one in positions],
            until=[(1 - self._merit(one)[2]) // 2 + 1 for one in positions],
        )
        self._plans += 1
        return chosen

    def _merit(self, plan: NDArray[np.float64]) -> tuple[float, bool, int]:
        """Of positions (h, 2): the share of the way that is free, whether it reaches the goal, and how early; the most is best."""
        near = np.linalg.norm(plan - np.array(self._ask.message["goal"]), axis=1) <= self._ask.env.goal_distance
        end = int(near.argmax()) if near.any() else len(plan) - 1
        return float(self._ask.env.maze.contains(plan[: end + 1]).mean()), bool(near.any()), -end

    def _heed(self, row: int, x: Tensor, levels: Tensor) -> None:
        if self._session.waiting:
            raise Superseded

    def _rows(self, horizon: int) -> Any:
        """Tells the matrix, then every row, or as many of them as are shown."""
        planner = self._planner
        tokens = -(-horizon // planner.bundle.frame_stack)
        matrix = planner.sampler.matrix(tokens)
        top, first = planner.sampler.sampling_timesteps, planner.present_tokens
        self._session.send(
            "schedule", matrix.to(torch.uint8).numpy().tobytes(), rows=len(matrix), tokens=tokens, top=top
        )
        every = -(-len(matrix) // MOST_ROWS)

        def on_row(row: int, x: Tensor, levels: Tensor) -> None:
            self._heed(row, x, levels)
            if row % every and row < len(matrix) - 2:
                return
            frames = planner.bundle.unstack(x[:MOST_CANDIDATES, first : first + tokens])
            positions = planner.bundle.decode(frames).observations[:, :horizon:THINNED, :2]
            level = levels[first : first + tokens] if levels.ndim == 1 else levels[0, first : first + tokens]
            data = positions.float().contiguous().cpu().numpy().tobytes()
            self._session.send("row", data, row=row + 1, candidates=len(positions), levels=level.tolist(), top=top)

        return on_row
