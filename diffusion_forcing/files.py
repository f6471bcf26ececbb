"""One process at a time makes a file; the others wait and then find it made (several ranks or runs that start together)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError

# Files that are whole or not there: what replaces one is written beside it, then renamed.

TAIL = 2**20  # bytes at a log's end looked through for its last whole line; lines are shorter than that
KEPT = 2**20  # bytes of lines that the disk refused, kept to be written later
_TEMPORARY = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}")
"""The hidden name of a file being written by `write_atomic`, with the process that writes it."""


def new_folder(day: Path, name: str) -> Path:
    """Make day/name, or name-2, name-3 … whichever is free: `mkdir` itself decides, so no two processes share it."""
    day.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = day / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def point_to(link: Path, folder: Path) -> None:
    """Make `link` a relative symbolic link to `folder`, replacing an older one in one step."""
    temporary = link.with_name(f".{link.name}-{secrets.token_hex(4)}")
    os.symlink(os.path.relpath(folder.resolve(), link.parent.resolve()), temporary, target_is_directory=True)
    try:
        os.replace(temporary, link)
    except OSError:
        temporary.unlink()
        raise


class Log:
    """Lines appended to a file, each at once and whole. Lines that the disk refuses (it is full) are kept, and written before the next."""

    def __init__(self, path: Path) -> None:
        """Opens `path`; a last line that a kill cut short is cut off."""
        self._file = open_log(path)
        self._refused = b""

    def write(self, line: bytes) -> None:
        """Append `line`, which ends in a newline. OSError if the disk refuses; the file then ends as it did."""
        wanted, done = self._refused + line, 0
        try:
            while done < len(wanted):  # a disk that fills up takes a part first
                done += self._file.write(wanted[done:]) or 0
        except OSError:
            self._refused = wanted[-KEPT:].partition(b"\n")[2] if len(wanted) > KEPT else wanted
            with contextlib.suppress(OSError):
                descriptor = self._file.fileno()
                os.truncate(descriptor, os.fstat(descriptor).st_size - done)
            raise
        self._refused = b""

    def close(self) -> None:
        """Close the file, once what was refused is tried a last time."""
        if self._refused:
            with contextlib.suppress(OSError):
                self.write(b"")
        self._file.close()


def open_log(path: Path) -> io.FileIO:
    """`path` for appending, unbuffered; a last line that a kill cut short is cut off."""
    if path.exists() and (size := path.stat().st_size):
        with path.open("rb+") as file:
            file.seek(max(0, size - TAIL))
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
    return open(path, "ab", buffering=0)


def file_name(name: str) -> str:
    """`name` with whatever is not a letter, digit, `.`, `_`, `=`, `+` or `-` made one `-`; never empty or hidden."""
    return re.sub(r"[^\w.=+-]+", "-", name, flags=re.ASCII).strip("-.")[:100] or "run"


def read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return default
    return found if isinstance(found, dict) else default


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written in `folder`: hidden files of `write_atomic` whose process is gone."""
    for path in folder.glob(".*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and not _is_alive(int(found[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(process: int) -> bool:
    """Whether a process of this number runs here. Another machine's are not seen: a file of theirs was left by a run that was moved."""
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


try:
    import fcntl
except ImportError:  # Windows has no flock: there, start one process first
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` (`.<name>.lock` beside it) for the length of a `with`; the system frees it when a process is killed."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UserError(
            f"cannot write in {path.parent}: {error.strerror or error}; choose another dataset.save_dir"
        ) from error
    with open(lock, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
