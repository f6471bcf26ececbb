"""A voxel landscape seen by an agent that walks through it: Minetest as a simulator for video."""

from __future__ import annotations

import math
import mmap
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, check_minimum, require

# --------------------------------------------------------------------------------------------------- a running Minetest
# A running Minetest world: client and server on a virtual screen (Xvfb), and a mod that executes commands.
#
# Everything is in one temporary folder, including the game's HOME. Xvfb chooses the display and the system the port, so
# any number of worlds run side by side. Nothing outlives the program: `close` ends both processes and removes the folder,
# so does an exit without it, and if the program is killed, a small shell does that holds a pipe to it.

SIZE = 128
"""Height and width of the image in pixels."""
STRIP = 16
"""Rows above and below it that show the mark."""
HEIGHT = SIZE + 2 * STRIP
BITS = 12
MARKS = 1 << BITS
"""Marks count from 0 to 4095 and start again."""
_SQUARE = 10
_FIRST = 2
"""Pixels: width of a square, and left edge of the first."""
_DARK, _LIT = 40, 215
"""Brightness of squares; in between, the screen is being painted."""
_HEADER = struct.Struct(">25I")
_COLOUR_BYTES = 12


class Screen:
    """Xvfb's screen of `HEIGHT` rows of `SIZE` pixels, mapped from the file `path` (XWD format).

    Rows of squares above and below the image show a number, the *mark*, that the mod changes after every move. The
    screen is painted row by row, so a copy in which both rows show the new mark contains no row of an older image.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset, row = pixel_layout(self._memory[: _HEADER.size])
        pixels = np.frombuffer(self._memory, np.uint8, count=HEIGHT * row, offset=offset)
        self._pixels = pixels.reshape(HEIGHT, row // 4, 4)[:, :SIZE, 2::-1]

    def shows(self, mark: int) -> bool:
        """Whether both rows of squares show `mark` now."""
        return read_mark(self._pixels) == mark

    def copy(self, mark: int) -> NDArray[np.uint8] | None:
        """The image (128, 128, 3) uint8 of `mark`; None while the screen shows another one or parts of two."""
        copied = self._pixels.copy()
        return copied[STRIP : STRIP + SIZE] if read_mark(copied) == mark else None


def pixel_layout(header: bytes) -> tuple[int, int]:
    """Offset of the first pixel and bytes of a row, from an XWD header. `UserError` for another screen."""
    fields = _HEADER.unpack(header)
    header_size, width, height, byte_order = fields[0], fields[4], fields[5], fields[7]
    bits, row, colours = fields[11], fields[12], fields[19]
    if (width, height, bits, byte_order) != (SIZE, HEIGHT, 32, 0):
        raise UserError(
            f"Xvfb's screen is {width}x{height} with {bits} bits a pixel in byte order {byte_order}, "
            f"expected {SIZE}x{HEIGHT}, 32, 0; another Xvfb may be first on PATH"
        )
    return header_size + _COLOUR_BYTES * colours, row


def read_mark(screen: NDArray[np.uint8]) -> int | None:
    """The mark on `screen` (HEIGHT, SIZE, 3); None if a square is half painted or the two rows differ."""
    middles = _FIRST + _SQUARE // 2 + _SQUARE * np.arange(BITS)
    squares = screen[[[STRIP // 2], [HEIGHT - STRIP // 2]], middles].astype(np.int64).sum(axis=-1) // 3
    if ((squares > _DARK) & (squares < _LIT)).any():
        return None
    above, below = ((squares > _DARK) @ (1 << np.arange(BITS))).tolist()
    return from_gray(above) if above == below else None


def from_gray(code: int) -> int:
    """The number whose Gray code is `code`."""
    number = code
    while code := code >> 1:
        number ^= code
    return number


def shrink(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(..., 128, 128, 3) to (..., size, size, 3) by averaging. `UserError` unless `size` divides 128."""
    if size == SIZE:
        return frames
    if size < 1 or SIZE % size:
        raise UserError(f"resolution {size} cannot be averaged from {SIZE} pixels; choose 128, 64, 32 or 16")
    step = SIZE // size
    blocks = frames.reshape(*frames.shape[:-3], size, step, size, step, 3)
    return np.asarray((blocks.sum(axis=(-4, -2), dtype=np.uint32) + step * step // 2) // (step * step), dtype=np.uint8)


MOD = Path(__file__).with_name("voxel_mod")
INSTALL = "apt-get install -y --no-install-recommends minetest xvfb"

_START_SECONDS = 120.0
_ANSWER_SECONDS = 30.0
_EMERGE_SECONDS = 300.0
"""Time limits of answers; a busy machine needs a tenth of them."""
_EXIT_SECONDS = 3.0
"""Time for Xvfb to remove its lock before it is killed."""
_STARTS = 3
"""Attempts to start a world: another program may take the port between its choice and its use."""

_KEEPER = """
trap '' HUP INT TERM
while read -r pid; do pids="$pids $pid"; done
kill -TERM $pids
sleep 1
kill -KILL $pids
rm -rf -- "$1"
"""
"""Reads process ids until the program is gone, then ends those processes and removes the folder."""


class Lost(Exception):
    """The world has ended or does not answer; starting it again may help. The message contains the end of its log."""


@dataclass
class _Resources:
    """What must be ended and removed."""

    folder: Path
    files: list[int] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By program: sh (the keeper), Xvfb, minetest."""

    def end(self) -> None:
        """End the game, then the screen, remove the folder, and end the keeper."""
        for file in self.files:
            os.close(file)
        keeper, screen, game = (self.processes.get(name) for name in ("sh", "Xvfb", "minetest"))
        if game is not None:
            game.kill()
            game.wait()
        if screen is not None:
            screen.terminate()  # it removes its lock
            try:
                screen.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                screen.kill()
                screen.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        if keeper is not None:
            keeper.kill()
            keeper.communicate()


class Server:
    """The world of `seed`, started. `ask` sends a command of voxel_mod/init.lua; `screen` is what the player sees. Call
    `close` at the end.

    Raises `UserError` if Minetest or Xvfb is not installed or the world does not start, with the end of its log.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.programs = find_programs()
        for start in range(1, _STARTS + 1):
            try:
                self._open()
                return
            except Lost as error:
                self.close()
                if start == _STARTS:
                    raise UserError(f"Minetest's world {seed} does not start: {error}") from error
            except OSError as error:
                self.close()
                raise UserError(f"cannot start Minetest: {error}; make room in {tempfile.gettempdir()}") from error
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="voxel-"))
        self._resources = _Resources(self._folder)
        self._finalizer = weakref.finalize(self, self._resources.end)
        self._unread = b""
        self._run("sh", "-c", _KEEPER, "keeper", str(self._folder), stdin=subprocess.PIPE)
        self._write_world()
        # Both ends of the commands are open here, so that the game finds a writer; they close with this program.
        self._commands = self._pipe("commands", os.O_RDWR)
        self._answers = self._pipe("answers", os.O_RDONLY | os.O_NONBLOCK)
        display = self._start_screen()
        self.screen = Screen(self._folder / "Xvfb_screen0")
        self._start_game(display)
        self.ask("mark", 0, seconds=_START_SECONDS)

    def close(self) -> None:
        """End the world and remove its folder; a second call does nothing."""
        if hasattr(self, "_finalizer"):
            self._finalizer()

    def ask(self, command: str, *numbers: float, seconds: float | None = None) -> list[str]:
        """The words of the answer to `command`. `Lost` if there is none in time or the world has ended."""
        limit = seconds or (_EMERGE_SECONDS if command == "emerge" else _ANSWER_SECONDS)
        os.write(self._commands, (" ".join([command, *map(str, numbers)]) + "\n").encode())
        end = time.monotonic() + limit
        while b"\n" not in self._unread:
            self._check_alive()
            if time.monotonic() > end:
                raise Lost(f"no answer to '{command}' in {limit:.0f} s{self._log_end()}")
            if select.select([self._answers], [], [], 0.25)[0]:
                self._unread += self._read_answers()
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode().split()

    def _read_answers(self) -> bytes:
        part = os.read(self._answers, 4096)
        if not part:  # the game closed its end: it is exiting
            with suppress(subprocess.TimeoutExpired):
                self._resources.processes["minetest"].wait(_EXIT_SECONDS)
            raise Lost(f"Minetest ended{self._log_end()}")
        return part

    def _check_alive(self) -> None:
        for name, process in self._resources.processes.items():
            if name != "sh" and process.poll() is not None:
                raise Lost(f"{name} ended with exit code {process.returncode}{self._log_end()}")

    def _log_end(self) -> str:
        text = "\n".join(file.read_text(errors="replace") for file in sorted(self._folder.glob("*.log")))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if "ERROR" in line] or lines
        return "".join(f"; {line[:200]}" for line in telling[-3:])

    def _run(
        self,
        program: str,
        *words: str,
        stdin: int = subprocess.DEVNULL,
        environment: dict[str, str] | None = None,
        passed: tuple[int, ...] = (),
    ) -> None:
        """Start a program in a session that a terminal's Ctrl-C does not reach, and report its id to the keeper."""
        name = Path(program).name
        with open(self._folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [program, *words],
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=passed,
                start_new_session=True,
            )
        self._resources.processes[name] = process
        keeper = self._resources.processes["sh"]
        if keeper is not process and keeper.stdin is not None:
            keeper.stdin.write(b"%d\n" % process.pid)
            keeper.stdin.flush()

    def _pipe(self, name: str, flags: int) -> int:
        path = self._folder / "world" / name
        os.mkfifo(path)
        file = os.open(path, flags)
        self._resources.files.append(file)
        return file

    def _write_world(self) -> None:
        world = self._folder / "world"
        (world / "worldmods").mkdir(parents=True)
        shutil.copytree(MOD, world / "worldmods" / "agent")
        backends = "".join(f"{kind}backend = dummy\n" for kind in ("", "player_", "mod_storage_"))
        (world / "world.mt").write_text(
            f"gameid = minetest_game\nload_mod_agent = true\n{backends}auth_backend = sqlite3\n"
        )
        settings = (MOD / "minetest.conf").read_text()
        (self._folder / "minetest.conf").write_text(f"{settings}\nfixed_map_seed = {self.seed}\n")

    def _start_screen(self) -> str:
        """Start Xvfb; returns its display, `:N`."""
        read, write = os.pipe()
        options = ["-screen", "0", f"{SIZE}x{HEIGHT}x24", "-fbdir", str(self._folder), "-nolisten", "tcp", "-noreset"]
        try:
            try:
                self._run(self.programs["Xvfb"], "-displayfd", str(write), *options, passed=(write,))
            finally:
                os.close(write)
            number = b""
            while not number.endswith(b"\n"):  # Xvfb dies unless its line is read to the end
                part = os.read(read, 64) if select.select([read], [], [], _ANSWER_SECONDS)[0] else b""
                if not part:
                    raise Lost(f"Xvfb does not start{self._log_end()}")
                number += part
        finally:
            os.close(read)
        return f":{int(number)}"

    def _start_game(self, display: str) -> None:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._folder),
            "LANG": "C",
            "DISPLAY": display,
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "LP_NUM_THREADS": "0",  # render in the calling thread: one core for each world
            "MESA_SHADER_CACHE_DISABLE": "true",
        }
        options = {
            "--name": "agent",
            "--gameid": "minetest_game",
            "--world": str(self._folder / "world"),
            "--config": str(self._folder / "minetest.conf"),
            "--logfile": "",
            "--port": str(_free_port()),
        }
        words = [word for pair in options.items() for word in pair]
        self._run(self.programs["minetest"], "--go", *words, environment=environment)


