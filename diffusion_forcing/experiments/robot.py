"""Imitation: train on demonstrations, then let the policy act in the simulator, count what it gets done, and film it.

`test` plays `episodes` episodes and leaves metrics.json, films and a sheet of what the policy saw and expected. `validation` computes the loss of
demonstrations that were kept back, and each validation during training plays `episodes_in_training` as well. `generate_dataset` makes demonstrations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from diffusion_forcing.algorithms.robot.algorithm import Robot, RobotPolicyOptions
from diffusion_forcing.algorithms.robot.policy import RobotPolicy
from diffusion_forcing.environments.swap.environment import SwapBatch, SwapEnv
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import trainer as devices
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.checkpointing import compile_network
from diffusion_forcing.experiments.options import ExperimentOptions
from diffusion_forcing.progress import progress_bar
from diffusion_forcing.tracking.charts import read_curves
from diffusion_forcing.visualization.curves import draw_loss_curve
from diffusion_forcing.visualization.robot import draw_looks, film_of_episode

# Playing robot_swap with a policy: look, decide for all episodes at once, carry a stack of actions out, look again.

Pictures = NDArray[np.uint8]


@dataclass
class Filmed:
    """An episode that is filmed. scene: after each action, the cameras' large pictures (cameras, H, W, 3) and whether each was blocked
    (cameras,); seen, expected: at each look, (cameras, h, w, 3) what the policy saw and what it had expected to see (None at the first)."""

    scene: list[Pictures] = field(default_factory=list)
    covered: list[NDArray[np.bool_]] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    seen: list[Pictures] = field(default_factory=list)
    expected: list[Pictures | None] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """success: (n,) bool; actions: (n,) how many were carried out; seconds: of each decision, all episodes together; films: of the first."""

    success: NDArray[np.bool_]
    actions: NDArray[np.int64]
    seconds: list[float]
    films: list[Filmed]


def play(
    batch: SwapBatch, policy: RobotPolicy, *, films: int = 0, on_look: Callable[[int], None] | None = None
) -> Played:
    """Play all episodes of `batch` to their end. films: how many are filmed; on_look(episodes that go on) is told before each decision."""
    policy.reset()
    filmed = [Filmed() for _ in range(min(films, len(batch.envs)))]
    expected: Pictures | None = None
    seconds: list[float] = []

    def watch(number: int, env: SwapEnv) -> None:
        if number < len(filmed):
            filmed[number].scene.append(np.stack([env.scene.render(camera, FILM_PIXELS) for camera in batch.cameras]))
            filmed[number].covered.append(env.blocked[: len(batch.cameras)])

    for number in range(len(filmed)):
        watch(number, batch.envs[number])
    while not batch.finished.all():
        if on_look is not None:
            on_look(int((~batch.finished).sum()))
        pictures, states = batch.observe()
        for number, one in enumerate(filmed):
            if not batch.finished[number]:
                one.looks.append(int(batch.actions[number]))
                one.seen.append(pictures[number].transpose(0, 2, 3, 1))
                one.expected.append(None if expected is None else expected[number])
        began = time.perf_counter()
        policy.observe(torch.from_numpy(pictures), state=torch.from_numpy(states))
        actions, frames = policy.act()
        chosen = actions.cpu().numpy()
        seconds.append(time.perf_counter() - began)
        expected = (255 * frames.cpu().numpy()).round().astype(np.uint8).transpose(0, 1, 3, 4, 2)
        batch.move(chosen, watch if filmed else None)
    return Played(batch.success.copy(), batch.actions.copy(), seconds, filmed)


FILM_PIXELS = 192
"""A side of a camera's picture in a film."""

FPS = 10
MOST_LOOKS = 9  # of an episode of 135 actions, for the bar


