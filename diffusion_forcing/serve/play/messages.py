"""What a page may say, view by view: a table of messages and their fields. Whatever else comes is refused before a player sees it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

from diffusion_forcing.errors import UserError

LONGEST = 16_384
"""Characters of a message."""

Message = dict[str, Any]
"""`do`, what is asked for, and its fields."""


def whole(low: int, high: int) -> Any:
    return Annotated[int, Field(ge=low, le=high)]


def number(low: float, high: float) -> Any:
    return Annotated[float, Field(ge=low, le=high, allow_inf_nan=False)]


def listed(entry: Any, most: int, least: int = 0) -> Any:
    return Annotated[list[entry], Field(min_length=least, max_length=most)]


def text(most: int) -> Any:
    return Annotated[str, Field(max_length=most)]


def fields(**types: Any) -> dict[str, Any]:
    """Fields by type, or by type and default."""
    return {name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in types.items()}


STRICT = ConfigDict(extra="forbid")
SEED, ON, POINT = whole(0, 2**31 - 1), fields(on=bool), listed(number(-10, 200), 2, 2)
MATRIX = Literal["full_sequence", "pyramid", "autoregressive", "trapezoid"]
KNOWN: Any = create_model(
    "known",
    __config__=STRICT,
    series=(whole(0, 9999), ...),
    step=(whole(0, 9999), ...),
    value=(number(-1e15, 1e15), ...),
)

VIEWS: dict[str, dict[str, dict[str, Any]]] = {
    "world": {
        # Keys held now; number comes back with the first frame that heeds them.
        "keys": fields(keys=listed(Literal["forward", "left", "right"], 3), number=(whole(0, 2**31), 0)),
        # Denoising steps a frame; frames a second at most; level that memory is shown at, a share of the highest.
        "pace": fields(steps=whole(1, 8), fps=whole(2, 30), noise=number(0, 1)),
        "truth": ON,  # the simulator beside the dream
        "wander": ON,  # a walk without keys
        "pause": ON,
        "record": ON,  # a clip, sent when switched off
        "step": {},  # one frame while paused
        "forget": {},  # the memory becomes noise
        "new": fields(seed=(SEED | None, None)),  # another maze
        "seen": fields(frame=whole(0, 2**31)),  # the page has drawn it
    },
    "plan": {
        # The map of a maze with walls drawn or opened, None: as it is.
        "maze": fields(maze=text(40), rows=(listed(text(64), 64) | None, None)),
        # (x, y) in metres; rows: sampling steps; candidates: plans drawn together.
        "plan": fields(
            start=POINT, goal=POINT, matrix=MATRIX, rows=whole(2, 50), guidance=number(0, 20), candidates=whole(1, 16), seed=(SEED, 0)
        ),
        "stop": {},
    },
    "forecast": {
        # Which of the last windows; sample paths; values that are given of the future, in the data's units.
        "forecast": fields(
            window=(whole(0, 99), 0), paths=(whole(5, 200), 50), way=(Literal["model", "walk", "seasonal"], "model"), known=(listed(KNOWN, 64), [])
        ),
        "train": fields(seconds=(whole(2, 600), 30)),  # a small forecaster of the dropped table
        "shipped": {},  # its data and forecaster again
        "stop": {},
    },
    "robot": {
        "cover": fields(camera=whole(0, 1), on=bool),
        "play": ON,
        "distractor": ON,  # a box on the table
        "amnesia": ON,  # nothing is remembered from one decision to the next
        "forget": {},  # what is remembered now
        "speed": fields(speed=number(0.5, 4)),
        "new": fields(seed=(SEED | None, None)),  # another layout
    },
}  # fmt: skip


def _reader(view: str) -> Any:
    """Reads any message of a view; `do` says which."""
    make: Any = create_model
    models = [make(do, __config__=STRICT, do=(Literal[do], ...), **more) for do, more in VIEWS[view].items()]
    together: Any = Union[tuple(models)]  # noqa: UP007 (of as many as there are)
    return TypeAdapter(Annotated[together, Field(discriminator="do")])


_READERS = {view: _reader(view) for view in VIEWS}


def read(view: str, said: str) -> Message:
    """The message that was said. UserError, one line, for what is none of the view's."""
    if len(said) > LONGEST:
        raise UserError(f"a message has {len(said):,} characters; at most {LONGEST:,} are allowed")
    try:
        found: Message = _READERS[view].validate_json(said, strict=True).model_dump()
    except RecursionError:
        raise UserError("a message is nested too deeply") from None
    except ValidationError as mistake:
        first = mistake.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"][:6])[:80]
        raise UserError(f"not a message of this view: {where + ': ' if where else ''}{first['msg'][:200]}") from None
    return found
