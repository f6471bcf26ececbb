"""Planning in mazes: train on trajectories, then plan, carry the plan out in MuJoCo, score it as D4RL does, and draw it.

`validation` and `test` play `episodes` episodes (other ones each) and leave in the run's folder: metrics.json, a sheet of plans with what
became of them, and films of a plan coming out of noise and of an episode. `generate_dataset` makes the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.algorithms.planning.controllers import PlanFollower, hold
from diffusion_forcing.algorithms.planning.planner import Planner
from diffusion_forcing.algorithms.planning.tokens import Steps
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.vector import VectorMaze2d
from diffusion_forcing.environments.mazes.waypoint import oracle_rewards
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.checkpointing import compile_network
from diffusion_forcing.experiments.options import ExperimentOptions, TestOptions, ValidationOptions
from diffusion_forcing.metrics.planning import normalized_score, planning_report
from diffusion_forcing.tracking.charts import read_curves
from diffusion_forcing.visualization.curves import draw_loss_curve
from diffusion_forcing.visualization.maze import draw_plans, video_of_execution, video_of_plan

# Playing mazes: plan, follow the plan for a while, look where the ball is, plan again.
#
# All episodes of a group run side by side in one vectorised environment and are planned for in one batch. The noise of a plan belongs to
# (seed, episode, replanning), so episode 7 of seed 0 is the same whatever else is played beside it (with ddim_sampling_eta 0 and
# mcg_samples 1; what those draw on the way belongs to the group: seed, first episode, replanning).

Array = NDArray[np.float64]
NOISE_STREAM = 3  # third number of a plan's seed; the environments draw from streams 0 to 2
STUCK_PACE = 0.01  # metres a step, a fifth of full speed: a ball this near to where it was planned for before was led in a circle, or into a wall
LEAST_PULL = 0.125  # of the guidance scale


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """What was played. rewards: (n, T) 0 or 1; trajectories: (n, T+1, 4) observations; goals: (n, 2); plans: the positions (n, h, 2) of
    each planning, one an entry, with the step it was made at; seconds: wall time of each planning call over the plans in it."""

    rewards: Array
    trajectories: Array
    goals: Array
    plans: list[tuple[int, Array]]
    seconds: Array


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """How plans are carried out; the options of `algorithm=df_planning` of the same names."""

    open_loop_horizon: int
    episode_len: int
    controller: str
    stay_at_goal: bool
    warm_start: float
    ease_when_stuck: bool = False


def play(
    env: VectorMaze2d,
    planner: Planner,
    options: PlayOptions,
    *,
    seed: int,
    first_episode: int = 0,
    device: torch.device,
    on_step: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Episodes first_episode… of `seed`, one an environment. on_step(done, all) is told after each step."""
    n, steps = env.num_envs, env.max_steps
    observations, _ = env.reset(seed=seed, options={"first_episode": first_episode})
    trajectory, rewards = [observations.copy()], np.zeros((n, steps))
    pushes: list[Array] = []
    reached = np.zeros(n, dtype=bool)
    plans: list[tuple[int, Array]] = []
    seconds: list[float] = []
    frames: torch.Tensor | None = None
    follower: PlanFollower | None = None
    pull, seen = np.ones(n), list[Array]()
    for step in range(steps):
        waiting = ~reached if options.stay_at_goal else np.ones(n, dtype=bool)
        if step % options.open_loop_horizon == 0 and waiting.any():
            horizon = min(options.episode_len, steps - step)
            index = np.flatnonzero(waiting)
            numbers = [first_episode + int(i) for i in index]
            noise = _noise(planner, horizon, [(seed, number, NOISE_STREAM, step) for number in numbers]).to(device)
            again = None
            if planner.options.refine > 0:
                again = _noise(planner, horizon, [(seed, number, NOISE_STREAM, step, 1) for number in numbers]).to(
                    device
                )
            if options.ease_when_stuck:
                here = observations[:, :2]
                back = np.zeros(n, dtype=bool)
                for place in seen:
                    back |= np.linalg.norm(here - place, axis=1) < STUCK_PACE * options.open_loop_horizon
                pull = np.where(back, np.maximum(pull / 2, LEAST_PULL), 1.0)
                seen.append(here.copy())
            previous, restart = None, None
            if frames is not None and options.warm_start > 0:
                previous = frames[torch.from_numpy(index)][:, options.open_loop_horizon :][:, :horizon]
                restart = max(1, round(options.warm_start * planner.sampler.sampling_timesteps))
                previous = None if previous.shape[1] == 0 else previous
            began = time.perf_counter()
            planned, new_frames = planner.plan(
                torch.tensor(observations[index], dtype=torch.float32, device=device),
                torch.tensor(env.goals[index], dtype=torch.float32, device=device),
                horizon,
                noise=noise,
                refine_noise=again,
                pull=torch.tensor(pull[index], dtype=torch.float32, device=device) if options.ease_when_stuck else None,
                previous=previous,
                restart=restart,
                past=_past(planner, index, trajectory, pushes, rewards[:, :step], device),
                generator=_generator(device, (seed, first_episode, NOISE_STREAM, step, 2)),
            )
            positions = planned.observations[..., :2].cpu().numpy().astype(np.float64)
            seconds.append((time.perf_counter() - began) / len(index))
            whole = np.repeat(env.goals[:, None], horizon, axis=1)
            whole[index] = positions
            actions = None
            if planner.bundle.action_dim:
                actions = np.zeros((n, horizon, 2))
                actions[index] = planned.actions.cpu().numpy()
            if options.warm_start > 0:
                kept = new_frames.new_zeros(n, *new_frames.shape[1:])
                kept[torch.from_numpy(index)] = new_frames
                frames = kept
            plans.append((step, whole))
            follower = PlanFollower(whole, "execute" if actions is not None else options.controller, actions)
        action = np.zeros((n, 2)) if follower is None else follower.act(observations)
        if options.stay_at_goal:
            action = np.where(reached[:, None], hold(observations, env.goals), action)
        observations, reward, *_ = env.step(action)
        pushes.append(np.clip(action, -1, 1))
        rewards[:, step] = reward
        reached |= reward > 0
        trajectory.append(observations.copy())
        if on_step is not None:
            on_step(step + 1, steps)
    return Episodes(
        rewards=rewards,
        trajectories=np.stack(trajectory, axis=1),
        goals=env.goals.copy(),
        plans=plans,
        seconds=np.array(seconds),
    )


