"""More memory than there is, asked for by a size that somebody chose, is said in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.overrides import first_line


@contextlib.contextmanager
def too_large_is_said() -> Iterator[None]:
    """What asks for more memory than there is becomes a UserError: it is a size that somebody chose."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as failure:
        reason = first_line(failure)
        wants_memory = any(words in str(failure) for words in ("allocate memory", "not enough memory", "out of memory"))
        too_large = "overflow" in str(failure) and "size" in str(failure)  # more bytes than can be counted
        if not isinstance(failure, (MemoryError, torch.OutOfMemoryError)) and not (wants_memory or too_large):
            raise
        raise UserError(
            f"there is not enough memory ({reason}); make it smaller: the batch_size of the task, the sizes of the network, or the data's"
        ) from failure
