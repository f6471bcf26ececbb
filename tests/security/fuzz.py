"""Damaged files for every reader: `python -m tests.security.fuzz [--count 1000] [--seed 0] [reader …]`.

For each reader a good file is made, and many damaged copies of it: bytes changed, cut off, repeated, sizes blown up;
text with values of another kind. The reader may read a copy, or refuse it with a `UserError` of one line. Everything
else is a fault: another exception, 10 seconds of processor time, 2 GB of memory, or the end of the process. Each reader
runs in a process of its own; a copy that is a fault is kept and named.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import torch

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.datasets.mazes.maze2d import read_d4rl, read_minari, write_d4rl
from diffusion_forcing.datasets.mazes.pointmaze import read_ogbench
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet
from diffusion_forcing.datasets.robot.source import ReleasedFolders
from diffusion_forcing.datasets.series.files import read_file
from diffusion_forcing.datasets.video.archive import Part, fetch_archive
from diffusion_forcing.datasets.video.clips import read_frames
from diffusion_forcing.datasets.video.episode import open_index
from diffusion_forcing.environments.mazes.layout import MAZES
from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import Refused
from tests.datasets.video_makers import write_video

SECONDS = 10
MEMORY = 2 << 30
DATA = Path(__file__).parents[1] / "datasets" / "robot" / "data"
STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        2**31,
        2**63,
        10**30,
        1e300,
        float("inf"),
        float("nan"),
        "",
        "x",
        "../../x",
        "/etc/passwd",
    ),
    *("{chunk_index[0]}", "{video_key:99999999}", "\0", "\x1b[2J", [], [[]], {}, [1] * 8, {"a": None}),
)
"""Values that a field of a JSON file may have instead of its own."""

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """`make(folder)` writes the good files there and returns the one to damage; `read(folder)` reads them."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    damage: tuple[Damage, ...]


class TooSlow(BaseException):
    """A reader took longer than `SECONDS` of processor time."""


# Damage


def change(content: bytes, rng: random.Random) -> bytes:
    """Some bytes, a size, or a piece changed; cut off; repeated."""
    out = bytearray(content)
    if not out:
        return b"\xff"
    place = rng.randrange(len(out))
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(out[:place])
    if kind == 1:
        size = rng.choice((2, 4, 8))
        number = rng.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1, rng.randrange(2 ** (8 * size))))
        out[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))  # type: ignore[arg-type]
    elif kind == 2:
        piece = out[place : place + rng.choice((1, 16, 512))]
        out[place:place] = piece * rng.choice((1, 3, 50))
    elif kind == 3:
        del out[place : place + rng.choice((1, 8, 100))]
    else:
        for _ in range(rng.choice((1, 3, 20))):
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def change_start(content: bytes, rng: random.Random) -> bytes:
    """The same in the first 512 bytes, where headers are."""
    return change(content[:512], rng) + content[512:]


