"""A voxel landscape seen through the eyes of an agent that walks it: Minetest as a simulator for video, headless.

`VoxelWorld` is the world: `visit` puts the agent somewhere in it, `step` moves it by one of three actions, both return the picture that belongs to
exactly this place: the simulator waits for the program, and a picture is taken only when it shows the number of the move that led to it
(`voxel_screen.py`). `VoxelEpisodes` makes films of a walker. World, place and choices follow from (seed, split, index) alone, and no world occurs in
two splits. The pictures follow too but for what hangs on the clock: the water's ripples, and how soon the farthest landscape appears in the fog.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.voxel.server import MARKS, SIZE, Lost, Server, shrink
from diffusion_forcing.errors import UserError

# Who walks the voxel landscape, and which of its walks are worth keeping.
#
# The walker goes straight on for a while, turns a little, goes on, and turns away from what it cannot pass before it runs into it. What it does
# follows from its generator and from what it sees, not from the clock. `faults` names what is wrong with a film: an agent that hardly moved, a film
# that shows little or nothing, an action without its effect.

FORWARD, LEFT, RIGHT = range(3)

_NEAR, _FAR = 3, 10
"""Steps: the walker turns away from what is nearer, until the way is as free as this."""
_FULL_TURN = 48
"""Left or right actions of a whole turn."""
_STRAIGHT = (4, 16)
_TURNS = (1, 9)
"""Shortest and longest run of one action, the longest not included."""

MIN_SPREAD = 1.5
"""Nodes: standard deviation of the places of a walk of 300 frames; shorter walks need less, in proportion."""
MIN_MOVED = 0.8
"""Share of the forward actions that moved."""
MIN_FORWARD = 0.3
"""Share of the actions that are forward."""
MIN_BRIGHTNESS, MAX_DARK = 20.0, 0.02
"""Mean of 255 below which a frame is dark; share of frames that may be."""
MIN_CONTRAST, MAX_FLAT = 8.0, 0.05
"""Standard deviation of 255 below which a frame is one surface; share of frames that may be."""
MIN_CHANGE = 0.002
"""Share of the pixels a turn changes at least."""
_FRAMES = 300


class Sight(NamedTuple):
    """What the mod reports of the player: where it is (nodes, rad), and how many steps it can walk ahead and 45° to the sides."""

    moved: bool
    x: float
    y: float
    z: float
    yaw: float
    ahead: int
    left: int
    right: int
    inside: str
    """`clear`, or the name of the block the eyes are in."""

    @classmethod
    def read(cls, words: list[str]) -> Sight:
        """From the words of a report."""
        x, y, z, yaw = map(float, words[1:5])
        ahead, left, right = map(int, words[5:8])
        return cls(words[0] == "1", x, y, z, yaw, ahead, left, right, words[8])


class Walker:
    """Chooses actions: `act` at every frame."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._action = FORWARD
        self._left = int(rng.integers(*_STRAIGHT))
        self._avoiding = False

    def act(self, sight: Sight) -> int:
        """The next action after a frame with `sight`."""
        if self._avoiding:
            self._left -= 1
            if sight.ahead < _FAR and self._left > 0:
                return self._action
            self._avoiding = False
            self._go_on()
        if self._left == 0:
            if self._action == FORWARD:
                self._action, self._left = int(self._rng.choice([LEFT, RIGHT])), int(self._rng.integers(*_TURNS))
            else:
                self._go_on()
        if self._action == FORWARD and sight.ahead < _NEAR:
            better = float(np.sign(sight.left - sight.right)) or self._rng.choice([-1.0, 1.0])
            self._action, self._left, self._avoiding = (LEFT if better > 0 else RIGHT), _FULL_TURN, True
            return self._action
        self._left -= 1
        return self._action

    def _go_on(self) -> None:
        self._action, self._left = FORWARD, int(self._rng.integers(*_STRAIGHT))


