"""Planning in mazes: train on trajectories, then plan, execute the plans in MuJoCo, score them as D4RL does, and draw.

`validation` and `test` play `episodes` different episodes each and leave in the run's folder: metrics.json, a grid of
plans and their execution, and videos of a plan coming out of noise, of an episode, and of a growing tree. `generate_dataset` makes the
data.

All episodes of a group run side by side in one vectorised environment and are planned for in one batch. The noise of
a plan depends on (seed, episode, replanning) alone, so episode 7 of seed 0 is the same whatever is played beside it
(with ddim_sampling_eta 0 and mcg_samples 1; their random numbers belong to the group: seed, first episode,
replanning).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.algorithms.planning.candidates import Support
from diffusion_forcing.algorithms.planning.controllers import DRIVES, PlanFollower, each_step, hold
from diffusion_forcing.algorithms.planning.planner import Planner
from diffusion_forcing.algorithms.planning.tokens import Steps
from diffusion_forcing.algorithms.planning.tree_search import TreeSearchPlanner
from diffusion_forcing.diffusion.history import OnRow
from diffusion_forcing.environments.mazes.maze2d import Goal, VectorMaze, check_point
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.checkpointing import compile_network
from diffusion_forcing.experiments.options import ExperimentOptions, TestOptions, ValidationOptions
from diffusion_forcing.metrics.planning import planning_report
from diffusion_forcing.options import Count, Natural
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import counted
from diffusion_forcing.tracking.page import quantity

Array = NDArray[np.float64]

NOISE_STREAM = 3
"""Third number of a plan's seed; the environments draw from streams 0 to 2."""
LEAST_PULL = 0.125
"""Lower bound of the factor on the guidance scale for a stuck ball."""
TEST_SEED_OFFSET = 10_000
"""The test task plays other episodes than validation."""
MOST_DRAWN = 12
"""Episodes in the grid."""
PRINTED = (
    "success_rate",
    "normalized_score",
    "episode_reward",
    "episode_reward_if_stay",
    "first_reach",
    "oracle_first_reach",
    "oracle_ratio",
    "seconds_per_plan",
)
"""Numbers of the report for the terminal."""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """n executed episodes of T steps.

    rewards: (n, T), 0 or 1; trajectories: (n, T+1, o), observations; goals: (n, 2); plans: for each planning call the
    step and the planned positions (n, h, 2) of the steps from there; seconds: wall time of each planning call divided by
    the plans in it. Where episodes end at the goal, nothing is rewarded or drawn after it.
    """

    rewards: Array
    trajectories: Array
    goals: Array
    plans: list[tuple[int, Array]]
    seconds: Array


