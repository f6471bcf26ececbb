"""Whether the actions on disk are the ones the options speak of. A wrong width is a mistake in the options, so it stops the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video_inspect import Episode
from diffusion_forcing.datasets.video_options import VideoDatasetOptions
from diffusion_forcing.errors import UserError


def checked_actions(episodes: Sequence[Episode], options: VideoDatasetOptions) -> list[NDArray[Any]] | None:
    """Actions of each episode: (n,) numbers below external_cond_dim, or (n, external_cond_dim) float32. None where they are not used.

    Raises `UserError`, naming the first file at fault, for actions that are missing, broken, too few, of another width or kind, or out of range.
    """
    if options.external_cond_dim == 0:
        return None
    return [_checked(episode, options) for episode in episodes]


def _checked(episode: Episode, options: VideoDatasetOptions) -> NDArray[Any]:
    width, actions, name = options.external_cond_dim, episode.actions, episode.file
    if actions is None:
        reason = episode.action_problem or "no 'actions' in its npz and no npz, npy or csv of its name beside it"
        raise UserError(
            f"{name} has no actions ({reason}), but dataset.external_cond_dim={width} asks for them; add them, or set it to 0"
        )
    needed = episode.frames - options.action_shift
    if len(actions) < needed:
        raise UserError(
            f"{name} has {len(actions)} actions for {episode.frames} frames, at least {needed} are needed "
            f"with dataset.action_shift={options.action_shift}; the file is cut off, delete it or give the rest"
        )
    if options.action_kind == "continuous":
        columns = actions[:, None] if actions.ndim == 1 else actions
        if columns.shape[1] != width:
            raise UserError(
                f"{name} has actions of width {columns.shape[1]}, but dataset.external_cond_dim={width}; "
                f"set dataset.external_cond_dim={columns.shape[1]}"
            )
        return columns.astype(np.float32)
    numbers = actions[:, 0] if actions.ndim == 2 and actions.shape[1] == 1 else actions
    if numbers.ndim != 1 or (numbers != np.round(numbers)).any():
        shape = "" if numbers.ndim == 1 else f" of width {numbers.shape[1]}"
        raise UserError(
            f"{name} has actions{shape} that are no numbers of discrete actions; "
            "set dataset.action_kind=continuous and dataset.external_cond_dim to their width"
        )
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= width):
        raise UserError(
            f"{name} has actions from {numbers.min():g} to {numbers.max():g}, but dataset.external_cond_dim={width} "
            f"allows 0 to {width - 1}; set it to the number of discrete actions"
        )
    return numbers.astype(np.uint8 if width <= 256 else np.int32)
