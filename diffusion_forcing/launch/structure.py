"""What a checkpoint's weights depend on (sizes, statistics) is taken from the checkpoint, unless the command line says it.

Our checkpoints carry a `structure` beside their weights: values by dotted key, such as `algorithm.frame_stack`. With `load=` they replace
the yaml's, so that a network of other sizes than the default's loads without repeating them. A shipped one also carries `sampling`, the
settings its card's scores were measured with (matrix, rows, guidance, controller), taken in the same way. A released video checkpoint has none;
what its tensors say stands in. Only values of keys that the configuration has are taken: a checkpoint never chooses a class, and its text is
never interpreted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.compose import resolved
from diffusion_forcing.launch.options import TARGET, import_class

_OF_MAZES = ("observation_mean", "observation_std", "action_mean", "action_std", "episode_len")
_OF_ROBOT = ("n_cameras", "action_stack", "action_mean", "action_std")
_OF_VIDEO = ("data_mean", "data_std", "resolution", "n_frames", "frame_skip", "external_cond_dim", "action_kind")
STATISTICS = frozenset(f"dataset.{key}" for key in (*_OF_MAZES, *_OF_VIDEO, *_OF_ROBOT))
"""All that a checkpoint may say of the dataset: never where data lies or comes from."""

_GO_WITH = {
    "planning": "experiment=exp_planning algorithm=df_planning dataset=maze2d_medium (or another maze)",
    "robot": "dataset=robot_swap algorithm=df_robot experiment=exp_robot",
    "prediction": "experiment=exp_prediction algorithm=df_prediction dataset=ts_ecb (or other series)",
    "video": "experiment=exp_video algorithm=df_video dataset=video_minecraft (or other video)",
}

_OF_LINE = {
    "video v1.5": "df_video",
    "video rnn": "df_video_rnn",
    "planning v1.5": "df_planning",
    "planning rnn": "df_planning_rnn",
}


def check_task(config: Mapping[str, Any], checkpoint: Path) -> None:
    """UserError where `checkpoint` was trained for another task or by the other line than the chosen algorithm; `config` is resolved."""
    facts = _facts(checkpoint, config)
    trained, line = facts.get("task"), facts.get("line")
    target = config["algorithm"].get(TARGET)
    chosen = import_class(target, f"algorithm.{TARGET}") if isinstance(target, str) else object
    wanted, our_line = getattr(chosen, "task", ""), getattr(chosen, "line", "")
    if trained and wanted and trained != wanted:
        more = f": choose {_GO_WITH[trained]}" if trained in _GO_WITH else ""
        raise UserError(f"{checkpoint} is a checkpoint for {trained}, the chosen algorithm is for {wanted}{more}")
    if line and our_line and line != our_line:
        algorithm = _OF_LINE.get(f"{trained} {line}")
        more = f": choose algorithm={algorithm}" if algorithm else ""
        raise UserError(
            f"{checkpoint} is a {trained} checkpoint of the {line} line, the chosen algorithm is of the {our_line} line{more}"
        )


def adopt_(config: DictConfig, checkpoint: Path, given: Iterable[str]) -> list[str]:
    """Write the structure, and the sampling settings, of `checkpoint` into `config` in place, and return what changed as `key=value` words.

    `given` are the dotted keys that the command line set: they and what is below or above them stay. A checkpoint of another environment
    gives its algorithm's keys only; one that has no structure, nothing. So does a key stay that takes its value from a given one, as
    `algorithm.n_frames` from `dataset.n_frames`, the window to train with; where nothing is trained, that is the length of a rollout, and
    the window stays the checkpoint's.
    """
    facts = _facts(checkpoint, resolved(config))
    carried = [facts[name] for name in ("structure", "sampling") if isinstance(facts.get(name), Mapping)]
    if not carried:
        return []
    now = OmegaConf.create(resolved(config))
    given = list(given)
    trains = "training" in (OmegaConf.select(now, "experiment.tasks") or ())
    elsewhere = facts.get("env_id") != OmegaConf.select(now, "dataset.env_id")
    taken = []
    for key, value in (leaf for mapping in carried for leaf in _leaves(mapping)):
        if key.startswith("dataset.") and elsewhere:
            continue
        ours = (key.startswith("algorithm.") or key in STATISTICS) and "._" not in key  # never _target_
        if not ours or any(_touches(key, other) for other in given):
            continue
        source = _source(config, key)
        if source in given and (trains or source != _LENGTH):
            continue
        current = OmegaConf.select(now, key, default=_ABSENT)
        current = OmegaConf.to_container(current) if OmegaConf.is_config(current) else current
        if current is _ABSENT or current == value or not _is_plain(value):
            continue
        OmegaConf.update(config, key, value, merge=False)
        taken.append(f"{key}={json.dumps(value, separators=(',', ':'))}")
    return taken


_ABSENT = object()
_LENGTH = "dataset.n_frames"
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_BY_NOISE_LEVEL = re.compile(r"\$\{(?:matrix|chunk)_for:\$\{\.noise_level\},.*\}")


def _source(config: DictConfig, key: str) -> str | None:
    """The dotted key that `key` takes its value from, where it is written as `${…}` in the yaml; else None."""
    value: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, str):
        return None
    if _BY_NOISE_LEVEL.fullmatch(value):
        return "algorithm.noise_level"
    found = _INTERPOLATION.fullmatch(value)
    return found[1] if found else None


def _facts(checkpoint: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint's facts; for a released video model with the structure that its tensors have for frames as configured.

    Nothing for one that cannot be read: whoever loads it says what is wrong with it.
    """
    from diffusion_forcing.checkpoints import format as native

    if native.is_checkpoint(checkpoint):
        found = native.read_header(checkpoint).get("facts")
        facts = found if isinstance(found, dict) else {}
    else:
        try:
            facts = native.load(checkpoint).facts
        except UserError:
            return {}
    resolution = config["dataset"].get("resolution")
    if facts.get("task") in ("planning", "prediction") and facts.get("line") == "rnn" and "structure" not in facts:
        from diffusion_forcing.released.options import released_recurrent_structure

        return {**facts, "structure": {"algorithm": released_recurrent_structure(facts, None)}}
    if (
        facts.get("task") == "video"
        and "structure" not in facts
        and ("halvings" in facts or "z_shape" in facts)
        and isinstance(resolution, int)
    ):
        from diffusion_forcing.released.options import released_recurrent_structure, released_video_structure

        of = released_recurrent_structure if "z_shape" in facts else released_video_structure
        facts = {**facts, "structure": {"algorithm": of(facts, resolution)}}
    return facts


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
