"""One process at a time makes a file; the others wait and then find it made (several ranks or runs that start together)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_forcing.errors import UserError

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
