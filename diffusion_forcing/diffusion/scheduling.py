"""Scheduling matrices: in which order tokens lose their noise (docs/method.md §6, paper §3.3).

Rows are denoising steps, columns tokens, entries sampling levels s ∈ {0 … S}: S pure noise, 0 clean. All four shapes are one
broadcast: a token starts falling after its delay and loses one level a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError, did_you_mean

SCHEDULING_MATRICES = ("full_sequence", "pyramid", "autoregressive", "trapezoid")


def scheduling_matrix(kind: str, horizon: int, sampling_timesteps: int, *, uncertainty_scale: float = 1.0) -> Tensor:
    """The matrix `kind` for `horizon` tokens: (rows, horizon) int64, first row S, last row 0, never rising.

    full_sequence: all tokens together. pyramid: token t waits ⌊t·u⌋ rows, u = `uncertainty_scale`. autoregressive: pyramid
    with u = S, one token after the other. trapezoid: pyramid from both ends to the middle.
    """
    if horizon < 1:
        raise UserError(f"a scheduling matrix needs at least 1 token, got horizon {horizon}")
    if sampling_timesteps < 1:
        raise UserError(f"sampling_timesteps is {sampling_timesteps}; at least 1 denoising level is needed")
    if uncertainty_scale < 0:
        raise UserError(f"uncertainty_scale is {uncertainty_scale}; it must be 0 (all tokens together) or more")
    token = range(horizon)
    match kind:
        case "full_sequence":
            delay = [0 for _ in token]
        case "pyramid":
            delay = [math.floor(t * uncertainty_scale) for t in token]
        case "autoregressive":
            delay = [t * sampling_timesteps for t in token]
        case "trapezoid":
            delay = [math.floor(min(t, horizon - 1 - t) * uncertainty_scale) for t in token]
        case _:
            raise UserError(
                f"scheduling_matrix '{kind}' is not known; allowed: {', '.join(SCHEDULING_MATRICES)}, or a matrix of your own"
                f"{did_you_mean(kind, SCHEDULING_MATRICES)}"
            )
    rows = sampling_timesteps + max(delay) + 1
    row = torch.arange(rows)
    return (sampling_timesteps + torch.tensor(delay)[None, :] - row[:, None]).clamp(0, sampling_timesteps)


def validate_matrix(matrix: Tensor | Sequence[Sequence[int]], sampling_timesteps: int) -> Tensor:
    """A user's own matrix (rows, tokens) as int64, checked: entries 0…S, starts at S, ends at 0, never rises."""
    try:
        matrix = torch.as_tensor(matrix)
    except (ValueError, TypeError) as error:
        raise UserError(f"a scheduling matrix needs rows of equal length with integers in them: {error}") from error
    if matrix.ndim != 2 or matrix.shape[0] < 2 or matrix.shape[1] < 1:
        raise UserError(f"a scheduling matrix has (rows, tokens) with 2 rows or more, got shape {tuple(matrix.shape)}")
    if matrix.is_floating_point() or matrix.dtype == torch.bool:
        raise UserError(f"a scheduling matrix holds integers 0…{sampling_timesteps}, got {matrix.dtype}")
    matrix = matrix.long()
    if matrix.min() < 0 or matrix.max() > sampling_timesteps:
        raise UserError(
            f"a scheduling matrix holds levels 0…{sampling_timesteps} (sampling_timesteps), got {int(matrix.min())}…{int(matrix.max())}"
        )
    if (matrix[0] != sampling_timesteps).any():
        token = int((matrix[0] != sampling_timesteps).nonzero()[0])
        raise UserError(
            f"a scheduling matrix starts at {sampling_timesteps} (pure noise); token {token} starts at {int(matrix[0, token])}"
        )
    if (matrix[-1] != 0).any():
        token = int((matrix[-1] != 0).nonzero()[0])
        raise UserError(f"a scheduling matrix ends at 0 (clean); token {token} ends at {int(matrix[-1, token])}")
    rises = (matrix.diff(dim=0) > 0).nonzero()
    if len(rises):
        row, token = rises[0].tolist()
        raise UserError(
            f"a scheduling matrix never rises; token {token} goes {int(matrix[row, token])} → {int(matrix[row + 1, token])} at row {row + 1}"
        )
    return matrix


def sampling_levels(timesteps: int, sampling_timesteps: int) -> Tensor:
    """The training level k of each sampling level s = 0…S: (S+1,) int64, from −1 (clean) to K−1, evenly spaced, truncated."""
    if not 1 <= sampling_timesteps <= timesteps:
        raise UserError(
            f"sampling_timesteps is {sampling_timesteps}; it must lie in 1…{timesteps} (diffusion.timesteps of the trained model)"
        )
    return torch.linspace(-1, timesteps - 1, sampling_timesteps + 1, dtype=torch.float32).long()
