"""Make a data set of filmed episodes with a simulator, on several processes: every episode a file, whole or not there.

The layout is TECO's: `<folder>/{training,validation,test}/NNNNNN.npz` with `video` (T, h, w, 3) uint8, `actions` (T,) and what else the simulator
tells. The arrays are stored, not compressed, so that a clip is read by one seek. An episode follows from the simulator's recipe, its split and its
index alone; a killed generation therefore goes on with the episodes that are missing and ends in the same bytes, whatever the number of workers,
and asking for more episodes later makes only the new ones. `recipe.json` keeps episodes of two recipes from one folder.

Workers are processes that are started anew, get one episode at a time through a pipe, and end when the pipe does: also when this process is killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import traceback
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError
from diffusion_forcing.files import locked, replacing, write_json
from diffusion_forcing.progress import progress_bar

Episode = Mapping[str, NDArray[Any]]
Task = tuple[str, int]
"""Split and index."""

_PATIENCE = 5.0
"""Seconds a worker has to close its simulator before it is killed."""


class Simulator(Protocol):
    """What films episodes. It is pickled into each worker, which calls `make` many times and `close` once; what is slow to start waits for `make`.

    One with a method `save(path, episode)` writes its episodes itself, whole or not at all, `path` last."""

    @property
    def frames(self) -> int:
        """Frames of an episode."""

    @property
    def recipe(self) -> Mapping[str, str | int | float]:
        """All that decides the bytes of the episodes, for `recipe.json`."""

    def make(self, split: str, index: int) -> Episode:
        """The arrays of an episode: `video` (T, h, w, 3) uint8, `actions` (T,) or (T, a), and more. The same from the same recipe, always."""

    def close(self) -> None:
        """End what `make` started."""


def generate(
    simulator: Simulator, folder: Path, counts: Mapping[str, int], *, workers: int = 0, progress: bool = True
) -> list[Path]:
    """Make the episodes 0 … counts[split] - 1 of every split that `folder` lacks; return the files of all, in order.

    `workers` processes do it, 0: one a core. Raises `UserError` where another recipe's episodes lie in `folder`, it cannot be written,
    or the simulator is not installed; what was finished stays, and the next call goes on from there.
    """
    if workers < 0:
        raise UserError(f"workers must be at least 0 (one a core), got {workers}")
    with locked(folder):
        _open_folder(folder, simulator.recipe, counts)
        every = [(split, index) for split, count in counts.items() for index in range(count)]
        missing = [task for task in every if not zipfile.is_zipfile(episode_file(folder, *task))]
        done, frames = len(every) - len(missing), simulator.frames
        name = f"generating {folder.name}"
        with (
            progress_bar(name, total=len(every) * frames, done=done * frames, unit="frames", show=progress) as bar,
            _Team(simulator, folder, min(len(missing), workers or _cores())) as team,
        ):
            for _ in team.work(missing):
                bar.advance(frames)
    return [episode_file(folder, *task) for task in every]


def episode_file(folder: Path, split: str, index: int) -> Path:
    """Where an episode lies."""
    return folder / split / f"{index:06d}.npz"


def save_episode(path: Path, episode: Episode) -> None:
    """Write one episode, whole or not at all; the bytes depend on nothing but the arrays."""
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **episode)  # type: ignore[arg-type]


class _Team:
    """Worker processes, each with the episode it is at. Leaving the `with` ends them, at once where it is left by an exception."""

    def __init__(self, simulator: Simulator, folder: Path, size: int) -> None:
        self._simulator, self._folder, self._size = simulator, folder, size
        self._members: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> _Team:
        context = multiprocessing.get_context("spawn")
        for number in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(self._simulator, self._folder, theirs), name=f"episodes-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._members[ours] = process
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for connection, process in self._members.items():
            connection.close()
            if kind is not None:
                process.terminate()
        for process in self._members.values():
            process.join(None if kind is None else _PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()

    def work(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield every task as it is finished; raise what went wrong in a worker."""
        waiting = iter(tasks)
        busy: dict[Connection, Task] = {}

        def hand(connection: Connection) -> None:
            for task in waiting:
                busy[connection] = task
                with suppress(ConnectionError):  # a worker that is gone is noticed by whoever waits for its answer
                    connection.send(task)
                return

        for connection in self._members:
            hand(connection)
        while busy:
            ready = wait(list(busy))
            for connection in [connection for connection in busy if connection in ready]:
                task = busy.pop(connection)
                failure = self._answer(connection, task)
                if failure is not None:
                    raise failure
                hand(connection)
                yield task

    def _answer(self, connection: Connection, task: Task) -> Exception | None:
        try:
            failure: Exception | None = connection.recv()
            return failure
        except (EOFError, ConnectionError):
            process = self._members[connection]
            process.join(_PATIENCE)
            return UserError(
                f"the worker at episode {task[1]} of {task[0]} ended with exit code {process.exitcode} (out of memory?); "
                "run it again to go on, perhaps with fewer dataset.workers"
            )


def _work(simulator: Simulator, folder: Path, connection: Connection) -> None:
    """A worker: film the episodes that come through `connection`, answer None or the exception, end when it is closed."""
    if hasattr(os, "setsid"):
        os.setsid()  # the Ctrl-C of a terminal is for the first process, which then ends this one; simulators never see it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    try:
        while True:
            split, index = connection.recv()
            connection.send(_film(simulator, folder, split, index))
    except (EOFError, ConnectionError):
        pass
    finally:
        simulator.close()


def _film(simulator: Simulator, folder: Path, split: str, index: int) -> Exception | None:
    try:
        save = getattr(simulator, "save", save_episode)
        save(episode_file(folder, split, index), simulator.make(split, index))
    except UserError as error:
        return error
    except OSError as error:
        return UserError(
            f"cannot write in {folder}: {error.strerror or error}; make room or choose another dataset.save_dir"
        )
    except Exception:
        return RuntimeError(f"episode {index} of {split}:\n{traceback.format_exc()}")
    return None


def _leave(*_: object) -> None:
    raise SystemExit(1)


def _open_folder(folder: Path, recipe: Mapping[str, str | int | float], splits: Collection[str]) -> None:
    """Make the folders, remove what a killed generation left half written, and compare or write the recipe."""
    note = folder / "recipe.json"
    try:
        if not note.exists() and any(file for split in splits for file in (folder / split).rglob("*.npz")):
            raise UserError(f"{folder} holds episodes that were not generated; choose another dataset.save_dir")
        for split in splits:
            (folder / split).mkdir(parents=True, exist_ok=True)
            for rest in (folder / split).glob("*.tmp"):
                rest.unlink()
        if not note.exists():
            write_json(note, recipe)
        before = dict(json.loads(note.read_text()))
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror or error}; choose another dataset.save_dir"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{note} is damaged: {error}; remove it together with the episodes beside it") from error
    keys = {**recipe, **before}
    other = [
        f"{key} {before.get(key)!r}, not {recipe.get(key)!r}" for key in keys if before.get(key) != recipe.get(key)
    ]
    if other:
        raise UserError(
            f"{folder} holds episodes of another recipe ({'; '.join(other)}); choose another dataset.save_dir or remove the folder"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
