"""The main job at toy size, through the command line: make data, train, plan, play, load, resume, xva, a maze of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_forcing.launch.cli import main

TINY = [
    "experiment=exp_planning",
    "algorithm=df_planning",
    "dataset=maze2d_umaze",
    "dataset.num_steps=2500",
    "dataset.episode_len=40",
    "algorithm.diffusion.architecture.num_layers=1",
    "algorithm.diffusion.architecture.network_size=16",
    "algorithm.diffusion.architecture.attn_heads=2",
    "algorithm.diffusion.architecture.dim_feedforward=16",
    "algorithm.diffusion.sampling_timesteps=3",
    "experiment.training.batch_size=4",
    "experiment.training.max_steps=4",
    "experiment.training.log_every_n_steps=1",
    "experiment.episodes=2",
]
POSITION_ONLY = [
    "dataset.action_mean=[]",
    "dataset.action_std=[]",
    "dataset.observation_mean=[1.9327888,2.3744664]",
    "dataset.observation_std=[0.89972174,0.7093159]",
]
KEYS = (
    "success_rate",
    "normalized_score",
    "episode_reward",
    "episode_reward_if_stay",
    "first_reach",
    "seconds_per_plan",
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def play(*words: str) -> Path:
    """Run the command line; the run's folder."""
    assert main([*TINY, *words]) == 0
    return Path("outputs/latest-run").resolve()


