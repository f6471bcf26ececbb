"""Generate a data set of episodes with a simulator, on several processes: every episode is a complete file or missing.

The layout is TECO's: `<folder>/{training,validation,test}/NNNNNN.npz` with `video` (T, h, w, 3) uint8, `actions` (T,)
and whatever else the simulator returns. The arrays are not compressed, so that a clip is read by position. An episode
follows from the simulator's recipe, its split and its index alone. An interrupted generation therefore continues with
the missing episodes and ends in the same bytes, whatever the number of workers, and asking for more episodes later
makes only the new ones. `recipe.json` prevents episodes of two recipes in one folder.

Workers are spawned processes that receive one episode at a time through a pipe and end when it closes, also if this
process is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from diffusion_forcing.arrays import write_npz
from diffusion_forcing.errors import UserError, check_minimum, explaining_os_errors, require
from diffusion_forcing.files import locked, remove_leftovers, write_json
from diffusion_forcing.limits import load_json, reading
from diffusion_forcing.progress import Bar

Episode = Mapping[str, NDArray[Any]]
Task = tuple[str, int]
"""Split and index."""

Save = Callable[[Path, Episode], None]

RECIPE = "recipe.json"
"""Beside generated episodes, perhaps unfinished: the simulator's recipe."""
_CLOSE_SECONDS = 5.0
"""Time for a worker to close its simulator before it is killed."""


class Simulator(Protocol):
    """What makes episodes. It is pickled into each worker, which calls `make` many times and `close` once; slow
    starts are left to `make`."""

    @property
    def frames(self) -> int:
        """Frames of an episode."""

    @property
    def recipe(self) -> Mapping[str, str | int | float]:
        """Everything that determines the bytes of the episodes, for `recipe.json`."""

    def make(self, split: str, index: int) -> Episode:
        """Arrays: `video` (T, h, w, 3) uint8, `actions` (T,) or (T, a), …; the same bytes for the same recipe."""

    def close(self) -> None:
        """Release what `make` opened."""


def generate(
    simulator: Simulator,
    folder: Path,
    counts: Mapping[str, int],
    *,
    save: Save = write_npz,
    workers: int = 0,
    progress: bool = True,
) -> list[Path]:
    """Make the missing episodes 0 … counts[split] - 1 of every split in `folder`; return the files of all, in order.

    save: writes the files of an episode, each whole or not at all, `path` last. workers: number of processes, 0 for one
    on each core. Raises `UserError` if `folder` holds episodes of another recipe or cannot be written, or if the
    simulator is not installed. Finished episodes stay, and the next call continues.
    """
    check_minimum("workers", workers, 0)
    with locked(folder):
        _prepare_folder(folder, simulator.recipe, counts)
        tasks = [(split, index) for split, count in counts.items() for index in range(count)]
        missing = [task for task in tasks if not zipfile.is_zipfile(episode_file(folder, *task))]
        total, left = (simulator.frames * count for count in (len(tasks), len(missing)))
        with (
            Bar(f"generating {folder.name}", total=total, done=total - left, unit="frames", show=progress) as bar,
            _Workers((simulator, save, folder), min(len(missing), worker_count(workers))) as pool,
        ):
            for _ in pool.run(missing):
                bar.advance(simulator.frames)
    return [episode_file(folder, *task) for task in tasks]


def episode_file(folder: Path, split: str, index: int) -> Path:
    return folder / split / f"{index:06d}.npz"


class _Workers:
    """Worker processes. Leaving the `with` block ends them, immediately if it is left by an exception."""

    def __init__(self, job: tuple[Simulator, Save, Path], count: int) -> None:
        self._job, self._count = job, count
        self._processes: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> _Workers:
        context = multiprocessing.get_context("spawn")
        for number in range(self._count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(*self._job, theirs), name=f"episodes-{number}", daemon=True)
            process.start()
            theirs.close()
            self._processes[ours] = process
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for connection, process in self._processes.items():
            connection.close()
            if kind is not None:
                process.terminate()
        for process in self._processes.values():
            process.join(None if kind is None else _CLOSE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield every task when it is finished; raise the exception of a worker that failed."""
        waiting = iter(tasks)
        busy: dict[Connection, Task] = {}

        def assign(connection: Connection) -> None:
            task = next(waiting, None)
            if task is not None:
                busy[connection] = task
                with suppress(ConnectionError):  # a dead worker is noticed when its answer is awaited
                    connection.send(task)

        for connection in self._processes:
            assign(connection)
        while busy:
            ready = wait(list(busy))
            for connection in [connection for connection in busy if connection in ready]:
                task = busy.pop(connection)
                failure = self._answer(connection, task)
                if failure is not None:
                    raise failure
                assign(connection)
                yield task

    def _answer(self, connection: Connection, task: Task) -> Exception | None:
        try:
            failure: Exception | None = connection.recv()
            return failure
        except (EOFError, ConnectionError):
            process = self._processes[connection]
            process.join(_CLOSE_SECONDS)
            return UserError(
                f"the worker at episode {task[1]} of {task[0]} ended with exit code {process.exitcode} (no memory?); "
                "run it again to continue, perhaps with fewer dataset.workers"
            )


def _work(simulator: Simulator, save: Save, folder: Path, connection: Connection) -> None:
    """A worker: make the episodes that `connection` asks for, answering None or the exception, until it closes."""
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal's Ctrl-C reaches only the main process, which ends this one; simulators never see it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    try:
        while True:
            split, index = connection.recv()
            connection.send(_make(simulator, save, folder, split, index))
    except (EOFError, ConnectionError):
        pass
    finally:
        simulator.close()


def _make(simulator: Simulator, save: Save, folder: Path, split: str, index: int) -> Exception | None:
    try:
        with explaining_os_errors(f"cannot write in {folder}", "make room or choose another dataset.save_dir"):
            save(episode_file(folder, split, index), simulator.make(split, index))
    except UserError as error:
        return error
    except Exception:
        return RuntimeError(f"episode {index} of {split}:\n{traceback.format_exc()}")
    return None


def _exit(*_: object) -> None:
    raise SystemExit(1)


def _prepare_folder(folder: Path, recipe: Mapping[str, str | int | float], splits: Collection[str]) -> None:
    """Make the folders, remove unfinished files of a killed generation, and write the recipe or compare it."""
    file = folder / RECIPE
    with explaining_os_errors(f"cannot write in {folder}", "choose another dataset.save_dir"):
        if not file.exists() and any(episode for split in splits for episode in (folder / split).rglob("*.npz")):
            raise UserError(f"{folder} holds episodes that were not generated; choose another dataset.save_dir")
        for split in splits:
            (folder / split).mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder / split)
        if not file.exists():
            write_json(file, recipe)
    with reading(file, "remove it together with the episodes beside it"):
        before = load_json(file)
    different = [key for key in {**recipe, **before} if before.get(key) != recipe.get(key)]
    changes = "; ".join(f"{key} {before.get(key)!r}, not {recipe.get(key)!r}" for key in different)
    require(
        not changes,
        f"{folder} holds episodes of another recipe ({changes}); remove it or choose another dataset.save_dir",
    )


def worker_count(workers: int) -> int:
    """`workers`, or one for each core that this process may use if that is 0."""
    return workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
