"""Keep freed memory instead of handing it back to the system and asking for it again.

Every tensor past 32 MB (glibc's limit) is mapped anew, page by page, and unmapped when it is freed; activations of video are that large and
short-lived. With the settings here they come from memory that is already there: on the CPU a forward of 16 frames took a quarter less time
(docs/log.md). The process then keeps the most it ever used. Only on Linux with glibc; `MALLOC_…_` variables in the environment win.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of mallopt(3)
_KEEP = 2**31 - 1
_GROW = 64 * 2**20


def keep_freed_memory() -> bool:
    """Set it for this process; whether it could be."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEEP), (_TOP_PAD, _GROW)))
