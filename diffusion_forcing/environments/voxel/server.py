"""One world of Minetest, running: a screen nobody sees (Xvfb), client and server in one process on it, and a mod that is told what to do.

Everything lives in one temporary folder, the game's HOME too; the display number is chosen by Xvfb, the port by the system, so any number of
worlds run side by side. Nothing outlasts the program: `close` ends both processes and removes the folder, an exit without it does the same, and
where the program is killed a small shell, which holds a pipe to it and waits for its end, does.
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

from diffusion_forcing.errors import UserError

# What Minetest paints, read from the memory of its screen: Xvfb keeps the screen as a file in XWD format, mapped here. No screenshots, no waiting.
#
# Above and below the picture a row of squares shows a number, the *mark*, that the mod changes after every move. A copy of the screen whose two
# marks are both the new one holds no row of an older picture: pictures are painted row after row, and the copy is looked at, not the screen.

SIZE = 128
"""Height and width of the picture in pixels."""
STRIP = 16
"""Rows above and below it that carry the mark."""
HEIGHT = SIZE + 2 * STRIP
BITS = 12
MARKS = 1 << BITS
"""Marks count from 0 to 4095 and around."""
_SQUARE = 10
_FIRST = 2
"""Pixels: width of a square and left edge of the first."""
_DARK, _LIT = 40, 215
"""A square is one or the other, or the screen is being painted."""
_HEADER = struct.Struct(">25I")
_COLOUR_BYTES = 12


class Screen:
    """Xvfb's screen of `HEIGHT` rows of `SIZE` pixels in the file `path`."""

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
        """The picture (128, 128, 3) uint8 that goes with `mark`, or None while another is on the screen, or two are."""
        copied = self._pixels.copy()
        return copied[STRIP : STRIP + SIZE] if read_mark(copied) == mark else None


def pixel_layout(header: bytes) -> tuple[int, int]:
    """Byte of the first pixel and bytes of a row, from an XWD header; `UserError` where the screen is not what Xvfb was asked for."""
    fields = _HEADER.unpack(header)
    header_size, width, height, byte_order = fields[0], fields[4], fields[5], fields[7]
    bits, row, colours = fields[11], fields[12], fields[19]
    if (width, height, bits, byte_order) != (SIZE, HEIGHT, 32, 0):
        raise UserError(
            f"Xvfb's screen is {width}x{height} with {bits} bits a pixel in byte order {byte_order}, expected {SIZE}x{HEIGHT}, 32, 0; "
            "another Xvfb may stand first on PATH"
        )
    return header_size + _COLOUR_BYTES * colours, row


def read_mark(screen: NDArray[np.uint8]) -> int | None:
    """The mark on `screen` (HEIGHT, SIZE, 3), or None where a square is half painted or the two rows differ."""
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
    """Gray code: numbers that follow each other differ in one bit, 4095 and 0 too."""
    return number ^ (number >> 1)


