"""What a file declares is compared with the bytes it has, before memory is given."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from numpy.lib import format as npy

from diffusion_forcing import limits
from diffusion_forcing.arrays import map_npy, read_npy, read_npz, write_npy
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.datasets import parquet
from diffusion_forcing.datasets.mazes import maze2d
from diffusion_forcing.datasets.mazes.base import open_store
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet
from diffusion_forcing.datasets.series.files import read_file
from diffusion_forcing.datasets.video.archive import Part, fetch_archive
from diffusion_forcing.datasets.video.container import inspect_video, read_image
from diffusion_forcing.datasets.video.episode import open_index
from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import LIMITS, VARIABLE, Refused, check_limit, gunzip, limit, load_json
from tests.security.fuzz import DATA

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A reader that believes a file fails here: 3 GB of addresses beyond those in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_page_of_the_limits_is_their_table() -> None:
    rows = [f"| `{name}` | {one.value:,} | {one.unit} | {one.bounds} |" for name, one in LIMITS.items()]
    assert "\n".join(rows) in (ROOT / "docs" / "limits.md").read_text("utf-8")


def test_a_limit_is_raised_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=f"above the limit {VARIABLE}PIXELS="):
        check_limit("PIXELS", 1e9, "frames")
    monkeypatch.setenv(f"{VARIABLE}PIXELS", "2e9")
    check_limit("PIXELS", 1e9, "frames")
    for word in ("many", "nan", "0", "-5", "inf"):
        monkeypatch.setenv(f"{VARIABLE}PIXELS", word)
        with pytest.raises(UserError, match="give a number of pixels"):
            limit("PIXELS")


# Arrays


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


SHAPES = ((10**13,), (2**22, 2**21, 2**21, 3), (2**63, 2), (-1, -8), (10**30,), (3,) * 40)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_array_larger_than_its_bytes_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.npy").write_bytes(header(shape, "<f8") + bytes(64))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header(shape, "<f8") + bytes(64))
    for read, name in ((read_npy, "a.npy"), (map_npy, "a.npy"), (read_npz, "a.npz")):
        with pytest.raises(Refused):
            read(tmp_path / name)
    (tmp_path / "clips").mkdir()
    shutil.copy(tmp_path / "a.npy", tmp_path / "clips")
    with zipfile.ZipFile(tmp_path / "clips" / "b.npz", "w") as archive:
        archive.writestr("video.npy", header((4, 8, 8, 3)) + bytes(4 * 8 * 8 * 3))
        archive.writestr("actions.npy", header(shape, "<i8"))
    first, second = open_index(tmp_path / "clips", tmp_path / "index.npz", progress=False)
    assert first.problem and not second.problem and second.action_problem


def test_an_array_that_unpacks_to_thousands_of_times_its_bytes_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100 << 20, np.uint8))
    with pytest.raises(Refused, match="EXPANSION"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.zeros((0, 3), np.int32), np.float32(3), np.array(["a", "bc"])]
)
def test_arrays_come_back_as_they_were(tmp_path: Path, array: Any) -> None:
    array = np.asarray(array)
    np.savez(tmp_path / "a.npz", a=array, f=np.asfortranarray(np.eye(2, 3)))
    found = read_npz(tmp_path / "a.npz")
    assert np.array_equal(found["a"], array) and found["a"].dtype == array.dtype and found["a"].shape == array.shape
    assert np.array_equal(found["f"], np.eye(2, 3))
    if array.dtype.kind == "f":
        write_npy(tmp_path / "a.npy", array)
        for read in (read_npy, map_npy, np.load):
            assert np.array_equal(read(tmp_path / "a.npy"), array)  # type: ignore[operator]


# HDF5


def h5(folder: Path, edit: Callable[[h5py.File], object]) -> Path:
    maze2d.write_d4rl(folder / "a.hdf5", {"other": np.zeros(3)}, attributes={})
    with h5py.File(folder / "a.hdf5", "a") as file:
        for key, width in maze2d.REQUIRED.items():
            file[key] = np.zeros((50, *width), np.float32)
        edit(file)
    return folder / "a.hdf5"


def replaced(make: Callable[[h5py.File], object]) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file["observations"]
        found = make(file)
        if found is not None:
            file["observations"] = found

    return edit


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((50, 4), "f4")
    layout[:] = h5py.VirtualSource("/etc/other.hdf5", "a", (50, 4))
    file.create_virtual_dataset("observations", layout)


@pytest.mark.parametrize(
    "edit",
    [
        replaced(lambda file: h5py.SoftLink("/observations")),
        replaced(lambda file: h5py.SoftLink("/actions")),
        replaced(lambda file: h5py.ExternalLink("/etc/other.hdf5", "/a")),
        replaced(lambda file: file.create_group("observations") and None),
        replaced(_virtual),
        replaced(
            lambda file: file.create_dataset("observations", (50, 4), "f4", external=[("/etc/passwd", 0, 800)]) and None
        ),
        replaced(lambda file: file.create_dataset("observations", (10**9, 4), "f4", chunks=(1, 4)) and None),
        replaced(
            lambda file: (
                file.create_dataset("observations", (50, 4), "f4", chunks=(50, 4), maxshape=(2**40, 4)) and None
            )
        ),
        replaced(lambda file: file.create_dataset("observations", (50, 4), h5py.string_dtype()) and None),
        replaced(lambda file: file.create_dataset("observations", data=h5py.Empty("f4")) and None),
    ],
)
def test_an_hdf5_file_is_read_within_itself_and_as_far_as_its_bytes(
    tmp_path: Path, edit: Callable[[h5py.File], None]
) -> None:
    path, found = h5(tmp_path, edit), None
    with contextlib.suppress(UserError):
        found = maze2d.read_d4rl(path)
    assert found is None or found["observations"].nbytes == 800  # chunks may be reserved


# JSON, gzip, tables


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 5000, "[1]", "null", '{"a": 1e999}', '{"a": NaN}', "{", '{"a": ' + "9" * 5000 + "}"],
)
def test_json_that_is_deep_infinite_or_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Refused):
        load_json(tmp_path / "a.json")


def test_gzip_is_bounded_and_whole() -> None:
    data = gzip.compress(b"a,b\n" * 100) + gzip.compress(b"1,2\n") + b"\0\0"
    assert gunzip(data) == b"a,b\n" * 100 + b"1,2\n"
    for damaged in (data[:-10], data[:30], b"\x1f\x8b" + bytes(20), gzip.compress(bytes(100 << 20))):
        with pytest.raises(Refused):
            gunzip(damaged)


@pytest.mark.parametrize(
    ("text", "names"),
    [("time,a ,a\n", ("a", "a.1")), ("time,a,a,a.1\n", ("a", "a.1", "a.1.1")), ("time,a.1,a,a\n", ("a.1", "a", "a.2"))],
)
def test_columns_of_one_name_get_different_ones(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    rows = "".join(f"2024-01-{day:02d}{f',{day}.5' * len(names)}\n" for day in range(1, 20))
    (tmp_path / "a.csv").write_text(text + rows)
    assert read_file(tmp_path / "a.csv", freq=None).names == names


@pytest.mark.parametrize("cell", ["1e400", "-1e999", "9" * 400])
def test_a_number_beyond_float64_is_an_error_and_not_a_gap(tmp_path: Path, cell: str) -> None:
    rows = "".join(f"2024-01-{day:02d},{cell if day == 5 else day},{day}\n" for day in range(1, 20))
    (tmp_path / "a.csv").write_text("time,a,b\n" + rows)
    with pytest.raises(UserError, match="not a number"):
        read_file(tmp_path / "a.csv", freq=None)


def test_a_parquet_file_of_few_bytes_and_many_rows_is_refused(tmp_path: Path) -> None:
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(700, np.int32)), pyarrow.array(["x" * 100_000]))
    for name, column in (("numbers", pyarrow.array(np.full(9_000_000, 7))), ("words", words.dictionary_decode())):
        pyarrow.parquet.write_table(pyarrow.table({"time": column}), tmp_path / f"{name}.parquet", compression="zstd")
        with pytest.raises(Refused, match="EXPANSION"):
            parquet.read_table(tmp_path / f"{name}.parquet")
        with pytest.raises(UserError):
            read_file(tmp_path / f"{name}.parquet", freq=None)


# Demonstrations


def lerobot(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(DATA / "lerobot_images", folder / "set")
    file = folder / "set" / "meta" / "info.json"
    info = json.loads(file.read_text())
    edit(info)
    file.write_text(json.dumps(info))
    return folder / "set"


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(info: dict[str, Any]) -> None:
        key = next(key for key in info["features"] if key.startswith("observation.images."))
        info["features"][name] = info["features"].pop(key)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        *(renamed(f"observation.images.{name}") for name in ("../../x", "/etc/x", "a\\b", "..", "\x1b[2J", "")),
        *(
            lambda info, template=template: info.update(data_path=template)
            for template in (
                *("{chunk_index[0]}", "{chunk_index.__class__}", "{chunk_index:999999999d}", "../{chunk_index}", "/etc/{chunk_index}"),
                *("{other}", "{}", "a\0b", 5, ["a"], {"a": 1}),
            )
        ),
        *(
            lambda info, total=total: info.update(total_episodes=total)
            for total in (None, "3", -1, 2.5, 10**30, float("inf"), float("nan"), [1], 10**12)
        ),
        *(lambda info, fps=fps: info.update(fps=fps) for fps in (None, "30", 0, -1, float("nan"), 1e300, [10])),
        *(lambda info, splits=splits: info.update(splits=splits) for splits in ({"train": "a:b"}, {"train": 5}, ["train"], "x")),
        *(lambda info, value=value: info.update(features=value) for value in (None, [], 5, {"action": None}, {"action": {"shape": 8}})),
        *(lambda info, key=key: info.pop(key) for key in ("features", "fps", "total_episodes", "codebase_version")),
    ],
)  # fmt: skip
def test_an_info_json_with_any_value_is_one_line(tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    root = lerobot(tmp_path, edit)

    def read() -> None:
        found = LeRobotSet(root)
        found.arrays("training", 10**9 if len(found.splits["training"]) > 10 else 0)
        found.images("training", 0, "front")

    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["frame.actions", "frame.states", "frame.file", "frame.note", "frame.a/b", "frame.", "episode.actions"]
)
def test_a_column_never_takes_the_place_of_another(tmp_path: Path, name: str) -> None:
    good = LeRobotSet(lerobot(tmp_path / "good", lambda info: None)).arrays("training", 0)
    root = lerobot(tmp_path, lambda info: None)
    for file in (root / "data").rglob("*.parquet"):
        table = pyarrow.parquet.read_table(file)
        cells = pyarrow.array(["hi"] * len(table) if name == "frame.note" else [0.5] * len(table))
        pyarrow.parquet.write_table(table.append_column(name, cells), file)
    found = LeRobotSet(root).arrays("training", 0)
    assert found.keys() == good.keys() and all(np.array_equal(found[key], good[key]) for key in good)


# Pictures and video


def png(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    for size in ((12_000, 12_000), (1, 2**31 - 1)):
        with pytest.raises(ValueError, match=r"PIXELS|pixels"):
            read_image(png(*size))


def test_a_playlist_that_names_other_files_is_no_video(tmp_path: Path) -> None:
    for text in (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        "ffconcat version 1.0\nfile /etc/passwd\n",
    ):
        (tmp_path / "a.mp4").write_text(text)
        with pytest.raises(Refused, match="cannot be decoded"):
            inspect_video(tmp_path / "a.mp4")


# Archives


def unpack(folder: Path, fill: Callable[[tarfile.TarFile], object]) -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "a.tar", "w") as archive:
        fill(archive)
    fetch_archive([Part("http://127.0.0.1:1/a.tar")], folder, progress=False)
    return folder


def add(archive: tarfile.TarFile, name: str, size: int = 1, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(bytes(size)))


@pytest.mark.parametrize(
    "fill",
    [
        lambda archive: add(archive, "set/train/a.npz", type=tarfile.GNUTYPE_SPARSE),
        lambda archive: add(
            archive, "set/train/a.npz", 512, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        ),
        lambda archive: add(
            archive,
            "set/train/a.npz",
            pax_headers={"GNU.sparse.map": "0,1,9999999999,1", "GNU.sparse.size": "9999999999"},
        ),
        lambda archive: add(archive, "x", 3 << 20, type=tarfile.GNUTYPE_LONGNAME),
        lambda archive: add(archive, "x", 3 << 20, type=tarfile.XHDTYPE),
    ],
)
def test_a_sparse_file_or_a_header_of_megabytes_is_refused(
    tmp_path: Path, fill: Callable[[tarfile.TarFile], object]
) -> None:
    with pytest.raises(UserError) as caught:
        unpack(tmp_path / "data", fill)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "note",
    [
        "{",
        "[]",
        '{"part": "x"}',
        '{"part": 9, "byte": 0}',
        '{"part": 0, "byte": -3}',
        '{"part": 0.5, "byte": 1}',
        "\xff",
    ],
)
def test_a_damaged_note_starts_again_from_the_first_part(tmp_path: Path, note: str) -> None:
    (tmp_path / "data" / ".download").mkdir(parents=True)
    (tmp_path / "data" / ".download" / "next.json").write_text(note, "latin-1")
    unpack(tmp_path / "data", lambda archive: add(archive, "set/train/a.npz"))
    assert (tmp_path / "data" / "training" / "a.npz").exists()


def test_an_archive_writes_none_of_our_own_files(tmp_path: Path) -> None:
    names = (".download/next.json", "set/.frames/a.npz", "set/train/.a.lock", "set/train/a.npz")
    folder = unpack(tmp_path / "data", lambda archive: [add(archive, name) for name in names])
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.npz")) == ["training/a.npz"]


# Checkpoints


def saved(path: Path, content: object = None) -> Path:
    torch.save({"state_dict": {"a": torch.zeros(3)}} if content is None else content, path)
    return path


def repacked(path: Path, edit: Callable[[str, bytes], bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, edit(name, data))
    return path


def in_capitals(path: Path, data: bytes) -> Path:
    """A checkpoint whose pickle is `data`, under a name that PyTorch finds all the same."""
    with zipfile.ZipFile(saved(path)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(*((name.upper(), data) if name.endswith("data.pkl") else (name, content)))
    return path


def shifted(path: Path) -> Path:
    """A checkpoint behind other bytes: Python moves the places of its members by them, PyTorch does not."""
    path.write_bytes(b"PK\x03\x04" + bytes(60) + saved(path).read_bytes())
    return path


BOMB = (
    b"\x80\x02}" + b")q\x00" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(45)) + b"K\x01s."
)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: repacked(saved(path), lambda name, data: data + bytes(1 << 20), zipfile.ZIP_DEFLATED),
        lambda path: repacked(saved(path), lambda name, data: BOMB if name.endswith("data.pkl") else data),
        lambda path: saved(path, {"state_dict": {"a": torch.zeros(1).expand(10**12)}}),
        lambda path: saved(path, {"state_dict": {str(i): one for i in range(4000) for one in [SHARED]}}),
        lambda path: saved(path, {"state_dict": {"a": torch.empty(10**9, device="meta")}}),
        lambda path: saved(path, {"state_dict": {"a": torch.sparse_coo_tensor(torch.zeros(1, 0), [], (10**12,))}}),
        lambda path: path.write_bytes(BOMB) and path,
        lambda path: in_capitals(path, BOMB),
        shifted,
    ],
    ids=["compressed", "hash", "expanded", "shared", "meta", "sparse", "legacy", "capitals", "shifted"],
)
def test_a_ckpt_that_asks_for_more_than_it_holds_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError) as caught:
        native.load(make(tmp_path / "a.ckpt"))
    assert "\n" not in str(caught.value)


SHARED = torch.zeros(1 << 18)


def test_sizes_in_a_checkpoint_are_believed_as_far_as_its_weights_reach(tmp_path: Path) -> None:
    path = native.save(tmp_path / "ck", None, metadata={}, model={"a": torch.zeros(3)}, step=0)
    with native.sized_by(path):
        torch.nn.Linear(100, 100)
    for build in (lambda: torch.nn.Linear(8192, 8192), lambda: [torch.nn.Linear(1000, 1000) for _ in range(30)]):
        with pytest.raises(UserError, match="its sizes need more than"), native.sized_by(path):
            build()
    torch.nn.Linear(5000, 5000)  # outside the block there is no bound


@pytest.mark.parametrize("name", ["../other", "/dev/zero", "..", "a/b"])
def test_a_checkpoint_names_no_file_outside_itself(tmp_path: Path, name: str) -> None:
    path = native.save(tmp_path / "ck", None, metadata={}, model={"a": torch.zeros(3)}, step=0)
    header = json.loads((path / native.HEADER).read_text())
    header["files"][name] = {"bytes": 0, "sha256": ""}
    (path / native.HEADER).write_text(json.dumps(header))
    with pytest.raises(UserError, match="is damaged"):
        native.verify(path)


# Caches


def steps(count: int = 40) -> dict[str, Any]:
    ends = np.arange(count) == count - 1
    return {
        "observations": np.zeros((count, 4)),
        "actions": np.zeros((count, 2)),
        "rewards": np.zeros(count),
        "ends": ends,
    }


@pytest.mark.parametrize("name", ["rewards.npy", "episodes.npy", "cache.json"])
def test_a_cache_with_a_torn_or_missing_file_is_made_again(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").write_text("x")
    for damage in (lambda file: file.unlink(), lambda file: os.truncate(file, file.stat().st_size // 2)):
        assert len(open_store(tmp_path / "source", tmp_path / "c", steps)) == 40
        damage(tmp_path / "c" / name)
        store = open_store(tmp_path / "source", tmp_path / "c", steps)
        assert len(store.rewards) == 40 and store.episodes.tolist() == [[0, 40]] and store.statistics


def test_hdf5_is_written_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maze2d.write_d4rl(tmp_path / "a.hdf5", {"a": np.arange(5)}, attributes={"b": 2})
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["a"][:].tolist() == [0, 1, 2, 3, 4] and file.attrs["b"] == 2

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        maze2d.write_d4rl(tmp_path / "b.hdf5", {"a": np.arange(5)}, attributes={})
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def test_reading_leaves_an_error_of_the_disk_its_reason(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"cannot be read: it does not exist; get it again"),
        limits.reading(tmp_path / "a"),
    ):
        (tmp_path / "a").read_bytes()
