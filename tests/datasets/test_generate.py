"""Generated episodes: TECO's layout, the same bytes however they were made, and nothing half made whatever goes wrong."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from diffusion_forcing.datasets.generate import Simulator, episode_file, generate
from diffusion_forcing.errors import UserError

from .noise_simulator import Noise

COUNTS = {"training": 4, "test": 2}


def make(simulator: Simulator, folder: Path, counts: Mapping[str, int] = COUNTS, *, workers: int = 1) -> list[Path]:
    return generate(simulator, folder, counts, workers=workers, progress=False)


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder with a hash of its bytes."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def noise(tmp_path: Path) -> Noise:
    return Noise(diary=tmp_path / "diary")


def test_episodes_lie_in_tecos_layout_stored_and_whole(tmp_path: Path, noise: Noise) -> None:
    files = make(noise, tmp_path / "set")
    assert [str(file.relative_to(tmp_path / "set")) for file in files] == [
        *(f"training/00000{k}.npz" for k in range(4)),
        *(f"test/00000{k}.npz" for k in range(2)),
    ]
    assert set(digests(tmp_path / "set")) == {
        "recipe.json",
        *(str(file.relative_to(tmp_path / "set")) for file in files),
    }
    with np.load(files[1]) as episode:
        assert episode["video"].shape == (5, 8, 8, 3) and episode["video"].dtype == np.uint8
        assert (episode["video"] == noise.make("training", 1)["video"]).all()
    with zipfile.ZipFile(files[1]) as archive:
        assert [entry.filename for entry in archive.infolist()] == ["video.npy", "actions.npy"]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, noise: Noise) -> None:
    for workers in (1, 3):
        make(noise, tmp_path / str(workers), workers=workers)
    assert digests(tmp_path / "1") == digests(tmp_path / "3")


def test_more_episodes_later_make_only_the_new_ones_and_every_worker_closes_its_simulator(
    tmp_path: Path, noise: Noise
) -> None:
    make(noise, tmp_path / "set", {"training": 2})
    make(noise, tmp_path / "set", {"training": 3}, workers=4)
    make(noise, tmp_path / "set", {"training": 3})
    lines = noise.diary.read_text().splitlines()
    assert sorted(lines) == ["closed", "closed", "training 0", "training 1", "training 2"]


def test_an_episode_that_was_cut_off_is_made_again(tmp_path: Path, noise: Noise) -> None:
    files = make(noise, tmp_path / "set")
    before = digests(tmp_path / "set")
    files[2].write_bytes(files[2].read_bytes()[:300])
    files[3].with_name(".000003.npz.4194305-0a0a0a0a.tmp").write_bytes(b"half")
    make(noise, tmp_path / "set")
    assert digests(tmp_path / "set") == before


def test_a_worker_that_is_killed_is_told_and_the_next_call_goes_on(tmp_path: Path, noise: Noise) -> None:
    with pytest.raises(UserError, match=r"the worker at episode 2 of training ended with exit code -9 .* run it again"):
        make(Noise(diary=noise.diary, fault="death"), tmp_path / "set", workers=1)
    assert [file.name for file in (tmp_path / "set/training").iterdir()] == ["000000.npz", "000001.npz"]
    make(noise, tmp_path / "set")
    make(noise, tmp_path / "other")
    assert digests(tmp_path / "set") == digests(tmp_path / "other")


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path: Path, noise: Noise) -> None:
    with pytest.raises(UserError, match=r"cannot write in .*set: File too large; make room or choose another"):
        make(Noise(diary=noise.diary, fault="full disk"), tmp_path / "set", workers=1)
    assert set(digests(tmp_path / "set")) == {"recipe.json", "training/000000.npz", "training/000001.npz"}


def test_what_the_user_caused_is_said_as_it_is_and_our_mistakes_with_their_traceback(
    tmp_path: Path, noise: Noise
) -> None:
    with pytest.raises(UserError, match=r"^no such world$"):
        make(Noise(diary=noise.diary, fault="user"), tmp_path / "set")
    with pytest.raises(RuntimeError, match=r"(?s)episode 2 of training:.*in _fail.*ZeroDivisionError: one of ours"):
        make(Noise(diary=noise.diary, fault="bug"), tmp_path / "set")


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path, noise: Noise) -> None:
    make(noise, tmp_path / "set", {"test": 1})
    before = digests(tmp_path / "set")
    with pytest.raises(UserError, match=r"holds episodes of another recipe \(seed 0, not 1; frames 5, not 6\)"):
        make(Noise(diary=noise.diary, seed=1, frames=6), tmp_path / "set", {"test": 1})
    assert digests(tmp_path / "set") == before


def test_episodes_of_others_are_not_mixed_with_generated_ones(tmp_path: Path, noise: Noise) -> None:
    file = episode_file(tmp_path / "set", "training", 7)
    file.parent.mkdir(parents=True)
    np.savez(file, video=np.zeros(1))
    with pytest.raises(UserError, match="holds episodes that were not generated"):
        make(noise, tmp_path / "set")
    assert set(digests(tmp_path / "set")) == {"training/000007.npz"}


def test_a_folder_that_cannot_be_written_and_a_damaged_recipe_are_user_errors(tmp_path: Path, noise: Noise) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*choose another dataset.save_dir"):
        make(noise, tmp_path / "file")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "recipe.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"recipe.json cannot be read"):
        make(noise, tmp_path / "set")
    with pytest.raises(UserError, match="workers must be at least 0"):
        make(noise, tmp_path / "set", workers=-1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
@pytest.mark.slow
def test_an_interrupted_generation_leaves_whole_episodes_no_process_and_goes_on(
    tmp_path: Path, noise: Noise, how: signal.Signals
) -> None:
    folder = tmp_path / "set"
    words = [sys.executable, "-m", "tests.datasets.noise_simulator", str(folder), str(noise.diary)]
    # a shell's background jobs ignore Ctrl-C, and so would what a test started there inherits
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, heard)
    wait_until(lambda: len(list(folder.glob("training/*.npz"))) >= 3)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # what a terminal does
    else:
        process.kill()
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    assert "Traceback" not in said
    wait_until(lambda: noise.diary.read_text().count("closed") == 2)
    assert not list(folder.rglob("*.tmp"))
    made = len(list(folder.glob("training/*.npz")))
    assert 3 <= made < 400
    make(noise, folder, {"training": 12})
    make(noise, tmp_path / "other", {"training": 12})
    assert {**digests(folder), **digests(tmp_path / "other")} == digests(folder)


def wait_until(condition: object, *, seconds: float = 30.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
