"""The world view: keys drive the world model frame by frame; a simulator, where there is one, does the same in truth.

A rollout is `Sampler.stream`, asked for one frame at a time. It begins anew, from the frames it remembers, where something changes that its
memory was computed with. "Forgetting" shows it those frames as noise.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.diffusion.scheduling import sampling_levels
from diffusion_forcing.errors import UserError
from diffusion_forcing.serve.play.messages import Message
from diffusion_forcing.serve.play.models import built, command, plan_of
from diffusion_forcing.serve.play.session import Session

MODEL = ("dataset=video_labmaze", "algorithm=df_world", "load=labmaze64_world_student")
STEPS, LEVEL = "algorithm.diffusion.sampling_timesteps={}", "algorithm.diffusion.stabilization_level={}"
MOST_STEPS = 8
"""Denoising steps of a frame, unless the model is a student of fewer."""
ACTIONS = ("forward", "left", "right")
STARTS = Path(__file__).parent / "static" / "starts.npz"
"""First frames and actions of a few test mazes, for where there is no simulator."""
IN_FLIGHT = 2
"""Frames that the page has not drawn yet, at most: a key waits for them."""
LONGEST_CLIP = 1_200
"""Frames."""
CLIP_SCALE = 6
"""Pixels of a clip for a pixel of the model."""

Frame = NDArray[np.uint8]
Start = tuple[list[Frame], list[int | None]]
"""Frames, the last being now, and the action that led to each, None where it is unknown."""


class Dream:
    """The model's rollout. frames: (64, 64, 3) uint8, the last of its window; actions: those that led to each, None where unknown."""

    def __init__(self, model: Video) -> None:
        self.model = model
        options = model.options
        self.window = min(options.window, getattr(options.diffusion.architecture, "window", options.window))
        self.sampler = model.sampler()
        self.steps = self.sampler.sampling_timesteps
        self.most_steps = min(options.diffusion.distilled_steps or MOST_STEPS, MOST_STEPS)
        self.timesteps = options.diffusion.timesteps
        self.level = self.sampler.forcing.stabilization_level
        self.frames: deque[Frame] = deque(maxlen=self.window)
        self.actions: deque[int | None] = deque(maxlen=self.window)
        self.levels: deque[int] = deque(maxlen=self.window)
        self._stream: Iterator[Tensor] | None = None

    def begin(self, frames: list[Frame], actions: list[int | None]) -> None:
        """Go on from `frames`, the last being now."""
        for kept, new in ((self.frames, frames), (self.actions, actions), (self.levels, [self.level] * len(frames))):
            kept.clear()
            kept.extend(new)  # type: ignore[arg-type]
        self._stream = None

    def show_memory_at(self, level: int) -> None:
        """From now on, frames are remembered at this level 1 … timesteps; those remembered before stay as they are."""
        self.level = level
        if self._stream is not None:
            self.sampler.forcing.stabilization_level = level

    def take_steps(self, steps: int) -> None:
        """Denoising steps of a frame from now on, at most `most_steps`."""
        self.steps = self.sampler.sampling_timesteps = min(steps, self.most_steps)
        self.sampler.levels = sampling_levels(self.timesteps, self.steps)

    def forget(self) -> None:
        """The frames remembered so far are shown as pure noise."""
        self.levels = deque([self.timesteps] * len(self.levels), maxlen=self.window)
        self._stream = None

    @torch.no_grad()
    def step(self, action: int) -> Frame:
        """The next frame."""
        forcing = self.sampler.forcing
        begins = self._stream is None
        if begins:
            forcing.stabilization_level = self.levels[-1]  # what the frames so far are remembered at
            self._stream = self._streamed()
        self.actions.append(action)
        assert self._stream is not None
        tokens = next(self._stream)
        if begins:
            forcing.stabilization_level = self.level
        frame = self.model.frames(tokens)[0, -1].clamp(0, 1).mul(255).round().to(torch.uint8)
        self.frames.append(np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy()))
        self.levels.append(self.level)
        return self.frames[-1]

    def _streamed(self) -> Iterator[Tensor]:
        options, model = self.model.options, self.model
        past = list(self.actions)
        context = torch.from_numpy(np.stack(self.frames)).permute(0, 3, 1, 2)[None].to(model.device)

        def conditions(start: int, end: int) -> Tensor:
            return self._conditions(past if start == 0 else [self.actions[-1]])

        return self.sampler.stream(
            model.tokens(context),
            None,
            window=options.window,
            chunk_size=1,
            cache=options.cache_used,
            conditions=conditions if options.condition_width else None,
        )

    def _conditions(self, actions: list[int | None]) -> Tensor:
        hot = torch.zeros(1, len(actions), self.model.options.action_width)
        known = torch.tensor([[action is not None for action in actions]])
        for number, action in enumerate(actions):
            if action is not None:
                hot[0, number, action] = 1
        return self.model.conditions(hot, known).to(self.model.device)


