"""With `load=`, a checkpoint sets the options that its weights depend on, unless the command line sets them.

A checkpoint of ours stores a `structure` beside its weights: sizes and statistics by dotted key, such as `algorithm.frame_stack`. They
replace the values from yaml, so that a network of another size than the default loads without repeating its sizes. A shipped checkpoint also
stores `sampling`: the settings that its reported scores were measured with. For a released checkpoint the structure is read off its tensors.
Only keys that the configuration has are replaced: a checkpoint never chooses a class, and its text is never interpreted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.compose import TARGET, import_class, resolved
from diffusion_forcing.limits import check_limit, reading
from diffusion_forcing.options import leaves, whole_numbers

DATASET_KEYS = frozenset(
    f"dataset.{key}"
    for keys in (
        ("observation_mean", "observation_std", "action_mean", "action_std", "episode_len"),
        ("data_mean", "data_std", "resolution", "n_frames", "frame_skip", "external_cond_dim", "action_kind"),
        ("n_cameras", "action_stack"),
    )
    for key in keys
)
"""All that a checkpoint may set of the dataset: never where data is read from."""
_ROLLOUT_LENGTH = "dataset.n_frames"
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_BY_NOISE_LEVEL = re.compile(r"\$\{(?:matrix|chunk)_for:\$\{\.noise_level\},.*\}")
_ABSENT = object()
CARD = "README.md"
"""Of a shipped checkpoint."""

_CHOICES_FOR = {
    "planning": "experiment=exp_planning algorithm=df_planning dataset=maze2d_medium (or another maze)",
    "robot": "dataset=robot_swap algorithm=df_robot experiment=exp_robot",
    "prediction": "experiment=exp_prediction algorithm=df_prediction dataset=ts_ecb (or other series)",
    "video": "experiment=exp_video algorithm=df_video, and the dataset it was trained on",
}
_ALGORITHM_FOR = {
    ("video", "v1.5"): "df_video",
    ("video", "rnn"): "df_video_rnn",
    ("video", "world"): "df_world",
    ("planning", "v1.5"): "df_planning",
    ("planning", "rnn"): "df_planning_rnn",
}


def check_task(config: Mapping[str, Any], checkpoint: Path) -> None:
    """UserError if `checkpoint` is for another task or of the other line than the chosen algorithm. config: resolved."""
    metadata = _metadata(checkpoint, config)
    task, line = metadata.get("task"), metadata.get("line")
    target = config["algorithm"].get(TARGET)
    algorithm = import_class(target, f"algorithm.{TARGET}") if isinstance(target, str) else object
    wanted_task, wanted_line = getattr(algorithm, "task", ""), getattr(algorithm, "line", "")
    if task and wanted_task and task != wanted_task:
        hint = f": choose {_CHOICES_FOR[task]}" if task in _CHOICES_FOR else ""
        hint = hint.replace("df_video,", f"{_ALGORITHM_FOR.get((task, str(line)), 'df_video')},")
        hint += f" ({checkpoint / CARD} has the command)" if (checkpoint / CARD).is_file() else ""
        raise UserError(f"{checkpoint} is a checkpoint for {task}, the chosen algorithm is for {wanted_task}{hint}")
    if line and wanted_line and line != wanted_line:
        choice = _ALGORITHM_FOR.get((str(task), str(line)))
        hint = f": choose algorithm={choice}" if choice else ""
        raise UserError(
            f"{checkpoint} is a {task} checkpoint of the {line} line, the algorithm is of the {wanted_line} line{hint}"
        )


def adopt_(config: DictConfig, checkpoint: Path, overridden: Iterable[str]) -> list[str]:
    """Write the structure and the sampling settings of `checkpoint` into `config` in place. Returns the changes as `key=value`.

    overridden: dotted keys that the command line set. They, their parents and their children keep their values, and so does a key that
    interpolates one of them. One exception: `algorithm.n_frames` interpolates `dataset.n_frames`, which is the window where a network is
    trained and the length of a rollout elsewhere; without training, the window stays the checkpoint's. A checkpoint of another
    environment sets keys of the algorithm only.
    """
    plain = resolved(config)
    metadata = _metadata(checkpoint, plain)
    stored = [metadata[name] for name in ("structure", "sampling") if isinstance(metadata.get(name), Mapping)]
    now, overridden = OmegaConf.create(plain), list(overridden)
    trains = not {"training", "distill"}.isdisjoint(OmegaConf.select(now, "experiment.tasks") or ())
    # an ant is planned for as the point of the same maze
    wanted = OmegaConf.select(now, "dataset.env_id")
    same_environment = metadata.get("env_id") in (wanted, str(wanted).replace("antmaze-", "pointmaze-"))
    changes = []
    for key, value in (leaf for mapping in stored for leaf in leaves(mapping)):
        allowed = key.startswith("algorithm.") or (key in DATASET_KEYS and same_environment)
        if not allowed or "._" in key or not _is_plain(value):
            continue
        with reading(checkpoint, "take another checkpoint"):
            check_limit("SIZE", max(whole_numbers(value), default=0), key)
        source = _source(config, key)
        follows = source in overridden and (trains or source != _ROLLOUT_LENGTH)
        if follows or any(_overlap(key, other) for other in overridden):
            continue
        current = OmegaConf.select(now, key, default=_ABSENT)
        current = OmegaConf.to_container(current) if OmegaConf.is_config(current) else current
        if current is not _ABSENT and current != value:
            OmegaConf.update(config, key, value, merge=False)
            changes.append(f"{key}={json.dumps(value, separators=(',', ':'))}")
    return changes


def _metadata(checkpoint: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint's metadata, of a released one with its structure. Empty if it cannot be read: loading it raises the error."""
    from diffusion_forcing.checkpoints import format as native

    if native.is_checkpoint(checkpoint):
        metadata = native.read_header(checkpoint).get("facts")
    else:
        try:
            metadata = native.load(checkpoint).metadata
        except UserError:
            return {}
    if not isinstance(metadata, dict):
        return {}
    structure = None if "structure" in metadata else _released_structure(metadata, config["dataset"].get("resolution"))
    return metadata if structure is None else {**metadata, "structure": {"algorithm": structure}}


def _released_structure(metadata: Mapping[str, Any], resolution: Any) -> dict[str, Any] | None:
    """The options under `algorithm` that the tensors of a released checkpoint imply, for frames of `resolution` pixels."""
    from diffusion_forcing.released.options import released_recurrent_structure, released_video_structure

    task, recurrent = metadata.get("task"), "z_shape" in metadata
    if task in ("planning", "prediction") and recurrent and metadata.get("line") == "rnn":
        return released_recurrent_structure(metadata, None)
    if task == "video" and isinstance(resolution, int) and (recurrent or "halvings" in metadata):
        return (released_recurrent_structure if recurrent else released_video_structure)(metadata, resolution)
    return None


def _source(config: DictConfig, key: str) -> str | None:
    """The dotted key whose value `key` interpolates (`${…}` in yaml), or None."""
    value: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, str):
        return None
    if _BY_NOISE_LEVEL.fullmatch(value):
        return "algorithm.noise_level"
    found = _INTERPOLATION.fullmatch(value)
    return found[1] if found else None


def _overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other or its parent."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _is_plain(value: Any) -> bool:
    """Numbers, booleans, None, text without interpolation, and lists of them."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value in (None, {}) or isinstance(value, int | float) or (isinstance(value, str) and "${" not in value)
