"""A real Slurm on this machine: jobs of two processes that are submitted, watched, preempted, queued again, and come to their end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_forcing.launch.slurm import state_of
from diffusion_forcing.tracking.wandb import installed
from tests.experiments.test_resume import ROOT
from tests.slurm import local
from tests.tracking.wandb_server import KEY, WandbServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(local.lacking()), reason=f"Slurm is not tested: {local.lacking()}"),
]

STEPS, FIRST, SECOND = 20, 5, 12
MINE = "defaults: [base_slurm, _self_]\nparams: {num_gpus: 0, num_cpus: 2, memory: null}\n"
ECHO = (
    "launch_template: |\n  #!/bin/bash\n  #SBATCH --job-name={name} --output={log_dir}/%j.out\n"
    "  cd {project_root}\n  printf '%s\\n' {name} {python_args}; exit {code}\nparams: {code: 0}\n"
)
YAML = {
    "dataset/slow.yaml": "_target_: tests.slurm.parts.Data\n",
    "algorithm/slow.yaml": "_target_: tests.slurm.parts.Slow\n",
    "experiment/slow.yaml": "defaults: [base, _self_]\n_target_: diffusion_forcing.experiments.base.BaseExperiment\n",
    "cluster/mine.yaml": MINE,
    "cluster/echo.yaml": ECHO,
}
WORDS = [
    *("experiment=slow", "algorithm=slow", "dataset=slow", "experiment.training.devices=2"),
    *(
        "experiment.training.batch_size=2",
        "experiment.training.precision=32",
        "experiment.training.log_every_n_steps=1",
    ),
    *("experiment.validation.val_every_n_step=null", f"experiment.training.max_steps={STEPS}"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with two clusters, and a Slurm that is up."""
    folder = tmp_path_factory.mktemp("my project")
    for name, text in YAML.items():
        file = folder / "configurations" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with local.running():
        yield folder


