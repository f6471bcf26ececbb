"""Films (mp4, webm, mkv, avi, mov, gif) frame by frame through PyAV, which brings its own ffmpeg.

A few frames cost the frames between the keyframe before them and the last of them. Frames are counted as they are shown; each has the presentation
time that `Episode.times` keeps, so that after a seek it is known which frame came. Where a container seeks badly, decoding begins at the start.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video.files import ACTIONS, FILMS, Group

# What one episode's files hold, read without decoding it: size, length, where its pixels lie, its keyframes, its actions.
#
# | kind | files | reading a clip |
# |---|---|---|
# | stored | npz without compression, npy | its bytes lie in one piece from `offset` on |
# | packed | npz with compression | unpacked from the beginning up to the clip's end |
# | film | mp4, webm, mkv, avi, mov, gif | decoded from the last keyframe before the clip |
#
# A file that cannot be used is no exception but an `Episode` whose `problem` says why: one bad file must not stop a run.

Kind = Literal["stored", "packed", "film"]
Array = NDArray[Any]

_NOTHING = np.zeros(0, dtype=np.int64)
_HEADER_ROOM = 4096
"""Bytes of a .npy that surely hold its header."""


class Unusable(Exception):
    """This file cannot be used; the message says why, without its name."""


@dataclass(frozen=True)
class Episode:
    """One recording. `problem` is empty where it can be read."""

    stem: str
    stamp: str
    file: str = ""
    """The clip's file below the root."""
    kind: Kind = "stored"
    frames: int = 0
    height: int = 0
    width: int = 0
    offset: int = 0
    """Stored: bytes before the first frame."""
    actions: Array | None = None
    """(n,) or (n, a) numbers as they lie on disk, or None."""
    action_problem: str = ""
    """Why there are none, where a file of them is broken."""
    keyframes: NDArray[np.int64] = field(default_factory=lambda: _NOTHING)
    """Film: numbers of the frames decoding can begin at."""
    times: NDArray[np.int64] = field(default_factory=lambda: _NOTHING)
    """Film: presentation times of all frames; [first, step] where they are evenly spaced."""
    problem: str = ""
    again: bool = False
    """The problem may pass (no permission, a disk that is away): look again next time."""

    @property
    def pixels(self) -> int:
        """Bytes of all frames as uint8."""
        return self.frames * self.height * self.width * 3


def inspect(root: Path, group: Group) -> Episode:
    """The episode of `group`. Anything wrong with its files is in `problem`, or in `action_problem` where only actions are."""
    ending = _clip_of(root, group)
    path = group.path(root, ending)
    names: dict[str, Any] = {"stem": group.stem, "stamp": group.stamp, "file": path.relative_to(root).as_posix()}
    try:
        if ending in FILMS:
            facts = inspect_film(path)
        else:
            facts = _inspect_npz(path) if ending == ".npz" else _inspect_npy(path)
        if facts["frames"] < 1:
            raise Unusable("holds no frames")
    except Unusable as reason:
        return Episode(**names, problem=str(reason))
    except OSError as error:
        return Episode(**names, problem=f"cannot be read: {error.strerror or error}", again=True)
    try:
        return Episode(**names, **facts, actions=_read_actions(root, group, ending))
    except Unusable as reason:
        return Episode(**names, **facts, action_problem=str(reason))
    except OSError as error:
        return Episode(**names, **facts, action_problem=f"cannot be read: {error.strerror or error}", again=True)


def _clip_of(root: Path, group: Group) -> str:
    """The ending of the group's clip: a film, else the npz that holds `video`, else the npy."""
    for ending in FILMS:
        if ending in group.endings:
            return ending
    if ".npz" in group.endings and ".npy" in group.endings:
        try:
            with zipfile.ZipFile(group.path(root, ".npz")) as archive:
                return ".npz" if "video.npy" in archive.namelist() else ".npy"
        except (zipfile.BadZipFile, OSError):
            return ".npy"
    return ".npz" if ".npz" in group.endings else ".npy"


def _inspect_npz(path: Path) -> dict[str, Any]:
    with _opened(path) as archive:
        try:
            member = archive.getinfo("video.npy")
        except KeyError:
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
            raise Unusable(f"has no array 'video' (it holds {names})") from None
        stored = member.compress_type == zipfile.ZIP_STORED
        with _member(archive, member) as file:
            shape, header = _read_header(file)
        if member.file_size < header + int(np.prod(shape)):
            raise Unusable("is cut off: its array 'video' is shorter than it says")
        offset = _data_begin(path, member) + header if stored else header
    return {"kind": "stored" if stored else "packed", "offset": offset} | _sizes(shape)


