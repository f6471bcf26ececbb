"""Files that are whole or absent, opened without following links, and a lock, so that one process makes a file while the
others wait for it.

A file or folder is written under a hidden name beside its place, `.<name>.<process>-<random>.tmp`, flushed to the disk
and renamed. A process that is killed leaves the old version or the new one, and at worst a hidden leftover, which
`remove_leftovers` deletes.

A folder may come from anywhere, so what lies in it is not trusted: a link, a FIFO or a device under the name of one of
our files is refused, and a name found in a file is one entry of a folder (`is_plain`) or nothing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import limit

try:
    import fcntl
except ImportError:  # Windows has no flock: start one process first there
    fcntl = None  # type: ignore[assignment]

TAIL = 2**20  # bytes at the end of a log that are searched for its last complete line
KEPT = 2**20  # bytes of lines kept in memory while the disk is full
_IN_PROGRESS: set[Path] = set()  # temporary paths that this process is writing
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<process>\d{1,9})-[0-9a-f]{8}\.(?P<kind>tmp|old)", re.ASCII)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MODES = {"rb": os.O_RDONLY, "ab+": os.O_RDWR | os.O_CREAT | os.O_APPEND}
_WINDOWS = os.name == "nt"
_UNFOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def open_file(path: Path, mode: str = "rb", *, buffering: int = -1) -> BinaryIO:
    """Open the regular file `path` to read ("rb"), or to read and append ("ab+").

    OSError for a link, and, without waiting, for a FIFO or a device.
    """
    try:
        descriptor = os.open(path, _MODES[mode] | _UNFOLLOWED, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, mode, buffering)  # type: ignore[return-value]


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file. OSError for more than `most` bytes."""
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content


def is_plain(name: object) -> TypeGuard[str]:
    """Whether `name` is the name of an entry of a folder: a visible one, printable, and not a path."""
    text = name if isinstance(name, str) else ""
    return text.isprintable() and 0 < len(text.encode()) <= 255 and text[0] != "." and not set(text) & set("/\\")


def is_run_id(text: object) -> TypeGuard[str]:
    """Whether `text` may be a run's id: letters, digits, `_` and `-`, so that it is never a path."""
    return isinstance(text, str) and _RUN_ID.fullmatch(text) is not None


def is_regular(path: Path) -> bool:
    """Whether `path` is a regular file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def make_folder(folder: Path) -> Path:
    """Create `folder` unless it is there. OSError if its name is a link."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, f"{folder} is a link", str(folder))
    return folder


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, to be written as a file or folder; it replaces `path` at the block's end.

    Where the block raises, `path` stays as it was and the temporary path is deleted. `durable` flushes the new version
    to the disk before it is renamed: a power failure leaves no torn file.
    """
    temporary = temporary_path(path)
    _IN_PROGRESS.add(temporary)
    try:
        yield temporary
        if durable:
            for file in [*temporary.rglob("*"), temporary]:
                if not file.is_symlink():
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


def write_atomic(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Replace the file `path` by `content` (text is written as UTF-8)."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Replace the file `path` by `value` as JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, default: dict[str, Any], *, most: int | None = None) -> dict[str, Any]:
    """The JSON object in the file `path`; `default` where it is missing, damaged, a link, or larger than `most`.

    most: bytes; the limit RUN_JSON_BYTES where it is None.
    """
    try:
        found = json.loads(read_bytes(path, most or limit("RUN_JSON_BYTES")))
    except (OSError, ValueError, RecursionError):
        return default
    return found if isinstance(found, dict) else default


def run_folders(outputs: Path) -> dict[str, Path]:
    """The folders of the runs in `outputs` by id, newest first; left out are links and what has no readable run.json."""
    found: dict[str, Path] = {}
    for folder in sorted((run for day in folders(outputs) for run in folders(day)), reverse=True):
        if is_run_id(run_id := read_json(folder / "run.json", {}).get("id")):
            found.setdefault(run_id, folder)
    return found


def folders(parent: Path) -> list[Path]:
    """The visible folders in `parent`, links left out; none where it cannot be read."""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
    except OSError:
        return []
    return [Path(parent) / name for name in names]


def recover(folder: Path) -> None:
    """Restore every folder in `folder` whose replacement was interrupted between its two renames."""
    for path, found in _leftovers(folder):
        if found["kind"] == "old" and not path.with_name(found["name"]).exists():
            with contextlib.suppress(OSError):
                os.replace(path, path.with_name(found["name"]))


def remove_leftovers(folder: Path) -> None:
    """After `recover`, delete what processes that run no longer left half written in `folder`."""
    recover(folder)
    for path, _ in _leftovers(folder):
        _delete(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` (`.<name>.lock` beside it) inside the block; a kill releases it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_file(path.with_name(f".{path.name}.lock"), "ab+")
    except OSError as error:
        raise UserError(
            f"cannot write in {path.parent}: {error.filename or ''} {error.strerror or error}; choose another dataset.save_dir"
        ) from error
    with lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_bytes(folder: Path) -> int:
    """Free disk space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def point_to(link: Path, folder: Path) -> None:
    """Make `link` a relative symbolic link to `folder`, replacing an older link in one step."""
    with replacing(link, durable=False) as temporary:
        target = os.path.relpath(folder.resolve(), link.parent.resolve())
        os.symlink(target, temporary, target_is_directory=True)


def new_folder(parent: Path, name: str) -> Path:
    """Create parent/name, or name-2, name-3, … if it is taken; two processes never get the same folder."""
    make_folder(parent)
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
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_nlink > 1:  # the file has another name, maybe elsewhere: append to a copy
            with open_file(path) as file:
                write_atomic(path, file.read())
    log: Any = open_file(path, "ab+", buffering=0)
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - TAIL))
    tail = log.read(TAIL)
    if not tail.endswith(b"\n"):
        log.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
    return log  # type: ignore[no-any-return]


def _leftovers(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """What is half written in `folder`, by processes that run no longer."""
    for path in list(Path(folder).glob(".*")):
        if found := _LEFTOVER.fullmatch(path.name):
            process = int(found["process"])
            # the `.old` of a replacement in progress goes with its `.tmp`
            in_progress = path.with_suffix(".tmp") in _IN_PROGRESS if process == os.getpid() else is_alive(process)
            if not in_progress:
                yield path, found


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
    if _WINDOWS and path.is_dir():
        return  # it opens no folders, and flushes what may be written
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
