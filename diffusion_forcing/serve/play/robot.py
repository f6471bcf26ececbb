"""The robot view: the policy swaps two fruits; its cameras can be covered, a box dropped, its memory wiped.

A decision is what the policy sees, remembers, and samples: a stack of actions, carried out at the simulator's pace.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.algorithms.robot.algorithm import Robot
from diffusion_forcing.algorithms.robot.policy import RobotPolicy
from diffusion_forcing.environments.swap import CAMERAS, MAX_ACTIONS, SwapEnv, draw_distractors
from diffusion_forcing.serve.play.messages import Message
from diffusion_forcing.serve.play.models import built, command, plan_of
from diffusion_forcing.serve.play.session import Session

MODEL = ("dataset=robot_swap", "load=robot_swap_small")
PIXELS = 256
"""Side of a camera's picture on the page."""
SECONDS = 0.1
"""Of an action."""
REST = 1.5
"""Seconds between an episode's end and the next."""

Images = NDArray[np.uint8]


class RobotPlayer:
    """One simulator and one policy."""

    def __init__(self, robot: Robot | None = None, *, pixels: int = PIXELS) -> None:
        self.robot = built(plan_of(MODEL)) if robot is None else robot
        self.pixels = pixels
        self.cameras = CAMERAS[: self.robot.options.n_cameras]
        self.env = SwapEnv(size=self.robot.options.observation_shape[1])
        self.random = np.random.default_rng()

    def play(self, session: Session) -> None:
        self.session = session
        self.speed, self.playing, self.amnesia = 1.0, True, False
        self.covered = [False] * len(self.cameras)
        self.distractors = 0
        session.send(
            "robot",
            cameras=self.cameras,
            pixels=self.pixels,
            size=self.env.size,
            window=self.robot.options.n_frames,
            stack=self.robot.options.action_stack,
            most=MAX_ACTIONS,
            timesteps=self.robot.options.diffusion.timesteps,
            rows=self.robot.options.diffusion.sampling_timesteps,
        )
        self._begin(None)
        while True:
            if not self.playing:
                self._heed(session.receive())
            elif self.over:
                self._rest()
            else:
                for action in self._decide():
                    self._carry_out(action)
                    if self.restarted or self.over:
                        break

    def close(self) -> None:
        self.env.close()

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.success or self.actions >= MAX_ACTIONS

    def _rest(self) -> None:
        """Heed messages for a moment, then begin the next episode."""
        due = time.perf_counter() + REST
        while self.over and self.playing:
            left = due - time.perf_counter()
            if left > 0:
                self._heed(self.session.receive(left))
            else:
                self._begin(None)

    def _begin(self, seed: int | None) -> None:
        seed = int(self.random.integers(2**31)) if seed is None else seed
        self.policy = RobotPolicy(self.robot, generator=torch.Generator(self.robot.device).manual_seed(seed))
        self.env.reset(seed=seed)
        for number, on in enumerate(self.covered):
            self.env.cover(number, on)
        self._place_distractors()
        self.actions, self.success, self.restarted = 0, False, True
        self.levels: list[list[int]] = []
        self.session.send("episode", seed=seed)
        self._say_command()
        self._send_scene()

    def _heed(self, message: Message) -> None:
        match message:
            case {"do": "cover", "camera": camera, "on": on} if camera < len(self.covered):
                self.covered[camera] = on
                self.env.cover(camera, on)
                self._send_scene()
            case {"do": "play", "on": on}:
                self.playing = on
            case {"do": "distractor", "on": on}:
                self.distractors = int(on)
                self._place_distractors()
                self._send_scene()
            case {"do": "amnesia", "on": on}:
                self.amnesia = on
            case {"do": "forget"}:
                self._forget()
            case {"do": "speed", "speed": speed}:
                self.speed = speed
            case {"do": "new", "seed": seed}:
                self._begin(seed)
        if message.get("do") in ("cover", "distractor", "amnesia"):
            self._say_command()

    def _forget(self) -> None:
        self.policy.reset()
        self.levels.clear()
        self.session.send("forgot")

    def _place_distractors(self) -> None:
        self.env.scene.place_distractors(draw_distractors(self.env.np_random)[: self.distractors])

    # ------------------------------------------------------------------------------------------------ a decision

    def _decide(self) -> NDArray[np.float32]:
        """The next actions (n, 8). The page sees what the policy saw, what it expects, and the noise of all it remembers."""
        self.restarted = False
        if self.amnesia:
            self._forget()
        seen = self.env.observe()
        images = np.stack([seen[camera] for camera in self.cameras])
        began = time.perf_counter()
        frames = torch.from_numpy(images.transpose(0, 3, 1, 2)[None].copy())
        self.policy.observe(frames, state=torch.from_numpy(seen["state"]))
        actions, expected = self.policy.act()
        seconds = time.perf_counter() - began
        foreseen = (255 * expected[0].cpu().numpy()).round().astype(np.uint8).transpose(0, 2, 3, 1)
        top = self.robot.options.diffusion.timesteps - 1
        blocked = [] if self.policy.blocked is None else self.policy.blocked[0].tolist()
        self.levels = [*self.levels, [*(top if hidden else 0 for hidden in blocked), 0]][-self.robot.options.n_frames :]
        self.session.send(
            "decision",
            images.tobytes() + np.ascontiguousarray(foreseen).tobytes(),
            levels=self.levels,
            ms=round(1000 * seconds),
        )
        chosen: NDArray[np.float32] = actions[0].cpu().numpy()
        return chosen

    def _carry_out(self, action: NDArray[np.float32]) -> None:
        """One action, at the pace that was asked for; messages are heeded meanwhile."""
        due = time.perf_counter() + SECONDS / self.speed
        self.success = self.env.move(action)["success"]
        self.actions += 1
        self._send_scene()
        while not self.restarted and (self.session.waiting or not self.playing or time.perf_counter() < due):
            left = None if not self.playing else max(0.0, due - time.perf_counter())
            self._heed(self.session.receive(left))

    def _send_scene(self) -> None:
        pictures = [self.env.scene.render(camera, self.pixels) for camera in self.cameras]
        self.session.send(
            "scene",
            b"".join(picture.tobytes() for picture in pictures),
            covered=self.covered,
            actions=self.actions,
            success=self.success,
            over=self.over,
            fruits=[self.env.scene.slot_of(name) for name in ("apple", "orange")],
            slots=self.env.slots.tolist(),
        )

    def _say_command(self) -> None:
        words = [*MODEL, "experiment.tasks=[test]", "experiment.episodes=4"]
        if any(self.covered):
            words.append("experiment.blocking=0.02")
        if self.distractors:
            words.append(f"experiment.distractors={self.distractors}")
        if self.amnesia:
            words.append("algorithm.memory=False")
        self.session.send("command", text=command(*words, "+name=robot"))
