"""Upload of a run by W&B's own client to a server that stands in for W&B's; nothing of ours is mocked."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch.cli import main
from diffusion_forcing.tracking.run import Run
from diffusion_forcing.tracking.wandb import Wandb, WandbOptions
from tests.tracking.conftest import until
from tests.tracking.wandb_server import WandbServer

CONFIG = {"algorithm": {"lr": 0.5}, "wandb": {"entity": None}}
YAML = "algorithm: {lr: 0.5}\ndataset: {n: 1}\nexperiment: {tasks: []}\nchoices: {}\n"


def start(outputs: Path, **options: Any) -> Run:
    """A run tracked on W&B."""
    run = Run.create(outputs, "toy", command=["main.py", "+name=toy"])
    run.config(YAML)
    run.follow([Wandb(WandbOptions(**{"retry_seconds": 1, "finish_seconds": 600, **options}))], CONFIG)
    return run


def save(run: Run, step: int) -> None:
    """A checkpoint, as a training leaves it."""
    path = run.checkpoints / f"step-{step:08d}"
    native.save(path, {"global_step": step}, metadata={"task": "toy"}, model={"w": torch.full((3,), float(step))})
    (run.checkpoints / "new").symlink_to(path.name)
    os.replace(run.checkpoints / "new", run.checkpoints / "latest")


def log(run: Run, *steps: int) -> None:
    for step in steps:
        run.log(step, {"training/loss": 1 / (1 + step)})


def curve(server: WandbServer, run: Run) -> list[tuple[int, float]]:
    """What W&B has of the training's loss."""
    rows = server.history(run.id)
    return [(row["trainer/global_step"], row["training/loss"]) for row in rows if "training/loss" in row]


def expected(*steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / (1 + step)) for step in steps]


@pytest.mark.slow
def test_a_run_is_on_wandb_with_config_curves_images_results_and_its_newest_checkpoint(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path)
    log(run, 0, 10)
    save(run, 10)
    until(lambda: server.versions(f"model-{run.id}"))
    run.image("plan", np.zeros((6, 8, 3), np.uint8), caption="a plan")
    run.video("episode", np.zeros((3, 16, 16, 3), np.uint8), fps=5)
    run.table("scores", [{"maze": "large", "score": 1.5}])
    log(run, 20)
    save(run, 20)
    run.summary({"planning/success_rate": 0.5})
    run.finish()

    assert curve(server, run) == expected(0, 10, 20)
    assert server.config(run.id)["algorithm"] == {"lr": 0.5}
    assert server.summary(run.id)["planning/success_rate"] == 0.5
    assert server.runs[run.id]["displayName"] == "toy"
    kinds = {Path(name).suffix for name in server.files(run.id) if name.startswith("media/")}
    assert kinds == {".png", ".mp4", ".json"}
    assert server.exit_codes[run.id] == 0
    older, newest = server.versions(f"model-{run.id}")
    assert (newest["aliases"], json.loads(newest["metadata"])["step"]) == (["latest"], 20)
    assert newest["ttl"] < 0  # none
    assert (older["aliases"], older["ttl"]) == ([], 5 * 24 * 3600)
    assert set(newest["files"]) >= {"checkpoint.json", "model.safetensors", "training.pt", "run/config.yaml"}
    assert server.unknown == []
    assert capfd.readouterr().err.startswith(f"W&B: {server.url}/somebody/diffusion-forcing/runs/{run.id}\n")


@pytest.mark.slow
def test_a_server_that_refuses_connections_is_one_warning_and_gets_everything_once_it_is_back(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    run = start(tmp_path)
    log(run, 0, 10)  # the training does not wait
    until(lambda: "cannot be reached" in (run.folder / "wandb" / "upload.log").read_text())
    log(run, 20)
    time.sleep(2)  # some tries more: no second warning
    server.start()
    until(lambda: run.id in server.runs)
    log(run, 30)
    run.finish()
    assert curve(server, run) == expected(0, 10, 20, 30)
    warning, connected, *_ = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"warning: W&B at {server.url} cannot be reached")
    assert connected == f"W&B: {server.url}/somebody/diffusion-forcing/runs/{run.id}"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["server", "login"])
