"""A run: its folder, its id, and everything written into it.

    outputs/<YYYY-MM-DD>/<HH-MM-SS>-<name>/
        run.json        metadata: id, name, status, command, start time, git commit, tasks, checkpoint; the error it failed with
        config.yaml     the configuration it ran with
        metrics.jsonl   one line for each `log` call: {"step": 10, "time": <seconds since 1970>, "training/loss": 0.31}
        metrics.json    the headline numbers, merged by `summary`
        results.json    the same for leaderboards (`results`), of a run that was described
        checkpoints/    written by the trainer
        pictures/       png and mp4 files, and media.json with their captions
        tables/         csv, and the same as json
        index.html      all of it on one self-contained page
    outputs/latest-run  a link to the newest run

Files are replaced whole (`files.py`). Creating a run that cannot be written raises UserError; afterwards nothing here
stops a training: what cannot be written causes one warning. Where nothing is to be tracked (a further process, a test),
`NullRun` has the same methods and writes nothing.

A `Tracker` receives a copy of everything that is written, such as W&B, TensorBoard, or a class of the user's; one that
fails causes one warning and the run goes on.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import secrets
import shlex
import socket
import string
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, explaining_os_errors
from diffusion_forcing.files import (
    Log,
    file_name,
    make_folder,
    new_folder,
    point_to,
    read_json,
    remove_leftovers,
    temporary_path,
    write_atomic,
    write_json,
)
from diffusion_forcing.terminal import clean
from diffusion_forcing.tracking.page import run_page
from diffusion_forcing.tracking.records import (
    ENTRIES,
    SUFFIXES,
    TEXT,
    read_media,
    read_metadata,
    read_run,
    started_with,
)

ID_LENGTH = 8  # lower-case letters and digits, a letter first; there are 2e12 such ids
REFRESH_SECONDS = 30.0  # the page is rewritten at most this often while the run goes on …
REFRESH_SHARE = 0.01  # … and never takes more than this share of the time


class Run:
    """One run's folder, made by `Run.create` (a new one) or `Run.open` (to resume one)."""

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        """Use `create` or `open`. `metadata`: the content of run.json."""
        self.folder = folder
        self.id: str = metadata["id"]
        self.name: str = metadata["name"]
        self.checkpoints = folder / "checkpoints"
        self.pictures = folder / "pictures"
        self._metadata = metadata
        self._metrics: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._media: dict[str, dict[str, Any]] = {}
        self._log: Log | None = None
        self._warned: set[str] = set()
        self._next_page = 0.0
        self._trackers: list[Tracker] = []

    @classmethod
    def create(cls, outputs: Path, name: str, *, command: Sequence[str] | None = None) -> Run:
        """A new run in `outputs`, with a first page, and `outputs/latest-run` pointing to it.

        `name`: any text; the folder's name keeps its letters, digits, `.`, `_` and `-`. `command`: the words that
        started it, sys.argv by default. Several processes may create runs at once. UserError when the run cannot be
        written there.
        """
        metadata: dict[str, Any] = {
            "id": _new_id(),
            "name": name,
            "status": "running",
            "command": list(sys.argv if command is None else command),
            "started": _now(),
            "directory": os.getcwd(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "python": sys.version.split()[0],
            "commit": _commit(),
        }
        outputs = Path(outputs)
        day, second = metadata["started"][:10], metadata["started"][11:19].replace(":", "-")
        remedy = "pass outputs=<a folder you may write to> or make room there"
        with explaining_os_errors(f"cannot write a run into outputs={str(outputs)!r}", remedy):
            folder = new_folder(outputs / day, f"{second}-{file_name(name)}")
            run = cls(folder, metadata)
            run.checkpoints.mkdir()
            run.pictures.mkdir()
            run._write_metadata()
            run._log = Log(folder / "metrics.jsonl")
        with run._never_stopping("the link outputs/latest-run"):
            point_to(outputs / "latest-run", folder)
        run._write_page()
        return run

    @classmethod
    def open(cls, folder: Path, *, command: Sequence[str] | None = None) -> Run:
        """The run in `folder`, to be resumed: same id and logs. UserError if there is none that can be read."""
        folder = Path(folder)
        metadata = read_metadata(folder)
        if metadata is None:
            raise UserError(f"{str(folder)!r} has no run.json or a damaged one; pass the id or folder of another run")
        again = {"time": _now(), "command": list(sys.argv if command is None else command), "commit": _commit()}
        metadata = {key: value for key, value in metadata.items() if key not in ("ended", "error")}
        metadata |= {"status": "running", "host": socket.gethostname(), "pid": os.getpid()}
        metadata["resumed"] = [*metadata.get("resumed", []), again][-ENTRIES:]
        run = cls(folder, metadata)
        remedy = "it must be writable, and hold no links"
        with explaining_os_errors(f"cannot resume the run in {str(folder)!r}", remedy):
            for entry in folder.iterdir():
                if entry.is_symlink():
                    raise OSError(errno.ELOOP, f"its {entry.name} is a link")
            for inside in (run.checkpoints, run.pictures):
                make_folder(inside)
            for inside in (folder, run.pictures, folder / "tables"):
                remove_leftovers(inside)
            run._write_metadata()
            run._log = Log(folder / "metrics.jsonl")
        run._metrics = read_json(folder / "metrics.json", {})
        run._media = {f"{entry['kind']}:{entry['name']}": entry for entry in read_media(folder)}
        with run._never_stopping("the link outputs/latest-run"):
            latest = folder.resolve().parents[1] / "latest-run"
            if latest.is_symlink():
                point_to(latest, folder)
        run._write_page()
        return run

    def follow(self, trackers: Sequence[Tracker], config: Mapping[str, Any]) -> None:
        """Pass on what is written to `trackers`, whose `start` gets `config`; one that fails causes a warning."""
        for tracker in trackers:
            with self._never_stopping(f"the tracker {type(tracker).__name__}"):
                tracker.start(self, config)
                self._trackers.append(tracker)

    def describe(self, facts: Mapping[str, Any]) -> None:
        """What is evaluated, on which data and with which seed: plain values for results.json, which is written from now on."""
        self._facts = dict(facts)
        self._metadata |= {"tasks": facts.get("tasks"), "load": facts.get("model", {}).get("checkpoint")}
        with self._never_stopping("run.json"):
            self._write_metadata()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append `metrics` at `step` to metrics.jsonl, at once.

        Values: numbers or 0-d arrays; one that is not finite is written as null.
        """
        record: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        record |= {name: _number(value) for name, value in metrics.items()}
        with self._never_stopping("metrics.jsonl"):
            self._log = self._log or Log(self.folder / "metrics.jsonl")
            self._log.write(json.dumps(record).encode() + b"\n")
        self._refresh()
        self._notify("log", int(step), metrics)

    def summary(self, metrics: Mapping[str, Any], *, first: Sequence[str] = ()) -> None:
        """Merge headline numbers into metrics.json. Values: numbers (null if not finite) or short texts.

        first: the most important names, which go before all others; the page shows the first ones at once.
        """
        numbers = self._metrics | {name: _number(value) for name, value in metrics.items()}
        self._metrics = {name: numbers[name] for name in first if name in numbers} | numbers
        with self._never_stopping("metrics.json"):
            write_json(self.folder / "metrics.json", self._metrics)
            if self._facts:
                write_json(self.folder / "results.json", results(self._metadata, self._facts, self._metrics))
        self._refresh()
        self._notify("summary", metrics)

    def image(self, name: str, image: Any, caption: str = "") -> None:
        """Keep an image as pictures/<name>: a matplotlib figure, the path of an image file, or uint8 (h, w[, 3 or 4]).

        The same name again replaces it.
        """
        with self._never_stopping(f"image '{name}'"):
            suffix = ".png"
            if isinstance(image, (str, Path)):
                suffix = Path(image).suffix.lower()
                if suffix not in (suffixes := SUFFIXES["image"]):
                    raise ValueError(f"an image file must end in {', '.join(suffixes)}, got {str(image)!r}")
                data = Path(image).read_bytes()
            elif hasattr(image, "savefig"):
                buffer = io.BytesIO()
                image.savefig(buffer, format="png")
                data = buffer.getvalue()
            else:
                data = png_bytes(image)
            file = file_name(name) + suffix
            write_atomic(self.pictures / file, data)
            self._show(name, {"kind": "image", "file": file, "caption": caption})

    def video(self, name: str, frames: NDArray[Any], fps: float = 20, caption: str = "") -> None:
        """Keep `frames: (t, h, w, 3)` uint8 as pictures/<name>.mp4 with its last frame as poster, <name>-poster.png."""
        with self.video_writer(name, fps, caption) as add:
            add(frames)

    @contextlib.contextmanager
    def video_writer(self, name: str, fps: float = 20, caption: str = "") -> Iterator[Callable[[NDArray[Any]], None]]:
        """The same for a video in pieces, by `add(frames: (t, h, w, 3))`; it is kept when the block succeeds."""
        path, what = self.pictures / f"{file_name(name)}.mp4", f"video '{name}'"
        poster, temporary = path.with_name(f"{path.stem}-poster.png"), temporary_path(path)
        video: Mp4 | None = None
        with self._never_stopping(what):
            video = Mp4(temporary, fps=fps)

        def add(frames: NDArray[Any]) -> None:
            if what not in self._warned and video is not None:
                with self._never_stopping(what):
                    video.add(frames)

        try:
            yield add
            with self._never_stopping(what):
                if video is not None and video.last is not None:
                    video.close()
                    temporary.replace(path)
                    write_atomic(poster, png_bytes(video.last))
                    self._show(name, {"kind": "video", "file": path.name, "poster": poster.name, "caption": caption})
        finally:
            with contextlib.suppress(Exception):  # of a video that is given up
                if video is not None:
                    video.close()
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
        """Keep `rows` as tables/<name>.csv and <name>.json; the columns are the rows' keys in their order."""
        with self._never_stopping(f"table '{name}'"):
            columns = list(dict.fromkeys(key for row in rows for key in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            file = self.folder / "tables" / f"{file_name(name)}.csv"
            make_folder(file.parent)
            write_atomic(file, text.getvalue())
            plain = [{key: _number(value) for key, value in row.items()} for row in rows]
            write_json(file.with_suffix(".json"), {"rows": plain})
            self._show(name, {"kind": "table", "file": file.name, "caption": caption})

    def config(self, text: str) -> None:
        """Keep the configuration, as yaml text, in config.yaml."""
        with self._never_stopping("config.yaml"):
            write_atomic(self.folder / "config.yaml", text)
        self._refresh()

    def finish(self, status: str = "finished", error: str = "") -> None:
        """End the run as "finished", "failed" or "interrupted" (or another word) and write its page a last time.

        error: why it failed; kept in run.json as one line.
        """
        self._metadata |= {"status": status, "ended": _now(), **({"error": clean(error, TEXT)} if error else {})}
        with self._never_stopping("run.json"):
            self._write_metadata()
        self._write_page()
        if self._log is not None:
            self._log.close()
            self._log = None
        self._notify("finish", status)

    def _show(self, name: str, entry: dict[str, Any]) -> None:
        self._media[f"{entry['kind']}:{name}"] = entry | {"name": name}
        write_json(self.pictures / "media.json", self._media)
        self._refresh()
        self._notify("media", entry | {"name": name})

    def _notify(self, method: str, *arguments: Any) -> None:
        for tracker in self._trackers:
            with self._never_stopping(f"the tracker {type(tracker).__name__}"):
                getattr(tracker, method)(*arguments)

    def _refresh(self) -> None:
        if time.monotonic() >= self._next_page:
            self._write_page()

    def _write_page(self) -> None:
        began = time.monotonic()
        with self._never_stopping("index.html"):
            if (record := read_run(self.folder)) is not None:
                write_atomic(self.folder / "index.html", run_page(record), durable=False)
        ended = time.monotonic()
        self._next_page = ended + max(REFRESH_SECONDS, (ended - began) / REFRESH_SHARE)

    def _write_metadata(self) -> None:
        write_json(self.folder / "run.json", self._metadata)

    @contextlib.contextmanager
    def _never_stopping(self, what: str) -> Iterator[None]:
        """Turn an error of the block into a warning, once for each `what`: it is no reason to lose a training."""
        try:
            yield
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                line = f"{what} of run {self.id} could not be written, continuing without: {error}"
                warnings.warn(line, RuntimeWarning, stacklevel=4)


class NullRun:
    """A run that writes nothing, with the attributes and methods of `Run`. `folder` is where its files would be."""

    def __init__(self, folder: Path = Path("outputs/null-run")) -> None:
        self.folder = Path(folder)
        self.id = "null"
        self.name = "null"
        self.checkpoints = self.folder / "checkpoints"
        self.pictures = self.folder / "pictures"

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    describe = follow = log = summary = image = video = table = config = finish = _nothing

    @contextlib.contextmanager
    def video_writer(self, name: str, fps: float = 20, caption: str = "") -> Iterator[Callable[[NDArray[Any]], None]]:
        yield lambda frames: None


def _new_id() -> str:
    rest = (secrets.choice(string.ascii_lowercase + string.digits) for _ in range(ID_LENGTH - 1))
    return secrets.choice(string.ascii_lowercase) + "".join(rest)


def _now() -> str:
    """The local time, to the second: 2026-11-23T14:15:46+01:00."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _commit() -> str | None:
    """The git commit of the checkout this package runs from; None for an installed copy or without git."""
    package = Path(__file__).resolve().parents[1]
    words = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[1] if len(lines) == 2 and Path(lines[0]) == package.parent else None


def _number(value: Any) -> str | float | int | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    return number if math.isfinite(number := float(value)) else None


# ------------------------------------------------------------------------------------------------------------ trackers


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For a tracker without options."""


class Tracker:
    """Receives what is written into a run's folder. Every method may do nothing; none may take long.

    A subclass has a frozen dataclass `Options`, is named in `configurations/tracking/<name>.yaml` by `_target_`, and
    chosen by `tracking=<name>`.
    """

    Options: type = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    def start(self, run: Any, config: Mapping[str, Any]) -> None:
        """The `Run` starts or is resumed; `config` is its whole configuration. If this raises, the tracker is left out."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line was appended to metrics.jsonl."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Headline numbers were merged into metrics.json."""

    def media(self, entry: Mapping[str, Any]) -> None:
        """An image, video or table was written; `entry` has kind, name, file and caption, as in media.json."""

    def finish(self, status: str) -> None:
        """The run has ended with `status`, and its folder is complete. May be called more than once."""


# ----------------------------------------------------------------------------- pictures: uint8 in [0, 255], rows first

QUALITY = "20"  # x264's constant rate factor: 0 lossless … 51 worst; 18 to 23 looks right


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """A PNG file of `pixels`. ValueError for another shape or type than the module's."""
    from PIL import Image

    pixels = np.asarray(pixels)
    is_image = pixels.dtype == np.uint8 and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)))
    if not is_image or 0 in pixels.shape:
        raise ValueError(f"an image must be uint8 (h, w), (h, w, 3) or (h, w, 4), got {pixels.dtype} {pixels.shape}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Mp4:
    """An H.264 video that is written while its frames come, so memory does not grow with its length.

    The codec needs even sides: the last row or column of an odd one is repeated.
    """

    def __init__(self, path: Path | BinaryIO, *, fps: float) -> None:
        """path: or an open file, such as one in memory. ValueError for fps not above 0. The file is created with the first frames."""
        if not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        self._path, self._fps = path, fps
        self._container: Any = None
        self._stream: Any = None
        self.last: NDArray[Any] | None = None
        """The newest frame, (h, w, 3)."""

    def add(self, frames: NDArray[Any]) -> None:
        """Append `frames: (t, h, w, 3)` uint8. ValueError for no frame, or another shape or type."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(f"a video must be uint8 (t, h, w, 3), got {frames.dtype} {frames.shape}")
        import av

        height, width = frames.shape[1:3]
        if self._container is None:
            named = isinstance(self._path, Path)  # else it cannot be opened again, to move its index to the front
            options = {"movflags": "+faststart"} if named else {}
            self._container = av.open(str(self._path) if named else self._path, "w", format="mp4", options=options)
            # One thread: the same frames give the same file.
            options = {"crf": QUALITY, "preset": "medium", "threads": "1"}
            rate = Fraction(self._fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options=options)
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
        elif self.last is not None and self.last.shape != frames.shape[1:]:
            raise ValueError(f"frames of a video must have one size, got {frames.shape[1:]} after {self.last.shape}")
        container, self._container = self._container, None  # after an error, ffmpeg ends the process if called again
        for frame in frames:
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self._container = container
        self.last = frames[-1].copy()

    def close(self) -> None:
        """Finish the file, if there is one."""
        container, self._container = self._container, None
        if container is not None:
            container.mux(self._stream.encode())
            container.close()


# -------------------------------------------------------------------------------------------------------- results.json

FORMAT = "diffusion-forcing/results"
FORMAT_VERSION = 2
COUNTS = ("episodes", "windows", "clips", "paths")
"""Results that say how much was evaluated."""
_Z = 1.96
"""Standard errors in half of a 95 % interval."""
_BESIDE = ("_stderr", "_low", "_high")


def results(metadata: Mapping[str, Any], facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json. metadata: of run.json. facts: what the launcher knows (task, dataset, model, seed,
    version). metrics: of metrics.json."""
    counts = {name: value for name, value in metrics.items() if name.rpartition("/")[2] in COUNTS}
    listed = [name for name in metrics if name not in counts and not name.endswith(_BESIDE)]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **facts,
        "counts": counts,
        "metrics": [_metric(name, metrics) for name in listed if isinstance(metrics[name], int | float | None)],
        "run": {key: metadata.get(key) for key in ("id", "name", "started", "python", "commit")},
        "command": shlex.join(started_with(metadata.get("command") or [])),
        "resumed": [
            {"time": again["time"], "command": shlex.join(started_with(again["command"] or []))}
            for again in metadata.get("resumed", [])
        ],
    }


def _metric(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One entry: a metric's value, its standard error, and its 95 % interval, null where it is not known."""
    value, stderr = metrics[name], metrics.get(f"{name}_stderr")
    low, high = (metrics.get(f"{name}{end}") for end in ("_low", "_high"))
    group, _, short = name.rpartition("/")
    count = metrics.get(f"{group}/episodes")
    interval = [low, high] if low is not None and high is not None else None
    if interval is None and value is not None and stderr is not None and count != 1:
        # Where all or none succeed the standard error is 0, and the normal interval would be a point.
        exact = short in ("success_rate", "oracle_success_rate") and count
        interval = _wilson(value, exact) if exact else [value - _Z * stderr, value + _Z * stderr]
    interval = interval and [float(f"{bound:.6g}") for bound in interval]
    return {"name": name, "value": value, "stderr": None if count == 1 else stderr, "interval": interval}


def _wilson(rate: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a share of `count` trials."""
    shrink = 1 + _Z**2 / count
    middle = (rate + _Z**2 / (2 * count)) / shrink
    half = _Z * math.sqrt(rate * (1 - rate) / count + _Z**2 / (4 * count**2)) / shrink
    return [max(0.0, middle - half), min(1.0, middle + half)]
