"""Clips decoded once: the same pixels, whole files or none, on with what is missing, and a line where there is no room."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from diffusion_forcing.datasets.video.clips import FrameReader, VideoCache, blocks, fit
from diffusion_forcing.datasets.video.episode import Episode, find_groups, inspect
from diffusion_forcing.errors import UserError
from tests.datasets.video_makers import decode, moving_pattern, noise, write_npz, write_video


def episodes_of(root: Path) -> list[Episode]:
    return [inspect(root, group) for group in find_groups(root)]


def everything_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def some(root: Path) -> list[Episode]:
    """A video, a packed and a stored npz of 32 by 32."""
    write_video(root / "a" / "video.mp4", moving_pattern(20, 32))
    write_npz(root / "b" / "packed.npz", noise(20, 32, seed=1), packed=True)
    write_npz(root / "b" / "stored.npz", noise(20, 32, seed=2))
    return episodes_of(root)


@pytest.mark.parametrize("size", [32, 16, 10])
def test_decoded_once_a_clip_is_what_decoding_it_gives(tmp_path: Path, size: int) -> None:
    root = tmp_path / "data"
    episodes = some(root)
    cache = VideoCache(root, tmp_path / "cache", size)
    assert cache.build(episodes, workers=2, progress=False) == {}
    fast = FrameReader(root, episodes, size, [cache.place(episode) for episode in episodes])
    plain = FrameReader(root, episodes, size, [None] * 3)
    for number in range(3):
        for frames in (np.arange(4, 12), np.array([1, 3, 5, 19, 19])):
            assert (fast.read(number, frames) == plain.read(number, frames)).all()
    written = everything_below(tmp_path / "cache")
    assert len(written) == (2 if size == 32 else 3)  # what is plain and of the right size is not copied
    assert (
        np.load(next((tmp_path / "cache").rglob("video.*.npy"))) == fit(decode(root / "a" / "video.mp4"), size)
    ).all()


def test_what_is_decoded_is_not_decoded_again_and_a_changed_source_is(tmp_path: Path) -> None:
    root = tmp_path / "data"
    cache = VideoCache(root, tmp_path / "cache", 32)
    cache.build(some(root), progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    (tmp_path / "cache" / "32" / "a" / "killed.npy.tmp").write_text("half")
    write_npz(root / "b" / "packed.npz", noise(30, 32, seed=3), packed=True)
    episodes = episodes_of(root)
    assert [episode.stem for episode in episodes if not cache.place(episode)] == ["b/packed"]
    cache.build(episodes, progress=False)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy*")}
    assert len(after) == 2 and len(before.items() & after.items()) == 1
    assert len(np.load(next((tmp_path / "cache").rglob("packed.*.npy")))) == 30


def test_a_damaged_clip_is_returned_with_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    some(root)
    raw = bytearray((root / "b" / "packed.npz").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (root / "b" / "packed.npz").write_bytes(raw)
    cache = VideoCache(root, tmp_path / "cache", 32)
    damaged = cache.build(episodes_of(root), progress=False)
    assert list(damaged) == ["b/packed"] and damaged["b/packed"].problem.startswith("is damaged or cut off")
    assert not damaged["b/packed"].again and len(everything_below(tmp_path / "cache")) == 1


def test_a_source_that_has_gone_is_looked_for_again_next_time(tmp_path: Path) -> None:
    root = tmp_path / "data"
    episodes = some(root)
    (root / "a" / "video.mp4").unlink()
    damaged = VideoCache(root, tmp_path / "cache", 32).build(episodes, progress=False)
    assert damaged["a/video"].again and "No such file" in damaged["a/video"].problem


@pytest.mark.parametrize("size", [50, 5000])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path, size: int) -> None:
    root = tmp_path / "data"
    episodes = some(root)
    cache = VideoCache(root, tmp_path / "cache", 32)
    with small_disk(size), pytest.raises(UserError, match="cannot write the cache") as caught:
        cache.build(episodes, progress=False)
    assert "\n" not in str(caught.value) and "dataset.cache=none" in str(caught.value)
    assert everything_below(tmp_path / "cache") == set()
    assert cache.build(episodes, progress=False) == {} and all(map(cache.place, episodes))


def test_without_room_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    episodes = some(root)
    cache = VideoCache(root, tmp_path / "cache", 32)
    monkeypatch.setattr("diffusion_forcing.datasets.video.clips.free_bytes", lambda folder: 100_000)
    with pytest.raises(UserError, match=r"takes 0\.1 MB of the 0\.1 MB free"):
        cache.build(episodes, progress=False)
    assert everything_below(tmp_path / "cache") == set()
    assert cache.build(episodes, sparing=True, progress=False) == {}
    assert everything_below(tmp_path / "cache") == set()
    assert "clips are decoded at every read" in capsys.readouterr().out


def test_an_interrupt_stops_the_work_and_leaves_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    for i in range(6):
        write_npz(root / f"{i}.npz", noise(10, 16, seed=i), packed=True)
    episodes = episodes_of(root)
    cache = VideoCache(root, tmp_path / "cache", 16)
    read = blocks

    def interrupted(root: Path, episode: Episode) -> Iterator[np.ndarray]:
        if episode.stem == "3":
            raise KeyboardInterrupt
        yield from read(root, episode)

    monkeypatch.setattr("diffusion_forcing.datasets.video.clips.blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.build(episodes, progress=False)
    assert all(name.endswith(".npy") for name in everything_below(tmp_path / "cache"))
    monkeypatch.undo()
    assert cache.build(episodes, progress=False) == {} and all(map(cache.place, episodes))


def test_frames_are_cropped_to_their_middle_and_made_smaller_without_aliasing() -> None:
    checks = np.indices((40, 64)).sum(0) % 2 * 255
    wide = np.repeat(checks[None, :, :, None], 3, axis=3).astype(np.uint8)
    assert (np.abs(fit(wide, 10).astype(int) - 127) <= 2)[
        :, 1:-1, 1:-1
    ].all()  # a fine pattern becomes grey, not stripes
    wide[:, :, :12], wide[:, :, 52:] = 7, 7
    assert fit(wide, 40).shape == (1, 40, 40, 3) and not (fit(wide, 40) == 7).any()
    same = noise(2, 10)
    assert np.shares_memory(fit(same, 10), same)
