"""A run: its folder, its id, and everything written into it.

    outputs/<YYYY-MM-DD>/<HH-MM-SS>-<name>/
        run.json        id, name, status, command, start time, git commit
        config.yaml     the configuration it ran with
        metrics.jsonl   one line a `log` call: {"step": 10, "time": <seconds since 1970>, "training/loss": 0.31}
        metrics.json    the headline numbers, merged by `summary`
        checkpoints/    written by the trainer
        pictures/       png and mp4 files, and media.json, their captions
        tables/         csv, and the same as json
        index.html      all of it on one self-contained page
    outputs/latest-run  a link to the newest of them

Whatever replaces a file does so at once (a temporary sibling, then a rename), so a kill leaves the old file or the
new one. Creating a run that cannot be written raises UserError; afterwards nothing here stops a training: what cannot
be written is warned of, once. Where nothing is to be tracked (another rank, a test), `NullRun` has the same methods
and writes nothing.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import secrets
import socket
import string
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.files import (
    Log,
    file_name,
    new_folder,
    point_to,
    read_json,
    remove_leftovers,
    write_atomic,
    write_json,
)
from diffusion_forcing.tracking import page
from diffusion_forcing.tracking.charts import Curve, read_curves
from diffusion_forcing.tracking.media import Mp4, png_bytes

# What a run says of itself in run.json: who it is, what started it, where and when, from which code; and how it is found again.

ID_LENGTH = 8


def new_facts(name: str, command: Sequence[str] | None = None) -> dict[str, Any]:
    """The facts of a run that starts now. `command`: the words that started it, sys.argv unless given."""
    return {
        "id": new_id(),
        "name": name,
        "status": "running",
        "command": list(sys.argv if command is None else command),
        "started": now(),
        "directory": os.getcwd(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "commit": commit(),
    }


def resumed_facts(facts: Mapping[str, Any], command: Sequence[str] | None = None) -> dict[str, Any]:
    """`facts` of a run that goes on now: running again, this start noted under "resumed"."""
    words = list(sys.argv if command is None else command)
    again = {"time": now(), "command": words, "commit": commit()}
    kept = {key: value for key, value in facts.items() if key != "ended"}
    here = {"status": "running", "host": socket.gethostname(), "pid": os.getpid()}
    return {**kept, **here, "resumed": [*facts.get("resumed", []), again]}


def checked_facts(facts: Any) -> dict[str, Any]:
    """What a run.json says, as `new_facts` makes it; ValueError where it is not so."""
    if not isinstance(facts, dict):
        raise ValueError("it holds no mapping")
    for key, kind in (("id", str), ("name", str), ("started", str), ("resumed", list)):
        if not isinstance(facts.get(key, [] if key == "resumed" else None), kind):
            raise ValueError(f"'{key}' is missing or of another type")
    return facts


def find_run(outputs: Path, run_id: str) -> Path:
    """The folder in `outputs` of the run with this id; UserError with the nearest id if there is none."""
    ids = []
    for facts in sorted(Path(outputs).glob("*/*/run.json"), reverse=True):  # newest first
        found = read_json(facts, {}).get("id")
        if found == run_id:
            return facts.parent
        ids.append(str(found))
    near = did_you_mean(run_id, ids)
    raise UserError(
        f"no run '{run_id}' in {str(outputs)!r}{near}; {len(ids)} run{'s' * (len(ids) != 1)} there, the id is in each run.json"
    )


def new_id() -> str:
    """Eight lower-case letters and digits, a letter first; there are 2e12 of them, so two do not meet."""
    rest = (secrets.choice(string.ascii_lowercase + string.digits) for _ in range(ID_LENGTH - 1))
    return secrets.choice(string.ascii_lowercase) + "".join(rest)


def now() -> str:
    """The time here, to the second: 2026-11-23T14:15:46+01:00."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def commit() -> str | None:
    """The git commit of the checkout this package runs from; None when it is an installed copy or git is not there."""
    package = Path(__file__).resolve().parents[1]
    words = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[1] if len(lines) == 2 and Path(lines[0]) == package.parent else None


REFRESH_SECONDS = 30.0  # the page is written again at most this often while the run goes on …
REFRESH_SHARE = 0.01  # … and never takes more than this share of the time
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")