def find_programs() -> dict[str, str]:
    """Paths of Xvfb and Minetest; `UserError` with the command that installs them if one is missing."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/games"])
    found = {name: shutil.which(name, path=path) for name in ("minetest", "Xvfb")}
    missing = [name for name, where in found.items() if where is None]
    require(not missing, f"voxel landscapes need {' and '.join(missing)}, not found here; install with: {INSTALL}")
    return {name: where for name, where in found.items() if where is not None}


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


# ------------------------------------------------------------------------------------------------------------ the world
# A voxel landscape seen by an agent that walks through it: Minetest as a headless simulator for video.
#
# `VoxelWorld` is the world: `visit` places the agent, `step` moves it by one of three actions, and both return the image
# of exactly that place. The simulator waits for the program, and an image is taken only when it shows the number of the
# move that led to it (`Screen`).
#
# `VoxelEpisodes` records walks. World, place and actions follow from (seed, split, index) alone, and no world occurs in
# two splits. So do the images, except for what depends on the clock: ripples of water, and how soon the farthest
# landscape appears in the fog.

FORWARD, LEFT, RIGHT = range(3)

_NEAR, _FAR = 3, 10
"""Steps: an obstacle nearer than the first makes the agent turn until the path ahead is as free as the second."""
_FULL_TURN = 48
"""Left or right actions of a full turn."""
_STRAIGHT = (4, 16)
_TURNS = (1, 9)
"""Shortest run of one action, and one more than the longest."""

MIN_SPREAD = 1.5
"""Nodes: least standard deviation of the positions over 300 frames; in proportion for fewer."""
MIN_MOVED = 0.8
"""Least share of forward actions that moved the agent."""
MIN_FORWARD = 0.3
"""Least share of forward actions."""
MIN_BRIGHTNESS, MAX_DARK = 20.0, 0.02
"""Mean (of 255) below which a frame is dark, and the share of frames that may be."""
MIN_CONTRAST, MAX_FLAT = 8.0, 0.05
"""Standard deviation (of 255) below which a frame shows one surface, and the share of frames that may."""
MIN_CHANGE = 0.002
"""Least share of pixels that an effective action changes."""
_FRAMES = 300


class Sight(NamedTuple):
    """The mod's report: position (nodes), heading (rad), steps that can be walked ahead and 45° to each side."""

    moved: bool
    x: float
    y: float
    z: float
    yaw: float
    ahead: int
    left: int
    right: int
    inside: str
    """`clear`, or the block that the eyes are in."""

    @classmethod
    def read(cls, words: list[str]) -> Sight:
        """Parse the words of a report."""
        x, y, z, yaw = map(float, words[1:5])
        ahead, left, right = map(int, words[5:8])
        return cls(words[0] == "1", x, y, z, yaw, ahead, left, right, words[8])


