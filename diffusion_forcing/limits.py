"""How much a file may ask for: one table of limits, and the checks that compare what a file declares with the bytes it
has, before anything is allocated.

A file is data of unknown origin. What it declares (a shape, a number of rows, the size of a picture) is believed only
as far as its bytes cover it. Every limit is raised by an environment variable of its name:
`DIFFUSION_FORCING_MAX_PIXELS=3e8 diffusion-forcing …`. `docs/limits.md` is this table.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError, first_line

VARIABLE = "DIFFUSION_FORCING_MAX_"
"""Prefix of the environment variable that sets a limit."""


@dataclass(frozen=True)
class Limit:
    """The default, its unit, and what it bounds."""

    value: int
    unit: str
    bounds: str


LIMITS = {
    "ARRAY_BYTES": Limit(4 << 30, "bytes", "an array, a table or a video that is read into memory as a whole"),
    "EXPANSION": Limit(200, "times", "size of compressed content relative to its file, above 64 MB"),
    "TEXT_BYTES": Limit(1 << 30, "bytes", "a CSV file, unpacked"),
    "JSON_BYTES": Limit(64 << 20, "bytes", "a JSON file, or the metadata of a checkpoint"),
    "PICKLE_BYTES": Limit(64 << 20, "bytes", "a pickle of arrays, or the pickle in a .ckpt without its tensors"),
    "ITEMS": Limit(1 << 26, "items", "the values in a pickle, repeated ones counted each time"),
    "PIXELS": Limit(1 << 26, "pixels", "a frame or an image"),
    "TAR_HEADER_BYTES": Limit(1 << 20, "bytes", "a long name or the extended attributes of a member of a tar archive"),
    "FRAMES_BYTES": Limit(8_000_000_000, "bytes", "the decoded images of a set of demonstrations"),
    "TABLE_NUMBERS": Limit(20_000_000, "numbers", "time steps × series of a table"),
    "RUN_JSON_BYTES": Limit(4 << 20, "bytes", "run.json, metrics.json, media.json and other small JSON files of ours"),
    "RUN_LOG_BYTES": Limit(1 << 30, "bytes", "the part of a metrics.jsonl that is read, from its end"),
    "CAMERA_PIXELS": Limit(1 << 23, "pixels", "an image in a folder of the policy server's cameras"),
    "SIZE": Limit(1_000_000, "steps, frames or layers", "an integer among the sizes in a checkpoint.json"),
    "NOISE_LEVELS": Limit(1_000_000, "levels", "noise levels of a diffusion process"),
}
_SMALL = 64 << 20
"""Bytes that anything may expand to."""


class Refused(ValueError):
    """A file is damaged, or asks for more than it holds or than a limit allows. The message follows the file's name:
    "is cut off", "holds …", "asks for …". again: the reason may pass, as a missing permission. remedy: what to do."""

    def __init__(self, reason: str, *, again: bool = False, remedy: str = "") -> None:
        super().__init__(reason)
        self.again, self.remedy = again, remedy


def limit(name: str) -> int:
    """The limit `name` of `LIMITS`, or what its environment variable says. `UserError` where that is no number."""
    text = os.environ.get(VARIABLE + name)
    if text is None:
        return LIMITS[name].value
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < 2**63:
        raise UserError(f"{VARIABLE}{name} is {text!r}; give a number of {LIMITS[name].unit}, such as 5e9")
    return int(value)


def check_limit(name: str, value: float, what: str) -> None:
    """`Refused` where `value` is above the limit `name`. what: as in "asks for <what> of …"."""
    if not value <= limit(name):
        unit = LIMITS[name].unit
        raise Refused(f"asks for {what} of {value:,.0f} {unit}, above the limit {VARIABLE}{name}={limit(name)}")


def check_expansion(expanded: int, stored: int, what: str = "an array") -> None:
    """`Refused` where `expanded` bytes are more than memory should give, or than `stored` bytes can be worth."""
    check_limit("ARRAY_BYTES", expanded, what)
    check_ratio(expanded, stored)


def check_ratio(expanded: int, stored: int) -> None:
    """`Refused` where `expanded` bytes are more than `stored` bytes can be worth."""
    if expanded > _SMALL and expanded > limit("EXPANSION") * stored:
        raise Refused(
            f"makes {expanded:,} bytes of {stored:,}, above the limit {VARIABLE}EXPANSION={limit('EXPANSION')}"
        )


def bytes_of(shape: Sequence[int], itemsize: int = 1) -> int:
    """Bytes of an array of `shape`, exact for any integers. `Refused` for sizes that are none."""
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise Refused(f"declares the shape {tuple(shape)}")
    return math.prod(shape) * itemsize


@contextmanager
def refusing(damage: str = "is damaged", *, disk: bool = False) -> Iterator[None]:
    """Make `Refused` of whatever the reader of a damaged file raises inside the block. An OSError of the disk (a
    missing file or permission) stays one, unless `disk`: then it is a `Refused` that may pass."""
    try:
        yield
    except (Refused, UserError):
        raise
    except (MemoryError, RecursionError, OverflowError) as error:
        raise Refused("asks for too much memory") from error
    except KeyError as error:
        key = str(error.args[0] if error.args else "")
        raise Refused(f"lacks '{key}'" if key.isprintable() and " " not in key else f"{damage} ({key})") from error
    except Exception as error:  # libraries raise anything for damaged files
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EIO):
            if not disk:
                raise
            raise Refused(f"cannot be read: {error.strerror or error}", again=True) from error
        raise Refused(f"{damage} ({first_line(error)})") from error


@contextmanager
def reading(path: Path, remedy: str = "get it again") -> Iterator[None]:
    """Make a `UserError` about `path` of whatever is raised inside the block, by its reader or the disk."""
    try:
        with refusing():
            yield
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read: it does not exist; {remedy}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; {remedy}") from error
    except Refused as error:
        raise UserError(f"{path} cannot be read: it {error}; {error.remedy or remedy}") from error


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, its numbers finite. OSError, or `Refused` for anything else."""
    with open(path, "rb") as file:
        data = file.read(limit("JSON_BYTES") + 1)
    check_limit("JSON_BYTES", len(data), "text")
    with refusing("holds no JSON"):
        found = json.loads(data.decode("utf-8-sig"), parse_constant=_number, parse_float=_number)
    if not isinstance(found, dict):
        raise Refused(f"holds a JSON {type(found).__name__}, not an object")
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refused(f"holds the number {text[:40]}")
    return value


def gunzip(data: bytes) -> bytes:
    """The content of a gzip file, of one or several members. `Refused` where it is cut off, damaged or too large."""
    most = min(limit("TEXT_BYTES"), max(_SMALL, limit("EXPANSION") * len(data)))
    with refusing("is a damaged gzip file"), gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(most + 1)
        check_limit("TEXT_BYTES", len(content), "text")
        check_expansion(len(content), len(data), "text")
    return content
