"""The robot task at toy size, through the command line: demonstrations, training, acting, serving, both networks and both packings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.run import plan

pytest.importorskip("gymnasium_robotics", reason="the robot's arm comes with gymnasium-robotics")

PACKAGE = Path(__file__).resolve().parents[2]
TINY = [
    "dataset=robot_swap",
    "dataset.resolution=16",
    "dataset.num_episodes=2",
    "dataset.num_validation_episodes=1",
    "dataset.workers=1",
    "algorithm.diffusion.sampling_timesteps=2",
    "experiment.training.batch_size=2",
    "experiment.training.max_steps=2",
    "experiment.training.log_every_n_steps=1",
    "experiment.validation.val_every_n_step=2",
    "experiment.episodes_in_training=1",
    "experiment.episodes=2",
    "experiment.films=1",
    "experiment.test.batch_size=2",
]
TILED = ["algorithm.diffusion.network_size=8", "algorithm.z_shape=[4,16,16]"]
SMALL = [
    "algorithm=df_robot_small",
    "algorithm.diffusion.transformer.network_size=16",
    "algorithm.diffusion.transformer.num_layers=1",
    "algorithm.diffusion.eyes.width=8",
]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, by the command that makes them."""
    folder = tmp_path_factory.mktemp("robot")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*TINY, "experiment.tasks=[generate_dataset]"]) == 0
    finally:
        os.chdir(before)
    assert len(list((folder / "data/robot_swap").rglob("*.npz"))) == 3
    return folder / "data/robot_swap"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return TINY


@pytest.fixture
def ready(tiny: list[str], demonstrations: Path) -> list[str]:
    return [*tiny, f"dataset.save_dir={demonstrations}"]


def run(*words: str) -> tuple[Path, dict[str, float]]:
    """Run the command line; the run's folder and its numbers."""
    assert main(list(words)) == 0
    folder = Path("outputs/latest-run").resolve()
    return folder, json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_the_released_command_trains_validates_and_acts(ready: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    released = ["+name=robot_new", "algorithm=df_robot", "experiment=exp_robot"]
    folder, numbers = run(*ready, *TILED, *released, "experiment.tasks=[training,validation,test]")
    assert numbers["robot/episodes"] == 2 and 0 <= numbers["robot/success_rate"] <= 1
    assert numbers["validation/loss"] > 0
    with av.open(str(folder / "pictures" / "test_0.mp4")) as film:
        assert film.streams.video[0].frames > 100  # as long as the policy tried
    assert (folder / "pictures" / "test_looks.png").is_file()
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/success_rate" in line for line in logged)
    assert "success" in capsys.readouterr().err
    facts = native.read_header(folder / "checkpoints" / "latest")["facts"]
    assert facts["task"] == "robot" and facts["line"] == "rnn"
    again, _ = run(*ready, f"load={folder}", "experiment.tasks=[test]", "experiment.films=0")
    assert again != folder


@pytest.mark.slow
def test_the_small_policy_remembers_or_not_and_is_served(ready: list[str]) -> None:
    zmq = pytest.importorskip("zmq")
    assert main([*ready, *SMALL, "+name=small"]) == 0
    folder = Path("outputs/latest-run").resolve()
    load = f"load={folder / 'checkpoints' / 'latest'}"
    _, numbers = run(*ready, load, "experiment.tasks=[test]", "algorithm.memory=False", "experiment.blocking=0.1")
    assert numbers["robot/episodes"] == 2
    command = [sys.executable, "-u", "-m", "diffusion_forcing", "serve-policy", load, "address=tcp://127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            first = server.stdout.readline()
            found = re.search(r"answers at (tcp://127\.0\.0\.1:\d+)", first)
            assert found, first
            context = zmq.Context()
            socket = context.socket(zmq.REQ)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(found[1])
            for word, size in ((b"request", 15 * 8 * 4), (b"request", 15 * 8 * 4), (b"stop", len(b"stopped"))):
                socket.send(word)
                assert socket.poll(20_000)
                assert len(socket.recv()) == size
            socket.close()
            context.term()
        finally:
            server.send_signal(signal.SIGTERM)
        said = server.stdout.read()
    assert server.returncode == 0
    assert re.search(r"2 requests answered, p50 \d+ ms, p95 \d+ ms; 0 refused", said), said


@pytest.mark.parametrize(
    "words",
    [
        ["algorithm.network=attention"],
        ["algorithm.action_packing=vector", "algorithm.z_shape=[32]"],
        ["algorithm=df_robot_small", "algorithm.network=rnn"],
        ["algorithm=df_robot_small", "algorithm.gt_cond_prob=1"],
        ["algorithm=df_robot_small", "algorithm.observation_noise_level=[0,500]"],
        ["dataset.n_cameras=1", "dataset.observation_shape=[18,16,16]", "algorithm.z_shape=[32,16,16]"],
    ],
)
def test_every_network_and_packing_is_a_choice(tiny: list[str], words: list[str]) -> None:
    checked = plan([*tiny, *words])
    checked.classes["algorithm"](checked.options["algorithm"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algorithm=df_video"], "algorithm=df_video"),
        (["dataset.action_stack=10"], "observation_shape"),
        (["experiment.distractors=-1"], "experiment.distractors"),
        (["experiment.blocking=2"], "experiment.blocking is 2.0"),
        (["load=maze2d_medium_x"], "is a checkpoint for planning"),
    ],
)
def test_a_mistake_is_one_line(
    tiny: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a policy: load="),
        (["load=nothing_there"], "nothing_there"),
        (["load=maze2d_medium_x"], "is a checkpoint for planning"),
        (["load=x", "adress=tcp://127.0.0.1:1"], "did you mean 'address'"),
        (["load=x", "cameras=usb"], "cameras must be one of sim, realsense, v4l2, folder"),
        (["load=x", "--port=1"], "no option '--port=1'"),
    ],
)
def test_serving_what_cannot_be_served_is_one_line(
    words: list[str], said: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve-policy", *words]) == 2
    assert said in capsys.readouterr().err