def play(
    env: VectorMaze,
    planner: Planner,
    options: PlanningOptions,
    *,
    seed: int,
    first_episode: int = 0,
    start: Sequence[float] = (),
    goal: Sequence[float] = (),
    device: torch.device,
    on_step: Callable[[int], None] = lambda count: None,
) -> Episodes:
    """Play episodes first_episode… of `seed`, one an environment. `on_step(n)` is called after each step of all n.

    start, goal: (x, y) in metres for all of them; the episode's own where empty.
    """
    n, steps, every, skip = env.num_envs, env.max_steps, options.open_loop_horizon, options.frame_skip
    drive, stays = DRIVES[env.body], options.stay_at_goal or env.ends_at_goal
    points = {f"{name}s": [point] * n for name, point in (("start", start), ("goal", goal)) if point}
    observations, _ = env.reset(seed=seed, options={"first_episode": first_episode, **points})
    trajectory, actions = [observations.copy()], list[Array]()
    rewards, reached = np.zeros((n, steps)), np.zeros(n, dtype=bool)
    plans, seconds = list[tuple[int, Array]](), list[float]()
    frames: torch.Tensor | None = None  # of the last plans, normalised
    follower: PlanFollower | None = None
    pull, places = np.ones(n), list[Array]()
    for step in range(steps):
        waiting = ~reached if stays else np.ones(n, dtype=bool)
        if step % every == 0 and waiting.any():
            horizon, index = min(options.plan_len, -(-(steps - step) // skip)), np.flatnonzero(waiting)
            if options.ease_when_stuck:
                # Halve the guidance of a ball that is back at an earlier place: it was led in a circle or into a wall.
                positions = observations[:, :2].copy()
                near = [np.linalg.norm(positions - place, axis=1) < drive.stuck_pace * every for place in places]
                stuck = np.any([np.zeros(n, dtype=bool), *near], axis=0)
                pull = np.where(stuck, np.maximum(pull / 2, LEAST_PULL), 1.0)
                places.append(positions)
            previous, restart = None, None
            if frames is not None and options.warm_start > 0:
                # Start from what is left of the last plan, noised again, instead of from pure noise.
                previous = frames[torch.from_numpy(index)][:, every // skip :][:, :horizon]
                previous = None if previous.shape[1] == 0 else previous
                restart = max(1, round(options.warm_start * planner.sampler.sampling_timesteps))
            started = time.perf_counter()
            planned, new_frames = planner.plan(
                _float(observations[index], device),
                _float(env.goals[index], device),
                horizon,
                pull=_float(pull[index], device) if options.ease_when_stuck else None,
                previous=previous,
                restart=restart,
                past=_history(planner, index, trajectory, actions, rewards[:, :step], skip, device),
                **_random(planner, horizon, device, seed, first_episode, index, step),
            )
            # Balls that are not planned for keep their goal as the plan.
            whole = np.repeat(env.goals[:, None], horizon * skip, axis=1)
            positions = planned.observations[..., :2].cpu().numpy().astype(np.float64)
            whole[index] = each_step(positions, observations[index, :2], skip)
            seconds.append((time.perf_counter() - started) / len(index))
            planned_actions = None
            if planner.bundle.action_dim:
                planned_actions = np.zeros((n, horizon * skip, 2))
                planned_actions[index] = planned.actions.cpu().numpy().repeat(skip, axis=1)
            if options.warm_start > 0:
                frames = new_frames.new_zeros(n, *new_frames.shape[1:])
                frames[torch.from_numpy(index)] = new_frames
            plans.append((step, whole))
            law = options.controller if planned_actions is None else "execute"
            follower = PlanFollower(whole, law, planned_actions, drive)
        action = np.zeros((n, 2)) if follower is None else follower.act(observations)
        if stays:
            action = np.where(reached[:, None], hold(observations, env.goals, drive), action)
        observations, reward, *_ = env.step(action)
        actions.append(np.clip(action, -1, 1))
        trajectory.append(observations.copy())
        rewards[:, step] = reward * ~reached if env.ends_at_goal else reward
        reached |= reward > 0
        on_step(n)
        if env.ends_at_goal and reached.all():
            trajectory += [observations] * (steps - step - 1)
            on_step(n * (steps - step - 1))
            break
    return Episodes(
        rewards=rewards,
        trajectories=np.stack(trajectory, axis=1),
        goals=env.goals.copy(),
        plans=plans,
        seconds=np.array(seconds),
    )


def _history(
    planner: Planner,
    index: NDArray[np.int64],
    trajectory: list[Array],
    actions: list[Array],
    rewards: Array,
    skip: int,
    device: torch.device,
) -> Steps | None:
    """The last steps of episodes `index`, as many whole tokens as the planner takes as context; None for none."""
    f = planner.bundle.frame_stack
    count = min(planner.context_frames, len(actions) // skip) // f * f
    if not count:
        return None
    observed = np.stack(trajectory[-count * skip - 1 : -1 : skip], axis=1)
    done = np.stack(actions[-count * skip :], axis=1).reshape(len(rewards), count, skip, 2).mean(axis=2)
    rewarded = rewards[:, -count * skip :].reshape(len(rewards), count, skip).max(axis=2)
    return Steps(*(_float(part[index], device) for part in (observed, done, rewarded[..., None])))


def _float(array: Array, device: torch.device) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32, device=device)


def _random(
    planner: Planner, horizon: int, device: torch.device, seed: int, first: int, index: Iterable[int], step: int
) -> dict[str, Any]:
    """What a planning call at `step` draws for episodes first + index, as options of `planner.plan`.

    noise, refine_noise: standard normal (n, *planner.noise_shape), each plan's from its own seed. generator: the
    group's, for what else is drawn: rows with eta, Monte Carlo continuations.
    """
    shape = planner.noise_shape(horizon)

    def noise(*last: int) -> torch.Tensor:
        seeds = [(seed, first + int(i), NOISE_STREAM, step, *last) for i in index]
        samples = [np.random.default_rng(own).standard_normal(shape, dtype=np.float32) for own in seeds]
        return torch.from_numpy(np.stack(samples)).to(device)

    word = int(np.random.SeedSequence((seed, first, NOISE_STREAM, step, 2)).generate_state(1, np.uint64)[0])
    return {
        "noise": noise(),
        "refine_noise": noise(1) if planner.options.refine > 0 else None,
        "generator": torch.Generator(device).manual_seed(word % 2**63),
    }


# ------------------------------------------------------------------------------------ the first plan of an episode, again


def first_plan(
    planner: Planner,
    options: PlanningOptions,
    played: Episodes,
    episode: int,
    *,
    seed: int,
    device: torch.device,
    on_row: OnRow | None = None,
) -> Steps:
    """The plan (1, h, …) that `play` made first for one of its episodes 0… of `seed`, from the same noise."""
    horizon = min(options.plan_len, -(-played.rewards.shape[1] // options.frame_skip))
    with torch.no_grad():
        plan, _ = planner.plan(
            _float(played.trajectories[episode, None, 0], device),
            _float(played.goals[episode, None], device),
            horizon,
            on_row=on_row,
            **_random(planner, horizon, device, seed, 0, [episode], 0),
        )
    return plan


def rows_of_plan(
    planner: Planner, options: PlanningOptions, played: Episodes, episode: int, *, seed: int, device: torch.device
) -> tuple[Array, NDArray[np.int64], Array]:
    """Positions (m, h, 2) after each row of `first_plan`, the sampling levels (m, tokens), and the other candidates'
    (m, n, h, 2).

    Of candidates that are drawn several times, the rows of the draw with the plan that is followed; of a tree, those of
    that plan's simulation.
    """
    first, length = planner.present_tokens, planner.bundle.frame_stack
    passes: list[list[tuple[Array, NDArray[np.int64]]]] = []
    last = 0

    def keep(row: int, x: torch.Tensor, s: torch.Tensor) -> None:
        nonlocal last
        if not passes or row <= last or len(x) != len(passes[-1][0][0]):
            passes.append([])
        last = row
        frames = planner.bundle.decode(planner.bundle.unstack(x[:, first:])).observations
        passes[-1].append((frames[..., :2].cpu().numpy(), s.expand(len(x), -1)[:, first:].numpy()))

    plan = first_plan(planner, options, played, episode, seed=seed, device=device, on_row=keep)
    final = plan.observations[0, :, :2].cpu().numpy()
    best: tuple[float, Any] = (np.inf, None)
    for rows in passes:
        paths, levels = (np.stack(part) for part in zip(*rows, strict=True))
        # A candidate ends at its goal; what comes after that is not drawn.
        present = (levels[-1] == 0).sum(-1) * length
        index = np.minimum(np.arange(len(final)), present[:, None] - 1)
        paths = np.take_along_axis(paths, index[None, :, :, None], axis=2).astype(np.float64)
        distance = np.abs(paths[-1] - final).mean((1, 2))
        if distance.min() < best[0]:
            best = float(distance.min()), (paths, levels, int(distance.argmin()))
    paths, levels, chosen = best[1]
    own = levels[:, chosen, : -(-len(final) // length)]
    return paths[:, chosen], np.where(own[-1] > 0, 0, own), np.delete(paths, chosen, axis=1)


@dataclass(frozen=True, kw_only=True)
class PlanningExperimentOptions(ExperimentOptions):
    """`experiment=exp_planning`.

    episodes: how many are played; episode_seed: which (validation; test adds 10,000). start, goal: [x, y] in metres, of
    every episode; each its own where empty. No oracle is reported for a chosen start or goal. minari_id: that
    `export_minari` writes, such as mine/medium-v0; diffusion_forcing/<maze>-v0 where empty.
    """

    episodes: Count = 100
    episode_seed: Natural = 0
    start: tuple[float, ...] = ()
    goal: tuple[float, ...] = ()
    minari_id: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, point in (("start", self.start), ("goal", self.goal)):
            require(
                len(point) in (0, 2),
                f"experiment.{name} has {len(point)} numbers; give [x,y] in metres, or [] to draw it",
            )


class PlanningExperiment(BaseExperiment):
    """Tasks: generate_dataset, export_minari, training, validation, test."""

    Options = PlanningExperimentOptions
    task = "planning"
    shared_tasks = frozenset({"training", "distill"})
    options: PlanningExperimentOptions
    algorithm: Planning

    @classmethod
    def one_batch(cls, options: ExperimentOptions) -> ExperimentOptions:
        return replace(super().one_batch(options), episodes=1)  # type: ignore[call-arg]

    def generate_dataset(self) -> None:
        """Make or finish the maze data with the waypoint controller (`dataset.num_steps`, `dataset.action_noise`)."""
        self.dataset.generate(progress=True)

    def export_minari(self) -> None:
        """Write the maze data as a local Minari data set (extra `minari`), and say how to load it."""
        export = getattr(self.dataset, "export_minari", None)
        if export is None:
            raise UserError("only dataset=maze2d_* can be written as a Minari data set; choose one of them")
        self._prepare(weights=False)
        folder = export(self.options.minari_id or None)
        name = self.options.minari_id or f"{folder.parent.name}/{folder.name}"
        self._say(f"wrote {folder}; minari.load_dataset('{name}'), or dataset.source=minari dataset.path={name}")

    def training(self) -> None:
        """As every training; a planner with goal tokens first looks at where the data has been, for `algorithm.search`."""
        if self.algorithm.options.goal_token:
            self._prepare(weights=self._checkpoint_to_resume() is None)
            self.algorithm.support = self._support()
        super().training()

    def _support(self) -> Support:
        store, skip = self.dataset.store, self.algorithm.options.frame_skip
        return Support.of(store.observations[:, :2], store.episodes, frame_skip=skip)

    def validation(self) -> None:
        """Plan and play `episodes` episodes of `episode_seed`."""
        self._play("validation", self.options.validation, self.options.episode_seed)

    def test(self) -> None:
        """Plan and play `episodes` episodes that validation never sees."""
        self._play("test", self.options.test, self.options.episode_seed + TEST_SEED_OFFSET)

    def _play(self, task: str, options: ValidationOptions | TestOptions, seed: int) -> None:
        self._prepare(data=False)
        self._note_untrained(task)
        device = devices.device()
        algorithm = self.algorithm.to(device).eval()
        planner: Planner = algorithm.planner()
        if options.compile:
            compile_network(planner.forcing, options.compile)
        total, goal, most = self.options.episodes, algorithm.options.goal, options.batch_size
        groups = []
        env = self.dataset.environment(min(total, most), goal)
        for name, point in (("start", self.options.start), ("goal", self.options.goal)):
            if point:
                check_point(env.maze, point, f"experiment.{name}")
        with Bar(f"{task}: {counted(total, 'episode')}", total=total * env.max_steps) as bar, torch.no_grad():
            for first in range(0, total, most):
                if total - first < env.num_envs:
                    env = self.dataset.environment(total - first, goal)
                groups.append(
                    play(
                        env,
                        planner,
                        algorithm.options,
                        seed=seed,
                        first_episode=first,
                        start=self.options.start,
                        goal=self.options.goal,
                        device=device,
                        on_step=bar.advance,
                    )
                )
        self._report(groups, seed=seed, goal=goal)
        self._draw(task, groups[0], planner, device, seed, env.goal_distance)

    def _report(self, groups: list[Episodes], *, seed: int, goal: Goal) -> None:
        data, rewards = self.dataset, np.concatenate([group.rewards for group in groups])
        seconds = np.concatenate([group.seconds for group in groups])
        chosen = bool(self.options.start or self.options.goal)
        best = {} if chosen else planning_report(data.oracle(len(rewards), seed=seed, goal=goal), maze=data.reference)
        oracle_score = best.get("planning/normalized_score")
        report = planning_report(
            rewards,
            maze=data.reference,
            seconds_per_plan=seconds,
            oracle_score=oracle_score,
            tasks=None if chosen else data.tasks(len(rewards), goal),
        )
        for name in ("episode_reward", "success_rate", "first_reach", "normalized_score"):
            for key in (name, f"{name}_stderr"):
                if f"planning/{key}" in best:
                    report[f"planning/oracle_{key}"] = best[f"planning/{key}"]
        self.run.summary(report)
        for key in PRINTED:
            if f"planning/{key}" in report:
                number, unit = quantity(f"planning/{key}", report)
                self._say(f"  {key:24s} {number:>15s} {unit}".rstrip())
        self._say("  docs/planning.md defines them: How the score is computed")

    def _draw(
        self, task: str, played: Episodes, planner: Planner, device: torch.device, seed: int, goal_distance: float
    ) -> None:
        """A grid of the group's first episodes, and videos of the one with the longest way to its goal."""
        from diffusion_forcing.visualization.maze import draw_plans, video_of_execution, video_of_plan, video_of_tree

        maze, options = self.dataset.maze, self.algorithm.options
        walls, radius = maze.walls, goal_distance / maze.unit
        group = replace(
            played,
            trajectories=maze.on_map(played.trajectories[..., :2]),
            goals=maze.on_map(played.goals),
            plans=[(step, maze.on_map(plan)) for step, plan in played.plans],
        )
        shown = range(min(MOST_DRAWN, len(group.rewards)))
        starts = group.trajectories[:, 0, :2]
        ends = [_end(rewards) for rewards in group.rewards]
        marked = options.plot_start_goal
        self.run.image(
            f"{task}_plans",
            draw_plans(
                walls,
                [_until_goal(group.plans[0][1][i], group.goals[i], radius) for i in shown],
                [group.trajectories[i, : ends[i], :2] for i in shown],
                [starts[i] if marked else None for i in shown],
                [group.goals[i] if marked else None for i in shown],
                titles=[_title(group.rewards[i]) for i in shown],
                radius=radius,
            ),
            caption=f"Plans and what became of them: the first {len(shown)} of seed {seed}",
        )
        longest = int(np.linalg.norm(group.goals - starts, axis=1)[: len(shown)].argmax())
        goal = group.goals[longest] if marked else None
        rows, levels, others = rows_of_plan(planner, options, played, longest, seed=seed, device=device)
        self.run.video(
            f"{task}_plan_from_noise",
            video_of_plan(
                walls,
                maze.on_map(rows),
                starts[longest] if marked else None,
                goal,
                levels=levels,
                others=maze.on_map(others),
                radius=radius,
            ),
            fps=max(4, len(rows) // 6),
            caption=f"A plan coming out of noise, row by row of its scheduling matrix ({len(rows)} rows)",
        )
        if isinstance(planner, TreeSearchPlanner):
            nodes, earned = self._nodes_of_tree(planner, played, longest, seed, device)
            self.run.video(
                f"{task}_tree",
                video_of_tree(walls, maze.on_map(nodes), earned, starts[longest], goal, radius=radius),
                fps=12,
                caption=f"The tree of the first plan: simulated plans of its {len(nodes)} nodes, and the best so far",
            )
        followed = [plan[longest] for step, plan in group.plans if step < ends[longest]]
        # Later plans are shorter: repeat their last position.
        padded = [
            np.concatenate([plan, np.repeat(plan[-1:], len(followed[0]) - len(plan), axis=0)]) for plan in followed
        ]
        self.run.video(
            f"{task}_episode",
            video_of_execution(
                walls,
                np.stack(padded),
                group.trajectories[longest, : ends[longest], :2],
                goal,
                replan_every=options.open_loop_horizon,
                radius=radius,
            ),
            fps=25,
            caption=f"Episode {longest}: each plan, and the path that followed it",
        )

    def _nodes_of_tree(
        self, planner: TreeSearchPlanner, group: Episodes, episode: int, seed: int, device: torch.device
    ) -> tuple[Array, Array]:
        """Positions (n, h, 2) of the simulated plan of each node of one search, and their rewards (n,)."""
        nodes: list[Array] = []
        rewards: list[float] = []

        def keep(plan: torch.Tensor, reward: float, depth: int) -> None:
            nodes.append(planner.bundle.decode(plan[None]).observations[0, :, :2].cpu().numpy())
            rewards.append(reward)

        planner.on_node = keep
        first_plan(planner, self.algorithm.options, group, episode, seed=seed, device=device)
        planner.on_node = None
        return np.stack(nodes).astype(np.float64), np.array(rewards)


def _end(rewards: Array) -> int:
    """Positions of an episode to draw: the start and the steps to a little after the goal is reached, else all."""
    reached = np.flatnonzero(rewards > 0)
    return min(len(rewards), int(reached[0]) + 25) + 1 if len(reached) else len(rewards) + 1


def _until_goal(plan: Array, goal: Array, radius: float) -> Array:
    """The part of a plan (h, 2) until it first reaches the goal; the rest is not followed."""
    near = np.linalg.norm(plan - goal, axis=-1) < radius
    return plan[: int(near.argmax()) + 1] if near.any() else plan


def _title(rewards: Array) -> str:
    reached = np.flatnonzero(rewards > 0)
    return f"goal at step {int(reached[0]) + 1}" if len(reached) else "goal not reached"