class Walker:
    """Chooses actions; call `act` at every frame.

    It goes straight on for a while, turns a little, goes on, and turns away from an obstacle before it runs into it. Its
    actions follow from its generator and from what it senses, never from the clock.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._action = FORWARD
        self._left = int(rng.integers(*_STRAIGHT))
        self._avoiding = False

    def act(self, sight: Sight) -> int:
        """The action after a frame with `sight`."""
        # Turning away from an obstacle.
        if self._avoiding:
            self._left -= 1
            if sight.ahead < _FAR and self._left > 0:
                return self._action
            self._avoiding = False
            self._go_straight()
        # At the end of a run, a turn follows a straight line and the other way round.
        if self._left == 0:
            if self._action == FORWARD:
                self._action, self._left = int(self._rng.choice([LEFT, RIGHT])), int(self._rng.integers(*_TURNS))
            else:
                self._go_straight()
        # An obstacle ahead: turn to the freer side.
        if self._action == FORWARD and sight.ahead < _NEAR:
            better = float(np.sign(sight.left - sight.right)) or self._rng.choice([-1.0, 1.0])
            self._action, self._left, self._avoiding = (LEFT if better > 0 else RIGHT), _FULL_TURN, True
            return self._action
        self._left -= 1
        return self._action

    def _go_straight(self) -> None:
        self._action, self._left = FORWARD, int(self._rng.integers(*_STRAIGHT))


def faults(video: NDArray[np.uint8], actions: NDArray[np.int64], sights: list[Sight]) -> list[str]:
    """Reasons to reject an episode; empty for a good one.

    video: (T, h, w, 3); actions: (T,), actions[t] follows frame t; sights: one for each frame.
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
        found.append("stays in one place")
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
        found.append("an action without effect")
    return found