class Run:
    """One run's folder. Made by `Run.create` (a new one) or `Run.open` (an old one, to go on with)."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        """Use `create` or `open`. `facts` is what run.json says."""
        self.folder = folder
        self.id: str = facts["id"]
        self.name: str = facts["name"]
        self.checkpoints = folder / "checkpoints"
        self.pictures = folder / "pictures"
        self._facts = facts
        self._curves: dict[str, Curve] = {}
        self._metrics: dict[str, Any] = {}
        self._media: dict[str, dict[str, Any]] = {}
        self._log: Log | None = None
        self._warned: set[str] = set()
        self._next_page = 0.0

    @classmethod
    def create(cls, outputs: Path, name: str, *, command: Sequence[str] | None = None) -> Run:
        """A new run in `outputs`, its page started, `outputs/latest-run` pointing to it.

        `name`: any text; the folder's name keeps its letters, digits, `.`, `_` and `-`. `command`: the words that
        started it, sys.argv. Safe with several processes at once: a folder that is taken gets a number behind its name.
        UserError when the run cannot be written there.
        """
        facts = new_facts(name, command)
        day, second = facts["started"][:10], facts["started"][11:19].replace(":", "-")
        outputs = Path(outputs)
        try:
            folder = new_folder(outputs / day, f"{second}-{file_name(name)}")
            run = cls(folder, facts)
            run.checkpoints.mkdir()
            run.pictures.mkdir()
            run._write_facts()
            run._log = Log(folder / "metrics.jsonl")
        except OSError as error:
            raise UserError(
                f"cannot write a run into outputs={str(outputs)!r}: {error.strerror or error}; "
                "pass outputs=<a folder you may write to> or make room there"
            ) from error
        with run._never_stopping("the link outputs/latest-run"):
            point_to(outputs / "latest-run", folder)
        run._write_page()
        return run

    @classmethod
    def open(cls, folder: Path, *, command: Sequence[str] | None = None) -> Run:
        """The run in `folder`, to go on with: same id, appending to the same logs.

        UserError if there is none or it cannot be read.
        """
        folder = Path(folder)
        try:
            facts = checked_facts(json.loads((folder / "run.json").read_text("utf-8")))
            run = cls(folder, facts)
        except FileNotFoundError:
            raise UserError(f"no run in {str(folder)!r} (no run.json there); pass a run's id or its folder") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{str(folder / 'run.json')!r} cannot be read as a run's facts ({error}); start a new run"
            ) from None
        run._facts = resumed_facts(facts, command)
        try:
            run.checkpoints.mkdir(exist_ok=True)
            run.pictures.mkdir(exist_ok=True)
            for inside in (folder, run.pictures, folder / "tables"):
                remove_leftovers(inside)
            for film in run.pictures.glob(f".*.{run.id}.mp4"):
                film.unlink()
            run._write_facts()
            run._log = Log(folder / "metrics.jsonl")
        except OSError as error:
            raise UserError(f"cannot go on with the run in {str(folder)!r}: {error.strerror or error}") from error
        run._curves = read_curves(folder / "metrics.jsonl")
        run._metrics = read_json(folder / "metrics.json", {})
        run._media = read_json(run.pictures / "media.json", {})
        with run._never_stopping("the link outputs/latest-run"):
            if folder.resolve().parent.parent.joinpath("latest-run").is_symlink():
                point_to(folder.resolve().parent.parent / "latest-run", folder)
        run._write_page()
        return run

    @staticmethod
    def find(outputs: Path, run_id: str) -> Path:
        """The folder in `outputs` of the run with this id; UserError with the nearest id if there is none."""
        return find_run(outputs, run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append `metrics` at `step` to metrics.jsonl, at once.

        Values: numbers or 0-d arrays; one that is not finite is written as null.
        """
        record: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in metrics.items():
            number = record[name] = _number(value)
            if number is not None:
                curve = self._curves.get(name)
                if curve is None:
                    curve = self._curves[name] = Curve()
                curve.add(step, number)
        try:
            if self._log is None:
                self._log = Log(self.folder / "metrics.jsonl")
            self._log.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            self._warn("metrics.jsonl", error)
        if time.monotonic() >= self._next_page:
            self._write_page()

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Merge the headline numbers `metrics` into metrics.json; a known key is replaced.

        Values: numbers (not finite: null) or short texts.
        """
        self._metrics |= {name: _plain(value) for name, value in metrics.items()}
        with self._never_stopping("metrics.json"):
            write_json(self.folder / "metrics.json", self._metrics)
        self._refresh()

    def image(self, name: str, figure_or_path_or_array: Any, caption: str = "") -> None:
        """Keep a picture as pictures/<name>: a matplotlib figure, the path of an image file, or uint8 (h, w[, 3 or 4]).

        The same name again replaces it.
        """
        with self._never_stopping(f"picture '{name}'"):
            source, stem = figure_or_path_or_array, file_name(name)
            if isinstance(source, (str, Path)):
                suffix = Path(source).suffix.lower()
                if suffix not in PICTURE_SUFFIXES:
                    raise ValueError(f"a picture ends in {', '.join(PICTURE_SUFFIXES)}, got {str(source)!r}")
                data = Path(source).read_bytes()
            elif hasattr(source, "savefig"):
                buffer, suffix = io.BytesIO(), ".png"
                source.savefig(buffer, format="png")
                data = buffer.getvalue()
            else:
                data, suffix = png_bytes(source), ".png"
            write_atomic(self.pictures / (stem + suffix), data)
            self._show(name, {"kind": "image", "file": stem + suffix, "caption": caption})

    def video(self, name: str, frames: NDArray[Any], fps: float = 20, caption: str = "") -> None:
        """Keep `frames: (t, h, w, 3)` uint8 as pictures/<name>.mp4 with its last frame as poster, <name>-poster.png."""
        with self.video_writer(name, fps, caption) as add:
            add(frames)

    @contextlib.contextmanager
    def video_writer(self, name: str, fps: float = 20, caption: str = "") -> Iterator[Callable[[NDArray[Any]], None]]:
        """The same for a film that comes in pieces: `add(frames)` for each, (t, h, w, 3). It is kept when the block ends well."""
        stem = file_name(name)
        temporary = self.pictures / f".{stem}.{self.id}.mp4"
        what = f"film '{name}'"
        film: Mp4 | None = None
        with self._never_stopping(what):
            film = Mp4(temporary, fps=fps)

        def add(frames: NDArray[Any]) -> None:
            if what not in self._warned and film is not None:
                with self._never_stopping(what):
                    film.add(frames)

        try:
            yield add
            with self._never_stopping(what):
                if film is not None and film.last is not None:
                    film.close()
                    os.replace(temporary, self.pictures / f"{stem}.mp4")
                    write_atomic(self.pictures / f"{stem}-poster.png", png_bytes(film.last))
                    entry = {"kind": "video", "file": f"{stem}.mp4", "poster": f"{stem}-poster.png", "caption": caption}
                    self._show(name, entry)
        finally:
            with contextlib.suppress(Exception):  # of a film that is given up
                if film is not None:
                    film.close()
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
        """Keep `rows` as tables/<name>.csv and <name>.json; the columns are the rows' keys in the order they first appear."""
        with self._never_stopping(f"table '{name}'"):
            columns = list(dict.fromkeys(key for row in rows for key in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            (self.folder / "tables").mkdir(exist_ok=True)
            write_atomic(self.folder / "tables" / f"{file_name(name)}.csv", text.getvalue().encode())
            plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
            write_json(self.folder / "tables" / f"{file_name(name)}.json", {"rows": plain})
            self._show(name, {"kind": "table", "file": f"{file_name(name)}.csv", "caption": caption})

    def config(self, text: str) -> None:
        """Keep the configuration, yaml, as config.yaml."""
        with self._never_stopping("config.yaml"):
            write_atomic(self.folder / "config.yaml", text.encode())
        self._refresh()

    def finish(self, status: str = "finished") -> None:
        """End the run as "finished", "failed" or "interrupted" (or another word) and write its page a last time."""
        self._facts |= {"status": status, "ended": now()}
        with self._never_stopping("run.json"):
            self._write_facts()
        self._write_page()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _show(self, name: str, entry: dict[str, Any]) -> None:
        self._media[f"{entry['kind']}:{name}"] = entry | {"name": name}
        write_json(self.pictures / "media.json", self._media)
        self._refresh()

    def _refresh(self) -> None:
        if time.monotonic() >= self._next_page:
            self._write_page()

    def _write_page(self) -> None:
        began = time.monotonic()
        with self._never_stopping("index.html"):
            text = page.render(
                self.folder,
                facts=self._facts,
                metrics=self._metrics,
                curves=self._curves,
                media=list(self._media.values()),
            )
            write_atomic(self.folder / "index.html", text.encode())
        ended = time.monotonic()
        self._next_page = ended + max(REFRESH_SECONDS, (ended - began) / REFRESH_SHARE)

    def _write_facts(self) -> None:
        write_json(self.folder / "run.json", self._facts)

    @contextlib.contextmanager
    def _never_stopping(self, what: str) -> Iterator[None]:
        """A picture that fails is no reason to lose a training: warn once of each thing, and go on."""
        try:
            yield
        except Exception as error:  # whatever it is, the training goes on
            self._warn(what, error)

    def _warn(self, what: str, error: Exception) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(
                f"{what} of run {self.id} could not be written, going on without: {error}", RuntimeWarning, stacklevel=4
            )


class NullRun:
    """A run that keeps nothing: the same attributes and methods as `Run`.

    `folder` says where its files would be; it is not made.
    """

    def __init__(self, folder: Path = Path("outputs/null-run")) -> None:
        self.folder = Path(folder)
        self.id = "null"
        self.name = "null"
        self.checkpoints = self.folder / "checkpoints"
        self.pictures = self.folder / "pictures"

    @classmethod
    def create(cls, outputs: Path, name: str, *, command: Sequence[str] | None = None) -> NullRun:
        return cls(Path(outputs) / "null-run")

    @classmethod
    def open(cls, folder: Path, *, command: Sequence[str] | None = None) -> NullRun:
        return cls(folder)

    @staticmethod
    def find(outputs: Path, run_id: str) -> Path:
        return find_run(outputs, run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def summary(self, metrics: Mapping[str, Any]) -> None: ...

    def image(self, name: str, figure_or_path_or_array: Any, caption: str = "") -> None: ...

    def video(self, name: str, frames: NDArray[Any], fps: float = 20, caption: str = "") -> None: ...

    @contextlib.contextmanager
    def video_writer(self, name: str, fps: float = 20, caption: str = "") -> Iterator[Callable[[NDArray[Any]], None]]:
        yield lambda frames: None

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None: ...

    def config(self, text: str) -> None: ...

    def finish(self, status: str = "finished") -> None: ...


def _plain(value: Any) -> str | float | int | None:
    return value if isinstance(value, str) else _number(value)


def _number(value: Any) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
