"""What a run prints is for whoever may be reading: a closed pipe, a full disk or an ASCII terminal never ends the run.

Everything the package prints goes through `say`: names in files may hold escape sequences, which a terminal would obey.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which begin escape sequences, those that reverse the direction of text, and lone surrogates."""


def clean(text: object, most: int | None = None) -> str:
    """`text` on one line without characters that a terminal or a page would obey, cut after `most` characters."""
    line = _UNPRINTABLE.sub(lambda found: " " if found[0] in "\t\n\r" else "?", str(text))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def counted(number: int, noun: str) -> str:
    """`1 window`, `2 windows`, `1,000 windows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(text: object) -> None:
    """Print `text` for the user, each of its lines cleaned."""
    print(_lines(text), flush=True)


def tell(text: object) -> None:
    """`say`, on stderr, beside the command's own output."""
    print(_lines(text), file=sys.stderr, flush=True)


def _lines(text: object) -> str:
    return "\n".join(map(clean, str(text).split("\n")))


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Inside, writing to `sys.stdout` and `sys.stderr` never raises.

    Characters that the stream cannot encode become `?`; text that it does not take (its reader has gone, its disk is
    full) is dropped.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and ForgivingStream(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _finish(stream)


class ForgivingStream:
    """A text stream whose `write` and `flush` never raise. Everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or what of it can be encoded; its length, also where nothing could be written."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _finish(stream: Any) -> None:
    """Flush; where that fails, let Python's own flush at exit go nowhere, or it would change the exit code to 120."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
