"""What is learnt of an episode's files without decoding them, and what is said of those that cannot be used."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffusion_forcing.datasets.video.clips import blocks, read_frames
from diffusion_forcing.datasets.video.episode import Episode, find_groups, inspect
from diffusion_forcing.limits import Refused
from tests.datasets.video_makers import cut, moving_pattern, noise, write_npz, write_video


def looked_at(folder: Path) -> Episode:
    (group,) = find_groups(folder)
    return inspect(folder, group)


@pytest.mark.parametrize("packed", [False, True])
def test_any_frames_of_a_npz_are_read_as_they_were_written(tmp_path: Path, packed: bool) -> None:
    video = noise(30)
    write_npz(tmp_path / "a.npz", video, np.arange(30) % 3, packed=packed)
    episode = looked_at(tmp_path)
    assert (episode.kind, episode.frames, episode.height, episode.width) == (
        "packed" if packed else "stored",
        30,
        16,
        16,
    )
    assert episode.actions is not None and episode.actions.tolist() == [i % 3 for i in range(30)]
    for frames in ([0], [29], [3, 4, 5, 6], [1, 3, 5, 7], [0, 1, 2, 10, 11, 20], [27, 28, 29, 29, 29]):
        assert (read_frames(tmp_path, episode, np.array(frames)) == video[frames]).all()
    assert (np.concatenate(list(blocks(tmp_path, episode))) == video).all()


def test_any_frames_of_a_npy_are_read_as_they_were_written(tmp_path: Path) -> None:
    video = noise(9)
    np.save(tmp_path / "a.npy", video)
    np.savetxt(tmp_path / "a.csv", np.arange(18).reshape(9, 2) / 7, delimiter=",", header="dx,dy")
    episode = looked_at(tmp_path)
    assert episode.kind == "stored" and episode.actions is not None and episode.actions.shape == (9, 2)
    assert (read_frames(tmp_path, episode, np.array([2, 5, 8])) == video[[2, 5, 8]]).all()


@pytest.mark.parametrize("ending", [".npz", ".npy", ".csv", ".actions.npz", ".actions.npy", ".actions.csv"])
def test_actions_are_found_beside_a_video_in_any_form(tmp_path: Path, ending: str) -> None:
    write_video(tmp_path / "a.mp4", moving_pattern(5))
    actions, path = np.array([3, 1, 0, 2, 1]), tmp_path / f"a{ending}"
    if ending.endswith("npz"):
        np.savez(path, actions=actions)
    elif ending.endswith("npy"):
        np.save(path, actions)
    else:
        path.write_text("action\n" + "\n".join(map(str, actions)) + "\n")
    found = looked_at(tmp_path).actions
    assert found is not None and found.tolist() == actions.tolist() and found.dtype.kind == "i"


def test_of_npz_and_npy_the_one_with_frames_is_the_clip(tmp_path: Path) -> None:
    for folder, clip in (("one", "npy"), ("two", "npz")):
        video, actions = noise(4), np.zeros(4, dtype=int)
        (tmp_path / folder).mkdir()
        if clip == "npy":
            np.save(tmp_path / folder / "a.npy", video)
            np.savez(tmp_path / folder / "a.npz", actions=actions)
        else:
            np.savez(tmp_path / folder / "a.npz", video=video)
            np.save(tmp_path / folder / "a.npy", actions)
        episode = looked_at(tmp_path / folder)
        assert episode.file == f"a.{clip}" and episode.actions is not None and len(episode.actions) == 4


def test_a_video_without_actions_has_none(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_pattern(5))
    episode = looked_at(tmp_path)
    assert episode.actions is None and not episode.action_problem and not episode.problem


def _npz_of(name: str, values: np.ndarray) -> object:
    return lambda folder: np.savez(folder / "a.npz", **{name: values})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_npz_of("frames", noise(3)), "has no array 'video' (it holds frames)"),
        (_npz_of("video", noise(3).astype(np.float32)), "holds float32 (3, 16, 16, 3), expected uint8"),
        (_npz_of("video", noise(3).transpose(0, 3, 1, 2)), "holds uint8 (3, 3, 16, 16), expected uint8"),
        (_npz_of("video", noise(3)[:0]), "holds no frames"),
        (_npz_of("video", np.array([{}], dtype=object)), "expected uint8 frames"),
        (lambda folder: cut(write_npz(folder / "a.npz", noise(3)), 30), "is not a readable npz file"),
        (lambda folder: (folder / "a.npz").write_bytes(b""), "is not a readable npz file"),
        (lambda folder: (folder / "a.npy").write_bytes(b"no array"), "is not a readable npy array"),
        (lambda folder: (np.save(folder / "a.npy", noise(3)), cut(folder / "a.npy", 1)), "is cut off"),
        (lambda folder: cut(write_video(folder / "a.mp4", moving_pattern(9)), 400), "cannot be decoded"),
        (lambda folder: (folder / "a.mp4").write_bytes(b"x" * 5000), "cannot be decoded"),
        (lambda folder: (folder / "a.webm").write_bytes(b""), "cannot be decoded"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_in_one_line(tmp_path: Path, make: object, words: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    problem = looked_at(tmp_path).problem
    assert words in problem and "\n" not in problem


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("a.npy", np.zeros((2, 2, 2)), "are float64 (2, 2, 2), expected numbers (t,) or (t, a)"),
        ("a.npy", np.array(["left", "right"]), "expected numbers"),
        ("a.npy", np.array([1.0, np.nan]), "not finite"),
        ("a.csv", "0\nleft\n", "cannot be read"),
        ("a.csv", "", "cannot be read"),
        ("a.npz", {"moves": np.zeros(3)}, "a.npz has no array 'actions'"),
    ],
)
def test_actions_that_cannot_be_read_leave_the_pixels_usable(
    tmp_path: Path, name: str, values: object, words: str
) -> None:
    write_video(tmp_path / "a.mp4", moving_pattern(3))
    if isinstance(values, dict):
        np.savez(tmp_path / name, **values)
    elif isinstance(values, str):
        (tmp_path / name).write_text(values)
    else:
        np.save(tmp_path / name, values)
    episode = looked_at(tmp_path)
    assert words in episode.action_problem and not episode.problem and episode.actions is None


def test_a_packed_array_that_is_damaged_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", noise(20), packed=True)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    episode = looked_at(tmp_path)
    assert not episode.problem  # its ends are whole
    with pytest.raises(Refused, match="damaged or cut off"):
        list(blocks(tmp_path, episode))


def test_a_file_without_permission_is_looked_at_again_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / "a.npz", noise(3))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    episode = looked_at(tmp_path)
    assert episode.problem == "cannot be read: Permission denied" and episode.again


def test_reading_a_clip_opens_no_more_bytes_than_the_clip_has(tmp_path: Path) -> None:
    size = 16 * 16 * 3
    write_npz(tmp_path / "a.npz", noise(2000), packed=False)
    episode = looked_at(tmp_path)
    before = _bytes_read()
    read_frames(tmp_path, episode, np.arange(1000, 1016))
    if before is not None:
        assert _bytes_read() - before < 16 * size + 4096  # type: ignore[operator]


def _bytes_read() -> int | None:
    """Bytes this process asked the system for; None where it does not say."""
    if not os.path.exists("/proc/self/io"):
        return None
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
