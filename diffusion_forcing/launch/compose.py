"""yaml files and the command line become one mapping.

The yaml files lie in `configurations/`: a folder of that name where the user stands comes first, the package's own second. Hydra
composes the chosen files; the command line's values are laid on top; everything it or OmegaConf can complain about becomes one line.
A composed configuration keeps its interpolations (`${dataset.gamma}`), so that a saved one can be changed and resolved again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.launch.overrides import (
    PACKAGE_FOLDER,
    TRACKING,
    Override,
    apply_,
    choices_of,
    first_line,
    folders,
    group_names,
    parse,
)

SAMPLED_BY = {
    "matrix_for": {"full_sequence": "full_sequence", "teacher_forcing": "autoregressive"},
    "chunk_for": {"full_sequence": -1},
}
"""What yaml takes for `${matrix_for:${.noise_level},otherwise}`: how a baseline is sampled, where the command line does not say. The first is
`diffusion.noise_levels.MATRICES`, which would bring torch here."""

CHOICES = "choices"
"""Top-level key of a composed configuration: which yaml file each group came from (kept so that resume= can compare)."""

for _name, _values in SAMPLED_BY.items():
    OmegaConf.register_new_resolver(
        _name, lambda kind, otherwise, values=_values: values.get(kind, otherwise), replace=True
    )

_PARTS = ("dataset", "algorithm", "experiment")
_DEFAULT_GROUPS = (*_PARTS, "cluster", TRACKING)


def compose(words: Sequence[str]) -> DictConfig:
    """The configuration of a new run. `words` are the command line's overrides."""
    overrides = [parse(word, frozenset(group_names())) for word in words]
    chosen = [override for override in overrides if override.group]
    for override in chosen:
        _check_choice(override)
    # the default of config.yaml is no cluster, which Hydra's words cannot say
    files = [override for override in chosen if override.key != "cluster" or override.value is not None]
    config = _compose_files([_group_text(override) for override in files])
    config[CHOICES].update({TRACKING: ["local"], **{override.key: override.value for override in chosen}})
    _apply_all_(config, overrides)
    _add_wandb_(config)
    return config


def compose_on(saved: str, words: Sequence[str]) -> DictConfig:
    """The configuration of a resumed run: its saved yaml text below, the command line's values on top."""
    try:
        config = OmegaConf.create(saved)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as failure:
        raise UserError(f"the run's saved config.yaml cannot be read: {first_line(failure)}") from failure
    if not isinstance(config, DictConfig) or not isinstance(config.get(CHOICES), DictConfig):
        raise UserError(f"the run's saved config.yaml cannot be read: it is no run's, which has a mapping '{CHOICES}'")
    overrides = [parse(word, frozenset(group_names())) for word in words]
    before = config.get(CHOICES) or {}
    for override in overrides:
        if override.group and override.key == TRACKING:  # who is told of a run does not change what it is
            _check_choice(override)
            _track_(config, _names(override.value))
            if "wandb" in _names(override.value) and config["wandb"]["mode"] == "disabled":
                config["wandb"]["mode"] = None
        elif override.group and override.key == "cluster":  # nor does where it runs
            _check_choice(override)
            chosen = None if override.value is None else _compose_files([_group_text(override)])["cluster"]
            config["cluster"] = chosen
        elif override.group and before.get(override.key) != override.value:
            raise UserError(
                f"resume= goes on with the run as it was ({override.key}={before.get(override.key)}), got '{override.text}'; "
                "to start a new run from its weights use load= instead"
            )
    _apply_all_(config, overrides)
    _add_wandb_(config)
    return config


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries and lists, every interpolation followed. Has a mapping for each of the three parts."""
    for part in _PARTS:
        if not OmegaConf.is_missing(config, part) and isinstance(config._get_node(part), DictConfig):
            continue
        choice = config[CHOICES].get(part)
        if choice is None or part not in config:
            raise UserError(f"there is no {part}: choose one with {part}=NAME; there are: {_list(choices_of(part))}")
        raise UserError(f"{part}/{choice}.yaml holds no keys: it needs at least _target_, the class to build")
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as failure:
        key = getattr(failure, "full_key", None) or first_line(failure)
        raise UserError(f"{key} has no value; give {key}=VALUE") from failure
    except OmegaConfBaseException as failure:
        key = getattr(failure, "full_key", None)
        where = f"{key}: " if key else ""
        lacking = re.search(r"Interpolation key 'dataset\.\w+' not found", str(failure))
        hint = ""
        if lacking and str(key).startswith("algorithm."):
            names = {part: config[CHOICES].get(part) for part in _PARTS}
            hint = (
                f"; dataset={names['dataset']} has none, and algorithm={names['algorithm']} takes it from there: choose an algorithm "
                f"and an experiment for that data (algorithm={', '.join(choices_of('algorithm'))}), or other data"
            )
        raise UserError(f"{where}{first_line(failure)}{hint}") from failure
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def as_yaml(config: DictConfig) -> str:
    """The configuration as yaml text, interpolations kept: what a run's config.yaml holds."""
    return OmegaConf.to_yaml(config)


