"""The grammar of the command line: `key=value`, `+key=value`, `++key=value`, `~key`, `group=choice`.

It is Hydra's grammar, read by Hydra's own parser, with four exceptions:

- The values of `load=`, `resume=`, `name=` and `outputs=` are plain text: a run id such as 12e45678 is no number, and a path may hold `=`.
- The value of a key that names a file or folder (`dataset.path=`, `dataset.save_dir=`) may hold commas.
- Other text that the grammar cannot read is plain text too, unless it opens a bracket or a quote (a maze written in `#`).
- `+` is never needed: the typed options decide whether a key exists, and name the nearest valid one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_forcing.errors import UserError, first_line, require

TARGET = "_target_"
"""The key that names a section's class."""
TRACKING = "tracking"
"""The only group that takes several choices: tracking=[wandb,tensorboard]."""
TEXT_KEYS = frozenset({"load", "resume", "name", "outputs"})
PATH_ENDINGS = ("path", "save_dir", "folder", "root")
"""Last words of keys that name a file or a folder."""
_ASSIGNMENT = re.compile(r"\+{0,2}(?P<key>[A-Za-z_]\w*(?:\.\w+)*)=(?P<value>.*)", re.DOTALL)
_EXAMPLES = "write key=value, lists as [1,2], and text with brackets or commas in quotes: 'key=\"a,b\"'"


@dataclass(frozen=True, kw_only=True)
class Override:
    """One argument. `key` is dotted; for a group it is the group's name and `value` the choice or None."""

    text: str
    key: str
    value: Any
    delete: bool = False
    group: bool = False


def parse(word: str, groups: frozenset[str]) -> Override:
    """One argument. groups: the names that choose a yaml file. Raises UserError if it cannot be read."""
    require(bool(word.strip()), f"an override is empty; {_EXAMPLES}")
    plain = _ASSIGNMENT.fullmatch(word)
    if plain and plain["key"] in TEXT_KEYS:
        return Override(text=word, key=plain["key"], value=_unquoted(plain["value"]))
    try:
        parsed = OverridesParser.create().parse_override(word)
        key = parsed.key_or_group
        value = None if parsed.is_sweep_override() else parsed.value()
    except (RecursionError, ValueError) as failure:
        raise UserError(f"cannot read '{_beginning(word)}': its value is nested too deeply or too long") from failure
    except HydraException as failure:
        if plain and plain["key"] not in groups and plain["value"][:1] not in set("[{('\""):
            return Override(text=word, key=plain["key"], value=plain["value"])
        if "=" not in word:
            raise UserError(f"'{word}' has no value: write {word}=VALUE") from failure
        raise UserError(f"cannot read '{word}' ({first_line(failure)}); {_EXAMPLES}") from failure
    require(bool(key), f"'{word}' has no key; {_EXAMPLES}")
    if re.split(r"[./]", key)[0] == "hydra":
        raise UserError(f"'{word}': Hydra's own settings are not used; set the folder of runs with outputs=FOLDER")
    if parsed.is_sweep_override():
        if plain and plain["key"].rpartition(".")[2] in PATH_ENDINGS:
            return Override(text=word, key=plain["key"], value=plain["value"])
        raise UserError(
            f"'{word}' is a sweep, which is not supported: start one run per value, or write a list as [1,2] "
            f"and text with commas in quotes: '{key}=\"a,b\"'"
        )
    is_group = "/" in key or parsed.package is not None or key in groups
    several = key == TRACKING and isinstance(value, list) and all(isinstance(name, str) for name in value)
    if is_group and not parsed.is_delete() and not (value is None or isinstance(value, str) or several):
        raise UserError(f"'{word}': {key} must be the name of one yaml file; set single keys with {key}.KEY=VALUE")
    return Override(text=word, key=key, value=value, delete=parsed.is_delete(), group=is_group)


def apply_(config: DictConfig, override: Override) -> None:
    """Set or delete one key of `config` in place. Missing parents are created; the typed options check them later."""
    try:
        if not override.delete:
            OmegaConf.update(config, override.key, override.value, merge=True, force_add=True)
            return
        parent_key, _, last = override.key.rpartition(".")
        parent = OmegaConf.select(config, parent_key) if parent_key else config
        if not isinstance(parent, DictConfig) or last not in parent:
            raise UserError(f"cannot delete '{override.key}': there is no such key")
        if override.value is not None and parent[last] != override.value:
            raise UserError(
                f"cannot apply '{override.text}': {override.key} is {parent[last]!r}; write ~{override.key}"
            )
        del parent[last]
    except RecursionError as failure:
        raise UserError(f"cannot apply '{_beginning(override.text)}': its key is nested too deeply") from failure
    except OmegaConfBaseException as failure:
        raise UserError(f"cannot apply '{override.text}': {first_line(failure)}") from failure


def _unquoted(value: str) -> str | None:
    if value in ("null", "None"):
        return None
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _beginning(word: str) -> str:
    return word if len(word) <= 60 else f"{word[:60]}…"
