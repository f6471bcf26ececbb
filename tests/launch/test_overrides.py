"""The command line's grammar: Hydra's, with plain text where text is meant."""

from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.compose import apply_, parse

GROUPS = frozenset({"dataset", "algorithm", "experiment", "cluster"})


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("algorithm.lr=1e-3", "algorithm.lr", 1e-3),
        ("+algorithm.lr=3", "algorithm.lr", 3),
        ("++algorithm.lr=3", "algorithm.lr", 3),
        ("a.b=[1,2.5]", "a.b", [1, 2.5]),
        ("a.b=[]", "a.b", []),
        ("a=True", "a", True),
        ("a=null", "a", None),
        ("a='x y'", "a", "x y"),
        ('a="1"', "a", "1"),
        ("a={b:1,c:[x,'y z']}", "a", {"b": 1, "c": ["x", "y z"]}),
        ("a=", "a", ""),
        ("load=12e45678", "load", "12e45678"),
        ("load=12345678", "load", "12345678"),
        ("load=outputs/epoch=1-step=2.ckpt", "load", "outputs/epoch=1-step=2.ckpt"),
        ("load='a b/c,d.ckpt'", "load", "a b/c,d.ckpt"),
        ("load=null", "load", None),
        ("dataset.path=Sales, May 2024.csv", "dataset.path", "Sales, May 2024.csv"),
        ("+dataset.save_dir=data/a,b", "dataset.save_dir", "data/a,b"),
        ("dataset.path='a,b.csv'", "dataset.path", "a,b.csv"),
        ("dataset.path=a\\,b.csv", "dataset.path", "a,b.csv"),
        ("dataset.path=null", "dataset.path", None),
        ("+name=7", "name", "7"),
        ("name=my run (2)", "name", "my run (2)"),
        ("dataset.maze_map=#####\\#OG#\\#####", "dataset.maze_map", "#####\\#OG#\\#####"),
        ("dataset.maze_map=#####\n#OG##\n#####", "dataset.maze_map", "#####\n#OG##\n#####"),
    ],
)
def test_an_override_reads_as_its_value(word: str, key: str, value: object) -> None:
    override = parse(word, GROUPS)
    assert (override.key, override.value, override.group, override.delete) == (key, value, False, False)


def test_outside_of_text_keys_a_number_stays_a_number() -> None:
    assert parse("seed=12345678", GROUPS).value == 12345678
    assert math.isinf(parse("a=12e45678", GROUPS).value)


@pytest.mark.parametrize("word", ["dataset=maze", "+dataset=maze", "algorithm/net=small", "cluster=null"])
def test_a_group_is_told_from_a_key(word: str) -> None:
    assert parse(word, GROUPS).group


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("algorithm.lr", "'algorithm.lr' has no value: write algorithm.lr=VALUE"),
        ("=3", "'=3' has no key"),
        ("a=[1,2", "cannot read 'a=[1,2'"),
        ("a={b", "cannot read 'a={b'"),
        ("a='x", "cannot read 'a='x'"),
        ("a b=3", "cannot read 'a b=3'"),
        ("a..b=3", "cannot read 'a..b=3'"),
        ("a[0]=3", "cannot read 'a[0]=3'"),
        ("a=1,2", "'a=1,2' is a sweep"),
        ("a=range(1,3)", "'a=range(1,3)' is a sweep"),
        ("dataset=[a,b]", "dataset must be the name of one yaml file"),
        ("dataset={a:1}", "dataset must be the name of one yaml file"),
        ("dataset=3", "dataset must be the name of one yaml file"),
        ("hydra.run.dir=x", "outputs=FOLDER"),
        ("hydra/launcher=submitit", "outputs=FOLDER"),
    ],
)
def test_what_cannot_be_read_is_one_line(word: str, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse(word, GROUPS)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_values_are_laid_on_top_and_interpolations_follow() -> None:
    config = OmegaConf.create(
        {"dataset": {"mean": [1]}, "algorithm": {"mean": "${dataset.mean}", "size": {"width": 1}}}
    )
    for word in ["dataset.mean=[2,3]", "algorithm.size={depth:4}", "algorithm.new.deep=5"]:
        apply_(config, parse(word, GROUPS))
    assert OmegaConf.to_container(config, resolve=True)["algorithm"] == {
        "mean": [2, 3],
        "size": {"width": 1, "depth": 4},
        "new": {"deep": 5},
    }


def test_a_tilde_removes_a_key_and_complains_about_one_that_is_not_there() -> None:
    config = OmegaConf.create({"algorithm": {"lr": 1, "size": 2}})
    apply_(config, parse("~algorithm.lr", GROUPS))
    assert config == {"algorithm": {"size": 2}}
    with pytest.raises(UserError, match=r"cannot delete 'algorithm\.lr'"):
        apply_(config, parse("~algorithm.lr", GROUPS))
    with pytest.raises(UserError, match=r"algorithm\.size is 2"):
        apply_(config, parse("~algorithm.size=3", GROUPS))
    with pytest.raises(UserError, match=r"cannot delete 'a\.b'"):
        apply_(config, parse("~a.b", GROUPS))