def faults(video: NDArray[np.uint8], actions: NDArray[np.int64], sights: list[Sight]) -> list[str]:
    """What makes a film no good, in words; empty for a good one.

    video: (T, h, w, 3); actions: (T,), actions[t] follows frame t; sights: T, of every frame.
    """
    found = []
    led = actions[:-1]
    forward = led == FORWARD
    moved = np.array([sight.moved for sight in sights[1:]], dtype=bool)
    places = np.array([(sight.x, sight.z) for sight in sights])
    if forward.mean() < MIN_FORWARD:
        found.append("turns on the spot")
    elif moved[forward].mean() < MIN_MOVED:
        found.append("runs into walls")
    if np.sqrt(places.var(axis=0).sum()) < MIN_SPREAD * min(1.0, len(video) / _FRAMES):
        found.append("stays where it is")
    if any(sight.inside != "clear" for sight in sights):
        found.append("eyes in a block or in water")
    flat = video.reshape(len(video), -1)
    brightness, contrast = flat.mean(axis=1), flat.std(axis=1)
    if (brightness < MIN_BRIGHTNESS).mean() > MAX_DARK:
        found.append("dark")
    if (contrast < MIN_CONTRAST).mean() > MAX_FLAT:
        found.append("one surface")
    change = (video[1:] != video[:-1]).any(axis=-1).mean(axis=(1, 2))
    if (change[~forward | moved] < MIN_CHANGE).any():
        found.append("an action without its effect")
    return found


SPLITS = ("training", "validation", "test")
EPISODES_A_WORLD = 8
"""Starting a world costs half as long as filming an episode."""
VERSION = 1
"""Raised whenever the same seed would give other films."""

_REACH = 20_000
"""Nodes from the middle of a world to where episodes may begin."""
_RADIUS, _UP = 64, 40
"""Nodes around the start that are made before an episode: what can be walked to in it and seen from there."""
_PICTURE_SECONDS = 30.0
_SETTLE_SECONDS = 10.0
_SETTLED, _QUIET = 0.005, 3
"""Share of the pixels that may still change, and pictures in a row, 0.1 s apart, for a landscape to be complete."""
_PLACES, _TRIES, _LOSSES = 1000, 50, 3
"""Places asked for, films made for one episode, and worlds lost in a row, before giving up."""


class VoxelWorld:
    """The world of a seed, and an agent in it. Frames are (128, 128, 3) uint8. Use it with `with`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sight: Sight | None = None
        self._server = Server(seed)
        self._mark = 0

    def __enter__(self) -> VoxelWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the simulator and remove all it wrote."""
        self._server.close()

    def level(self, x: int, z: int) -> int | None:
        """Height of the ground at (x, z), or None where one cannot start: on water, in mountains."""
        (answer,) = self._server.ask("level", x, z)
        return None if answer == "none" else int(answer)

    def visit(self, x: int, z: int, yaw: float) -> NDArray[np.uint8] | None:
        """Stand at an open place near (x, z), look to `yaw` (rad), when all around is there; None where there is no such place."""
        level = self.level(x, z)
        if level is None:
            return None
        self._server.ask("emerge", x, level, z, _RADIUS, _UP)
        words = self._server.ask("place", x, z, yaw, self._next_mark())
        if words == ["none"]:
            return None
        self.sight = Sight.read(words)
        for eighth in range(1, 9):
            self._server.ask("look", yaw + eighth * math.pi / 4)
            self._picture(turned=True)
        return self._settled()

    def step(self, action: int) -> NDArray[np.uint8]:
        """Do `action` (0 forward by 0.3 nodes, 1 and 2 left and right by 7.5°) and look; `sight` says what became of it."""
        if self.sight is None:
            raise UserError("visit a place in a VoxelWorld before the first step")
        if action not in (FORWARD, LEFT, RIGHT):
            raise UserError(f"action {action} is unknown; 0 is forward, 1 left, 2 right")
        self.sight = Sight.read(self._server.ask("step", action, self._next_mark()))
        return self._picture(turned=action != FORWARD)

    def _next_mark(self) -> int:
        self._mark = (self._mark + 1) % MARKS
        return self._mark

    def _picture(self, *, turned: bool) -> NDArray[np.uint8]:
        """The picture of the last command. After a turn a second mark is waited for: the client turns one picture later than it moves and marks."""
        if turned:
            self._await_mark()
            self._server.ask("mark", self._next_mark())
        return self._await_mark()

    def _await_mark(self) -> NDArray[np.uint8]:
        end = time.monotonic() + _PICTURE_SECONDS
        while time.monotonic() < end:
            if self._server.screen.shows(self._mark):
                picture = self._server.screen.copy(self._mark)
                if picture is not None:
                    return picture
            time.sleep(0.001)
        raise Lost(f"no picture of a move in {_PICTURE_SECONDS:.0f} s")

    def _settled(self) -> NDArray[np.uint8]:
        """The picture, when nothing is added to it any more: blocks arrive and are meshed in the background."""
        end, quiet = time.monotonic() + _SETTLE_SECONDS, 0
        picture = self._picture(turned=True)
        while quiet < _QUIET and time.monotonic() < end:
            time.sleep(0.1)
            before, picture = picture, self._picture(turned=True)
            quiet = quiet + 1 if (picture != before).any(axis=-1).mean() < _SETTLED else 0
        return picture


