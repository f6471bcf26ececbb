"""Scheduling matrices: in which order tokens lose their noise (docs/method.md §6, paper §3.3).

Rows are denoising steps, columns tokens, entries sampling levels s ∈ {0 … S}: S pure noise, 0 clean. All four shapes are one
broadcast: a token starts falling after its delay and loses one level a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError, check_choice, check_minimum, check_range, require

SCHEDULING_MATRICES = ("full_sequence", "pyramid", "autoregressive", "trapezoid")


def scheduling_matrix(kind: str, horizon: int, sampling_timesteps: int, *, uncertainty_scale: float = 1.0) -> Tensor:
    """The matrix `kind` for `horizon` tokens: (rows, horizon) int64, first row S, last row 0, never rising.

    full_sequence: all tokens together. pyramid: token t waits ⌊t·u⌋ rows, u = `uncertainty_scale`. autoregressive: pyramid
    with u = S, one token after the other. trapezoid: pyramid from both ends to the middle.
    """
    check_choice("scheduling_matrix", kind, SCHEDULING_MATRICES)
    check_minimum("horizon", horizon, 1)
    check_minimum("sampling_timesteps", sampling_timesteps, 1)
    check_minimum("uncertainty_scale", uncertainty_scale, 0)
    match kind:
        case "full_sequence":
            delay = [0] * horizon
        case "pyramid":
            delay = [math.floor(t * uncertainty_scale) for t in range(horizon)]
        case "autoregressive":
            delay = [t * sampling_timesteps for t in range(horizon)]
        case _:  # trapezoid
            delay = [math.floor(min(t, horizon - 1 - t) * uncertainty_scale) for t in range(horizon)]
    rows = sampling_timesteps + max(delay) + 1
    row = torch.arange(rows)
    return (sampling_timesteps + torch.tensor(delay)[None, :] - row[:, None]).clamp(0, sampling_timesteps)


def validate_matrix(matrix: Tensor | Sequence[Sequence[int]], sampling_timesteps: int) -> Tensor:
    """A user's own matrix (rows, tokens) as int64, checked: entries 0…S, starts at S, ends at 0, never rises."""
    try:
        matrix = torch.as_tensor(matrix)
    except (ValueError, TypeError) as error:
        raise UserError(f"a scheduling matrix needs rows of equal length with integers in them: {error}") from error
    require(
        matrix.ndim == 2 and matrix.shape[0] >= 2 and matrix.shape[1] >= 1,
        f"a scheduling matrix has (rows, tokens) with 2 rows or more, got shape {tuple(matrix.shape)}",
    )
    require(
        not (matrix.is_floating_point() or matrix.dtype == torch.bool),
        f"a scheduling matrix holds integers 0…{sampling_timesteps}, got {matrix.dtype}",
    )
    matrix = matrix.long()
    for wrong, rule in (
        ((matrix < 0) | (matrix > sampling_timesteps), f"holds levels 0…{sampling_timesteps} (sampling_timesteps)"),
        (matrix[:1] != sampling_timesteps, f"starts at {sampling_timesteps} (pure noise)"),
        (matrix.flip(0)[:1] != 0, "ends at 0 (clean)"),
        (matrix.diff(dim=0) > 0, "never rises"),
    ):
        if wrong.any():
            token = int(wrong.any(dim=0).nonzero()[0])
            raise UserError(f"a scheduling matrix {rule}; token {token} goes {matrix[:, token].tolist()}")
    return matrix


def sampling_levels(timesteps: int, sampling_timesteps: int) -> Tensor:
    """The training level k of each sampling level s = 0…S: (S+1,) int64, from −1 (clean) to K−1, evenly spaced, truncated."""
    check_range("sampling_timesteps", sampling_timesteps, 1, timesteps)
    return torch.linspace(-1, timesteps - 1, sampling_timesteps + 1, dtype=torch.float32).long()