def _past(
    planner: Planner,
    index: NDArray[np.int64],
    trajectory: list[Array],
    pushes: list[Array],
    rewards: Array,
    device: torch.device,
) -> Steps | None:
    """The last steps before the present of episodes `index`, as many whole tokens as the planner looks back on; None: none."""
    f = planner.bundle.frame_stack
    count = min(planner.context_frames, len(pushes)) // f * f
    if not count:
        return None
    parts = [
        np.stack(trajectory[-count - 1 : -1], axis=1),
        np.stack(pushes[-count:], axis=1),
        rewards[:, -count:, None],
    ]
    return Steps(*(torch.tensor(part[index], dtype=torch.float32, device=device) for part in parts))


def _noise(planner: Planner, horizon: int, seeds: list[tuple[int, ...]]) -> torch.Tensor:
    """Standard normal tokens (n, ⌈horizon/f⌉, f·c), each sample from its own seed."""
    bundle = planner.bundle
    shape = (-(-horizon // bundle.frame_stack), bundle.token_width)
    return torch.stack(
        [torch.from_numpy(np.random.default_rng(s).standard_normal(shape, dtype=np.float32)) for s in seeds]
    )


def _generator(device: torch.device, seeds: tuple[int, ...]) -> torch.Generator:
    """For what a planning call draws beside its first noise: rows with eta, Monte Carlo continuations."""
    word = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(word) % 2**63)


GOAL_RADIUS = 0.5  # metres, D4RL's
TEST_SEED_OFFSET = 10_000  # the test task plays other episodes than validation
MOST_DRAWN = 12  # mazes on the sheet


@dataclass(frozen=True, kw_only=True)
class PlanningExperimentOptions(ExperimentOptions):
    """`experiment=exp_planning`. episodes: how many are played; episode_seed: which (validation; test adds 10,000)."""

    episodes: int = 100
    episode_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1:
            raise UserError(f"experiment.episodes is {self.episodes}; play at least 1")
        if self.episode_seed < 0:
            raise UserError(f"experiment.episode_seed is {self.episode_seed}; it must be 0 or more")


class PlanningExperiment(BaseExperiment):
    """Tasks: generate_dataset, training, validation, test."""

    Options = PlanningExperimentOptions
    task = "planning"
    shared_tasks = frozenset({"training"})
    options: PlanningExperimentOptions
    algorithm: Planning

    @classmethod
    def one_batch(cls, options: ExperimentOptions) -> ExperimentOptions:
        return replace(super().one_batch(options), episodes=1)  # type: ignore[call-arg]

    def generate_dataset(self) -> None:
        """Make the maze data with the waypoint controller (`dataset.num_steps`, `dataset.action_noise`), or finish what was begun."""
        self.dataset.generate(progress=True)

    def training(self) -> None:
        """Train, and draw the loss curve."""
        super().training()
        curves = read_curves(self.run.folder / "metrics.jsonl")
        if "training/loss" in curves:
            loss = curves["training/loss"].points()
            self.run.image(
                "loss_curve",
                draw_loss_curve([point.last for point in loss], [point.mean for point in loss]),
                caption="Training loss",
            )

    def validation(self) -> None:
        """Plan and play `episodes` episodes of `episode_seed`."""
        self._play("validation", self.options.validation, self.options.episode_seed)

    def test(self) -> None:
        """Plan and play `episodes` episodes that validation never sees."""
        self._play("test", self.options.test, self.options.episode_seed + TEST_SEED_OFFSET)

    # ------------------------------------------------------------------------------------------------ playing

    def _play(self, task: str, options: ValidationOptions | TestOptions, seed: int) -> None:
        self._prepare(data=False)
        if not self.step:
            self._say(f"{task}: the weights are not trained (no load=, no resume=, no training before)")
        device = devices.device()
        algorithm = self.algorithm.to(device).eval()
        planner: Planner = algorithm.planner()
        if options.compile:
            compile_network(planner.forcing, options.compile)
        settings = algorithm.options
        play_options = PlayOptions(
            open_loop_horizon=settings.open_loop_horizon,
            episode_len=settings.episode_len,
            controller=settings.controller,
            stay_at_goal=settings.stay_at_goal,
            warm_start=settings.warm_start,
            ease_when_stuck=settings.ease_when_stuck,
        )
        maze, total = self.dataset.maze, self.options.episodes
        groups: list[Episodes] = []
        with self._progress() as progress, torch.no_grad():
            bar = progress.add_task(f"{task}: {total} episodes", total=total * maze.max_steps)
            for first in range(0, total, options.batch_size):
                count = min(options.batch_size, total - first)

                def show(step: int, steps: int, first: int = first, count: int = count) -> None:
                    progress.update(bar, completed=first * steps + count * step)

                groups.append(
                    play(
                        VectorMaze2d(maze, count, goal=settings.goal),
                        planner,
                        play_options,
                        seed=seed,
                        first_episode=first,
                        device=device,
                        on_step=show,
                    )
                )
        self._report(groups, seed=seed, goal=settings.goal, maze=maze)
        self._draw(task, groups, planner=planner, maze=maze, device=device, seed=seed, settings=settings)

    def _report(self, groups: list[Episodes], *, seed: int, goal: Goal, maze: Maze) -> None:
        rewards = np.concatenate([group.rewards for group in groups])
        seconds = np.concatenate([group.seconds for group in groups])
        name = maze.name if maze.name in ("umaze", "medium", "large") else None
        oracle = oracle_rewards(maze, len(rewards), seed=seed, goal=goal)
        oracle_score = float(normalized_score(oracle.sum(axis=1), name).mean()) if name else None
        report = planning_report(rewards, maze=name, seconds_per_plan=seconds, oracle_score=oracle_score)
        report["planning/oracle_episode_reward"] = float(oracle.sum(axis=1).mean())
        if oracle_score is not None:
            report["planning/oracle_normalized_score"] = oracle_score
        self.run.summary(report)
        for key in (
            "success_rate",
            "normalized_score",
            "episode_reward",
            "episode_reward_if_stay",
            "first_reach",
            "oracle_ratio",
            "seconds_per_plan",
        ):
            value = report.get(f"planning/{key}")
            if value is not None:
                error = report.get(f"planning/{key}_stderr")
                self._say(f"  {key:24s} {value:9.4g}" + ("" if error is None else f" ± {error:.2g}"))

    def _draw(
        self,
        task: str,
        groups: list[Episodes],
        *,
        planner: Planner,
        maze: Maze,
        device: torch.device,
        seed: int,
        settings: PlanningOptions,
    ) -> None:
        walls, first = maze.walls, groups[0]
        shown = min(MOST_DRAWN, len(first.rewards))
        first_plans = first.plans[0][1]
        marks = settings.plot_start_goal
        self.run.image(
            f"{task}_plans",
            draw_plans(
                walls,
                [_until_goal(first_plans[i], first.goals[i]) for i in range(shown)],
                [first.trajectories[i, : _end(first.rewards[i]), :2] for i in range(shown)],
                [first.trajectories[i, 0, :2] if marks else None for i in range(shown)],
                [first.goals[i] if marks else None for i in range(shown)],
                titles=[_title(first.rewards[i]) for i in range(shown)],
            ),
            caption=f"Plans and what became of them: episodes 0 to {shown - 1} of seed {seed}",
        )
        # the film shows an episode whose way is long
        longest = int(np.linalg.norm(first.goals - first.trajectories[:, 0, :2], axis=1)[:shown].argmax())
        rows, levels = self._rows_of_plan(planner, first, longest, device, settings.episode_len, maze.max_steps)
        self.run.video(
            f"{task}_plan_from_noise",
            video_of_plan(
                walls,
                rows,
                first.trajectories[longest, 0, :2] if marks else None,
                first.goals[longest] if marks else None,
                levels=levels,
            ),
            fps=max(4, len(rows) // 6),
            caption=f"A plan coming out of noise, row by row of its scheduling matrix ({len(rows)} rows)",
        )
        end = _end(first.rewards[longest])
        followed = [plan[longest] for step, plan in first.plans if step < end]
        horizon = len(followed[0])
        self.run.video(
            f"{task}_episode",
            video_of_execution(
                walls,
                np.stack(
                    [np.concatenate([plan, np.repeat(plan[-1:], horizon - len(plan), axis=0)]) for plan in followed]
                ),
                first.trajectories[longest, :end, :2],
                first.goals[longest] if marks else None,
                replan_every=settings.open_loop_horizon,
            ),
            fps=25,
            caption=f"Episode {longest}: each plan, and the ball that follows it",
        )

    def _rows_of_plan(
        self, planner: Planner, episodes: Episodes, episode: int, device: torch.device, episode_len: int, max_steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions (m, h, 2) after each row of one plan, and the sampling levels (m, tokens)."""
        horizon = min(episode_len, max_steps)
        rows: list[np.ndarray] = []
        levels: list[np.ndarray] = []
        f = planner.bundle.frame_stack
        tokens, first = -(-horizon // f), planner.present_tokens

        def keep(row: int, x: torch.Tensor, s: torch.Tensor) -> None:
            frames = planner.bundle.decode(planner.bundle.unstack(x[:, first : first + tokens])).observations
            rows.append(frames[0, :horizon, :2].cpu().numpy())
            levels.append(s[first : first + tokens].numpy())

        with torch.no_grad():
            planner.plan(
                torch.tensor(episodes.trajectories[episode : episode + 1, 0], dtype=torch.float32, device=device),
                torch.tensor(episodes.goals[episode : episode + 1], dtype=torch.float32, device=device),
                horizon,
                generator=torch.Generator(device).manual_seed(episode),
                on_row=keep,
            )
        return np.stack(rows), np.stack(levels)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            transient=True,
        )


def _end(rewards: np.ndarray) -> int:
    """Steps of an episode worth drawing: up to a little after the goal is reached, else all; one more for the start."""
    reached = np.flatnonzero(rewards > 0)
    return min(len(rewards), int(reached[0]) + 25) + 1 if len(reached) else len(rewards) + 1


def _until_goal(plan: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The part of a plan (h, 2) up to its nearest approach to the goal: what comes after is not followed."""
    near = np.linalg.norm(plan - goal, axis=-1) < GOAL_RADIUS
    return plan[: int(near.argmax()) + 1] if near.any() else plan


def _title(rewards: np.ndarray) -> str:
    reached = np.flatnonzero(rewards > 0)
    return f"goal at step {int(reached[0]) + 1}" if len(reached) else "goal not reached"
