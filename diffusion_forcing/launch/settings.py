"""The keys of config.yaml itself, typed. The sections of the three parts are typed by the parts' own `Options`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusion_forcing.errors import UserError
from diffusion_forcing.tracking.wandb import WandbOptions


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Top level of the configuration. `experiment`, `dataset` and `algorithm` stay mappings here."""

    name: str | None = None
    seed: int = 0
    seeds: int = 1
    debug: bool = False
    outputs: str = "outputs"
    load: str | None = None
    resume: str | None = None
    wandb: WandbOptions = field(default_factory=WandbOptions)
    experiment: Any = None
    dataset: Any = None
    algorithm: Any = None
    cluster: Any = None
    tracking: Any = None
    choices: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("name", "outputs", "load", "resume"):
            if getattr(self, key) == "":
                raise UserError(f"{key}= is empty: give {key}=VALUE or leave it out")
            if "\0" in (getattr(self, key) or ""):
                raise UserError(f"{key}= holds a null byte, which no name or path has")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is a whole number from 0 to {2**32 - 1}, got {self.seed}")
        if not 1 <= self.seeds <= 1000 or self.seed + self.seeds > 2**32:
            raise UserError(f"seeds is how many seeds to run, from 1 to 1000, got {self.seeds}")
        if self.seeds > 1 and self.resume is not None:
            raise UserError("seeds= starts several new runs and resume= goes on with one: give one of them")
        if self.load is not None and self.resume is not None:
            raise UserError(
                "load= starts a new run from a checkpoint and resume= goes on with an old one: give one of them"
            )

    @property
    def run_name(self) -> str:
        """The run's name: the given one, else the dataset's choice."""
        return self.name or str(self.choices.get("dataset") or "run")
