"""D4RL's schema: what is written is read back, and every way a file can be wrong is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffusion_forcing.datasets.mazes.maze2d import read_d4rl, write_d4rl
from diffusion_forcing.errors import UserError
from tests.datasets.makers import steps, write_file


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    arrays = steps(100)
    arrays["terminals"][41] = True
    write_d4rl(tmp_path / "a.hdf5", arrays, attributes={"seed": 5})
    back = read_d4rl(tmp_path / "a.hdf5")
    for key in ("observations", "actions", "rewards"):
        assert (back[key] == arrays[key]).all()
    assert np.flatnonzero(back["ends"]).tolist() == [41]
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file.attrs["seed"] == 5


def test_a_public_file_without_infos_and_with_terminals_as_numbers_is_read(tmp_path: Path) -> None:
    arrays = steps(20)
    arrays["terminals"] = np.eye(1, 20, 7)[0].astype(np.float32)
    assert np.flatnonzero(read_d4rl(write_file(tmp_path / "a.hdf5", arrays))["ends"]).tolist() == [7]


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
        (empty, "not a readable HDF5 file"),
        (truncate, "not a readable HDF5 file"),
        (text, "not a readable HDF5 file"),
        (drop_rewards, "has no rewards"),
        (nothing_left, "holds no steps"),
        (replace("observations", np.zeros((100, 6))), "observations has shape (100, 6)"),
        (replace("actions", np.zeros((99, 2))), "actions has shape (99, 2)"),
        (replace("actions", np.full((100, 2), b"x")), "actions of shape (100, 2) and type"),
        (replace("rewards", 1.0), "has shape"),
        (nan_at_step_33, "observations of step 33 is not finite"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    path = write_file(tmp_path / "a.hdf5", steps(100))
    spoil(path)
    with pytest.raises(UserError) as caught:
        read_d4rl(path)
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
    with pytest.raises(UserError, match="it is damaged"):
        read_d4rl(path)
