"""No search for garbage while the libraries are imported: they make hundreds of thousands of objects and hardly any garbage.

Starting a training spends most of its time importing PyTorch and Lightning; a sixth of that was Python's collector looking for cycles among
what had just been imported (docs/log.md).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Inside, cycles are not collected; outside it is as it was before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
