"""What a checkpoint's weights depend on (sizes, statistics) is taken from the checkpoint, unless the command line says it.

Our checkpoints carry a `structure` beside their weights: values by dotted key, such as `algorithm.frame_stack`. With `load=` they replace
the yaml's, so that a network of other sizes than the default's loads without repeating them. A shipped one also carries `sampling`, the
settings its card's scores were measured with (matrix, rows, guidance, controller), taken in the same way. Only values of keys that the configuration
has are taken: a checkpoint never chooses a class, and its text is never interpreted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.launch.compose import resolved

STATISTICS = frozenset(
    f"dataset.{key}" for key in ("observation_mean", "observation_std", "action_mean", "action_std", "episode_len")
)
"""All that a checkpoint may say of the dataset: never where data lies or comes from."""


def adopt_(config: DictConfig, checkpoint: Path, given: Iterable[str]) -> list[str]:
    """Write the structure, and the sampling settings, of `checkpoint` into `config` in place, and return what changed as `key=value` words.

    `given` are the dotted keys that the command line set: they and what is below or above them stay. A checkpoint of another environment
    gives its algorithm's keys only; one that is not ours, or has no structure, nothing.
    """
    facts = _facts(checkpoint)
    carried = [facts[name] for name in ("structure", "sampling") if isinstance(facts.get(name), Mapping)]
    if not carried:
        return []
    now = OmegaConf.create(resolved(config))
    elsewhere = facts.get("env_id") != OmegaConf.select(now, "dataset.env_id")
    taken = []
    for key, value in (leaf for mapping in carried for leaf in _leaves(mapping)):
        if key.startswith("dataset.") and elsewhere:
            continue
        ours = (key.startswith("algorithm.") or key in STATISTICS) and "._" not in key  # never _target_
        if not ours or any(_touches(key, other) for other in given):
            continue
        current = OmegaConf.select(now, key, default=_ABSENT)
        current = OmegaConf.to_container(current) if OmegaConf.is_config(current) else current
        if current is _ABSENT or current == value or not _is_plain(value):
            continue
        OmegaConf.update(config, key, value, merge=False)
        taken.append(f"{key}={json.dumps(value, separators=(',', ':'))}")
    return taken


_ABSENT = object()


def _facts(checkpoint: Path) -> dict[str, Any]:
    from diffusion_forcing.checkpoints.format import is_checkpoint, read_header

    facts = read_header(checkpoint).get("facts") if is_checkpoint(checkpoint) else None
    return facts if isinstance(facts, dict) else {}


def _leaves(mapping: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; an empty mapping is a value."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _touches(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _is_plain(value: Any) -> bool:
    """Numbers, truth values, None, words without `${`, and lists of them."""
    if isinstance(value, list):
        return all(_is_plain(entry) for entry in value)
    return (
        value is None
        or value == {}
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and "${" not in value)
    )
