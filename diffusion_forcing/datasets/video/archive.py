"""A data set that comes as one tar archive in parts: fetched, checked and unpacked as a stream, one part after the other.

The parts are read end to end, never joined: not in memory, not on disk. Behind every unpacked file a note says at which part and byte the next one
begins, so that a killed run goes on there; a part that was fetched is deleted as soon as nothing in it is needed any more. Disk space is therefore
what the files take, and two parts. Parts that lie in the folder already, placed there by hand, are used and left alone.

Only plain files are taken, at plain places: `<name>/train/…` becomes `training/…` and `<name>/test/…` `validation/…` (TECO's folders, renamed as
the released code does). An archive with a link, an absolute path or `..` in it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from diffusion_forcing.datasets.download import download
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import locked, replacing, write_json
from diffusion_forcing.progress import Bar, progress_bar

FOLDER = ".download"
"""In the data's folder: parts on their way, and the note of how far we are. It is gone when all is there."""
_SPLITS = {"train": "training", "test": "validation"}
_BLOCK = 512
"""Bytes of a tar block."""
_COPY = 1 << 20


@dataclass(frozen=True)
class Part:
    """One part: where it comes from and the SHA-256 it must have ('' where none is known)."""

    url: str
    sha256: str = ""

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rstrip("/").rpartition("/")[2]


def is_unfinished(folder: Path) -> bool:
    """Whether a download into `folder` was begun and not finished."""
    return (folder / FOLDER).is_dir()


def fetch_archive(parts: Sequence[Part], folder: Path, *, gigabytes: float = 0.0, progress: bool = True) -> None:
    """Fetch and unpack `parts` into `folder`, or go on with it. `gigabytes`: what they hold together, to compare with the free space.

    Raises `UserError` when a part cannot be had (and says how to place it by hand), is damaged, or the disk is full; what is there stays.
    """
    work = folder / FOLDER
    with locked(folder / "archive"):
        if not work.is_dir() and gigabytes:
            _check_room(folder, gigabytes * (1 + 2 / len(parts)))
        try:
            work.mkdir(parents=True, exist_ok=True)
            with _Stream(parts, folder, progress=progress) as stream:
                _unpack(stream, folder)
            shutil.rmtree(work)
        except OSError as error:
            raise UserError(
                f"cannot unpack into {folder}: {error.strerror or error}; make room and run again to go on, "
                "or choose another dataset.save_dir"
            ) from error
        finally:
            with suppress(OSError):
                work.rmdir()  # only where nothing was fetched


class _Stream:
    """The parts end to end, from where the note says, as what tarfile reads. Fetches a part when its first byte is asked for."""

    def __init__(self, parts: Sequence[Part], folder: Path, *, progress: bool) -> None:
        self._parts = parts
        self._folder = folder
        self._progress = progress
        self._note = folder / FOLDER / "next.json"
        begin = json.loads(self._note.read_text()) if self._note.exists() else {"part": 0, "byte": 0}
        self._number: int = begin["part"]
        self._skip: int = begin["byte"]
        self._begins = {self._number: -self._skip}
        """Part: the position in this stream its first byte has."""
        self._position = 0
        self.last = 0
        """Position behind the last byte that was not zero."""
        self._file: IO[bytes] | None = None
        self._bars = ExitStack()
        self._bar: Bar | None = None

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than `size` only at the end of the last part."""
        pieces = []
        while size > 0:
            if self._file is None and not self._open():
                break
            assert self._file is not None and self._bar is not None
            piece = self._file.read(size)
            if not piece:
                self._close()
                self._number += 1
                self._begins[self._number] = self._position
                continue
            if filled := len(piece.rstrip(b"\0")):
                self.last = self._position + filled
            self._position += len(piece)
            self._bar.advance(len(piece))
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def keep(self, position: int) -> None:
        """Note that the next file begins at `position` of this stream, and delete fetched parts that end before."""
        number = max(part for part, begin in self._begins.items() if begin <= position)
        write_json(self._note, {"part": number, "byte": position - self._begins[number]})
        for part in self._parts[:number]:
            (self._folder / FOLDER / part.name).unlink(missing_ok=True)

    def place(self) -> str:
        """Where we are, for messages."""
        return self._parts[min(self._number, len(self._parts) - 1)].name

    def _open(self) -> bool:
        """Open part `_number`; False behind the last."""
        if self._number >= len(self._parts):
            return False
        path = self._fetch(self._parts[self._number])
        size = path.stat().st_size
        if self._skip > size:  # the next file begins in the part behind this one
            self._number, self._skip = self._number + 1, self._skip - size
            self._begins = {self._number: -self._skip}
            return self._open()
        self._file = open(path, "rb")  # noqa: SIM115  _close() ends it
        self._file.seek(self._skip)
        label = f"unpacking {path.name} ({self._number + 1} of {len(self._parts)})"
        bar = progress_bar(label, total=size, done=self._skip, unit="bytes", show=self._progress)
        self._bar = self._bars.enter_context(bar)
        self._skip = 0
        return True

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._bars.close()

    def _fetch(self, part: Part) -> Path:
        """The part's file: placed by hand where the released code or a browser puts it, else downloaded and checked."""
        for place in (self._folder / part.name, self._folder / _item(part.url) / part.name):
            if place.is_file():
                return place
        path = self._folder / FOLDER / part.name
        if path.exists():
            return path
        by_hand = f"or unpack the archive yourself so that {self._folder} has training and validation in it"
        whole = download(part.url, path, sha256=part.sha256, progress=self._progress, instead=by_hand)
        with suppress(OSError):  # the sum stays when the part goes
            os.replace(path.with_name(f"{path.name}.sha256"), self._folder / f"{path.name}.sha256")
        published = "" if part.sha256 else _published_sha1(part.url)
        if published and _sha1(whole) != published:
            whole.unlink()
            raise UserError(f"{part.url} has another SHA-1 than archive.org publishes; it was deleted, run again")
        return whole


