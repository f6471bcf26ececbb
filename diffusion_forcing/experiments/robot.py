"""Imitation: train on demonstrations, then let the policy act in the simulator, count its successes, and record videos.

`test` plays `episodes` episodes and saves metrics.json, videos, and a grid of what the policy saw and expected.
`validation` computes the loss of held-out demonstrations; during training it also plays `episodes_in_training`
episodes. `generate_dataset` makes demonstrations.
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
from diffusion_forcing.environments.swap import SwapBatch, SwapEnv
from diffusion_forcing.errors import require
from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.checkpointing import compile_network
from diffusion_forcing.experiments.options import ExperimentOptions
from diffusion_forcing.options import Count, Natural, Share
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import counted
from diffusion_forcing.visualization.video import decision_grid, episode_video

VIDEO_PIXELS = 192
"""Side of a camera's image in a video."""
FPS = 10
MAX_DECISIONS = 9
"""Of an episode of 135 actions, for the progress bar."""
VALIDATION_SEED = 1_000_000
"""First seed of the episodes played during training; `test` plays others."""

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class RobotExperimentOptions(ExperimentOptions):
    """`experiment=exp_robot`. episodes: number that `test` plays, with seeds from `episode_seed`; distractors,
    blocking: see `SwapEnv`; films: number of episodes recorded. episodes_in_training: played at each validation."""

    episodes: Count = 100
    episode_seed: Natural = 0
    distractors: Natural = 0
    blocking: Share = 0.0
    films: Natural = 4
    episodes_in_training: Natural = 8


class RobotExperiment(BaseExperiment):
    """Tasks: generate_dataset, training, validation, test."""

    Options = RobotExperimentOptions
    task = "robot"
    shared_tasks = frozenset({"training", "distill"})
    options: RobotExperimentOptions
    algorithm: Robot

    @staticmethod
    def check(*, dataset: Any, algorithm: Any, experiment: Any) -> None:
        """UserError where the options of dataset and algorithm contradict each other; called before anything is
        built."""
        if not isinstance(algorithm, RobotPolicyOptions):
            return
        for name in ("n_cameras", "action_stack"):
            ours, theirs = getattr(algorithm, name), getattr(dataset, name, getattr(algorithm, name))
            require(ours == theirs, f"algorithm.{name} is {ours}, dataset.{name} {theirs}; set dataset.{name} only")

    def generate_dataset(self) -> None:
        """Generate the expert's demonstrations (`dataset.num_episodes`), or those that are still missing."""
        files = self.dataset.generate(progress=True)
        self._say(f"{len(files)} demonstrations in {self.dataset.options.save_dir}")

    def test(self) -> None:
        """Let the policy act in the simulator."""
        self._prepare(data=False)
        self._note_untrained("test")
        options = self.options
        robot = self.algorithm.to(devices.device()).eval()
        if options.test.compile:
            compile_network(robot, options.test.compile)
        groups: list[Played] = []
        with Bar("test", total=options.episodes * MAX_DECISIONS, unit="decisions") as bar:
            for first in range(0, options.episodes, options.test.batch_size):
                count = min(options.test.batch_size, options.episodes - first)
                videos = 0 if groups else options.films
                with devices.computing("test", options.test.precision, robot.device):
                    groups.append(self.play(robot, options.episode_seed + first, count, videos, bar.advance))
        self._report(groups)
        self._draw(groups[0])

    def play(
        self, robot: Robot, seed: int, count: int, videos: int = 0, on_decision: Callable[[int], None] | None = None
    ) -> Played:
        """Play `count` episodes, with seeds from `seed`, and record the first `videos`; see `play`."""
        batch = SwapBatch(
            count,
            seed=seed,
            size=robot.options.observation_shape[1],
            distractors=self.options.distractors,
            blocking=self.options.blocking,
            cameras=robot.options.n_cameras,
        )
        policy = RobotPolicy(robot, generator=torch.Generator(robot.device).manual_seed(self.seed + seed))
        try:
            return play(batch, policy, videos=videos, on_decision=on_decision)
        finally:
            batch.close()

    def _callbacks(self) -> list[Callback]:
        return [_PlayInTraining(self)] if self.options.episodes_in_training else []

    def _report(self, groups: list[Played]) -> None:
        success = np.concatenate([group.success for group in groups])
        actions = np.concatenate([group.actions for group in groups])
        p50, p95 = np.quantile([seconds for group in groups for seconds in group.seconds], [0.5, 0.95]).tolist()
        rate = float(success.mean())
        stderr = math.sqrt(rate * (1 - rate) / len(success))
        metrics = {
            "robot/success_rate": rate,
            "robot/success_rate_stderr": stderr,
            "robot/episodes": len(success),
            "robot/seconds_per_decision_p50": p50,
            "robot/seconds_per_decision_p95": p95,
        }
        if success.any():
            metrics["robot/actions_of_success"] = float(actions[success].mean())
        self.run.summary(metrics)
        error = f" ± {100 * stderr:.0f}" if len(success) > 1 else ""
        self._say(
            f"  success {100 * rate:.0f} %{error} of {counted(len(success), 'episode')}, "
            f"distractors {self.options.distractors}, blocking {self.options.blocking}"
        )
        together = min(len(success), self.options.test.batch_size)
        self._say(f"  a decision for {together} at once: {p50:.2f} s, p95 {p95:.2f} s")

    def _draw(self, played: Played) -> None:
        """Save the recorded episodes: a grid of all, and a video of each."""
        if not played.recordings:
            return
        seed, cameras = self.options.episode_seed, self.dataset.cameras
        captions = [
            f"seed {seed + number}: {'swapped' if played.success[number] else 'not done'} after "
            f"{played.actions[number]} actions"
            for number in range(len(played.recordings))
        ]
        seen, expected = ([getattr(one, name) for one in played.recordings] for name in ("seen", "expected"))
        caption = f"What the policy saw ({cameras[0]}), and what it had expected to see"
        self.run.image("test_looks", decision_grid(seen, expected, captions), caption=caption)
        for number, one in enumerate(played.recordings):
            video = episode_video(
                one.scene,
                one.blocked,
                one.decisions,
                one.seen,
                one.expected,
                cameras=cameras,
                success=bool(played.success[number]),
            )
            self.run.video(f"test_{seed + number}", video, fps=FPS, caption=captions[number])


