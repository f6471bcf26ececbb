"""A running Minetest world: client and server on a virtual screen (Xvfb), and a mod that executes commands.

Everything is in one temporary folder, including the game's HOME. Xvfb chooses the display and the system the port, so
any number of worlds run side by side. Nothing outlives the program: `close` ends both processes and removes the folder,
so does an exit without it, and if the program is killed, a small shell does that holds a pipe to it.
"""

from __future__ import annotations

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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, require

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


def to_gray(number: int) -> int:
    """Gray code: consecutive numbers differ in one bit, also 4095 and 0."""
    return number ^ (number >> 1)


def shrink(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(..., 128, 128, 3) to (..., size, size, 3) by averaging. `UserError` unless `size` divides 128."""
    if size == SIZE:
        return frames
    if size < 1 or SIZE % size:
        raise UserError(f"resolution {size} cannot be averaged from {SIZE} pixels; choose 128, 64, 32 or 16")
    step = SIZE // size
    blocks = frames.reshape(*frames.shape[:-3], size, step, size, step, 3)
    return np.asarray((blocks.sum(axis=(-4, -2), dtype=np.uint32) + step * step // 2) // (step * step), dtype=np.uint8)


MOD = Path(__file__).with_name("mod")
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
    """The world of `seed`, started. `ask` sends a command of mod/init.lua; `screen` is what the player sees. Call
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