def _unpack(stream: _Stream, folder: Path) -> None:
    """Write every file of the archive below `folder`."""
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
            for member in archive:
                target = _target(member, folder)
                if target is not None:
                    _write(archive, member, target)
                blocks = -(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0
                stream.keep(member.offset_data + blocks)
                archive.members = []  # type: ignore[attr-defined]  # or the list of 200,000 files grows in memory
            end = archive.offset
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"the archive is damaged or cut off near {stream.place()} ({error}); delete that part and run again to go on"
        ) from error
    while stream.read(_COPY):
        pass
    if stream.last > end:
        raise UserError(
            f"the archive is damaged near {stream.place()}: there is more behind its end; delete that part and run again to go on"
        )


def _target(member: tarfile.TarInfo, folder: Path) -> Path | None:
    """Where a member goes; None for a folder. `UserError` for what has no place in a data set."""
    path = PurePosixPath(member.name)
    parts = [part for part in path.parts if part != "."]
    unsafe = path.is_absolute() or ".." in parts or "\\" in member.name or ":" in member.name
    if unsafe or not (member.isreg() or member.isdir()):
        what = "a place outside its folder" if unsafe else "a link or device"
        raise UserError(
            f"the archive holds '{member.name}', {what}; it is not the data set it should be, unpacking stopped"
        )
    if member.isdir() or not parts:
        return None
    if len(parts) > 2 and parts[1] in _SPLITS:
        parts = [_SPLITS[parts[1]], *parts[2:]]
    elif len(parts) > 1 and parts[0] in _SPLITS:
        parts = [_SPLITS[parts[0]], *parts[1:]]
    return folder.joinpath(*parts)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None, "plain files can be read"
    with replacing(target) as temporary:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, _COPY)
            size = file.tell()
        if size != member.size:
            raise tarfile.ReadError("unexpected end of data")


def _check_room(folder: Path, gigabytes: float) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise UserError(
            f"the data set needs about {gigabytes:.0f} GB while it is fetched, {free:.0f} GB are free in {folder}; "
            "make room or choose another dataset.save_dir"
        )


def _item(url: str) -> str:
    """archive.org's item: the folder `internetarchive` downloads into."""
    return url.rstrip("/").rpartition("/")[0].rpartition("/")[2]


def _published_sha1(url: str) -> str:
    """What archive.org's metadata says of the file at `…/download/ITEM/NAME`; '' for other addresses or where it cannot be had."""
    base, download_folder, rest = url.partition("/download/")
    item, _, name = rest.partition("/")
    if not download_folder or not name:
        return ""
    try:
        with urllib.request.urlopen(f"{base}/metadata/{item}", timeout=30) as reply:
            files = json.load(reply).get("files", [])
        return next((str(file.get("sha1", "")) for file in files if file.get("name") == name), "")
    except (OSError, ValueError, AttributeError):
        return ""


def _sha1(path: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_COPY):
            digest.update(block)
    return digest.hexdigest()