class _PlayInTraining(Callback):
    """Plays the same episodes at each validation."""

    def __init__(self, experiment: RobotExperiment) -> None:
        self._experiment = experiment

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Robot)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        with trainer.precision_plugin.val_step_context():
            played = self._experiment.play(pl_module, VALIDATION_SEED, self._experiment.options.episodes_in_training)
        pl_module.log("validation/success_rate", float(played.success.mean()), prog_bar=True, sync_dist=True)


@dataclass
class Recording:
    """An episode's images. After each action: scene (cameras, H, W, 3) and blocked (cameras,) bool. At each
    decision, after decisions[i] actions: what the policy saw, seen (cameras, h, w, 3), and had expected to see (None
    at the first)."""

    scene: list[Images] = field(default_factory=list)
    blocked: list[NDArray[np.bool_]] = field(default_factory=list)
    decisions: list[int] = field(default_factory=list)
    seen: list[Images] = field(default_factory=list)
    expected: list[Images | None] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """success: (n,) bool; actions: (n,) number executed; seconds: of each decision, for all episodes at once."""

    success: NDArray[np.bool_]
    actions: NDArray[np.int64]
    seconds: list[float]
    recordings: list[Recording]


def play(
    batch: SwapBatch, policy: RobotPolicy, *, videos: int = 0, on_decision: Callable[[int], None] | None = None
) -> Played:
    """Play all episodes of `batch` to their end: observe, decide for all at once, execute a stack of actions, and so
    on.

    videos: number of episodes to record. on_decision(unfinished episodes) is called before each decision.
    """
    policy.reset()
    recordings = [Recording() for _ in range(min(videos, len(batch.envs)))]
    expected: Images | None = None
    seconds: list[float] = []

    def record(number: int, env: SwapEnv) -> None:
        if number < len(recordings):
            scene = np.stack([env.scene.render(camera, VIDEO_PIXELS) for camera in batch.cameras])
            recordings[number].scene.append(scene)
            recordings[number].blocked.append(env.blocked[: len(batch.cameras)])

    for number, env in enumerate(batch.envs):
        record(number, env)
    while not batch.finished.all():
        if on_decision is not None:
            on_decision(int((~batch.finished).sum()))
        # Observe.
        images, states = batch.observe()
        for number, one in enumerate(recordings):
            if not batch.finished[number]:
                one.decisions.append(int(batch.actions[number]))
                one.seen.append(images[number].transpose(0, 2, 3, 1))
                one.expected.append(None if expected is None else expected[number])
        # Decide.
        began = time.perf_counter()
        policy.observe(torch.from_numpy(images), state=torch.from_numpy(states))
        actions, frames = policy.act()
        chosen = actions.cpu().numpy()
        seconds.append(time.perf_counter() - began)
        expected = (255 * frames.cpu().numpy()).round().astype(np.uint8).transpose(0, 1, 3, 4, 2)
        # Execute.
        batch.move(chosen, record)
    return Played(batch.success.copy(), batch.actions.copy(), seconds, recordings)