@dataclass(kw_only=True)
class VoxelEpisodes:
    """Films of `frames` pictures of `size` × `size`. A world stays open from one episode to the next in it; `close` ends it. Picklable."""

    seed: int = 0
    frames: int = 300
    size: int = 128
    _world: VoxelWorld | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"generate_seed must be at least 0, got {self.seed}")
        if self.frames < 2:
            raise UserError(f"episode_frames must be at least 2, got {self.frames}")
        shrink(np.zeros((SIZE, SIZE, 3), np.uint8), self.size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_world": None}

    @property
    def recipe(self) -> dict[str, str | int]:
        """All that decides the films, and what does not."""
        options = {key: value for key, value in asdict(self).items() if not key.startswith("_")}
        note = "real-time simulator: world, place and actions follow from the seed, ripples of water and distant fog do not"
        return {"simulator": "voxel", "version": VERSION, **options, "note": note}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        """Episode `index` of `split` (training, validation, test).

        video (frames, size, size, 3) uint8; actions (frames,) int64, actions[t] follows frame t; pose (frames, 4) float32: x, y, z in nodes,
        yaw in rad, 0 … 2π; moved (frames,) bool, whether a forward action led to frame t; world () the seed of the world; tries () films
        made, the last kept.
        """
        losses = 0
        tried = 1
        while tried <= _TRIES:
            try:
                film, wrong = self._film(split, index, tried)
            except Lost as error:
                self.close()
                losses += 1
                if losses == _LOSSES:
                    raise UserError(f"Minetest was lost {losses} times in a row: {error}") from error
                continue
            if not wrong:
                return film
            tried += 1
        raise UserError(
            f"no good film in {_TRIES} tries for episode {index} of {split}; choose another dataset.generate_seed"
        )

    def close(self) -> None:
        """End the world that is open, if one is."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def _film(self, split: str, index: int, tried: int) -> tuple[dict[str, NDArray[Any]], list[str]]:
        world = self._open_world(world_seed(self.seed, split, index))
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index, tried])
        frame = self._visit_somewhere(world, rng)
        walker = Walker(rng)
        video, actions, sights = [shrink(frame, self.size)], [], []
        for t in range(self.frames):
            assert world.sight is not None
            sights.append(world.sight)
            actions.append(walker.act(world.sight))
            if t + 1 < self.frames:
                video.append(shrink(world.step(actions[t]), self.size))
        film: dict[str, NDArray[Any]] = {
            "video": np.stack(video),
            "actions": np.array(actions, np.int64),
            "pose": np.array([(s.x, s.y, s.z, s.yaw % (2 * math.pi)) for s in sights], np.float32),
            "moved": np.array([sight.moved for sight in sights]),
            "world": np.array(world.seed),
            "tries": np.array(tried),
        }
        return film, faults(film["video"], film["actions"], sights)

    def _open_world(self, seed: int) -> VoxelWorld:
        if self._world is None or self._world.seed != seed:
            self.close()
            self._world = VoxelWorld(seed)
        return self._world

    def _visit_somewhere(self, world: VoxelWorld, rng: np.random.Generator) -> NDArray[np.uint8]:
        for _ in range(_PLACES):
            x, z = rng.integers(-_REACH, _REACH, size=2).tolist()
            frame = world.visit(x, z, float(rng.uniform(0, 2 * math.pi)))
            if frame is not None:
                return frame
        raise Lost(f"no place to stand among {_PLACES} in world {world.seed}")


def world_seed(seed: int, split: str, index: int) -> int:
    """The seed of the world an episode is in. Its remainder by three is its split: no world is in two."""
    part = SPLITS.index(split)
    rng = np.random.default_rng([seed, part, index // EPISODES_A_WORLD])
    return 3 * int(rng.integers(2**32)) + part
