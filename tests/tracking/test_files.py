"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusion_forcing.tracking.files import file_name, open_log, point_to, write_atomic


def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    write_atomic(path, b"old")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"a\n", b"a\n"), (b"a\nb", b"a\n"), (b"cut", b""), (b"a\n" + b"x" * 70_000, b"a\n")],
)
def test_a_log_opened_again_loses_only_a_line_that_was_cut_short(tmp_path: Path, before: bytes, after: bytes) -> None:
    (tmp_path / "log").write_bytes(before)
    with open_log(tmp_path / "log") as log:
        log.write(b"next\n")
    assert (tmp_path / "log").read_bytes() == after + b"next\n"


def test_a_link_is_replaced_and_a_real_folder_of_its_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    point_to(tmp_path / "latest", tmp_path / "a")
    point_to(tmp_path / "latest", tmp_path / "b")
    assert os.readlink(tmp_path / "latest") == "b"
    with pytest.raises(OSError, match="directory"):
        point_to(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").is_dir() and not (tmp_path / "a").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "latest"]


@pytest.mark.parametrize(
    ("name", "file"),
    [("maze2d_medium_x", "maze2d_medium_x"), ("a/b: c", "a-b-c"), ("..", "run"), (".hidden", "hidden"), ("", "run")],
)
def test_names_become_safe_file_names(name: str, file: str) -> None:
    assert file_name(name) == file
