"""A data set published as one tar archive in parts: downloaded, checked and unpacked as a stream, part by part.

The parts are read end to end and never joined, neither in memory nor on disk (TECO's Minecraft has 210 GB). After every
unpacked file a note says at which part and byte the next file begins, so a killed run continues there, and a downloaded
part is deleted once nothing in it is needed any more. The disk must hold the files and two parts. Parts placed in the
folder by hand are used and left alone.

Only plain files inside the folder are accepted: an archive with a link, an absolute path or `..` is refused.
`<name>/train/…` becomes `training/…` and `<name>/test/…` `validation/…`, as the released code renames TECO's folders.
"""

from __future__ import annotations

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

from diffusion_forcing.datasets.download import checksum, download
from diffusion_forcing.errors import UserError, explaining_os_errors, require
from diffusion_forcing.files import free_bytes, is_plain, locked, read_json, replacing, write_json
from diffusion_forcing.limits import Refused, check_limit, limit, refusing
from diffusion_forcing.progress import Bar

FOLDER = ".download"
"""In the data's folder: downloaded parts and the note of the position. Deleted when everything is unpacked."""
_SPLITS = {"train": "training", "test": "validation"}
_BLOCK = 512
"""Bytes of a tar block."""
_COPY = 1 << 20
_LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
"""Members that are read into memory as the header of the next."""


@dataclass(frozen=True)
class Part:
    """One part: its address and SHA-256 (empty if unknown)."""

    url: str
    sha256: str = ""

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def folder(self) -> str:
        """archive.org's item, the folder into which `internetarchive` downloads it."""
        return self.url.rstrip("/").rpartition("/")[0].rpartition("/")[2]


def is_unfinished(folder: Path) -> bool:
    """Whether a download into `folder` was started and not finished."""
    return (folder / FOLDER).is_dir()


def fetch_archive(parts: Sequence[Part], folder: Path, *, gigabytes: float = 0.0, progress: bool = True) -> None:
    """Download and unpack `parts` into `folder`, or continue. `gigabytes`: size of all parts, compared with the free
    disk space.

    Raises `UserError` if a part cannot be downloaded (with instructions to place it by hand) or is damaged, or if the
    disk is full; what was unpacked stays.
    """
    work = folder / FOLDER
    with locked(folder / "archive"):
        need, free = gigabytes * (1 + 2 / len(parts)), free_bytes(folder) / 1e9
        require(
            work.is_dir() or need <= free,
            f"the data set needs about {need:.0f} GB during the download, {free:.0f} GB are free in {folder}; "
            "make room or choose another dataset.save_dir",
        )
        remedy = "make room and run again to continue, or choose another dataset.save_dir"
        try:
            with explaining_os_errors(f"cannot unpack into {folder}", remedy):
                work.mkdir(parents=True, exist_ok=True)
                with _Stream(parts, folder, progress=progress) as stream:
                    _unpack(stream, folder)
                shutil.rmtree(work)
        finally:
            with suppress(OSError):
                work.rmdir()  # succeeds only if nothing was downloaded


class _Stream:
    """The parts end to end from the noted position on, as a file for `tarfile`; each is downloaded when first read."""

    def __init__(self, parts: Sequence[Part], folder: Path, *, progress: bool) -> None:
        self._parts = parts
        self._folder = folder
        self._progress = progress
        self._note = folder / FOLDER / "next.json"
        self._number, self._skip = _noted(self._note, len(parts))
        self._begins = {self._number: -self._skip}
        """Part number: position of its first byte in this stream."""
        self._position = 0
        self.last = 0
        """Position behind the last byte that was not zero."""
        self._file: IO[bytes] | None = None
        self._bar: Bar | None = None
        self._opened = ExitStack()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end of the last part."""
        pieces = []
        while size > 0:
            if self._file is None and not self._open():
                break
            assert self._file is not None and self._bar is not None
            piece = self._file.read(size)
            if not piece:
                self._opened.close()
                self._file = None
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
        """Note that the next file begins at `position`, and delete downloaded parts that end before it."""
        number = max(part for part, begin in self._begins.items() if begin <= position)
        write_json(self._note, {"part": number, "byte": position - self._begins[number]})
        for part in self._parts[:number]:
            (self._folder / FOLDER / part.name).unlink(missing_ok=True)

    def place(self) -> str:
        """The part that is being read, for messages."""
        return self._parts[min(self._number, len(self._parts) - 1)].name

    def _open(self) -> bool:
        """Open part `_number`; False behind the last part."""
        if self._number >= len(self._parts):
            return False
        path = self._fetch(self._parts[self._number])
        size = path.stat().st_size
        if self._skip > size:  # the next file begins in the following part
            self._number, self._skip = self._number + 1, self._skip - size
            self._begins = {self._number: -self._skip}
            return self._open()
        self._file = self._opened.enter_context(open(path, "rb"))  # noqa: SIM115  closed by the stack
        self._file.seek(self._skip)
        label = f"unpacking {path.name} ({self._number + 1} of {len(self._parts)})"
        bar = Bar(label, total=size, done=self._skip, unit="bytes", show=self._progress)
        self._bar = self._opened.enter_context(bar)
        self._skip = 0
        return True

    def _fetch(self, part: Part) -> Path:
        """The part's file: placed by hand (also where the released code does), otherwise downloaded and checked."""
        path = self._folder / FOLDER / part.name
        for place in (self._folder / part.name, self._folder / part.folder / part.name, path):
            if place.is_file():
                return place
        by_hand = f"or unpack the archive yourself so that {self._folder} contains training and validation"
        download(part.url, path, sha256=part.sha256, progress=self._progress, instead=by_hand)
        with suppress(OSError):  # the checksum stays when the part is deleted
            os.replace(path.with_name(f"{path.name}.sha256"), self._folder / f"{path.name}.sha256")
        published = "" if part.sha256 else _published_sha1(part.url)
        if published and checksum(path, "sha1") != published:
            path.unlink()
            raise UserError(f"{part.url} differs from the SHA-1 that archive.org publishes; it was deleted, run again")
        return path


