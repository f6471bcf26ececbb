"""Frames out of the middle of a video are those that decoding it from the start gives."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from diffusion_forcing.datasets.video import container
from diffusion_forcing.datasets.video.clips import blocks, read_frames
from diffusion_forcing.datasets.video.container import video_metadata
from diffusion_forcing.datasets.video.episode import Episode, find_groups, inspect
from diffusion_forcing.limits import Refused
from tests.datasets.video_makers import decode, moving_pattern, trim, write_video

FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "h264 as TECO has it": ("a.mp4", {}),
    "h264, many keyframes": ("a.mp4", {"g": "7"}),
    "h264, open groups": ("a.mp4", {"g": "9", "x264-params": "open-gop=1:bframes=3"}),
    "h264, no frame waits for another": ("a.mov", {"tune": "zerolatency"}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4", "b": "300000"}),
    "matroska": ("a.mkv", {"g": "8"}),
    "vp8": ("a.webm", {"codec": "libvpx", "b": "300000", "g": "8", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "b": "300000", "g": "8"}),
    "avi": ("a.avi", {"codec": "mpeg4", "b": "300000"}),
    "h264 in avi": ("a.avi", {"g": "8"}),
    "gif": ("a.gif", {}),
}


def looked_at(folder: Path) -> Episode:
    (group,) = find_groups(folder)
    return inspect(folder, group)


@pytest.mark.parametrize("name", FORMATS)
def test_frames_from_anywhere_are_those_of_decoding_everything(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, words = FORMATS[name]
    path = write_video(tmp_path / file, moving_pattern(40, 32), **words)  # type: ignore[arg-type]
    every, episode = decode(path), looked_at(tmp_path)
    assert (episode.kind, episode.frames, episode.height, episode.width) == ("video", 40, 32, 32)
    for frames in ([0], [39], [20], list(range(17, 25)), list(range(5, 40, 6)), [38, 39, 39, 39]):
        assert (read_frames(tmp_path, episode, np.array(frames)) == every[frames]).all()
    monkeypatch.setattr("diffusion_forcing.datasets.video.clips._BLOCK_BYTES", 16 * 32 * 32 * 3)
    parts = list(blocks(tmp_path, episode))
    assert [len(part) for part in parts] == [16, 16, 8] and (np.concatenate(parts) == every).all()


def test_a_clip_decodes_only_from_the_keyframe_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", moving_pattern(120, 32), g="10", bf="0")
    episode = looked_at(tmp_path)
    assert episode.keyframes.tolist() == list(range(0, 120, 10)) and len(episode.times) == 2
    decoded: list[int] = []

    class Counting(container.Converter):
        def __call__(self, frame: Any) -> container.Pixels:
            decoded.append(frame.pts)
            return super().__call__(frame)

    demux = av.container.InputContainer.demux
    packets: list[int] = []

    class Counted:
        """A container that counts the packets it reads."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def demux(self, stream: Any) -> Iterator[Any]:
            for packet in demux(self._inner, stream):
                packets.append(packet.size)
                yield packet

    opened = container.opened

    @contextmanager
    def counting(path: Path) -> Iterator[tuple[Any, Any]]:
        with opened(path) as (inner, stream):
            yield Counted(inner), stream

    monkeypatch.setattr(container, "Converter", Counting)
    monkeypatch.setattr(container, "opened", counting)
    read_frames(tmp_path, episode, np.arange(83, 88))
    assert len(decoded) == 5 and 0 < len(packets) <= 10


def test_uneven_times_are_kept_one_by_one(tmp_path: Path) -> None:
    video, path = moving_pattern(12, 32), tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=20, options={"g": "4", "crf": "10"})
        stream.height = stream.width = 32
        for number, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number**2
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    episode = looked_at(tmp_path)
    assert len(episode.times) == 12
    assert (read_frames(tmp_path, episode, np.array([5, 9, 11])) == decode(path)[[5, 9, 11]]).all()


def test_a_container_that_seeks_wrongly_is_read_from_the_start(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_pattern(40, 32), g="8")
    episode = looked_at(tmp_path)
    shifted = Episode(**{**vars(episode), "times": episode.times + 7})
    assert (read_frames(tmp_path, shifted, np.array([30, 31])) == decode(path)[[30, 31]]).all()


@pytest.mark.parametrize(("frames", "size"), [(1, (16, 16)), (2, (18, 34)), (3, (16, 16))])
def test_short_videos_and_odd_shapes_are_read(tmp_path: Path, frames: int, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mp4", moving_pattern(frames, size))
    episode = looked_at(tmp_path)
    assert (episode.frames, episode.height, episode.width) == (frames, *size)
    assert (read_frames(tmp_path, episode, np.arange(frames)) == decode(path)).all()


def test_a_video_recorded_sideways_is_turned_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_pattern(3, (16, 32)))
    every, raw = decode(path), bytearray(path.read_bytes())
    matrix = raw.index(b"tkhd") + 44
    raw[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise by 90°
    path.write_bytes(raw)
    episode = looked_at(tmp_path)
    assert (episode.height, episode.width) == (32, 16)
    assert (read_frames(tmp_path, episode, np.array([1]))[0] == np.rot90(every[1], -1)).all()


def test_a_video_damaged_inside_says_so_and_never_gives_other_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_pattern(60, 64), g="10")
    episode, every = looked_at(tmp_path), decode(path)
    raw = bytearray(path.read_bytes())
    middle = raw.index(b"mdat") + (len(raw) - raw.index(b"mdat")) // 3
    raw[middle : middle + 600] = bytes(600)
    path.write_bytes(raw)
    with pytest.raises(Refused):
        list(blocks(tmp_path, episode))
    assert (read_frames(tmp_path, episode, np.arange(52, 58)) == every[52:58]).all()  # behind the damage all is well


@pytest.mark.parametrize("first", [0, 5])
def test_a_video_cut_off_before_its_end_says_how_much_is_there(tmp_path: Path, first: int) -> None:
    path = write_video(tmp_path / "a.mp4", moving_pattern(40, 32), movflags="+faststart")
    raw = path.read_bytes()
    if raw.index(b"moov") > raw.index(b"mdat"):
        with (
            av.open(str(path)) as source,
            av.open(str(path.with_suffix(".mov")), "w", options={"movflags": "+faststart"}) as out,
        ):
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        path.unlink()
        path = path.with_suffix(".mov")
        raw = trim(path, first=first).read_bytes()
    path.write_bytes(raw[: len(raw) * 2 // 3])
    assert "is cut off" in looked_at(tmp_path).problem
    with pytest.raises(Refused, match="cut off"):
        video_metadata(path)


@pytest.mark.parametrize(("first", "last"), [(5, 0), (0, 5), (13, 20)])
def test_frames_outside_the_edit_list_of_a_trimmed_video_do_not_count(tmp_path: Path, first: int, last: int) -> None:
    path = trim(write_video(tmp_path / "a.mp4", moving_pattern(40, 32), g="10"), first=first, last=last)
    episode, every = looked_at(tmp_path), decode(path)
    assert len(every) == 40 - first - last
    assert (episode.problem, episode.frames, video_metadata(path)) == ("", len(every), (len(every), 20))
    for frames in ([0], [len(every) - 1], list(range(3, len(every), 2))):
        assert (read_frames(tmp_path, episode, np.array(frames)) == every[frames]).all()
