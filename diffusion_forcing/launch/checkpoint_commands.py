"""`diffusion-forcing inspect PATH` and `diffusion-forcing convert IN.ckpt OUT`: what a checkpoint is, and a released one in our format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_forcing.checkpoints import LoadedCheckpoint, export, load, resolve
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.report import say

_FEW = 8  # numbers of a statistic that are printed

LONGEST = 12  # entries of a list that are shown


def inspect(words: Sequence[str]) -> None:
    """`inspect PATH`: prints what the checkpoint is, one fact a line. PATH is what `load=` takes."""
    if len(words) != 1:
        raise UserError(f"inspect takes one checkpoint, got {len(words)}; diffusion-forcing inspect PATH")
    path = resolve(words[0])
    checkpoint = load(path)
    say(summary(checkpoint))
    lines: dict[str, Any] = {
        "path": str(checkpoint.path),
        "step": checkpoint.step,
        "parameters": f"{_count(checkpoint.weights):,} in {len(checkpoint.weights)} tensors",
    }
    lines |= _flat({key: value for key, value in checkpoint.facts.items() if key not in ("task", "line", "statistics")})
    lines |= {key: _shown(value) for key, value in checkpoint.statistics.items()}
    width = max(map(len, lines))
    for key, value in lines.items():
        say(f"  {key:<{width}}  {_short(value)}")


def convert(words: Sequence[str]) -> None:
    """`convert IN.ckpt OUT`: writes the released checkpoint IN.ckpt, once it is found to be whole, as the folder OUT."""
    if len(words) != 2:
        raise UserError(
            f"convert takes a released checkpoint and a new folder, got {len(words)}; diffusion-forcing convert IN.ckpt OUT"
        )
    from diffusion_forcing.released.options import check_released

    source = Path(words[0])
    checkpoint = load(source)
    if checkpoint.kind != "released":
        raise UserError(f"{source} is in our format already; load={source} takes it as it is")
    check_released(checkpoint)
    say(summary(checkpoint))
    say(f"wrote {export(source, Path(words[1]))}; load={words[1]} takes it")


def summary(checkpoint: LoadedCheckpoint) -> str:
    """One line: kind, line, task, parameters, step."""
    from diffusion_forcing.released.options import LINES

    facts = checkpoint.facts
    line = LINES.get(str(facts.get("line")), "an unknown line")
    kind = "released checkpoint" if checkpoint.kind == "released" else "checkpoint"
    of = ", ".join(f"{key} {facts[key]}" for key in ("network_size", "z_shape", "frame_stack") if key in facts)
    return (
        f"{kind} of {line}: {facts.get('task', 'unknown task')}{f' ({of})' if of else ''}, "
        f"{_count(checkpoint.weights):,} parameters, step {checkpoint.step}"
    )


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in weights.values())


def _short(value: Any) -> str:
    """A value on one line, a long list by its beginning and length."""
    if isinstance(value, list) and len(value) > LONGEST:
        return f"{json.dumps(value[:3])[:-1]}, … {len(value)} in all]"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(facts: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in facts.items():
        found |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) and value else {f"{where}{key}": value}
    return found


def _shown(value: Tensor) -> str:
    few = ", ".join(f"{number:.6g}" for number in value.flatten()[:_FEW].tolist())
    return f"{few}, … {list(value.shape)}" if value.numel() > _FEW else few