def _noted(note: Path, parts: int) -> tuple[int, int]:
    """Part and byte at which the next file begins; the first of all where the note is missing or damaged."""
    found = read_json(note, {})
    place = found.get("part"), found.get("byte")
    is_place = all(isinstance(number, int) and number >= 0 for number in place) and found["part"] <= parts
    return (found["part"], found["byte"]) if is_place else (0, 0)


class _Member(tarfile.TarInfo):
    """A member's header. A sparse file, and a name or attributes that fill the memory, are refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """The header in a block. `Refused` for one that no data set has."""
        member = super().frombuf(buf, encoding, errors)
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise Refused("contains a sparse file")
        if member.type not in tarfile.SUPPORTED_TYPES or member.type in _LONG_HEADERS:
            check_limit("TAR_HEADER_BYTES", member.size, "a header")
        return member


def _unpack(stream: _Stream, folder: Path) -> None:
    """Write every file of the archive below `folder`."""
    try:
        with (
            refusing("is damaged or cut off"),
            tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_Member) as archive,
        ):
            for member in archive:
                target = _target(member, folder)
                if target is not None:
                    _write(archive, member, target)
                blocks = -(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0
                stream.keep(member.offset_data + blocks)
                archive.members = []  # type: ignore[attr-defined]  # the list of 200,000 files would grow in memory
            end = archive.offset
    except Refused as error:
        raise UserError(f"the archive {error}, near {stream.place()}; delete that part and run again") from error
    # Only zeros may follow: otherwise a damaged header looked like the end.
    while stream.read(_COPY):
        pass
    if stream.last > end:
        raise UserError(
            f"the archive is damaged near {stream.place()}: data follows its end; delete that part and run again"
        )


def _target(member: tarfile.TarInfo, folder: Path) -> Path | None:
    """Where a member goes; None for a folder. `UserError` for a member that a data set cannot contain."""
    path = PurePosixPath(member.name)
    parts = [part for part in path.parts if part != "."]
    is_outside = path.is_absolute() or ".." in parts or "\\" in member.name or ":" in member.name
    if is_outside or not (member.isreg() or member.isdir()) or member.issparse():
        what = "a place outside its folder" if is_outside else "a link or device, or a sparse file"
        raise UserError(f"the archive contains '{member.name}', {what}; it is not the expected data set")
    if member.isdir() or not parts or not all(map(is_plain, parts)):  # hidden files are ours, or of another system
        return None
    if len(parts) > 2 and parts[1] in _SPLITS:
        parts = parts[1:]
    if len(parts) > 1 and parts[0] in _SPLITS:
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


def _published_sha1(url: str) -> str:
    """SHA-1 of the file at `…/download/ITEM/NAME` in archive.org's metadata; empty if unavailable."""
    base, download_folder, rest = url.partition("/download/")
    item, _, name = rest.partition("/")
    if not download_folder or not name:
        return ""
    try:
        with refusing(), urllib.request.urlopen(f"{base}/metadata/{item}", timeout=30) as reply:
            files = json.loads(reply.read(limit("JSON_BYTES"))).get("files", [])
            return next((str(file.get("sha1", "")) for file in files if file.get("name") == name), "")
    except (OSError, Refused):
        return ""
