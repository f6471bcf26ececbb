"""What a page may say, view by view: one small model a message. Whatever is anything else is refused before a player sees it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from diffusion_forcing.errors import UserError

LONGEST = 16_384
"""Characters of a message."""


class Message(BaseModel):
    """Fields as declared, no others, finite numbers only."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


# ---------------------------------------------------------------------------------------------------------------- world


class Keys(Message):
    """The keys that are held now; number: counts up, and comes back with the first frame that heeds them."""

    do: Literal["keys"]
    keys: Annotated[list[Literal["forward", "left", "right"]], Field(max_length=3)]
    number: Annotated[int, Field(ge=0, le=2**31)] = 0


class Switch(Message):
    """truth: the simulator beside the dream; wander: walk without keys; pause; record: a clip, sent when switched off."""

    do: Literal["truth", "wander", "pause", "record"]
    on: bool


class Press(Message):
    """step: one frame while paused; forget: the memory becomes noise."""

    do: Literal["step", "forget"]


class Pace(Message):
    """steps: denoising steps a frame; fps: frames a second at most; noise: level that the memory is shown at, a share of the highest."""

    do: Literal["pace"]
    steps: Annotated[int, Field(ge=1, le=8)]
    fps: Annotated[int, Field(ge=2, le=30)]
    noise: Annotated[float, Field(ge=0, le=1)]


class New(Message):
    """Another maze, or layout of fruits."""

    do: Literal["new"]
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class Seen(Message):
    """The page has drawn this frame."""

    do: Literal["seen"]
    frame: Annotated[int, Field(ge=0, le=2**31)]


# ----------------------------------------------------------------------------------------------------------------- plan

Point = Annotated[list[Annotated[float, Field(ge=-10, le=200)]], Field(min_length=2, max_length=2)]


class ChooseMaze(Message):
    """maze: one of the shipped ones; rows: its map with walls drawn or opened, None: as it is."""

    do: Literal["maze"]
    maze: Annotated[str, Field(max_length=40)]
    rows: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64)] | None = None


class MakePlan(Message):
    """start, goal: (x, y) in metres; rows: sampling steps; candidates: plans drawn together."""

    do: Literal["plan"]
    start: Point
    goal: Point
    matrix: Literal["full_sequence", "pyramid", "autoregressive", "trapezoid"]
    rows: Annotated[int, Field(ge=2, le=50)]
    guidance: Annotated[float, Field(ge=0, le=20)]
    candidates: Annotated[int, Field(ge=1, le=16)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Stop(Message):
    do: Literal["stop"]


# ------------------------------------------------------------------------------------------------------------- forecast


class Known(Message):
    """A value of the future that is given: series and step ahead by their numbers, value in the data's units."""

    series: Annotated[int, Field(ge=0, lt=10_000)]
    step: Annotated[int, Field(ge=0, lt=10_000)]
    value: Annotated[float, Field(ge=-1e15, le=1e15)]


class Predict(Message):
    """window: which of the last windows; paths: sample paths; known: what is given of the future."""

    do: Literal["forecast"]
    window: Annotated[int, Field(ge=0, lt=100)] = 0
    paths: Annotated[int, Field(ge=5, le=200)] = 50
    way: Literal["model", "walk", "seasonal"] = "model"
    known: Annotated[list[Known], Field(max_length=64)] = []


class Train(Message):
    """A small forecaster of the file's series, for this many seconds."""

    do: Literal["train"]
    seconds: Annotated[int, Field(ge=2, le=600)] = 30


class Table(Message):
    """An uploaded table; it comes by POST, never over the socket."""

    do: Literal["table"]
    name: str
    content: bytes


class Back(Message):
    """The shipped data and forecaster again."""

    do: Literal["shipped"]


# ---------------------------------------------------------------------------------------------------------------- robot


class Cover(Message):
    do: Literal["cover"]
    camera: Annotated[int, Field(ge=0, le=1)]
    on: bool


class Act(Message):
    """play and pause the policy; distractor: drop or take away a box; forget: reset the memory; amnesia: at every decision."""

    do: Literal["play", "distractor", "amnesia"]
    on: bool


class Speed(Message):
    do: Literal["speed"]
    speed: Annotated[float, Field(ge=0.5, le=4)]


class Forget(Message):
    do: Literal["forget"]


_VIEWS: dict[str, Any] = {
    "world": Keys | Switch | Press | Pace | New | Seen,
    "plan": ChooseMaze | MakePlan | Stop,
    "forecast": Predict | Train | Back | Stop,
    "robot": Cover | Act | Speed | Forget | New,
}
VIEWS = tuple(_VIEWS)
_READERS: dict[str, TypeAdapter[Any]] = {
    view: TypeAdapter(Annotated[messages, Field(discriminator="do")])  # type: ignore[arg-type]
    for view, messages in _VIEWS.items()
}


def read(view: str, text: str) -> Message:
    """The message in `text`. UserError, one line, for what is none of the view's."""
    if len(text) > LONGEST:
        raise UserError(f"a message has {len(text):,} characters; at most {LONGEST:,} are allowed")
    try:
        message: Message = _READERS[view].validate_json(text, strict=True)
    except (ValidationError, RecursionError) as mistake:
        if not isinstance(mistake, ValidationError):
            raise UserError("a message is nested too deeply") from None
        first = mistake.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"][:6])[:80]
        raise UserError(f"not a message of this view: {where + ': ' if where else ''}{first['msg'][:200]}") from None
    return message