SPLITS = ("training", "validation", "test")
EPISODES_A_WORLD = 8
"""Starting a world takes half as long as recording an episode."""
VERSION = 1
"""Raised whenever the same seed gives other episodes."""

_REACH = 20_000
"""Nodes from the middle of a world within which episodes may start."""
_RADIUS, _UP = 64, 40
"""Nodes around the start that are generated before an episode: what can be reached in it and seen from there."""
_IMAGE_SECONDS = 30.0
_SETTLE_SECONDS = 10.0
_SETTLED, _QUIET = 0.005, 3
"""A landscape is complete when at most this share of pixels changes in so many images in a row, 0.1 s apart."""
_PLACES, _TRIES, _LOSSES = 1000, 50, 3
"""Before giving up: places tried, walks recorded for one episode, and worlds lost in a row."""


class VoxelWorld:
    """The world of a seed and an agent in it, as a context manager. Frames are (128, 128, 3) uint8."""

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
        """End the simulator and remove its files."""
        self._server.close()

    def level(self, x: int, z: int) -> int | None:
        """Height of the ground at (x, z); None on water and in mountains, where an episode cannot start."""
        (answer,) = self._server.ask("level", x, z)
        return None if answer == "none" else int(answer)

    def visit(self, x: int, z: int, yaw: float) -> NDArray[np.uint8] | None:
        """Place the agent near (x, z) with heading `yaw` (rad); returns the frame, None if no place is open there."""
        level = self.level(x, z)
        if level is None:
            return None
        self._server.ask("emerge", x, level, z, _RADIUS, _UP)
        words = self._server.ask("place", x, z, yaw, self._next_mark())
        if words == ["none"]:
            return None
        self.sight = Sight.read(words)
        # Look around once, so that the landscape on all sides is sent.
        for eighth in range(1, 9):
            self._server.ask("look", yaw + eighth * math.pi / 4)
            self._image(turned=True)
        return self._settled()

    def step(self, action: int) -> NDArray[np.uint8]:
        """Do `action` (0 forward by 0.3 nodes, 1 left and 2 right by 7.5°); returns the frame, and sets `sight`."""
        if self.sight is None:
            raise UserError("visit a place in a VoxelWorld before the first step")
        require(action in (FORWARD, LEFT, RIGHT), f"action {action} is unknown; 0 is forward, 1 left, 2 right")
        self.sight = Sight.read(self._server.ask("step", action, self._next_mark()))
        return self._image(turned=action != FORWARD)

    def _next_mark(self) -> int:
        self._mark = (self._mark + 1) % MARKS
        return self._mark

    def _image(self, *, turned: bool) -> NDArray[np.uint8]:
        """The image after the last command. After a turn a second mark is awaited: the client turns one image late."""
        if turned:
            self._await_mark()
            self._server.ask("mark", self._next_mark())
        return self._await_mark()

    def _await_mark(self) -> NDArray[np.uint8]:
        end = time.monotonic() + _IMAGE_SECONDS
        while time.monotonic() < end:
            if self._server.screen.shows(self._mark):
                image = self._server.screen.copy(self._mark)
                if image is not None:
                    return image
            time.sleep(0.001)
        raise Lost(f"no image of a move in {_IMAGE_SECONDS:.0f} s")

    def _settled(self) -> NDArray[np.uint8]:
        """The image once it is complete: blocks arrive and are meshed in the background."""
        end, quiet = time.monotonic() + _SETTLE_SECONDS, 0
        image = self._image(turned=True)
        while quiet < _QUIET and time.monotonic() < end:
            time.sleep(0.1)
            before, image = image, self._image(turned=True)
            quiet = quiet + 1 if (image != before).any(axis=-1).mean() < _SETTLED else 0
        return image


