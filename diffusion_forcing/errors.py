"""What a user caused, said in one line.

Whatever a user can get wrong (a key, a file, a horizon, a maze) raises `UserError`; the command line prints its message behind
`error:` and exits with code 2. Our own mistakes stay ordinary exceptions with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for. The message is one line: what, got, allowed, what to do."""

    everywhere = False
    """Set where all processes of a run find the same mistake at the same time: the main one tells it, the others end quietly."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `allowed`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