def _apply_all_(config: DictConfig, overrides: Iterable[Override]) -> None:
    for override in overrides:
        if override.key.split(".")[0] == CHOICES:
            raise UserError(f"'{override.text}': a file is chosen by its group, as in dataset=NAME")
        if not override.group:
            apply_(config, override)


def _track_(config: DictConfig, names: Sequence[str]) -> None:
    """Choose the trackers `names` in place of those there were; keys of one that stays, stay."""
    before = config.get(TRACKING) or {}
    composed = _compose_files([f"{TRACKING}=[{','.join(names)}]"])
    found = composed.get(TRACKING) or OmegaConf.create({})
    config[TRACKING] = OmegaConf.merge(found, {key: value for key, value in before.items() if key in found})
    config["wandb"] = OmegaConf.merge(
        composed["wandb"], config.get("wandb") or {}
    )  # an older version's run has fewer keys
    config[CHOICES] = {**(config.get(CHOICES) or {}), TRACKING: list(names)}


def _add_wandb_(config: DictConfig) -> None:
    """wandb.mode=online or offline, as scripts of the released code have it, is enough to choose W&B."""
    names = _names((config.get(CHOICES) or {}).get(TRACKING))
    if OmegaConf.select(config, "wandb.mode") in ("online", "offline") and "wandb" not in names:
        _track_(config, [*names, "wandb"])


def _names(choice: Any) -> list[str]:
    """The group `tracking` takes one name or a list of them."""
    if choice is None:
        return []
    return [choice] if isinstance(choice, str) else list(choice)


def _check_choice(override: Override) -> None:
    if override.key == TRACKING and isinstance(override.value, list):
        for name in override.value:
            _check_choice(replace(override, value=name))
        return
    group, choice = override.key.partition("@")[0], override.value
    if choice is None and group in _PARTS and not override.delete:
        raise UserError(f"there is no {group}: choose one with {group}=NAME; there are: {_list(choices_of(group))}")
    known = choices_of(group)
    if not known and group not in _DEFAULT_GROUPS:
        raise UserError(
            f"'{override.text}': there is no group '{group}'{did_you_mean(group, group_names())}; groups: {_list(group_names())}"
        )
    if choice is not None and not override.delete and choice not in known:
        raise UserError(f"{group}={choice} does not exist{did_you_mean(choice, known)}; there are: {_list(known)}")


def _group_text(override: Override) -> str:
    """The override as Hydra wants it: `+` only for groups that are not in the defaults list of config.yaml."""
    word = override.text.lstrip("+")
    if override.key == TRACKING and override.value is None:
        return f"{TRACKING}=[]"
    return word if override.key in _DEFAULT_GROUPS or override.delete else f"+{word}"


class _UsersFolderFirst(SearchPathPlugin):
    """Puts the folders that come before the package's own in front of Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(folders()):
            if folder != PACKAGE_FOLDER:
                search_path.prepend("diffusion-forcing", f"file://{folder}")


def _compose_files(group_words: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    Plugins.instance().register(_UsersFolderFirst)
    try:
        with initialize_config_dir(str(PACKAGE_FOLDER), version_base="1.3", job_name="diffusion-forcing"):
            composed = hydra_compose("config", overrides=group_words, return_hydra_config=True)
    except MissingConfigException as failure:
        group, _, name = str(failure.missing_cfg_file or "").rpartition("/")
        known = choices_of(group, bases=True) if group else {}
        raise UserError(
            f"{first_line(failure).rstrip('.')}{did_you_mean(name, known)}; there are: {_list(known)}"
        ) from failure
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        place = f"{_short(mark.name)} line {mark.line + 1}" if mark else "a yaml file"
        raise UserError(f"{place} is not valid yaml: {failure.problem or failure.context}") from failure
    except RecursionError as failure:
        raise UserError(
            "the yaml files cannot be composed: one is nested too deeply, or its defaults lead back to itself"
        ) from failure
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as failure:
        raise UserError(f"the yaml files cannot be composed: {first_line(failure)}") from failure
    choices = {group: choice for group, choice in composed.hydra.runtime.choices.items() if "hydra/" not in group}
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    OmegaConf.set_struct(config, False)
    config[CHOICES] = choices
    return config


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _short(path: str) -> str:
    """A path as seen from where the user stands."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