def test_what_was_not_uploaded_because_the_server_or_the_login_went_away_is_uploaded_by_runs_sync_once(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = start(Path("outputs"))
    log(run, 0, 10)
    until(lambda: len(curve(server, run)) == 2)
    if what == "server":
        server.stop()
    else:
        server.accepts = False
    log(run, 20, 30)
    run.finish("failed")  # returns long before finish_seconds
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert f"diffusion-forcing runs sync {run.id}" in warning
    server.accepts = True
    if what == "server":
        server.start()
    assert main(["runs", "sync", run.id]) == 0
    assert curve(server, run) == expected(0, 10, 20, 30)
    assert server.exit_codes[run.id] == 1


TRAINING = """
import sys, time
from pathlib import Path
from tests.tracking.test_wandb import log, save, start
run = start(Path(sys.argv[1]))
log(run, 0, 10)
save(run, 10)
log(run, 20)
print(run.folder, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_training_is_marked_failed_and_goes_on_in_the_same_wandb_run(
    server: WandbServer, tmp_path: Path
) -> None:
    training = subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    folder = Path(training.stdout.readline().strip())
    run_id = json.loads((folder / "run.json").read_text())["id"]
    until(lambda: server.versions(f"model-{run_id}"))
    training.send_signal(signal.SIGKILL)
    training.wait()
    until(lambda: server.exit_codes.get(run_id) == 1)
    assert server.summary(run_id)["status"] == "killed"

    run = Run.open(folder)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    os.truncate(folder / "metrics.jsonl", sum(map(len, lines[:2])))  # what a resumed training does, to write them again
    run.follow([Wandb(WandbOptions(finish_seconds=600))], CONFIG)
    log(run, 20, 30)
    run.finish()
    assert curve(server, run) == expected(0, 10, 20, 30)
    assert list(server.runs) == [run_id]
    assert server.exit_codes[run_id] == 0


@pytest.mark.slow
def test_an_offline_run_is_wandbs_own_and_wandb_sync_takes_it_up(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path, mode="offline", entity="somebody", project="mazes")
    log(run, 0, 10)
    save(run, 10)
    run.image("plan", np.zeros((6, 8, 3), np.uint8))
    run.finish()
    assert server.operations == []  # nobody was asked
    (offline,) = run.folder.glob("wandb/offline-run-*")
    assert f"wandb sync {offline}" in capfd.readouterr().err
    records = read_back(offline)
    assert [row["training/loss"] for row in records["history"] if "training/loss" in row] == [1, 1 / 11]
    assert records["config"]["algorithm"] == {"lr": 0.5}
    assert records["run"] == (run.id, "somebody", "mazes")

    subprocess.run([sys.executable, "-m", "wandb", "sync", str(offline)], check=True, capture_output=True, cwd=tmp_path)
    assert curve(server, run) == expected(0, 10)
    (version,) = server.versions(f"model-{run.id}")
    assert version["in"] == ("somebody", "mazes") and "training.pt" in version["files"]


def read_back(offline: Path) -> dict[str, Any]:
    """What an offline run's file holds: records of W&B's, in blocks of 32 KiB behind a header of 7 bytes (the format of
    LevelDB's log).
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = offline.glob("*.wandb")
    data, place, piece = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    found: dict[str, Any] = {"history": [], "config": {}}
    while place < len(data):
        if (left := -place % 32768) and left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        piece += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind not in (1, 4):  # whole, or the last of several
            continue
        record, piece = wandb_internal_pb2.Record.FromString(piece), b""
        match record.WhichOneof("record_type"):
            case "history":
                items = record.history.item
                found["history"].append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
            case "run":
                found["run"] = (record.run.run_id, record.run.entity, record.run.project)
                found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return found


def test_without_wandb_there_is_one_warning_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = start(tmp_path)
    log(run, 0)
    run.finish()
    (warning,) = capfd.readouterr().err.splitlines()
    assert "wandb is not installed" in warning and "pip install 'diffusion-forcing[wandb]'" in warning
    assert not (run.folder / "wandb").exists()


def test_a_wandb_that_cannot_be_imported_is_one_warning_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "packages" / "wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no binary for this machine')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}")
    monkeypatch.setattr("diffusion_forcing.tracking.wandb.QUIET_SECONDS", 600.0)  # a slow machine is not announced
    run = start(tmp_path / "outputs")
    run.finish()
    error = capfd.readouterr().err
    assert "no binary for this machine" in error and error.startswith("warning: ") and error.count("\n") == 1
    assert json.loads((run.folder / "run.json").read_text())["status"] == "finished"


def test_a_folder_called_wandb_where_one_stands_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_forcing.tracking.wandb import installed

    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not installed()
