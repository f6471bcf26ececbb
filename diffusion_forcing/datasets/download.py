"""Download one large file over an unreliable network: continue where it broke off, and check it before naming it.

Bytes go to `<path>.part`. The server's ETag is kept beside it, and a download continues (HTTP Range with If-Range) only
if the file on the server is still the same. The SHA-256 is compared with a known one; if none is known, it is printed
and kept in `<path>.sha256`. `pooch` and `torch.hub` were considered: both start again after a broken connection.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from diffusion_forcing.errors import UserError
from diffusion_forcing.files import free_bytes, write_atomic
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import say

_BLOCK = 1 << 18
"""Bytes read at once."""
_ATTEMPTS = 5
"""Attempts in a row that bring no byte before giving up."""
_TEMPORARY_ERRORS = (408, 416, 429)
"""HTTP errors below 500 after which another attempt may succeed."""


_TAG_BYTES = 1000
_TAG = re.compile(r'"?[\x21\x23-\x7e]{1,998}"?|[A-Z][a-z]{2}, [0-9A-Za-z :]{10,40}')
"""A strong ETag, or the time of a Last-Modified."""


class _Failed(Exception):
    """This attempt failed; `final` if another one would fail as well."""

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
    """Download `url` to `path` unless it exists, and return it. `sha256` (hex) is checked if given.

    After `timeout` seconds without a byte, or a broken connection, the next attempt follows in `patience`, 2
    `patience`, … seconds, five in a row. Raises `UserError` if the checksum differs or the download fails; the message
    says where to place the file by hand, and `instead`.
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
        say(f"{path.name}: SHA-256 {found} (none is published to compare with; kept in {path.name}.sha256)")
    path.with_name(path.name + ".sha256").write_text(f"{found}  {path.name}\n")
    os.replace(part, path)
    _tag_file(part).unlink(missing_ok=True)
    return path


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file in hex, by an algorithm of `hashlib`."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(url: str, part: Path, *, progress: bool, timeout: float, patience: float) -> None:
    """Complete `part`, in as many attempts as that takes."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _attempt(url, part, progress=progress, timeout=timeout)
        except _Failed as failure:
            failures = 1 if _size(part) > before else failures + 1
            if failure.final or failures >= _ATTEMPTS:
                raise
            time.sleep(patience * failures)


def _attempt(url: str, part: Path, *, progress: bool, timeout: float) -> None:
    """One request, from the end of `part` on. Raises `_Failed` if the connection ends before the file does."""
    # Without the tag of the first attempt nobody knows whether the rest belongs to the same file: start again.
    tag = _kept_tag(part) if _size(part) else ""
    begin = _size(part) if tag else 0
    headers = {"User-Agent": "diffusion-forcing"}
    if begin:
        headers |= {"Range": f"bytes={begin}-", "If-Range": tag}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as reply:
            begin, total = _position(reply, begin)
            now = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
            if begin and now and now != tag:
                part.unlink()
                raise _Failed("the file on the server changed meanwhile")
            if total is not None and total - begin > free_bytes(part.parent):
                raise OSError(errno.ENOSPC, f"it needs {total - begin:,} bytes")
            # A weak tag does not mean the same bytes.
            write_atomic(_tag_file(part), "" if now.startswith("W/") or not _TAG.fullmatch(now) else now)
            _copy(reply, part, begin=begin, total=total, progress=progress)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if begin and error.headers.get("Content-Range") == f"bytes */{begin}":
                return  # the part was complete already
            part.unlink(missing_ok=True)
        is_final = 400 <= error.code < 500 and error.code not in _TEMPORARY_ERRORS
        raise _Failed(f"HTTP {error.code} {error.reason}", final=is_final) from error
    except urllib.error.URLError as error:
        raise _Failed(str(error.reason), final=not isinstance(error.reason, OSError)) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Failed(str(error) or type(error).__name__) from error
    except ValueError as error:
        raise _Failed(f"not an address: {error}", final=True) from error
    if total is not None and _size(part) != total:
        if _size(part) > total:
            part.unlink()
        raise _Failed(f"connection closed after {_size(part):,} of {total:,} bytes")


def _position(reply: http.client.HTTPResponse, asked: int) -> tuple[int, int | None]:
    """Where the bytes of `reply` belong in the file, and the size of the whole file if the server states it."""
    if reply.status != http.client.PARTIAL_CONTENT:
        length = reply.headers.get("Content-Length")
        return 0, int(length) if length and length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != asked:
        raise _Failed("the server sent another range than asked for", final=True)
    return asked, None if match[2] == "*" else int(match[2])


def _copy(reply: http.client.HTTPResponse, part: Path, *, begin: int, total: int | None, progress: bool) -> None:
    """Write the bytes of the reply from position `begin` on; nothing stays behind them."""
    with (
        open(part, "r+b" if begin else "wb") as file,
        Bar(part.stem, total=total or 0, done=begin, unit="bytes", show=progress) as bar,
    ):
        file.seek(begin)
        file.truncate()
        while block := reply.read(_BLOCK):
            file.write(block)
            bar.advance(len(block))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _kept_tag(part: Path) -> str:
    """The tag of the bytes in `part`; empty where it is missing or damaged."""
    try:
        tag = _tag_file(part).read_bytes()[:_TAG_BYTES].decode("latin-1")
    except OSError:
        return ""
    return tag if _TAG.fullmatch(tag) else ""


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".tag")