def change_member(content: bytes, rng: random.Random) -> bytes:
    """A member of a zip file changed, its checksum right again."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(stream, "w") as changed:
        chosen = rng.choice(archive.namelist())
        for name in archive.namelist():
            data = archive.read(name)
            damaged = rng.choice((change, change_start))(data, rng) if name == chosen else data
            changed.writestr(name, damaged, rng.choice((zipfile.ZIP_STORED, archive.getinfo(name).compress_type)))
    return stream.getvalue()


def change_json(content: bytes, rng: random.Random) -> bytes:
    """A value of another kind, a field missing, or a depth of thousands."""
    found = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            collect(value[key])

    collect(found)
    inside, key = rng.choice(places)
    if rng.random() < 0.2:
        del inside[key]
    else:
        inside[key] = rng.choice(STRANGE)
    text = json.dumps(found)
    return (text if rng.random() < 0.95 else text.replace("{", '{"deep":' + "[" * 50_000, 1)).encode()


def change_text(content: bytes, rng: random.Random) -> bytes:
    """Cells of a table changed for others."""
    lines = content.decode().split("\n")
    for _ in range(rng.choice((1, 3))):
        row = rng.randrange(len(lines))
        cells = lines[row].split(",")
        cells[rng.randrange(len(cells))] = rng.choice(
            (
                "",
                "1e39",
                "1e400",
                "inf",
                "-",
                "1.234,5",
                '"',
                "9" * 400,
                "2024-99-99",
                "1700-01-01",
                "9999-12-31",
                "x" * 5000,
            )
        )
        lines[row] = ",".join(cells)
    return "\n".join(lines).encode()


def unpacked(damage: Damage) -> Damage:
    """`damage` of what a gzip file holds."""
    return lambda content, rng: gzip.compress(damage(gzip.decompress(content), rng), 1)


# Readers

_ROWS = "time,a,b\n" + "".join(f"2024-01-{day:02d},{day},{day * 2.5}\n" for day in range(1, 29))
_PICTURES = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), np.uint8)


def _table(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


def _read_table(folder: Path) -> object:
    return read_file(next(folder.glob("x.*")), freq=None)


def _read_clips(folder: Path) -> object:
    """As training does: an index, then clips. What is unusable is left out with its reason."""
    for episode in open_index(folder / "clips", folder / "index.npz", progress=False):
        assert "\n" not in episode.problem + episode.action_problem
        if not episode.problem and episode.frames * episode.height * episode.width < 10**8:
            with contextlib.suppress(Refused):
                read_frames(folder / "clips", episode, np.arange(min(4, episode.frames)))
    return None


def _clip(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "clips").mkdir()
        write(folder / "clips" / name)
        return folder / "clips" / name

    return make


def _hdf5(path: Path) -> None:
    shapes = {"observations": (60, 4), "actions": (60, 2), "rewards": (60,), "terminals": (60,)}
    write_d4rl(path, {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, attributes={"a": 1})


def _minari(folder: Path) -> Path:
    (folder / "data").mkdir()
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number in range(3):
            group = file.create_group(f"episode_{number}")
            group.create_dataset("observations", data=np.ones((6, 4), np.float32))
            group.create_dataset("actions", data=np.zeros((5, 2), np.float32), chunks=True, compression="gzip")
    return folder / "data" / "main_data.hdf5"


def _lerobot(pattern: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(DATA / "lerobot_images", folder / "set")
        return next((folder / "set").glob(pattern))

    return make


def _read_lerobot(folder: Path) -> object:
    found = LeRobotSet(folder / "set")
    return [found.arrays("training", 0), *(found.images("training", 0, camera, 8) for camera in found.cameras())]


def _checkpoint(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = {"a.weight": torch.randn(4, 5), "a.bias": torch.zeros(4)}
        state = {
            "state_dict": model,
            "global_step": 3,
            "loops": {},
            "optimizer_states": [{0: {"step": torch.tensor(1.0)}}],
        }
        metadata = {"task": "planning", "line": "v1.5", "statistics": {"data_mean": [0.0, 1.0], "data_std": [1.0, 1.0]}}
        native.save(folder / "ck", state, metadata=metadata, model=model)
        return folder / "ck" / name

    return make


def _read_checkpoint(folder: Path) -> object:
    """Load it, with the sums of the damaged files in its header, as who damages on purpose would write them."""
    header = folder / "ck" / native.HEADER
    with contextlib.suppress(Exception):
        content = json.loads(header.read_text())
        content["files"] = {name: native.fingerprint(folder / "ck" / name) for name in content["files"]}
        header.write_text(json.dumps(content))
    return native.load(folder / "ck", training=True)


def _released(path: Path, *, legacy: bool = False) -> None:
    content = torch.load(DATA.parents[2] / "parity" / "data" / "ckpt_planning.ckpt", weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def _tar(folder: Path) -> Path:
    (folder / "data").mkdir()
    with tarfile.open(folder / "data" / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("set/train/a.npz", "set/train/" + "n" * 150 + ".npz", "set/test/b.npz"):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes(700)))
    return folder / "data" / "a.tar"


def _read_tar(folder: Path) -> object:
    try:
        fetch_archive([Part("http://127.0.0.1:1/a.tar")], folder / "data", progress=False)
    finally:
        inside = {path for path in folder.rglob("*") if path.is_file()}
        assert all(path.is_relative_to(folder / "data") for path in inside - {folder / "_good"}), "wrote outside"
    return None


_STEPS = {"ee_pos_target": (6, 3), "ee_quat_target": (6, 4), "grasp": (6, 1)}


def _released_robot(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = folder / "set" / "episode_0"
        place.mkdir(parents=True)
        write_video(place / "front.mp4", _PICTURES[:6])
        content = {key: np.ones(shape, np.float32) / (2 if shape[1] == 4 else 1) for key, shape in _STEPS.items()}
        path = place / f"traj{ending}"
        if ending == ".npz":
            np.savez(path, **content)  # type: ignore[arg-type]
        elif ending == ".json":
            path.write_text(json.dumps({key: array.tolist() for key, array in content.items()}))
        else:
            path.write_bytes(pickle.dumps({key: list(array) for key, array in content.items()}, 4))
        return path

    return make


def _read_released_robot(folder: Path) -> object:
    found = ReleasedFolders(folder / "set", ("front",), allow_pickle=True)
    split = next(split for split, count in found.counts.items() if count)
    return found.arrays(split, 0), found.images(split, 0, "front", 8)


def _ogbench(path: Path) -> None:
    np.savez_compressed(path, observations=np.ones((9, 2)), actions=np.ones((9, 2)), terminals=np.arange(9) == 8)


BYTES = (change, change_start)
READERS = {
    "npz": Reader(
        _clip("a.npz", lambda path: np.savez(path, video=_PICTURES, actions=np.arange(12) % 3)),
        _read_clips,
        (*BYTES, change_member),
    ),
    "npz packed": Reader(
        _clip("a.npz", lambda path: np.savez_compressed(path, video=_PICTURES, actions=np.arange(12) % 3)),
        _read_clips,
        (*BYTES, change_member),
    ),
    "npy": Reader(_clip("a.npy", lambda path: np.save(path, _PICTURES)), _read_clips, BYTES),
    "mp4": Reader(_clip("a.mp4", lambda path: write_video(path, _PICTURES)), _read_clips, BYTES),
    "gif": Reader(_clip("a.gif", lambda path: write_video(path, _PICTURES)), _read_clips, BYTES),
    "csv": Reader(_table("x.csv", lambda path: path.write_text(_ROWS)), _read_table, (*BYTES, change_text)),
    "csv.gz": Reader(
        _table("x.csv.gz", lambda path: path.write_bytes(gzip.compress(_ROWS.encode()))),
        _read_table,
        (*BYTES, unpacked(change), unpacked(change_text)),
    ),
    "parquet": Reader(
        _table("x.parquet", lambda path: pandas.read_csv(io.StringIO(_ROWS), parse_dates=["time"]).to_parquet(path)),
        _read_table,
        BYTES,
    ),
    "hdf5": Reader(_table("x.hdf5", _hdf5), lambda folder: read_d4rl(folder / "x.hdf5"), BYTES),
    "minari": Reader(_minari, lambda folder: read_minari(folder, MAZES["umaze"]), BYTES),
    "ogbench": Reader(
        _table("x.npz", _ogbench), lambda folder: read_ogbench(folder / "x.npz"), (*BYTES, change_member)
    ),
    "info.json": Reader(_lerobot("meta/info.json"), _read_lerobot, (change, change_json, change_json)),
    "lerobot episodes": Reader(_lerobot("meta/episodes/**/*.parquet"), _read_lerobot, BYTES),
    "lerobot data": Reader(_lerobot("data/**/*.parquet"), _read_lerobot, BYTES),
    "robot npz": Reader(_released_robot(".npz"), _read_released_robot, (*BYTES, change_member)),
    "robot json": Reader(_released_robot(".json"), _read_released_robot, (change, change_json)),
    "robot pickle": Reader(_released_robot(".pkl"), _read_released_robot, BYTES),
    "checkpoint.json": Reader(_checkpoint(native.HEADER), _read_checkpoint, (change, change_json, change_json)),
    "safetensors": Reader(_checkpoint(native.MODEL), _read_checkpoint, BYTES),
    "training.pt": Reader(_checkpoint(native.TRAINING), _read_checkpoint, (*BYTES, change_member)),
    "ckpt": Reader(_table("x.ckpt", _released), lambda folder: native.load(folder / "x.ckpt"), (*BYTES, change_member)),
    "ckpt of 2019": Reader(
        _table("x.ckpt", lambda path: _released(path, legacy=True)),
        lambda folder: native.load(folder / "x.ckpt"),
        BYTES,
    ),
    "tar": Reader(_tar, _read_tar, BYTES),
}


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """`TooSlow` inside the block after `seconds` of processor time, or six times as many on the clock."""

    def stop(*_: object) -> None:
        raise TooSlow

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def damaged_files(name: str, count: int, seed: int, scratch: Path) -> Counter[str]:
    """Read `count` damaged files; returns how many were read and refused, and the faults. Those are kept in scratch."""
    reader, outcomes = READERS[name], Counter[str]()
    good = scratch / "good"
    good.mkdir(parents=True)
    target = reader.make(good).relative_to(good)
    content = (good / target).read_bytes()
    reader.read(_copy(good, scratch / "untouched"))  # the good file is read
    for number in range(count):
        rng = random.Random(f"{seed} {name} {number}")
        folder = _copy(good, scratch / "copy")
        data = rng.choice(reader.damage)(content, rng)
        (folder / target).write_bytes(data)
        try:
            with limited(SECONDS), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                reader.read(folder)
            outcomes["read"] += 1
        except UserError as error:
            one_line = "\n" not in str(error)
            outcomes["refused" if one_line else f"fault: {number}: two lines"] += 1
        except (Exception, TooSlow) as error:
            outcomes[f"fault: {number}: {type(error).__name__}: {str(error)[:100]}"] += 1
            (scratch / f"fault-{number}{target.suffix}").write_bytes(data)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if used > MEMORY:
        outcomes[f"fault: {used >> 20} MB of memory"] += 1
    return outcomes


def _copy(good: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    return folder


def main() -> int:
    """1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("readers", nargs="*", choices=[*READERS, []], default=[])
    options = parser.parse_args()
    kept, faults = Path(tempfile.mkdtemp(prefix="fuzz-")), 0
    for name in options.readers or READERS:
        started = time.monotonic()
        child = os.fork()
        if not child:
            outcomes = damaged_files(name, options.count, options.seed, kept / name)
            (kept / f"{name}.txt").write_text(repr(dict(outcomes)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        report = kept / f"{name}.txt"
        text = report.read_text() if report.exists() else f"fault: the process ended with {ended}"
        faults += "fault" in text
        print(f"{name:17} {time.monotonic() - started:6.1f} s  {text}", flush=True)
    print(f"{faults} readers with faults, their files are in {kept}" if faults else "no faults")
    if not faults:
        shutil.rmtree(kept)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
