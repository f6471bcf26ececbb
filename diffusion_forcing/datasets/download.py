"""Download one file over a network that fails: continue where it broke, check it, and only then give it its name.

Bytes go to `<path>.part`; a note beside it keeps the server's ETag, so that a download is only continued when the file there is still the same
one. The SHA-256 is compared with the given one, or, where none is known, printed and kept in `<path>.sha256` for the next time.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from diffusion_forcing.errors import UserError
from diffusion_forcing.progress import progress_bar

_BLOCK = 1 << 18
"""Bytes read at once."""
_ATTEMPTS = 5
"""Tries in a row that bring no byte before giving up."""


class _Failed(Exception):
    """This try failed; `final` where another one would fail too."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    progress: bool = True,
    timeout: float = 30.0,
    patience: float = 1.0,
    instead: str = "or use dataset.source=generate",
) -> Path:
    """Fetch `url` to `path` and return it; nothing is fetched when it is there. `sha256` (hex) is checked when given.
    `instead`: what else one can do, for the message when it fails.

    `timeout` seconds without a byte, or a broken connection, is tried again after `patience`, 2 `patience`, … seconds, five times in a row.
    Raises `UserError` that says where to place the file by hand, or that the sum differs.
    """
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress=progress, timeout=timeout, patience=patience)
        found = checksum(part)
    except _Failed as failure:
        raise UserError(f"cannot download {url} ({failure}); place the file at {path} by hand, {instead}") from failure
    except OSError as error:
        raise UserError(
            f"cannot write {part}: {error.strerror or error}; make room or choose another dataset.save_dir"
        ) from error
    if sha256 and found != sha256.lower():
        part.unlink()
        raise UserError(
            f"{url} has SHA-256 {found}, expected {sha256.lower()}; it was deleted, run again or check dataset.sha256"
        )
    if not sha256:
        print(f"{path.name}: SHA-256 {found} (no published sum to compare with; kept in {path.name}.sha256)")
    path.with_name(path.name + ".sha256").write_text(f"{found}  {path.name}\n")
    os.replace(part, path)
    _note(part).unlink(missing_ok=True)
    return path


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(url: str, part: Path, *, progress: bool, timeout: float, patience: float) -> None:
    """Bring `part` to its full size, in as many tries as that needs."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _attempt(url, part, progress=progress, timeout=timeout)
        except _Failed as failure:
            grown = part.exists() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failure.final or failures >= _ATTEMPTS:
                raise
            time.sleep(patience * failures)


def _attempt(url: str, part: Path, *, progress: bool, timeout: float) -> None:
    """One request, from where `part` ends. Raises `_Failed` when the connection ends before the file does."""
    have = part.stat().st_size if part.exists() else 0
    note = _note(part)
    tag = note.read_text() if have and note.exists() else ""
    # without a tag nobody could say whether the rest belongs to the same file: begin again
    have = have if tag else 0
    headers = {"User-Agent": "diffusion-forcing", **({"Range": f"bytes={have}-", "If-Range": tag} if have else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as reply:
            begin, total = _position(reply, have)
            tag = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
            note.write_text("" if tag.startswith("W/") else tag)
            size = _copy(reply, part, begin=begin, total=total, progress=progress)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if have and error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink(missing_ok=True)
        raise _Failed(
            f"HTTP {error.code} {error.reason}", final=400 <= error.code < 500 and error.code not in (408, 416, 429)
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise _Failed(str(error.reason)) from error
        raise _Failed(str(error.reason), final=True) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Failed(str(error) or type(error).__name__) from error
    except ValueError as error:
        raise _Failed(f"not an address: {error}", final=True) from error
    if total is not None and size != total:
        raise _Failed(f"connection closed after {size:,} of {total:,} bytes")


def _position(reply: http.client.HTTPResponse, asked: int) -> tuple[int, int | None]:
    """Where the bytes of `reply` belong, and the size of the whole file if the server says it."""
    length = reply.headers.get("Content-Length")
    if reply.status != http.client.PARTIAL_CONTENT:
        return 0, int(length) if length else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != asked:
        raise _Failed("the server sent another part than asked for", final=True)
    return asked, None if match[2] == "*" else int(match[2])


def _copy(reply: http.client.HTTPResponse, part: Path, *, begin: int, total: int | None, progress: bool) -> int:
    """Write the reply's bytes from position `begin` on; returns the size the file has then."""
    with (
        open(part, "r+b" if begin else "wb") as file,
        progress_bar(part.stem, total=total or 0, done=begin, unit="bytes", show=progress) as bar,
    ):
        file.seek(begin)
        file.truncate()
        while block := reply.read(_BLOCK):
            file.write(block)
            bar.advance(len(block))
        return file.tell()


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".tag")