class WorldPlayer:
    """Plays with a `Dream`, beside a simulator."""

    def __init__(self, model: Video | None = None) -> None:
        self.model = built(plan_of(MODEL)) if model is None else model
        self.size = self.model.options.observation_shape[1]
        self.truth: Any = None  # a simulator, such as `environments.labmaze.LabMaze`
        self.why_no_truth = ""
        self.random = np.random.default_rng()
        self._prepared: Start | None = self._new(None)

    # ------------------------------------------------------------------------------------------------ the session

    def play(self, session: Session) -> None:
        self.session = session
        self.held: list[str] = []
        self.pending: list[str] = []
        self.key = self.number = self.seen = 0
        self.show_truth = self.wander = self.paused = False
        self.fps, self.clip = 12, list[Frame]()
        self.recording = False
        self.due = 0.0
        self.dream = Dream(self.model)
        session.send(
            "world",
            size=self.size,
            window=self.dream.window,
            steps=self.dream.steps,
            most=self.dream.most_steps,
            noise=self.dream.level / self.dream.timesteps,
            sigmas=[round(float(s), 5) for s in self._sigmas()],
            truth=self.truth is not None,
            why=self.why_no_truth,
        )
        self._start()
        while True:
            self._heed(session.receive(self._wait()))
            if self._wait() == 0:
                self._advance()

    def close(self) -> None:
        if self.truth is not None:
            self.truth.close()
            self.truth = None

    def _wait(self) -> float | None:
        """Seconds until the next frame is due; None where nothing moves."""
        moves = bool(self.held or self.pending or self.wander) and not self.paused
        if not moves or self.number - self.seen >= IN_FLIGHT:
            return None
        return max(0.0, self.due - time.perf_counter())

    def _heed(self, message: Message) -> None:
        match message:
            case {"do": "keys", "keys": keys, "number": number}:
                self.pending += [key for key in keys if key not in self.held and len(self.pending) < 4]
                self.held, self.key = list(keys), number
            case {"do": "seen", "frame": frame}:
                self.seen = max(self.seen, min(frame, self.number))
            case {"do": "pace", "steps": steps, "fps": fps, "noise": noise}:
                self.fps = fps
                if steps != self.dream.steps:
                    self.dream.take_steps(steps)
                self.dream.show_memory_at(max(1, round(noise * self.dream.timesteps)))
                self._say_command()
            case {"do": "new", "seed": seed}:
                self._prepared = self._new(seed)
                self._start()
            case {"do": "forget"}:
                self.dream.forget()
                self.session.send("memory", levels=self._levels())
            case {"do": "step"}:
                self._advance()
            case {"do": "truth", "on": on}:
                self.show_truth = on and self.truth is not None
                self._send_frame(self.dream.frames[-1], 0.0, again=True)
            case {"do": "wander", "on": on}:
                self.wander = on
            case {"do": "pause", "on": on}:
                self.paused, self.pending = on, []
            case {"do": "record", "on": on}:
                if self.recording and not on:
                    self._send_clip()
                self.recording, self.clip = on, []

    def _start(self) -> None:
        frames, actions = self._prepared or self._new(None)
        self._prepared = None  # the simulator walks on from there
        self.dream.begin(frames, actions)
        self.true_frame = frames[-1]
        self.pending, self.number, self.seen = [], self.number + 1, self.number + 1
        data = b"".join(frame.tobytes() for frame in frames)
        self.session.send("begin", data, frames=len(frames), frame=self.number, levels=self._levels())
        self._send_frame(frames[-1], 0.0, again=True)
        self._say_command()

    def _advance(self) -> None:
        """One frame: what is pressed, the dream, the truth."""
        began = time.perf_counter()
        self.due = max(began, self.due + 1 / self.fps) if began - self.due < 1 / self.fps else began + 1 / self.fps
        action = ACTIONS.index(self._choose())
        frame = self.dream.step(action)
        if self.truth is not None:
            self.true_frame = self.truth.step(action)
        self.number += 1
        self._send_frame(frame, time.perf_counter() - began)

    def _choose(self) -> str:
        """The key that acts now: one just pressed, else the held ones in turn, else where the walk leads."""
        if self.pending:
            return self.pending.pop(0)
        if self.held:
            return self.held[self.number % len(self.held)]
        if self.number % 8 == 0:  # a walk: straight on, with turns of several frames
            self.walk = ACTIONS[int(self.random.choice(3, p=[0.6, 0.2, 0.2]))]
        return getattr(self, "walk", "forward")

    # ------------------------------------------------------------------------------------------------ what the page gets

    def _sigmas(self) -> Tensor:
        """σ, or the share of noise, of a hundred levels from the lowest to the highest."""
        schedule = self.model.forcing.schedule
        every = torch.linspace(0, self.dream.timesteps - 1, 101).long()
        power = schedule.alphas_cumprod[every.to(schedule.alphas_cumprod.device)]
        return ((1 - power) / power).sqrt()

    def _levels(self) -> list[float]:
        return [round(level / self.dream.timesteps, 3) for level in self.dream.levels]

    def _send_frame(self, frame: Frame, seconds: float, *, again: bool = False) -> None:
        pictures = [frame, self.true_frame] if self.show_truth else [frame]
        if self.recording and not again and len(self.clip) < LONGEST_CLIP:
            self.clip.append(np.concatenate(pictures, axis=1))
        self.session.send(
            "frame",
            b"".join(picture.tobytes() for picture in pictures),
            frame=self.number,
            key=self.key,
            ms=round(1000 * seconds, 1),
            levels=self._levels(),
            again=again,
            pictures=len(pictures),
        )

    def _say_command(self) -> None:
        dream = self.dream
        self.session.send(
            "command",
            text=command(
                *MODEL,
                STEPS.format(dream.steps),
                LEVEL.format(dream.level),
                "experiment.tasks=[test]",
                "experiment.shuffled_actions=False",
                "algorithm.metrics=[]",
                "+name=world",
            ),
        )

    def _send_clip(self) -> None:
        if self.clip:
            width = max(frame.shape[1] for frame in self.clip)
            wide = [np.pad(frame, ((0, 0), (0, width - frame.shape[1]), (0, 0))) for frame in self.clip]
            self.session.send("clip", encoded(np.stack(wide), fps=self.fps), frames=len(wide))

    # ------------------------------------------------------------------------------------------------ where it begins

    def _new(self, seed: int | None) -> Start:
        """First frames of a maze, and the actions that led to them; `truth` is then its simulator, standing there."""
        seed = int(self.random.integers(2**31)) if seed is None else seed
        count = self.model.options.context_frames
        self.close()
        try:
            from diffusion_forcing.environments.labmaze import LabMaze, Walker

            maze = LabMaze.random(seed, size=self.size)
            frames, actions = [maze.reset()], list[int | None]([None])
        except UserError as missing:
            self.why_no_truth = str(missing)
            return self._shipped(seed, count)
        self.truth, self.why_no_truth = maze, ""
        walker = Walker(maze.walls, np.random.default_rng(seed))
        while len(frames) < count:
            action = walker.act(maze.pose)
            frames.append(maze.step(action))
            actions.append(action)
        return frames, actions

    def _shipped(self, seed: int, count: int) -> Start:
        with np.load(STARTS, allow_pickle=False) as starts:
            number = seed % len(starts["frames"])
            frames, actions = starts["frames"][number][-count:], starts["actions"][number][-count:]
        return list(frames), [None if action < 0 else int(action) for action in actions]


def encoded(frames: Frame, *, fps: float) -> bytes:
    """An MP4 in memory of frames (t, h, w, 3), every pixel enlarged without smoothing."""
    from diffusion_forcing.tracking.run import Mp4

    target = io.BytesIO()
    video = Mp4(target, fps=fps)
    for frame in frames:
        video.add(frame.repeat(CLIP_SCALE, axis=0).repeat(CLIP_SCALE, axis=1)[None])
    video.close()
    return target.getvalue()
