"""D4RL's schema: what is written is read back, and every way a file can be wrong is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffusion_forcing.datasets.mazes import d4rl
from diffusion_forcing.datasets.windows import RunningStatistics
from diffusion_forcing.errors import UserError
from tests.datasets.makers import steps, write_file


def statistics(observations: np.ndarray, actions: np.ndarray) -> dict[str, list[float]]:
    running = RunningStatistics()
    running.add(observations, actions)
    return running.statistics()


def read_all(path: Path) -> dict[str, np.ndarray]:
    parts = list(d4rl.read(path))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def test_what_is_written_is_read_back_in_parts_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = steps(100)
    arrays["terminals"][41] = True
    infos = {key: np.zeros((100, 2), dtype=np.float32) for key in ("infos/goal", "infos/qpos", "infos/qvel")}
    full = {**arrays, **infos}
    parts = [{key: values[a:b] for key, values in full.items()} for a, b in ((0, 30), (30, 31), (31, 100))]
    found = d4rl.write(tmp_path / "a.hdf5", parts, num_steps=90, attributes={"seed": 5})
    monkeypatch.setattr(d4rl, "_PART_STEPS", 17)
    back = read_all(tmp_path / "a.hdf5")
    for key in ("observations", "actions", "rewards"):
        assert (back[key] == arrays[key][:90]).all()
    assert np.flatnonzero(back["ends"]).tolist() == [41]
    expected = statistics(arrays["observations"][:90], arrays["actions"][:90])
    assert all(found[key] == pytest.approx(expected[key]) for key in expected)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file.attrs["seed"] == 5 and file.attrs["action_std"] == pytest.approx(expected["action_std"])


def test_statistics_in_parts_equal_numpys() -> None:
    values = np.random.default_rng(0).normal(3, 2, (1000, 4)).astype(np.float32)
    found = statistics(values, values[:, :2])
    assert found["observation_mean"] == pytest.approx(values.mean(0, dtype=np.float64))
    assert found["observation_std"] == pytest.approx(values.std(0, dtype=np.float64))
    assert found["action_min"] == pytest.approx(values[:, :2].min(0))


def test_a_public_file_without_infos_and_with_terminals_as_numbers_is_read(tmp_path: Path) -> None:
    arrays = steps(20)
    arrays["terminals"] = np.eye(1, 20, 7)[0].astype(np.float32)
    assert np.flatnonzero(read_all(write_file(tmp_path / "a.hdf5", arrays))["ends"]).tolist() == [7]


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def drop_rewards(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["rewards"]


def replace(key: str, values: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[key]
            file[key] = values

    return spoil


def nothing_left(path: Path) -> None:
    write_file(path, steps(0))


def nan_at_step_33(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["observations"][33, 1] = np.nan


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove, "does not exist"),
        (empty, "is empty (0 bytes)"),
        (truncate, "not a readable HDF5 file"),
        (text, "not a readable HDF5 file"),
        (drop_rewards, "has no rewards"),
        (nothing_left, "holds no steps"),
        (replace("observations", np.zeros((100, 6))), "observations has shape (100, 6)"),
        (replace("actions", np.zeros((99, 2))), "actions has shape (99, 2)"),
        (replace("actions", np.full((100, 2), b"x")), "actions has shape (100, 2) and type"),
        (replace("rewards", 1.0), "holds no steps"),
        (nan_at_step_33, "observations of step 33 is not finite"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    path = write_file(tmp_path / "a.hdf5", steps(100))
    spoil(path)
    with pytest.raises(UserError) as caught:
        list(d4rl.read(path))
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_chunk_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    arrays = steps(5000)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip", chunks=(500, *values.shape[1:]))
        chunk = file["actions"].id.get_chunk_info(4)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="the file is damaged"):
        list(d4rl.read(path))