@pytest.mark.slow
def test_position_planner_is_trained_played_loaded_and_resumed() -> None:
    run = play(*POSITION_ONLY, "+name=toy", "experiment.tasks=[generate_dataset,training,validation]")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["planning/episodes"] == 2
    for key in KEYS:
        assert isinstance(metrics[f"planning/{key}"], float)
        assert isinstance(metrics[f"planning/{key}_stderr"], float)
    assert isinstance(metrics["planning/oracle_ratio"], float)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    pictures = {path.name for path in (run / "pictures").iterdir()}
    expected = {"validation_plans.png", "validation_plan_from_noise.mp4", "validation_episode.mp4"}
    assert expected <= pictures
    assert "validation_plans" in (run / "index.html").read_text()

    identity = json.loads((run / "run.json").read_text())["id"]
    loaded = play(f"load={identity}", "experiment.tasks=[test]", "+name=again", *POSITION_ONLY)
    assert json.loads((loaded / "metrics.json").read_text())["planning/episodes"] == 2

    assert main([f"resume={identity}", "experiment.tasks=[training]", "experiment.training.max_steps=6"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_planner_with_goal_tokens_is_trained_searched_and_trained_further(capfd: pytest.CaptureFixture[str]) -> None:
    words = [*POSITION_ONLY, "algorithm.goal_token=True", "algorithm.search=candidates", "algorithm.candidates=4"]
    run = play(*words, "+name=goal", "experiment.tasks=[training,validation]")
    assert "planning/success_rate" in json.loads((run / "metrics.json").read_text())
    identity = json.loads((run / "run.json").read_text())["id"]
    capfd.readouterr()
    # Its weights, and where its data has been, come with the checkpoint; training goes on from them.
    again = play(*words, f"load={identity}", "+name=again", "experiment.tasks=[training,test]")
    assert "loaded" in capfd.readouterr().err
    assert "planning/success_rate" in json.loads((again / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("search", ["mctd", "fast_mctd"])
def test_a_planner_with_guidance_is_searched_by_a_tree(search: str) -> None:
    tree = ["algorithm.tree.expansions=6", "algorithm.tree.parallel=3", "algorithm.tree.rows=2"]
    run = play(f"algorithm.search={search}", *tree, "+name=tree", "experiment.tasks=[training,validation]")
    assert "planning/success_rate" in json.loads((run / "metrics.json").read_text())
    assert (run / "pictures" / "validation_tree.mp4").exists()


@pytest.mark.slow
def test_two_processes_train_and_the_main_one_alone_does_the_rest(tmp_path: Path) -> None:
    words = [*TINY, *POSITION_ONLY, "+name=pair", "experiment.training.devices=2", "experiment.training.batch_size=2"]
    tasks = "experiment.tasks=[generate_dataset,training,validation]"
    ended = subprocess.run(
        [sys.executable, "-m", "diffusion_forcing", *words, tasks],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*-pair")
    assert (folder / "checkpoints" / "latest").resolve().name == "step-00000004"
    assert json.loads((folder / "metrics.json").read_text())["planning/episodes"] == 2
    for once in ("2 processes share each batch (ddp)", "trained to step 4", "success_rate", "generating umaze"):
        assert ended.stderr.count(once) == 1, once
    assert ended.stdout.count("is done") == 1


@pytest.mark.slow
def test_planner_with_velocities_and_actions_executes_its_actions() -> None:
    run = play("+name=xva", "experiment.tasks=[training,validation]", "algorithm.open_loop_horizon=10")
    assert json.loads((run / "metrics.json").read_text())["planning/episodes"] == 2


@pytest.mark.slow
def test_every_way_of_planning_runs_in_a_maze_of_ones_own() -> None:
    run = play(
        *POSITION_ONLY,
        r"dataset.maze_map='######\#OOOG#\#O##O#\#OOOO#\######'",
        "experiment.tasks=[validation]",
        "algorithm.goal=random",
        "algorithm.controller=pursuit",
        "algorithm.stay_at_goal=True",
        "algorithm.ease_when_stuck=True",
        "algorithm.guidance_stop=0.4",
        "algorithm.refine=0.4",
        "algorithm.mcg_samples=2",
        "algorithm.warm_start=0.7",
        "algorithm.open_loop_horizon=15",
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["planning/episodes"] == 2
    assert "planning/normalized_score" not in metrics  # D4RL has no reference for this maze


SPIRAL = r"#######\#OOOOO#\#####O#\#OOO#O#\#O###O#\#OOOOO#\#######"
COMB = r"#######\#OOOOO#\#O#O#O#\#O#O#O#\#######"
DOOR = r"#######\#OO#OO#\#OOOOO#\#OO#OO#\#######"
SMALL = [word for word in TINY if not word.startswith(("dataset", "experiment=", "algorithm="))]
SMALL += ["algorithm.scheduling_matrix=full_sequence", "algorithm.open_loop_horizon=300", "experiment.episodes=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "maze", "size"),
    [
        ("ogbench_pointmaze_custom", SPIRAL, "dataset.num_episodes=3"),
        ("maze2d_custom", COMB, "dataset.num_steps=2500"),
        ("ogbench_pointmaze_custom", DOOR, "dataset.num_episodes=3"),
    ],
    ids=["spiral", "comb", "door"],
)
def test_a_maze_never_seen_before_is_learnt_by_one_command(dataset: str, maze: str, size: str) -> None:
    words = [
        f"dataset={dataset}",
        f"dataset.maze_map='{maze}'",
        "algorithm=df_planning_small",
        "algorithm.goal=random",
        size,
    ]
    words += ["algorithm.candidates=4"]
    assert main([*SMALL, *words, "experiment.tasks=[training,validation]"]) == 0
    assert json.loads(Path("outputs/latest-run/metrics.json").read_text())["planning/oracle_success_rate"] == 1


@pytest.mark.slow
def test_ogbenchs_tasks_are_played_under_both_protocols(capfd: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "dataset=ogbench_pointmaze_medium", "dataset.num_episodes=3", "algorithm.controller=pursuit"]
    assert main([*words, "experiment.tasks=[generate_dataset,training,validation]", "experiment.episodes=5"]) == 0
    run = Path("outputs/latest-run").resolve()
    metrics = json.loads((run / "metrics.json").read_text())
    assert {f"planning/success_rate_task{task}" for task in range(1, 6)} <= set(metrics)
    assert metrics["planning/oracle_success_rate"] == 1 and "planning/normalized_score" not in metrics
    assert (run / "pictures" / "validation_plans.png").exists()
    load = f"load={json.loads((run / 'run.json').read_text())['id']}"
    large = ["dataset=ogbench_pointmaze_large", "dataset.episode_len=80", "dataset.protocol=mctd"]
    assert main([*words, *large, load, "experiment.tasks=[test]"]) == 0
    assert json.loads(Path("outputs/latest-run/metrics.json").read_text())["planning/first_reach"] <= 500
    assert "was trained for pointmaze-medium-v0, not for pointmaze-large-v0" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["load=maze2d_medium_x", "algorithm.frame_stack=10"], "frame_stack|shape|was trained"),
        (["dataset.source=path", "dataset.path=nothing.hdf5"], "nothing.hdf5"),
        (["dataset.episode_len=45"], "multiple of"),
        (
            ["experiment.goal=[0,0]", "experiment.tasks=[validation]"],
            r"error: experiment.goal \(0, 0\) lies in a wall of maze 'umaze'; the nearest free place is \[0.8,0.8\]",
        ),
        (["experiment.start=[9,1]", "experiment.tasks=[validation]"], r"error: experiment.start \(9, 1\) lies outside"),
        (
            ["dataset=maze2d_custom"],
            r"error: dataset.maze_map has no value; give your maze as text: dataset.maze_map='#",
        ),
        (
            ["dataset=maze2d_custom", r"dataset.maze_map='#####\#O#O#\#####'"],
            "error: dataset.maze_map: .*is not connected",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    import re

    tasks = "experiment.tasks=[validation]" if words[0].startswith("load") else "experiment.tasks=[training]"
    assert main([*TINY, *POSITION_ONLY, tasks, *words]) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert re.search(said, error[0])


@pytest.mark.slow
def test_a_planner_of_points_and_an_executor_move_an_ant() -> None:
    pytest.importorskip("ogbench.locomaze")
    words = ["dataset=ogbench_antmaze_medium", "load=ogbench_medium_goal", "experiment.tasks=[validation]"]
    assert main([*words, "experiment.episodes=1"]) == 0
    run = Path("outputs/latest-run").resolve()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["planning/success_rate_task1"] == metrics["planning/oracle_success_rate"] == 1
    assert {"validation_plans.png", "validation_episode.mp4"} <= {path.name for path in (run / "pictures").iterdir()}
