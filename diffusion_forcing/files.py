"""Files that are whole or absent, and a lock, so that one process makes a file while the others wait for it.

A file or folder is written under a hidden name beside its place, `.<name>.<process>-<random>.tmp`, and renamed when it
is complete. A process that is killed leaves the old version or the new one, and at worst a hidden leftover, which
`remove_leftovers` deletes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no flock: start one process first there
    fcntl = None  # type: ignore[assignment]

TAIL = 2**20  # bytes at the end of a log that are searched for its last complete line
KEPT = 2**20  # bytes of lines kept in memory while the disk is full
_IN_PROGRESS: set[Path] = set()  # temporary paths that this process is writing
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)-[0-9a-f]{8}\.(?P<kind>tmp|old)")


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, to be written as a file or folder; it replaces `path` at the block's end.

    Where the block raises, `path` stays as it was and the temporary path is deleted. `durable` flushes to the disk, so
    that the new version also survives a power failure.
    """
    temporary = temporary_path(path)
    _IN_PROGRESS.add(temporary)
    try:
        yield temporary
        if durable:
            for file in [*temporary.rglob("*"), temporary]:
                _flush(file)
        if _is_folder(temporary) and _is_folder(path):
            # A folder cannot be renamed onto one that holds files: the old one steps aside first.
            superseded = temporary.with_suffix(".old")
            os.replace(path, superseded)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(superseded, path)
                raise
            _delete(superseded)
        else:
            os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    finally:
        _delete(temporary)
        _IN_PROGRESS.discard(temporary)


def temporary_path(path: Path) -> Path:
    """A new hidden name beside `path`, which `remove_leftovers` knows."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace the file `path` by `content` (text is written as UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Replace the file `path` by `value` as JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    """The JSON object in `path`; `default` where the file is missing or damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return default
    return found if isinstance(found, dict) else default


def run_folders(outputs: Path) -> dict[str, Path]:
    """The folders of the runs in `outputs` by id, newest first; those without a readable run.json are left out."""
    found: dict[str, Path] = {}
    for file in sorted(Path(outputs).glob("*/*/run.json"), reverse=True):
        if isinstance(run_id := read_json(file, {}).get("id"), str):
            found.setdefault(run_id, file.parent)
    return found


def recover(folder: Path) -> None:
    """Restore every folder in `folder` whose replacement was interrupted between its two renames: its process runs no longer."""
    for path, found in _leftovers(folder):
        process = int(found["process"])
        interrupted = path not in _IN_PROGRESS if process == os.getpid() else not is_alive(process)
        if interrupted and found["kind"] == "old" and not path.with_name(found["name"]).exists():
            with contextlib.suppress(OSError):
                os.replace(path, path.with_name(found["name"]))


def remove_leftovers(folder: Path) -> None:
    """After `recover`, delete what processes that run no longer left half written in `folder`."""
    recover(folder)
    for path, found in _leftovers(folder):
        process = int(found["process"])
        if path not in _IN_PROGRESS if process == os.getpid() else not is_alive(process):
            _delete(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` (`.<name>.lock` beside it) inside the block; a kill releases it."""
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


def free_bytes(folder: Path) -> int:
    """Free disk space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def point_to(link: Path, folder: Path) -> None:
    """Make `link` a relative symbolic link to `folder`, replacing an older link in one step."""
    with replacing(link) as temporary:
        target = os.path.relpath(folder.resolve(), link.parent.resolve())
        os.symlink(target, temporary, target_is_directory=True)


def new_folder(parent: Path, name: str) -> Path:
    """Create parent/name, or name-2, name-3, … if it is taken; two processes never get the same folder."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def file_name(name: str) -> str:
    """`name` with only letters, digits and `._=+-`, others replaced by `-`; never empty or hidden."""
    return re.sub(r"[^\w.=+-]+", "-", name, flags=re.ASCII).strip("-.")[:100] or "run"


class Log:
    """A file of lines, each appended whole. Lines refused by a full disk are written before the next one."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; a last line that a kill cut short is removed."""
        self._file = _open_log(path)
        self._refused = b""

    def write(self, line: bytes) -> None:
        """Append `line`, which ends in a newline. OSError if the disk refuses it; the file then ends as before."""
        wanted, done = self._refused + line, 0
        try:
            while done < len(wanted):  # a disk that fills up accepts a part first
                done += self._file.write(wanted[done:]) or 0
        except OSError:
            self._refused = wanted[-KEPT:].partition(b"\n")[2] if len(wanted) > KEPT else wanted
            with contextlib.suppress(OSError):
                descriptor = self._file.fileno()
                os.truncate(descriptor, os.fstat(descriptor).st_size - done)
            raise
        self._refused = b""

    def close(self) -> None:
        """Close the file after a last attempt to write the refused lines."""
        if self._refused:
            with contextlib.suppress(OSError):
                self.write(b"")
        self._file.close()


def _open_log(path: Path) -> io.FileIO:
    if path.exists() and (size := path.stat().st_size):
        with path.open("rb+") as file:
            file.seek(max(0, size - TAIL))
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
    return open(path, "ab", buffering=0)


def _leftovers(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    matches = [(path, _LEFTOVER.fullmatch(path.name)) for path in Path(folder).glob(".*")]
    return [(path, found) for path, found in matches if found]


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _delete(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
