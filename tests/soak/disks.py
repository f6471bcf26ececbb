"""A small disk that can be filled: a tmpfs where one may be mounted, else a limit on the size of the files that a process writes."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from pathlib import Path

FILE_LIMIT = 2**16  # bytes


class Tmpfs:
    """A file system in memory at `folder`."""

    kind = "tmpfs"

    def __init__(self, folder: Path, megabytes: int) -> None:
        """OSError where it cannot be mounted."""
        self._folder = folder
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            subprocess.run(words, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise OSError(error.stderr.strip()) from None

    def fill(self, pid: int) -> None:
        """Take all the room there is; writers may race for the last of it."""
        with contextlib.suppress(OSError), (self._folder / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self._folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", str(self._folder)], check=False, capture_output=True)


class FileLimit:
    """An ordinary folder; `fill` lets the process write no file past `FILE_LIMIT`, for as long as it lives."""

    kind = "RLIMIT_FSIZE"

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir(exist_ok=True)

    def fill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.RLIM_INFINITY))

    def free(self) -> None:
        """The limit ended with its process."""

    def close(self) -> None:
        """Nothing to undo."""


def small_disk(folder: Path, megabytes: int, *, mount: bool = True) -> Tmpfs | FileLimit:
    """A disk at `folder`, which is made."""
    try:
        if not mount:
            return FileLimit(folder, megabytes)
        return Tmpfs(folder, megabytes)
    except OSError:
        return FileLimit(folder, megabytes)
