"""Every malformed command line ends in exactly one `error:` line, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_forcing.launch.cli import main
from tests.launch.conftest import MINE

GIVEN = [
    # groups
    (["dataset=maze2d_mediun"], "dataset=maze2d_mediun does not exist (did you mean 'maze2d_medium'?)"),
    (["algorithm=df_vidio"], "algorithm=df_vidio does not exist (did you mean 'df_video'?)"),
    (["dataset=maze"], "maze2d_large, maze2d_medium, maze2d_umaze"),
    (
        ["dataset=maze2d_umaze", "algorithm=df_video"],
        "algorithm=df_video needs it, dataset=maze2d_umaze does not",
    ),
    (["dataset=video_dmlab", "experiment=exp_planning"], "experiment is for planning, the algorithm for video"),
    (["experiment=exp_plannig"], "did you mean 'exp_planning'?"),
    (["algoritm=df_planning"], "unknown key algoritm (did you mean 'algorithm'?)"),
    (["cluster=mit_supercluod"], "cluster=mit_supercluod does not exist (did you mean 'mit_supercloud'?)"),
    (["++cluster.name=x"], "unknown key cluster.name"),
    (["dataset=[a,b]"], "dataset must be the name of one yaml file"),
    (["dataset=3"], "dataset must be the name of one yaml file"),
    (["~dataset"], "choose one with dataset=NAME"),
    (["algorithm=null"], "choose one with algorithm=NAME"),
    (["nothing/here=x"], "there is no group 'nothing/here'"),
    (["algorithm@other=mine"], "algorithm@other"),
    # keys
    ([*MINE, "algorithm.stepz=3"], "unknown key algorithm.stepz (did you mean 'algorithm.steps'?)"),
    ([*MINE, "+algorithm.stepz=3"], "unknown key algorithm.stepz (did you mean 'algorithm.steps'?)"),
    ([*MINE, "algorithm.size.widht=3"], "did you mean 'algorithm.size.width'?"),
    ([*MINE, "sed=3"], "unknown key sed (did you mean 'seed'?)"),
    ([*MINE, "path=there"], "unknown key path (did you mean 'dataset.path'?)"),
    ([*MINE, "algorithm.lr=abc"], "algorithm.lr must be a number, got 'abc'"),
    ([*MINE, "algorithm.lr=-1"], "algorithm: lr is above 0, got -1.0"),
    ([*MINE, "algorithm.steps=1.5"], "algorithm.steps must be a whole number or null, got 1.5"),
    ([*MINE, "algorithm.causal=1"], "algorithm.causal must be true or false, got 1"),
    ([*MINE, "algorithm.kind=smal"], "algorithm.kind must be one of small, large, got 'smal' (did you mean 'small'?)"),
    ([*MINE, "algorithm.size=3"], "algorithm.size must be a group of keys (width, rates), got 3"),
    ([*MINE, "algorithm.size.rates=[1]"], "algorithm.size.rates must have 2 values, got 1"),
    ([*MINE, "dataset.mean=3"], "dataset.mean must be a list"),
    ([*MINE, "dataset.mean.4=3"], "dataset.mean.4"),
    ([*MINE, "~dataset.path"], "dataset.path is missing: give dataset.path=VALUE, text"),
    ([*MINE, "dataset.path=???"], "dataset.path has no value"),
    ([*MINE, "~dataset.pth"], "cannot delete 'dataset.pth'"),
    ([*MINE, "seed=-1"], "seed is -1"),
    ([*MINE, "seed=one"], "seed must be a whole number, got 'one'"),
    ([*MINE, "debug=maybe"], "debug must be true or false, got 'maybe'"),
    ([*MINE, "wandb.mode=onlin"], "did you mean 'online'?"),
    ([*MINE, "wandb=3"], "wandb must be a group of keys (entity, project, mode, "),
    ([*MINE, "name="], "name= is empty"),
    ([*MINE, "choices.dataset=x"], "choices"),
    # grammar
    ([*MINE, "algorithm.lr"], "'algorithm.lr' has no value"),
    ([*MINE, "algorithm.lr=[1,2"], "cannot read 'algorithm.lr=[1,2'"),
    ([*MINE, "algorithm.lr=1,2"], "'algorithm.lr=1,2' is a sweep"),
    ([*MINE, "--multirun"], "unknown option '--multirun'"),
    (["run", "ls"], "'run' is no command and no key=value (did you mean 'runs'?)"),
    (["forcast", "sales.csv", "--horizon", "14"], "(did you mean 'forecast'?)"),
    (["--hlep"], "unknown option '--hlep' (did you mean '--help'?)"),
    ([*MINE, "hydra.run.dir=x"], "outputs=FOLDER"),
    ([*MINE, ""], "is empty"),
    # interpolations
    ([*MINE, "algorithm.lr=${dataset.lrr}"], "algorithm.lr"),
    ([*MINE, "algorithm.lr=${dataset.mean"], "algorithm.lr"),
    ([*MINE, "algorithm.lr=${nope:3}"], "nope"),
    ([*MINE, "~dataset.mean"], "algorithm.mean"),
    # classes
    ([*MINE, "algorithm._target_=my_parts.Modle"], "'my_parts' has no class 'Modle' (did you mean 'Model'?)"),
    ([*MINE, "algorithm._target_=my_prts.Model"], "there is no module 'my_prts'"),
    ([*MINE, "algorithm._target_=Model"], "is not a dotted path"),
    ([*MINE, "algorithm._target_=my_parts.EVENTS"], "'my_parts' has no class 'EVENTS'"),
    ([*MINE, "algorithm._target_=my_parts.Size"], "my_parts.Size needs a class attribute Options"),
    ([*MINE, "algorithm._target_=3"], "algorithm._target_ must be a class, as package.module.Class; got 3"),
    ([*MINE, "~algorithm._target_"], "algorithm._target_ must be a class"),
    # tasks, checkpoints, runs
    ([*MINE, "experiment.tasks=[trainig]"], "experiment.tasks 'trainig'"),
    ([*MINE, "experiment.tasks=training"], "write lists as experiment.tasks=[1,2]"),
    ([*MINE, "experiment.tasks=[__init__]"], "experiment.tasks '__init__'"),
    ([*MINE, "load=outputs/missing.ckpt"], "outputs/missing.ckpt"),
    ([*MINE, "load=abcd1234"], "abcd1234"),
    (["resume=abcd1234"], "no run 'abcd1234'"),
    (["resume=configurations"], "is not in a run's folder"),
]


@pytest.mark.parametrize(("words", "said"), GIVEN, ids=[" ".join(words) or "nothing" for words, _ in GIVEN])
def test_a_malformed_command_line_is_one_error_line(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("algorithm/mine.yaml", "lr: [1\nkind: small\n", "configurations/algorithm/mine.yaml line"),
        ("algorithm/mine.yaml", "lr: 1\n\tkind: small\n", "configurations/algorithm/mine.yaml line 2"),
        ("algorithm/mine.yaml", "- 1\n- 2\n", "algorithm/mine"),
        ("algorithm/mine.yaml", "just words\n", "algorithm"),
        ("algorithm/mine.yaml", "defaults:\n  - df_plannin\n  - _self_\n", "did you mean 'df_planning'?"),
        ("algorithm/mine.yaml", "defaults: 3\n", "algorithm/mine"),
        ("algorithm/mine.yaml", "a: 1\na: 2\n", "duplicate key"),
        ("algorithm/mine.yaml", "", "algorithm"),
        ("algorithm/mine.yaml", "_target_: my_parts.Model\nmean: ${dataset.men}\n", "algorithm.mean"),
        ("config.yaml", "defaults:\n  - dataset: nowhere\n", "nowhere"),
        ("config.yaml", "seed: 3\n", "choose one with dataset=NAME"),
    ],
)
def test_a_malformed_yaml_file_of_the_users_is_one_error_line(
    project: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, said: str
) -> None:
    (project / "configurations" / name).write_text(text)
    assert main(["seed=0"] if name == "config.yaml" else MINE) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nowhere_installed\n", "needs the package 'nowhere_installed'"),
        ("def broken(:\n", "my_other.py line 1: invalid syntax"),
        ("raise RuntimeError('a\\nb')\n", "RuntimeError: a b"),
    ],
)
def test_a_users_module_that_does_not_import_is_one_error_line(
    project: Path, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    (project / "my_other.py").write_text(source)
    assert main([*MINE, "algorithm._target_=my_other.Model"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_a_part_of_ours_that_lacks_a_package_names_the_extra_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_mujoco(name: str) -> None:
        raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")

    monkeypatch.setattr("diffusion_forcing.launch.compose.import_module", without_mujoco)
    assert main(["seed=0"]) == 2
    assert "needs the package 'mujoco'" in (error := capsys.readouterr().err)
    assert error.endswith("pip install 'diffusion-forcing[planning]'\n")
