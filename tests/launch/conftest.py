"""A user's own project in a temporary folder: three tiny parts, their yaml, and nothing of ours edited."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.conftest import server  # noqa: F401  a fixture

PARTS = """
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

import random

from diffusion_forcing.errors import UserError

EVENTS: list[object] = []


@dataclass(frozen=True, kw_only=True)
class Size:
    width: int = 8
    rates: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    path: str
    mean: tuple[float, ...] = (0.0,)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    mean: tuple[float, ...]
    lr: float = 1e-3
    steps: Optional[int] = None
    kind: Literal["small", "large"] = "small"
    causal: bool = False
    size: Size = field(default_factory=Size)
    extra: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.lr <= 0:
            raise UserError(f"lr is above 0, got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    tasks: tuple[str, ...] = ("training",)


class Data:
    Options = DataOptions

    def __init__(self, options):
        EVENTS.append("data")
        self.options = options


class Model:
    Options = ModelOptions

    def __init__(self, options):
        EVENTS.append("model")
        self.options = options


class Study:
    Options = StudyOptions

    def __init__(self, options, *, dataset, algorithm, run, seed, debug, load, resume):
        EVENTS.append("study")
        self.run, self.facts = run, dict(seed=seed, debug=debug, load=load, resume=resume, mean=algorithm.options.mean)

    def run_task(self, name):
        getattr(self, name)()

    def training(self):
        EVENTS.append(("training", random.random(), self.facts))
        self.run.log(1, {"loss": 0.5})
        self.run.summary({"loss": 0.5})

    def my_task(self):
        EVENTS.append("my_task")

    def broken(self):
        raise UserError("the loss is not finite at step 3")

    def mistaken(self):
        raise ZeroDivisionError("ours")

    def stopped(self):
        raise KeyboardInterrupt
"""

YAML = {
    "dataset/mine.yaml": "# My data.\n_target_: my_parts.Data\npath: here\nmean: [1.0, 2.0]\n",
    "algorithm/mine.yaml": "_target_: my_parts.Model\nmean: ${dataset.mean}\nlr: 1e-2\nsteps: null\nkind: small\nsize: {width: 16}\n",
    "experiment/mine.yaml": "_target_: my_parts.Study\ntasks: [training]\n",
}
MINE = ["experiment=mine", "dataset=mine", "algorithm=mine"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `my_parts.py` and `configurations/`, being the working directory; modules and path are put back."""
    (tmp_path / "my_parts.py").write_text(PARTS)
    for name, text in YAML.items():
        file = tmp_path / "configurations" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]