@dataclass(kw_only=True)
class VoxelEpisodes:
    """Episodes of `frames` frames of `size` × `size`. A world stays open for its next episode. Picklable."""

    seed: int = 0
    frames: int = 300
    size: int = 128
    _world: VoxelWorld | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_minimum("generate_seed", self.seed, 0)
        check_minimum("episode_frames", self.frames, 2)
        shrink(np.zeros((SIZE, SIZE, 3), np.uint8), self.size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_world": None}

    @property
    def recipe(self) -> dict[str, str | int]:
        """Everything that determines the episodes, and a note on what it does not determine."""
        options = {key: value for key, value in asdict(self).items() if not key.startswith("_")}
        note = (
            "real-time simulator: world, place and actions follow from the seed, "
            "ripples of water and distant fog do not"
        )
        return {"simulator": "voxel", "version": VERSION, **options, "note": note}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        """Episode `index` of `split` (training, validation, test).

        video (frames, size, size, 3) uint8; actions (frames,) int64, actions[t] follows frame t; pose (frames, 4)
        float32: x, y, z in nodes, yaw in rad, 0 … 2π; moved (frames,) bool, whether a forward action led to frame t;
        world () the seed of the world; tries () walks recorded, of which the last was kept.
        """
        losses = 0
        tried = 1
        while tried <= _TRIES:
            try:
                episode, reasons = self._record(split, index, tried)
            except Lost as error:
                self.close()
                losses += 1
                if losses == _LOSSES:
                    raise UserError(f"Minetest was lost {losses} times in a row: {error}") from error
                continue
            if not reasons:
                return episode
            tried += 1
        raise UserError(
            f"no good walk in {_TRIES} tries for episode {index} of {split}; choose another dataset.generate_seed"
        )

    def close(self) -> None:
        """End the open world, if any."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def _record(self, split: str, index: int, tried: int) -> tuple[dict[str, NDArray[Any]], list[str]]:
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
        episode: dict[str, NDArray[Any]] = {
            "video": np.stack(video),
            "actions": np.array(actions, np.int64),
            "pose": np.array([(s.x, s.y, s.z, s.yaw % (2 * math.pi)) for s in sights], np.float32),
            "moved": np.array([sight.moved for sight in sights]),
            "world": np.array(world.seed),
            "tries": np.array(tried),
        }
        return episode, faults(episode["video"], episode["actions"], sights)

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
    """The seed of an episode's world. Its remainder by three is the split: no world is in two splits."""
    part = SPLITS.index(split)
    rng = np.random.default_rng([seed, part, index // EPISODES_A_WORLD])
    return 3 * int(rng.integers(2**32)) + part