def shrink(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(..., 128, 128, 3) -> (..., size, size, 3): every pixel the mean of those it covers; `size` divides 128."""
    if size == SIZE:
        return frames
    if size < 1 or SIZE % size:
        raise UserError(f"resolution {size} cannot be made of {SIZE} pixels by averaging; choose 128, 64, 32 or 16")
    step = SIZE // size
    blocks = frames.reshape(*frames.shape[:-3], size, step, size, step, 3)
    return np.asarray((blocks.sum(axis=(-4, -2), dtype=np.uint32) + step * step // 2) // (step * step), dtype=np.uint8)


MOD = Path(__file__).with_name("voxel_mod")
INSTALL = "apt-get install -y --no-install-recommends minetest xvfb"

_START_SECONDS = 120.0
_ANSWER_SECONDS = 30.0
_EMERGE_SECONDS = 300.0
"""How long an answer is waited for; a busy machine needs a tenth of it."""
_PATIENCE = 3.0
"""Seconds Xvfb has to remove its lock before it is killed."""
_STARTS = 3
"""Times a world is started; another program can take the port between its choice and its use."""

_KEEPER = """
trap '' HUP INT TERM
while read -r pid; do pids="$pids $pid"; done
kill -TERM $pids
sleep 1
kill -KILL $pids
rm -rf -- "$1"
"""
"""Reads process numbers until its input ends, which is when the program is gone; then it tidies up."""


class Lost(Exception):
    """A world that ended, or does not answer. Starting it again may help; the message is the end of its log."""


@dataclass
class _Belongings:
    """What has to be ended and removed."""

    folder: Path
    files: list[int] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By the names of their programs: sh (the keeper), Xvfb, minetest."""

    def end(self) -> None:
        """End the game, then its screen, which removes its lock when it is asked to end; remove the folder; end the keeper, who has nothing left."""
        for file in self.files:
            os.close(file)
        keeper, screen, game = (self.processes.get(name) for name in ("sh", "Xvfb", "minetest"))
        if game is not None:
            game.kill()
            game.wait()
        if screen is not None:
            screen.terminate()
            try:
                screen.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                screen.kill()
                screen.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        if keeper is not None:
            keeper.kill()
            keeper.communicate()


class Server:
    """The world `seed`, started. `ask` sends a command of voxel_mod/init.lua; `screen` is what the player sees. Use it with `with`.

    Raises `UserError` where Minetest or Xvfb is not installed or the world does not come up, with the end of its log.
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
                    raise UserError(f"Minetest's world {seed} does not come up: {error}") from error
            except OSError as error:
                self.close()
                raise UserError(f"cannot start Minetest: {error}; make room in {tempfile.gettempdir()}") from error
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="voxel-"))
        self._belongings = _Belongings(self._folder)
        self._finalizer = weakref.finalize(self, self._belongings.end)
        self._unread = b""
        self._run("sh", "-c", _KEEPER, "keeper", str(self._folder), stdin=subprocess.PIPE)
        self._write_world()
        self._commands, self._answers = (
            self._pipe("commands", os.O_RDWR),  # both ends, so that the game finds it open; it closes with this program
            self._pipe("answers", os.O_RDONLY | os.O_NONBLOCK),
        )
        display = self._start_screen()
        self.screen = Screen(self._folder / "Xvfb_screen0")
        self._start_game(display)
        self.ask("mark", 0, seconds=_START_SECONDS)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the world and remove its folder; a second call does nothing."""
        if hasattr(self, "_finalizer"):
            self._finalizer()

    def ask(self, command: str, *numbers: float, seconds: float | None = None) -> list[str]:
        """The words of the answer to `command`. Raises `Lost` when there is none in time, or the world has ended."""
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
        if not part:  # the game has closed its end: it is about to be gone
            with suppress(subprocess.TimeoutExpired):
                self._belongings.processes["minetest"].wait(_PATIENCE)
            raise Lost(f"Minetest ended{self._log_end()}")
        return part

    def _check_alive(self) -> None:
        for name, process in self._belongings.processes.items():
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
        """Start a program in a session of its own, where the Ctrl-C of a terminal does not reach it, with a log; the keeper is told its number."""
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
        self._belongings.processes[name] = process
        keeper = self._belongings.processes["sh"]
        if keeper is not process and keeper.stdin is not None:
            keeper.stdin.write(b"%d\n" % process.pid)
            keeper.stdin.flush()

    def _pipe(self, name: str, flags: int) -> int:
        path = self._folder / "world" / name
        os.mkfifo(path)
        file = os.open(path, flags)
        self._belongings.files.append(file)
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
        """Start Xvfb; its display, `:N`."""
        read, write = os.pipe()
        options = ["-screen", "0", f"{SIZE}x{HEIGHT}x24", "-fbdir", str(self._folder), "-nolisten", "tcp", "-noreset"]
        try:
            try:
                self._run(self.programs["Xvfb"], "-displayfd", str(write), *options, passed=(write,))
            finally:
                os.close(write)
            number = b""
            while not number.endswith(b"\n"):  # Xvfb dies where its line is not read to the end
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
            "LP_NUM_THREADS": "0",  # painted by the thread that asks: one core a world
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
    """Where Xvfb and Minetest are; `UserError` with the command that installs them where one is missing."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/games"])
    found = {name: shutil.which(name, path=path) for name in ("minetest", "Xvfb")}
    missing = [name for name, where in found.items() if where is None]
    if missing:
        raise UserError(f"voxel landscapes need {' and '.join(missing)}, not found here; install with: {INSTALL}")
    return {name: where for name, where in found.items() if where is not None}


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port
