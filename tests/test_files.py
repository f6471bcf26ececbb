"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_forcing import files
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import (
    Log,
    file_name,
    is_plain,
    is_run_id,
    locked,
    make_folder,
    new_folder,
    open_file,
    point_to,
    read_bytes,
    read_json,
    remove_leftovers,
    replacing,
    run_folders,
    write_atomic,
    write_json,
)


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
    log = Log(tmp_path / "log")
    log.write(b"next\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == after + b"next\n"


class FullAfter:
    """A file on a disk that has room for so many bytes more, and takes a part of what is larger."""

    def __init__(self, file: io.FileIO, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = self.file.write(bytes(data)[: self.room])
        self.room -= taken
        return taken

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


def test_a_line_that_a_full_disk_takes_in_part_is_taken_back_and_written_whole_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(path)
    log.write(b"one\n")
    disk = log._file = FullAfter(log._file, 6)  # type: ignore[assignment]
    for line in (b"two two\n", b"three\n"):
        disk.room = min(disk.room, 6)
        with pytest.raises(OSError, match="No space"):
            log.write(line)
        assert path.read_bytes() == b"one\n"
    disk.room = 100
    log.write(b"four\n")
    assert path.read_bytes() == b"one\ntwo two\nthree\nfour\n"


def test_what_a_full_disk_refused_is_tried_again_at_the_end_and_never_more_than_some(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(path)
    disk = log._file = FullAfter(log._file, 0)  # type: ignore[assignment]
    for number in range(40):
        with pytest.raises(OSError):
            log.write(b"%d " % number + b"x" * 50_000 + b"\n")
    disk.room = 10**9
    log.close()
    lines = path.read_bytes().splitlines()
    assert lines[-1].startswith(b"39 ") and all(line.endswith(b"x" * 50_000) for line in lines)
    assert 10 < len(lines) < 40


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, alive = f"{gone.pid}-0123abcd.tmp", f"{os.getppid()}-0123abcd.tmp"
    reused = f"{os.getpid()}-0123abcd.tmp"  # this process has the number of one that was killed, as in a container
    for name in (f".a.json.{dead}", f".b.json.{alive}", f".c.json.{reused}", ".mine", "a.json"):
        (tmp_path / name).write_text("{")
    (tmp_path / f".folder.{dead}").mkdir()
    with replacing(tmp_path / "d.json") as temporary:
        temporary.write_text("{}")
        remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".b.json.{alive}", ".mine", "a.json", "d.json"]
    remove_leftovers(tmp_path / "nowhere")


def test_a_folder_replaces_an_older_one_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("old", "new"):
        with replacing(path, durable=True) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [file.name for file in path.iterdir()] == ["new"]
    with contextlib.suppress(KeyboardInterrupt), replacing(path) as temporary:
        temporary.mkdir()
        raise KeyboardInterrupt
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_whose_replacement_was_interrupted_is_restored(tmp_path: Path) -> None:
    old = tmp_path / ".folder.999999999-0123abcd.old"
    old.mkdir()
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_replacement_in_progress_is_not_undone_by_who_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def watched(source: Path, target: Path) -> None:
        rename(source, target)
        if source == path:
            remove_leftovers(tmp_path)  # as another thread may, while neither version stands in its place

    path = tmp_path / "folder"
    path.mkdir()
    monkeypatch.setattr(os, "replace", watched)
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["folder", "folder/new"]


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


def test_what_is_no_regular_file_of_its_own_name_is_not_opened_and_nobody_waits(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("a line without an end")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "device", "fifo"):
        for mode in ("rb", "ab+"):
            with pytest.raises(OSError, match=r"it is a link|not a regular file"):
                open_file(tmp_path / name, mode)
        with pytest.raises(OSError):
            Log(tmp_path / name)
        assert read_json(tmp_path / name, {}) == {}
        (tmp_path / ".data.lock").unlink(missing_ok=True)
        (tmp_path / name).rename(tmp_path / ".data.lock")
        with pytest.raises(UserError, match="cannot write in"), locked(tmp_path / "data"):
            pass
    assert precious.read_text() == "a line without an end" and not (tmp_path / "nowhere").exists()


def test_a_lock_keeps_what_its_file_holds(tmp_path: Path) -> None:
    (tmp_path / ".data.lock").write_text("kept")
    with locked(tmp_path / "data"):
        pass
    assert (tmp_path / ".data.lock").read_text() == "kept"


def test_a_log_under_a_second_name_is_copied_before_it_grows(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("theirs\n")
    os.link(tmp_path / "other", tmp_path / "log")
    log = Log(tmp_path / "log")
    log.write(b"mine\n")
    log.close()
    assert (tmp_path / "other").read_text() == "theirs\n"
    assert (tmp_path / "log").read_text() == "theirs\nmine\n"


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "a", 4)


def test_a_folder_that_is_a_link_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "day").symlink_to("elsewhere")
    for make in (lambda: new_folder(tmp_path / "day", "run"), lambda: make_folder(tmp_path / "day")):
        with pytest.raises(OSError, match="is a link"):
            make()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_runs_are_found_by_ids_that_are_no_paths_and_never_behind_a_link(tmp_path: Path) -> None:
    for number, run_id in enumerate(["abcd1234", "../up", "", 5, "a/b", "x" * 65, "-x", "a\nb"]):
        (tmp_path / "outputs" / "day" / str(number)).mkdir(parents=True)
        write_json(tmp_path / "outputs" / "day" / str(number) / "run.json", {"id": run_id})
    (tmp_path / "outputs" / "link").symlink_to("day")
    (tmp_path / "outputs" / "day" / "9").symlink_to("0")
    assert run_folders(tmp_path / "outputs") == {"abcd1234": tmp_path / "outputs" / "day" / "0"}
    assert run_folders(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "name", ["..", ".a", "a/b", "/etc", "", "a\\b", "a\0", "a\x1b", "a\nb", "\ud800", "x" * 256, 5, None, ["a"]]
)
def test_a_name_that_is_no_entry_of_a_folder_is_refused(name: object) -> None:
    assert not is_plain(name) and not is_run_id(name)


def test_names_of_files_and_ids_are_told_apart() -> None:
    assert is_plain("é 1.mp4") and is_plain("a") and not is_run_id("é 1.mp4") and is_run_id("abcd1234")


def test_a_durable_write_works_where_folders_cannot_be_opened_and_reading_is_no_reason_to_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, flushed, plain_open = dict[int, int](), list[int](), os.open

    def windows_open(path: Path, flags: int, *more: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = plain_open(path, flags, *more)
        opened[descriptor] = flags
        return descriptor

    def windows_fsync(descriptor: int) -> None:
        if opened[descriptor] & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(descriptor)

    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(os, "fsync", windows_fsync)
    write_atomic(tmp_path / "a.txt", "new")
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "b.txt").write_text("b")
    assert (tmp_path / "a.txt").read_text() == "new" and (tmp_path / "folder" / "b.txt").read_text() == "b"
    assert len(flushed) == 2
