"""A metric that cannot be had here, as a value: a report prints it in the number's place and goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unavailable:
    """`name` of the metric, `because` of what it is missing, `how` to get it. No part ends in a full stop."""

    name: str
    because: str
    how: str

    def __str__(self) -> str:
        return f"unavailable, because {self.because}, get it by {self.how}"
