"""A run that is not on this machine is found on W&B, checked, and loaded or gone on with; a server stands in for W&B's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.fetch import asks_wandb, is_run_id
from diffusion_forcing.tracking.wandb import WandbOptions
from tests.launch.conftest import MINE
from tests.tracking.wandb_answers import ENTITY
from tests.tracking.wandb_server import WandbServer


def facts() -> dict[str, Any]:
    """What the last run was given."""
    return sys.modules["my_parts"].EVENTS[-1][2]


def trained_elsewhere(project: Path) -> str:
    """A run with a checkpoint that was passed on to W&B and is here no more. Returns its id."""
    assert main([*MINE, "+name=elsewhere", "algorithm.lr=0.25"]) == 0
    (folder,) = (file.parent for file in project.glob("outputs/*/*/run.json"))
    run_id = str(json.loads((folder / "run.json").read_text())["id"])
    path = folder / "checkpoints" / "step-00000007"
    native.save(path, {"global_step": 7}, metadata={"task": "toy"}, model={"w": torch.arange(3.0)})
    (path / "evil.py").write_text("what is no file of a checkpoint is not downloaded")
    (folder / "checkpoints" / "latest").symlink_to(path.name)
    assert main(["runs", "sync", run_id, "wandb.project=mazes"]) == 0
    shutil.rmtree(project / "outputs")
    return run_id


@pytest.mark.slow
def test_load_and_resume_find_a_run_on_wandb_check_it_and_take_it_whole_or_not_at_all(
    server: WandbServer,
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = trained_elsewhere(project)
    words = ["wandb.project=mazes", "wandb.checkpoints=false"]

    assert main([*MINE, f"load={run_id}", *words]) == 0
    loaded = facts()["load"]
    assert loaded == Path("outputs/downloads") / f"{run_id}-v0"
    assert load_file(loaded / native.MODEL)["w"].tolist() == [0, 1, 2]
    assert not (loaded / "evil.py").exists()
    asked = len(server.operations)
    assert main([*MINE, f"load={ENTITY}/mazes/{run_id}"]) == 0  # says itself where it is
    assert facts()["load"] == loaded
    assert "FetchArtifactManifest" not in server.operations[asked:]  # what is here is not downloaded again

    shutil.rmtree(project / "outputs")
    assert main([f"resume={run_id}", *words]) == 0
    folder = facts()["resume"].parents[1]
    assert native.read_header(facts()["resume"])["step"] == 7
    assert folder.name.endswith("-elsewhere") and (project / "outputs" / "latest-run").resolve() == folder.resolve()
    assert json.loads((folder / "run.json").read_text())["id"] == run_id
    assert "lr: 0.25" in (folder / "config.yaml").read_text()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2  # its own line of then, and one of now
    assert [run["id"] for run in server.runs.values()] == [server.runs[run_id]["id"]]
    assert server.unknown == []

    shutil.rmtree(project / "outputs")
    words = [*MINE, *words]

    def refused(spec: str) -> str:
        capsys.readouterr()
        assert main([*words, spec]) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # W&B's client may print its progress before
        assert error.startswith("error: ")
        assert not list(project.glob("outputs/**/*.safetensors")) and not list(project.glob("outputs/*/*/run.json"))
        return error

    assert "'abcd1234' is neither a path, nor the id of a run in outputs" in (error := refused("load=abcd1234"))
    assert f"{ENTITY}/mazes/model-abcd1234" in error

    (model,) = (path for path in server.blobs if path.endswith("/model.safetensors"))
    server.blobs[model] = server.blobs[model][:-1] + b"x"  # of the same size
    assert "nor on W&B" in refused(f"load={run_id}")
    server.stop()
    assert "cannot be reached" in refused(f"resume={run_id}")


def test_wandb_is_asked_only_for_what_could_be_a_run_there_and_where_it_is_switched_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    default = WandbOptions()
    assert not asks_wandb("abcd1234", default, tracked=False)
    assert asks_wandb("abcd1234", default, tracked=True)
    assert asks_wandb("abcd1234", WandbOptions(mode="online"), tracked=False)
    assert not asks_wandb("abcd1234", WandbOptions(mode="disabled"), tracked=True)
    assert not asks_wandb("abcd1234", WandbOptions(mode="offline"), tracked=True)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    pytest.importorskip("wandb")
    assert asks_wandb("abcd1234", default, tracked=False)


@pytest.mark.parametrize(
    ("spec", "yes"),
    [
        ("abcd1234", True),
        ("me/mazes/abcd1234", True),
        ("maze2d_medium_x", False),
        ("mazes/abcd1234", False),
        ("outputs/a.ckpt", False),
        ("ABCD1234", False),
        ("../../abcd1234", False),
        ("..", False),
    ],
)
def test_a_runs_id_is_told_from_a_path_and_a_name(spec: str, yes: bool) -> None:
    assert is_run_id(spec) is yes