@dataclass(frozen=True, kw_only=True)
class RobotExperimentOptions(ExperimentOptions):
    """`experiment=exp_robot`. episodes: how many `test` plays, from `episode_seed` on; distractors, blocking: of the world they are played in;
    films: how many are filmed. episodes_in_training: played at each validation."""

    episodes: int = 100
    episode_seed: int = 0
    distractors: int = 0
    blocking: float = 0.0
    films: int = 4
    episodes_in_training: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1:
            raise UserError(f"experiment.episodes is {self.episodes}; play at least 1")
        for name in ("episode_seed", "films", "episodes_in_training", "distractors"):
            if getattr(self, name) < 0:
                raise UserError(f"experiment.{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.blocking <= 1:
            raise UserError(f"experiment.blocking is {self.blocking}; it is a chance from 0 to 1")


class RobotExperiment(BaseExperiment):
    """Tasks: generate_dataset, training, validation, test."""

    Options = RobotExperimentOptions
    task = "robot"
    shared_tasks = frozenset({"training"})
    options: RobotExperimentOptions
    algorithm: Robot

    @staticmethod
    def check(*, dataset: Any, algorithm: Any, experiment: Any) -> None:
        """UserError where the options of dataset and algorithm do not go together; called before anything is built."""
        if not isinstance(algorithm, RobotPolicyOptions):
            return
        for name in ("n_cameras", "action_stack"):
            ours, theirs = getattr(algorithm, name), getattr(dataset, name, getattr(algorithm, name))
            if ours != theirs:
                raise UserError(f"algorithm.{name} is {ours}, dataset.{name} {theirs}; set dataset.{name} alone")

    def generate_dataset(self) -> None:
        """Make the demonstrations with the expert (`dataset.num_episodes`), or finish what was begun."""
        files = self.dataset.generate(progress=True)
        self._say(f"{len(files)} demonstrations in {self.dataset.options.save_dir}")

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

    def test(self) -> None:
        """Let the policy act in the simulator."""
        self._prepare(data=False)
        if not self.step:
            self._say("test: the weights are not trained (no load=, no resume=, no training before)")
        options = self.options
        robot = self.algorithm.to(devices.device()).eval()
        if options.test.compile:
            compile_network(robot, options.test.compile)
        groups: list[Played] = []
        with progress_bar("test", total=options.episodes * MOST_LOOKS, unit="decisions") as bar:
            for first in range(0, options.episodes, options.test.batch_size):
                count = min(options.test.batch_size, options.episodes - first)
                films = options.films if not groups else 0
                with devices.computing("test", options.test.precision, robot.device):
                    groups.append(
                        self.play(robot, options.episode_seed + first, count, films=films, on_look=bar.advance)
                    )
        self._report(groups)
        self._draw(groups[0])

    def play(self, robot: Robot, seed: int, count: int, *, films: int = 0, on_look: Any = None) -> Played:
        """`count` episodes from `seed` on, with `robot` as a policy."""
        from diffusion_forcing.environments.swap.environment import SwapBatch

        options, policy_options = self.options, robot.options
        batch = SwapBatch(
            count,
            seed=seed,
            size=policy_options.observation_shape[1],
            distractors=options.distractors,
            blocking=options.blocking,
            cameras=policy_options.n_cameras,
        )
        try:
            return play(
                batch,
                RobotPolicy(robot, generator=torch.Generator(robot.device).manual_seed(self.seed + seed)),
                films=films,
                on_look=on_look,
            )
        finally:
            batch.close()

    # ------------------------------------------------------------------------------------------------ how

    def _callbacks(self) -> list[Callback]:
        return [_PlayInTraining(self)] if self.options.episodes_in_training else []

    def _report(self, groups: list[Played]) -> None:
        success = np.concatenate([group.success for group in groups])
        actions = np.concatenate([group.actions for group in groups])
        seconds = np.array([second for group in groups for second in group.seconds])
        rate = float(success.mean())
        report = {
            "robot/success_rate": rate,
            "robot/success_rate_stderr": math.sqrt(rate * (1 - rate) / len(success)),
            "robot/episodes": len(success),
            "robot/actions_of_success": float(actions[success].mean()) if success.any() else float("nan"),
            "robot/seconds_per_decision_p50": float(np.quantile(seconds, 0.5)),
            "robot/seconds_per_decision_p95": float(np.quantile(seconds, 0.95)),
        }
        self.run.summary({name: value for name, value in report.items() if math.isfinite(value)})
        together = min(len(success), self.options.test.batch_size)
        self._say(
            f"  success {100 * rate:.0f} % ± {100 * report['robot/success_rate_stderr']:.0f} of {len(success)} episodes, "
            f"distractors {self.options.distractors}, blocking {self.options.blocking}"
        )
        self._say(
            f"  a decision for {together} at once: {report['robot/seconds_per_decision_p50']:.2f} s, "
            f"p95 {report['robot/seconds_per_decision_p95']:.2f} s"
        )

    def _draw(self, played: Played) -> None:
        if not played.films:
            return
        seed, cameras = self.options.episode_seed, self.dataset.cameras
        words = [
            f"seed {seed + number}: {'swapped' if played.success[number] else 'not done'} after {played.actions[number]} actions"
            for number in range(len(played.films))
        ]
        self.run.image(
            "test_looks",
            draw_looks([film.seen for film in played.films], [film.expected for film in played.films], words),
            caption=f"What the policy saw ({cameras[0]}), and what it had expected to see then",
        )
        for number, film in enumerate(played.films):
            self.run.video(
                f"test_{seed + number}",
                film_of_episode(
                    film.scene,
                    film.covered,
                    film.looks,
                    film.seen,
                    film.expected,
                    cameras=cameras,
                    success=bool(played.success[number]),
                ),
                fps=FPS,
                caption=words[number],
            )


class _PlayInTraining(Callback):
    """Plays some episodes at each validation, the same ones each time."""

    def __init__(self, experiment: RobotExperiment) -> None:
        self._experiment = experiment

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Robot)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        with trainer.precision_plugin.val_step_context():
            played = self._experiment.play(pl_module, VALIDATION_SEED, self._experiment.options.episodes_in_training)
        pl_module.log("validation/success_rate", float(played.success.mean()), prog_bar=True, sync_dist=True)


VALIDATION_SEED = 1_000_000
"""Episodes that are played during training; `test` has others."""
