"""yaml mappings become typed options, and every way to get them wrong is one line naming the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from diffusion_forcing.errors import UserError
from diffusion_forcing.options import build_options, describe


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 8
    heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    env: str
    rate: float = 0.5
    count: int = 3
    flag: bool = False
    mode: Literal["pyramid", "full", 3] = "pyramid"
    limit: int | float | None = None
    precision: str | int = "16"
    pair: tuple[float, float] = (0.0, 1.0)
    means: tuple[float, ...] = ()
    names: list[str] = field(default_factory=list)
    many: Sequence[int] = ()
    folder: Path = Path(".")
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"count is 0 or more, got {self.count}")


def build(**values: Any) -> Options:
    return build_options(Options, {"env": "maze", **values}, "dataset")


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("rate", 2, 2.0),
        ("rate", 1e-3, 1e-3),
        ("count", 2e5, 200000),
        ("flag", True, True),
        ("mode", "full", "full"),
        ("mode", 3, 3),
        ("limit", 1, 1),
        ("limit", 0.5, 0.5),
        ("limit", None, None),
        ("precision", 32, 32),
        ("precision", "bf16", "bf16"),
        ("pair", [1, 2], (1.0, 2.0)),
        ("means", [], ()),
        ("means", [1, 2.5], (1.0, 2.5)),
        ("names", ["a"], ["a"]),
        ("many", [1, 2], (1, 2)),
        ("folder", "a/b", Path("a/b")),
        ("inner", {"width": 4, "heads": 2}, Inner(width=4, heads=2)),
        ("maybe", None, None),
        ("maybe", {"width": 1}, Inner(width=1)),
        ("free", {"tau": [1]}, {"tau": [1]}),
    ],
)
def test_a_value_becomes_the_type_its_field_asks_for(key: str, given: Any, expected: Any) -> None:
    value = getattr(build(**{key: given}), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("key", "given", "named"),
    [
        ("rate", "abc", ["dataset.rate", "a number", "'abc'"]),
        ("rate", True, ["dataset.rate", "a number", "true"]),
        ("rate", None, ["dataset.rate", "a number", "null"]),
        ("count", 2.5, ["dataset.count", "a whole number", "2.5"]),
        ("count", float("inf"), ["dataset.count", "a whole number", "inf"]),
        ("count", True, ["dataset.count", "a whole number", "true"]),
        ("flag", 1, ["dataset.flag", "true or false", "1"]),
        ("flag", "yes", ["dataset.flag", "true or false", "'yes'"]),
        ("env", 3, ["dataset.env", "text", "3"]),
        ("mode", "piramid", ["dataset.mode", "pyramid, full, 3", "'piramid'", "did you mean 'pyramid'?"]),
        ("mode", True, ["dataset.mode", "pyramid, full, 3", "true"]),
        ("limit", "all", ["dataset.limit", "a whole number or a number or null", "'all'"]),
        ("pair", [1], ["dataset.pair", "2 values", "1: [1]"]),
        ("pair", 1, ["dataset.pair", "a list of a number, a number", "dataset.pair=[1,2]"]),
        ("means", [1, "x"], ["dataset.means[1]", "a number", "'x'"]),
        ("means", "1,2", ["dataset.means", "a list, each a number", "dataset.means=[1,2]"]),
        ("inner", 3, ["dataset.inner", "(width, heads)", "3"]),
        ("inner", {"widht": 3}, ["unknown key dataset.inner.widht", "did you mean 'dataset.inner.width'?"]),
        ("maybe", {"width": "x"}, ["dataset.maybe.width", "a whole number", "'x'"]),
        ("free", [1], ["dataset.free", "a group of keys", "[1]"]),
        ("count", -1, ["dataset", "count", "-1"]),
        ("rat", 1, ["unknown key dataset.rat", "did you mean 'dataset.rate'?"]),
        ("zzz", 1, ["unknown key dataset.zzz", "dataset.count, dataset.env"]),
    ],
)
def test_a_wrong_value_is_refused_naming_key_type_and_value(key: str, given: Any, named: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        build(**{key: given})
    assert all(part in str(refusal.value) for part in named), refusal.value


def test_a_missing_required_key_says_what_to_give() -> None:
    with pytest.raises(UserError, match=r"dataset\.env is missing.*dataset\.env=VALUE, text"):
        build_options(Options, {}, "dataset")


def test_a_key_written_in_the_wrong_place_is_pointed_to_its_place() -> None:
    with pytest.raises(UserError) as refusal:
        build_options(Inner, {"batch_size": 3}, "experiment", everywhere=["experiment.training.batch_size", "seed"])
    assert str(refusal.value) == "unknown key experiment.batch_size (did you mean 'experiment.training.batch_size'?)"


def test_a_section_that_is_no_mapping_is_named() -> None:
    with pytest.raises(UserError, match=r"algorithm .*\(width, heads\).* 3"):
        build_options(Inner, 3, "algorithm")


def test_a_value_error_of_a_users_own_options_is_a_line_too() -> None:
    @dataclass(frozen=True)
    class Mine:
        a: int = 0

        def __post_init__(self) -> None:
            raise ValueError("a is odd")

    with pytest.raises(UserError, match=r"^algorithm: a is odd$"):
        build_options(Mine, {}, "algorithm")


def test_an_annotation_that_no_yaml_can_fill_is_the_programmers_mistake() -> None:
    @dataclass(frozen=True)
    class Strange:
        a: complex = 0j

    with pytest.raises(TypeError, match="an option cannot be annotated"):
        build_options(Strange, {"a": 1}, "algorithm")


def test_types_are_described_as_a_user_reads_them() -> None:
    assert describe(tuple[float, ...] | None) == "a list, each a number or null"
    assert describe(Inner) == "a group of keys (width, heads)"
    assert describe(Path) == "a path"
