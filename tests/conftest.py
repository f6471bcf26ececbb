"""For all tests: what would cost each of them a fifth of a second, the yaml files of a choice of groups, is composed
once, and Python looks for garbage less often among the many objects of PyTorch and Lightning."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

from diffusion_forcing.launch import compose
from diffusion_forcing.launch.choices import PACKAGE_FOLDER, folders

MOST = 300
"""Configurations that are kept, of some hundred kilobytes each."""
_compose = compose._compose_files
_composed: dict[tuple[Any, ...], Any] = {}


def _state(folder: Path) -> list[tuple[Path, bytes]]:
    """What the yaml files of a user's folder hold."""
    files = sorted(folder.rglob("*.yaml")) if folder != PACKAGE_FOLDER else []
    return [(file.relative_to(folder), file.read_bytes()) for file in files if file.is_file()]


def _compose_once(group_words: list[str]) -> Any:
    key = (*group_words, *(str(_state(folder)) for folder in folders()))
    if len(_composed) > MOST:
        _composed.clear()
    if key not in _composed:
        _composed[key] = _compose(group_words)
    return copy.deepcopy(_composed[key])


compose._compose_files = _compose_once
gc.set_threshold(50_000, 20, 50)
