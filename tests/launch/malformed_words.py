"""Command lines that cannot be right, made from what is there: every combination of parts, every kind of option.

Each is a list of words. A case that turned out to be right would be a mistake of this generator; the test says so.
"""

from __future__ import annotations

import dataclasses
import random
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from diffusion_forcing.launch.run import plan

COMBINATIONS = {
    "video": ["dataset=video_folder", "algorithm=df_video"],
    "video_minecraft": ["dataset=video_minecraft", "algorithm=df_video"],
    "video_rnn": ["dataset=video_labmaze", "algorithm=df_video_rnn", "dataset.n_frames=16", "dataset.context_length=4"],
    "planning": ["dataset=maze2d_umaze", "algorithm=df_planning"],
    "planning_large": ["dataset=maze2d_large", "algorithm=df_planning"],
    "planning_rnn": ["dataset=maze2d_medium", "algorithm=df_planning_rnn"],
    "prediction": ["dataset=ts_ecb", "algorithm=df_prediction"],
    "prediction_small": [
        "dataset=ts_csv",
        "algorithm=df_prediction_small",
        "dataset.path=a.csv",
        "dataset.prediction_length=4",
    ],
    "series": ["dataset=ts_electricity"],
    "robot": ["dataset=robot_swap", "algorithm=df_robot", "experiment=exp_robot"],
}
PARTS = ("dataset", "algorithm", "experiment")


def wrong_types(each: int, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """`each` options of every combination with a value of another type."""
    for name, words in COMBINATIONS.items():
        options = plan(words).options
        every = [(part, *found) for part in PARTS for found in fields(type(options[part]))]
        chosen = random.Random(f"{name}{seed}").sample(every, each)
        for part, key, hint in chosen:
            value = random.Random(f"{name}{key}{seed}").choice(of_another_type(hint))
            yield f"{name}: {part}.{key}={value}", [*words, f"{part}.{key}={value}"]


def misspelt(each: int, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """`each` keys of every combination with a letter lost, doubled or two changed places."""
    for name, words in COMBINATIONS.items():
        options = plan(words).options
        every = [f"{part}.{key}" for part in PARTS for key, _ in fields(type(options[part]))]
        draw = random.Random(f"{name}{seed}")
        known = set(every)
        for key in draw.sample(every, each):
            where, _, last = key.rpartition(".")
            wrong = f"{where}.{_misspelt(last, draw)}"
            if wrong not in known:
                yield f"{name}: {wrong}", [*words, f"{wrong}=1"]


def not_numbers(each: int, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """`each` options that are numbers, of every combination, as nan, infinity, or more than any number can be."""
    for name, words in COMBINATIONS.items():
        options = plan(words).options
        every = [
            (part, key, hint)
            for part in PARTS
            for key, hint in fields(type(options[part]))
            if hint in (int, float) or {int, float} & set(typing.get_args(hint))
        ]
        draw = random.Random(f"{name}{seed}")
        for part, key, _ in draw.sample(every, each):
            value = draw.choice(["nan", "inf", "-inf", "1e999", "1e30", "-1e30", str(10**30)])
            value = (
                value if float(value) in (float("inf"), float("-inf")) or value == "nan" else f"-{value.lstrip('-')}"
            )
            yield f"{name}: {part}.{key}={value}", [*words, f"{part}.{key}={value}"]


def swapped_groups() -> Iterator[tuple[str, list[str]]]:
    """A part where another belongs, and parts that do not go together."""
    algorithms = ("df_video", "df_planning", "df_prediction", "df_robot", "df_video_rnn", "df_planning_rnn")
    datasets = ("video_minecraft", "maze2d_medium", "ts_ecb", "robot_swap")
    experiments = ("exp_video", "exp_planning", "exp_prediction", "exp_robot")
    for dataset in datasets:
        yield f"algorithm={dataset}", [f"algorithm={dataset}"]
        yield f"experiment={dataset}", [f"experiment={dataset}"]
    for algorithm in algorithms:
        yield f"dataset={algorithm}", [f"dataset={algorithm}"]
        for experiment in experiments:
            if experiment.removeprefix("exp_") not in algorithm:
                yield f"{experiment} {algorithm}", [f"experiment={experiment}", f"algorithm={algorithm}"]
    for experiment in experiments:
        yield f"cluster={experiment}", [f"cluster={experiment}"]


def fields(options: type, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every option below a dataclass, dotted, with its annotation."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield f"{where}{field.name}", hint
            yield from fields(hint, f"{where}{field.name}.")  # type: ignore[arg-type]
        elif hint is not Any and typing.get_origin(hint) is not dict:
            yield f"{where}{field.name}", hint


def of_another_type(hint: Any) -> Sequence[str]:
    """Values that an option of this annotation cannot have."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        refused = [set(of_another_type(option)) for option in inner if option is not type(None)]
        return sorted(set.intersection(*refused) - ({"null"} if type(None) in inner else set()))
    if origin is Literal:
        return ["nonsense", "3.25", "[1]", "{a:1}"]
    if dataclasses.is_dataclass(hint):
        return ["3.25", "word", "[1]"]
    if hint is bool:
        return ["3.25", "word", "[1]", "{a:1}", "null"]
    if hint in (int, float):
        return ["word", "[1]", "{a:1}", "true"]
    if hint is str:
        return ["3.25", "[1]", "{a:1}", "true"]
    return ["3.25", "{a:1}", "true", "word"]  # a list


def _misspelt(word: str, draw: random.Random) -> str:
    place = draw.randrange(len(word))
    kind = draw.choice(["lost", "doubled", "changed"])
    if kind == "lost" and len(word) > 2:
        return word[:place] + word[place + 1 :] if not word[:1].isdigit() and place else word + "x"
    if kind == "changed" and place:
        return word[: place - 1] + word[place] + word[place - 1] + word[place + 1 :]
    return word[:place] + word[place] + word[place:]