def _inspect_npy(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        shape, header = _read_header(file)
    if path.stat().st_size < header + int(np.prod(shape)):
        raise Unusable("is cut off: the file is shorter than its header says")
    return {"kind": "stored", "offset": header} | _sizes(shape)


def _sizes(shape: tuple[int, ...]) -> dict[str, int]:
    return {"frames": shape[0], "height": shape[1], "width": shape[2]}


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise Unusable("is not a readable npz file (cut off or damaged?)") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Unusable(f"is damaged at its array '{member.filename.removesuffix('.npy')}'") from error


def _data_begin(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip member begin: behind its local header, whose two lengths only that header knows."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Unusable("is damaged at its array 'video'")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + int(name) + int(extra)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """Shape of the frames in a .npy and the length of its header. `Unusable` for anything but uint8 (t, h, w, 3) in C order."""
    shape, fortran, dtype, length = npy_header(file)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran:
        raise Unusable(f"holds {dtype} {shape}, expected uint8 frames of shape (t, h, w, 3)")
    return shape, length


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, type, and length of the header of the .npy that begins at `file`."""
    from io import BytesIO

    try:
        begin = BytesIO(file.read(_HEADER_ROOM))
        version = np.lib.format.read_magic(begin)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(begin)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unusable("is not a readable npy array (cut off or damaged?)") from error
    return tuple(shape), fortran, dtype, begin.tell()


def _read_actions(root: Path, group: Group, clip: str) -> Array | None:
    """The episode's actions: from the npz that is the clip, else from the first of `ACTIONS` beside it."""
    if clip == ".npz":
        inside = _actions_in(group.path(root, clip), optional=True)
        if inside is not None:
            return inside
    for ending in ACTIONS:
        if ending in group.endings and ending != clip:
            path = group.path(root, ending)
            return _checked(_actions_in(path) if ending.endswith("npz") else _actions_of(path), path)
    return None


def _actions_in(path: Path, *, optional: bool = False) -> Array | None:
    """The array 'actions' of a npz; None where it is not there and may be missing."""
    with _opened(path) as archive:
        if "actions.npy" not in archive.namelist():
            if optional:
                return None
            raise Unusable(f"{path.name} has no array 'actions'")
        try:
            with archive.open("actions.npy") as file:
                return _checked(np.lib.format.read_array(file, allow_pickle=False), path)
        except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise Unusable(f"the actions in {path.name} cannot be read ({error})") from error


def _actions_of(path: Path) -> Array:
    """Actions of a npy, or of a csv with a row a frame, commas between columns and perhaps one line of names above."""
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        try:
            [float(value) for value in lines[0].split(",")]
        except ValueError:
            lines = lines[1:]
        values = np.array([[float(value) for value in line.split(",")] for line in lines])
        whole = bool((values == np.round(values)).all())
        return (values.astype(np.int64) if whole else values)[:, 0 if values.shape[1] == 1 else slice(None)]
    except (ValueError, EOFError, IndexError, UnicodeError) as error:
        raise Unusable(f"the actions in {path.name} cannot be read ({error})") from error


def _checked(actions: Array | None, path: Path) -> Array | None:
    if actions is None:
        return None
    if actions.dtype.kind not in "iubf" or actions.ndim not in (1, 2):
        raise Unusable(
            f"the actions in {path.name} are {actions.dtype} {actions.shape}, expected numbers (t,) or (t, a)"
        )
    if actions.dtype.kind == "f" and not np.isfinite(actions).all():
        raise Unusable(f"the actions in {path.name} are not finite (NaN or infinity)")
    return actions.astype(np.float32) if actions.dtype.kind == "f" else actions.astype(np.int64)


Pixels = NDArray[np.uint8]
_TABLED = (".mp4", ".mov")
"""Containers with a table of all their frames; of the others every frame is decoded once to know how many there are."""
_TIMED = (*_TABLED, ".mkv", ".webm")
"""Containers that say when each frame is shown; of the others clips are decoded from the start."""


class _Astray(Exception):
    """After a seek another frame came than the times say."""


def inspect_film(path: Path) -> dict[str, Any]:
    """Size, number of frames, their times and the keyframes of a film, as `Episode` holds them. `Unusable` for a damaged one."""
    with _opened_video(path) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise Unusable("holds no frame that can be decoded")
        height, width = _pixels(first, _Converter()).shape[:2]
    with _opened_video(path) as (container, stream):
        if path.suffix.lower() in _TABLED:
            packets = [packet for packet in container.demux(stream) if packet.size]
            present = len(packets) if len(packets) >= stream.frames else stored_frames(path)
            if present < stream.frames:
                raise Unusable(f"is cut off: {present} of {stream.frames} frames are there")
            # Decoders discard the frames outside the edit list of a trimmed video.
            entries = [(packet.pts, packet.is_keyframe) for packet in packets if not packet.is_discard]
        else:
            entries = [(frame.pts, frame.key_frame) for frame in _decoded(container, stream)]
    frames = len(entries)
    sizes = {"kind": "film", "frames": frames, "height": height, "width": width}
    distinct = {time for time, _ in entries} - {None}
    if path.suffix.lower() not in _TIMED or len(distinct) < frames:
        return sizes
    entries.sort()
    times = np.array([time for time, _ in entries], dtype=np.int64)
    keyframes = np.flatnonzero([key for _, key in entries])
    steps = np.diff(times)
    even = frames > 2 and bool((steps == steps[0]).all())
    return sizes | {"keyframes": keyframes, "times": np.array([times[0], steps[0]]) if even else times}


def stored_frames(path: Path) -> int:
    """Frames that a mp4 or mov file stores, including those that its edit list leaves out; nothing is decoded."""
    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def read_film(path: Path, episode: Episode, frames: NDArray[np.int64]) -> Pixels:
    """(n, h, w, 3): `frames` (rising, repeats allowed) of a film. `Unusable` where they cannot be decoded."""
    wanted, places = np.unique(frames, return_inverse=True)
    times = _all_times(episode)
    found: dict[int, Pixels] = {}
    if len(times):
        before = episode.keyframes[episode.keyframes <= wanted[0]]
        with suppress(_Astray, Unusable):
            found = _seek_and_decode(path, times, int(before[-1]) if len(before) else 0, wanted)
    if len(found) < len(wanted):
        found = _decode_from_start(path, wanted)
    missing = [number for number in wanted.tolist() if number not in found]
    if missing:
        raise Unusable(f"has no frame {missing[0]} that can be decoded, but should have {episode.frames}")
    pixels = np.stack([found[number] for number in wanted.tolist()])
    if pixels.shape[1:3] != (episode.height, episode.width):
        raise Unusable("changes its size on the way")
    return pixels[places]


def film_blocks(path: Path, episode: Episode, block: int) -> Iterator[Pixels]:
    """All frames in turn, at most `block` at a time, (n, h, w, 3). `Unusable` where the film ends early."""
    converter, buffer, count = _Converter(), [], 0
    with _opened_video(path) as (container, stream):
        for frame in _decoded(container, stream):
            if count == episode.frames:
                break
            pixels = _pixels(frame, converter)
            if pixels.shape[:2] != (episode.height, episode.width):
                raise Unusable("changes its size on the way")
            buffer.append(pixels)
            count += 1
            if len(buffer) == block:
                yield np.stack(buffer)
                buffer = []
    if buffer:
        yield np.stack(buffer)
    if count < episode.frames:
        raise Unusable(f"is damaged: only {count} of its {episode.frames} frames can be decoded")


def _seek_and_decode(path: Path, times: NDArray[np.int64], key: int, wanted: NDArray[np.int64]) -> dict[int, Pixels]:
    """`wanted` frames by number, decoded from keyframe `key` on. `_Astray` when the container went elsewhere."""
    targets = {int(times[number]): number for number in wanted.tolist()}
    first, last = int(times[wanted[0]]), int(times[wanted[-1]])
    found: dict[int, Pixels] = {}
    converter = _Converter()
    with _opened_video(path) as (container, stream):
        if key:
            container.seek(int(times[key]), stream=stream)
        started = False
        for packet in container.demux(stream):
            # frames that nothing refers to and nobody asked for are not decoded
            unasked = packet.pts is not None and packet.pts < first
            stream.codec_context.skip_frame = "NONREF" if unasked else "DEFAULT"
            for frame in packet.decode():
                if frame.pts is None or (not started and frame.pts > first):
                    raise _Astray
                started = True
                if frame.pts in targets:
                    found[targets[frame.pts]] = _pixels(frame, converter)
                if frame.pts >= last:
                    return found
    return found


def _decode_from_start(path: Path, wanted: NDArray[np.int64]) -> dict[int, Pixels]:
    """`wanted` frames by number, counted from the first."""
    found: dict[int, Pixels] = {}
    converter, numbers = _Converter(), set(wanted.tolist())
    with _opened_video(path) as (container, stream):
        for number, frame in enumerate(_decoded(container, stream)):
            if number in numbers:
                found[number] = _pixels(frame, converter)
            if number >= wanted[-1]:
                break
    return found


def _all_times(episode: Episode) -> NDArray[np.int64]:
    """Presentation time of every frame; empty where the film has none."""
    times = episode.times
    if len(times) == 2 and episode.frames != 2:
        return times[0] + times[1] * np.arange(episode.frames)
    return times


@contextmanager
def _opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and its video stream; `Unusable` in place of ffmpeg's errors while it is open."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Unusable("holds no video")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # clips are short and many; they are decoded side by side instead
            yield container, stream
    except FileNotFoundError:
        raise
    except av.error.FFmpegError as error:
        raise Unusable(f"cannot be decoded ({error.strerror or error})") from error


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise Unusable("is damaged")
        yield frame


class _Converter:
    """Decoded frames to RGB, by one thread where this PyAV can be told: starting threads costs more than converting a small frame."""

    def __init__(self) -> None:
        self._reformatter = av.video.reformatter.VideoReformatter()
        told = "threads" in (self._reformatter.reformat.__doc__ or "")
        self._words: dict[str, Any] = {
            "format": "rgb24",
            "interpolation": "FAST_BILINEAR",
            **({"threads": 1} if told else {}),
        }

    def __call__(self, frame: Any) -> Pixels:
        return np.asarray(self._reformatter.reformat(frame, **self._words).to_ndarray())


def _pixels(frame: Any, converter: _Converter) -> Pixels:
    """(h, w, 3) as shown: a film that was recorded on its side is turned upright."""
    pixels = converter(frame)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