def submitted(project: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """The command line, started in the project."""
    command = [sys.executable, "-m", "diffusion_forcing", *WORDS, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell lets background jobs ignore Ctrl-C
    )


def until(true: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


def run_named(project: Path, name: str) -> Path:
    found: list[Path] = []

    def there() -> bool:
        found[:] = [path.parent.parent for path in project.glob(f"outputs/*/*-{name}/slurm/job.json")]
        return bool(found)

    until(there)
    return found[0]


def job_of(run: Path) -> str:
    return str(json.loads((run / "slurm" / "job.json").read_text())["job"])


def losses(run: Path) -> dict[int, float]:
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {line["step"]: line["training/loss"] for line in lines if "training/loss" in line}


def started_again(job: str, times: int) -> bool:
    """Whether the job was queued again so many times."""
    return f"Restarts={times} " in local.asked("scontrol", "show", "job", job)


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[WandbServer]:
    """What stands in for W&B."""
    with WandbServer() as running:
        yield running


@pytest.fixture(scope="module")
def story(project: Path, server: WandbServer) -> dict[str, Any]:
    """A job that is preempted twice, for W&B but without internet, beside one of the same training that is left alone."""
    wandb = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
    wandb |= {f"WANDB_{kind}_DIR": str(project / "wandb" / kind) for kind in ("CACHE", "DATA", "CONFIG")}
    offline = ["cluster.is_compute_node_offline=true", f"wandb.mode={'online' if installed() else 'null'}"]
    slow = ["+name=slow", "cluster=mine", f"algorithm.hold=[{FIRST},{SECOND}]"]
    watched = submitted(project, *slow, *offline, **wandb)
    quick = submitted(project, "+name=quick", "cluster=mine", "cluster.follow=false", "cluster.params.time=1:00:00")
    run, straight = run_named(project, "slow"), run_named(project, "quick")
    job = job_of(run)
    until(lambda: len(losses(run)) == FIRST)
    run_id = json.loads((run / "run.json").read_text())["id"]
    until(lambda: not installed() or len(passed_on(server, run_id)) == FIRST)
    local.asked("scancel", "--signal=USR1", job)  # to the job's processes
    until(lambda: started_again(job, 1))
    until(lambda: len(losses(run)) == SECOND)
    watched.send_signal(signal.SIGINT)
    said, _ = watched.communicate(timeout=120)
    still = state_of(job)
    local.asked("scancel", "--batch", "--signal=USR1", job)  # to its script, as `--signal=B:USR1@120` does
    until(lambda: started_again(job, 2))
    until(lambda: state_of(job) == "COMPLETED")
    until(lambda: not installed() or len(passed_on(server, run_id)) == STEPS)
    until(lambda: state_of(job_of(straight)) == "COMPLETED")
    return {
        "run": run,
        "straight": straight,
        "said": said,
        "code": watched.returncode,
        "still": still,
        "quick said": quick.communicate(timeout=120)[0],
        "log": (run / "slurm" / f"{job}.out").read_text(),
        "job": job,
        "wandb": passed_on(server, run_id),
    }


def passed_on(server: WandbServer, run_id: str) -> dict[int, float]:
    """The losses that W&B has, by their steps."""
    rows = server.history(run_id)
    return {row["trainer/global_step"]: row["training/loss"] for row in rows if "training/loss" in row}


@pytest.mark.slow
def test_a_job_of_two_processes_preempted_twice_ends_with_the_losses_of_one_that_was_not(story: dict[str, Any]) -> None:
    expected = losses(story["straight"])
    assert len(expected) == STEPS
    assert losses(story["run"]) == expected
    facts = json.loads((story["run"] / "run.json").read_text())
    assert facts["status"] == "finished"
    assert story["log"].count(f"job {story['job']} is queued again") == 2
    assert re.findall(r"resuming run \w+ at step (\d+)", story["log"]) == [str(FIRST + 1), str(SECOND + 1)]
    assert "Traceback" not in story["log"]


def test_the_job_and_how_to_follow_it_are_said_and_its_log_is_shown_until_ctrl_c_which_leaves_it_alone(
    story: dict[str, Any],
) -> None:
    said, job, run = story["said"], story["job"], story["run"]
    assert f"submitted job {job}" in said
    assert f"tail -F {run / 'slurm' / f'{job}.out'}" in said
    assert "2 processes share each batch (ddp)" in said and "resuming run" in said
    assert f"job {job} continues: tail -F" in said
    assert (story["code"], story["still"]) == (0, "RUNNING")
    assert "is done" not in story["quick said"], "follow=false only submits"


@pytest.mark.skipif(not installed(), reason="wandb is not installed")
def test_where_jobs_have_no_internet_this_machine_passes_the_run_on_while_it_trains(story: dict[str, Any]) -> None:
    assert story["wandb"] == losses(story["run"])
    assert "uploads the run to W&B" in story["said"]
    assert "mode: disabled" in (story["run"] / "config.yaml").read_text(), "the job itself asks nobody"


@pytest.mark.slow
def test_nothing_of_a_name_or_of_an_override_is_executed(project: Path) -> None:
    name = "a 'b' \"c\" $(touch hacked) `touch hacked` ; touch hacked # %j {name}"
    ended = submitted(project, f"+name={name}", "cluster=echo")
    said = ended.communicate(timeout=240)[0]
    assert ended.returncode == 0, said
    run = run_named(project, "a*b*c*")
    job = job_of(run)
    assert (run / "slurm" / f"{job}.out").read_text().splitlines() == [name, f"resume={run}"]
    assert f"JobName={name}" in local.asked("scontrol", "show", "job", job)
    assert not list(project.rglob("hacked"))
    assert "job " + job + " has ended: completed" in said


@pytest.mark.slow
def test_a_job_that_fails_is_said_with_exit_code_1_and_a_refused_one_is_one_line(project: Path) -> None:
    failing = submitted(project, "+name=fails", "cluster=echo", "cluster.params.code=3")
    assert "has ended: failed" in failing.communicate(timeout=240)[0]
    assert failing.returncode == 1
    refused = submitted(project, "+name=refused", "cluster=mine", "cluster.params.partition=nowhere")
    said = refused.communicate(timeout=240)[0]
    assert refused.returncode == 2
    assert said.splitlines()[-1].startswith("error: sbatch refused the job: ")
