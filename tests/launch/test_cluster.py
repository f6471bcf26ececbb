"""cluster=…: the script from the template, what is refused, who queues a job again, who passes its run on. Slurm itself: tests/slurm."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.processes import JOB_SIGNALS, Interrupted, Interrupts
from diffusion_forcing.launch import slurm as submission
from diffusion_forcing.launch.choices import PACKAGE_FOLDER, choices_of
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.run import plan
from diffusion_forcing.launch.slurm import ClusterOptions, requeued_when_preempted, script
from tests.launch.conftest import MINE

NASTY = "it's $(touch hacked) `touch hacked` \"; touch hacked #"
SLURM = {
    "sbatch": 'cp "$2" submitted.sh; echo 17',
    "scontrol": 'echo "$@" >> asked; [ "$1" = show ] && { head -n 1 states; sed -i "1{\\$!d}" states; }; exit 0',
    "squeue": "head -n 1 states",
}
"""Stand-ins that answer from the file `states`, line after line, and note what they were asked."""


@pytest.fixture
def slurm(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's project, on a machine with something that answers as Slurm does."""
    for name, body in SLURM.items():
        program = project / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.0)
    states(project, "COMPLETED", "COMPLETED")
    return project


def states(project: Path, *names: str) -> None:
    (project / "states").write_text("".join(f"JobState={name} StdOut=x\n" for name in names))


def options(template: str = "", **params: Any) -> ClusterOptions:
    base = yaml.safe_load((PACKAGE_FOLDER / "cluster" / "base_slurm.yaml").read_text())
    if template:
        return ClusterOptions(launch_template=template, params=params)
    return ClusterOptions(**{**base, "params": {**base["params"], **params}})


def scripted(
    template: str = "",
    *,
    name: str = "mine",
    devices: Any = "auto",
    nodes: int = 1,
    words: Any = (NASTY,),
    **params: Any,
) -> str:
    made = options(template, **params)
    values = made.values(name=name, log_dir=Path("/my logs/50%"), devices=devices, num_nodes=nodes)
    return script(made.launch_template, values, ["resume=/a run", *words])


def printed(job: str, folder: Path) -> str:
    """What the job's script prints in `folder`, which stays empty."""
    done = subprocess.run(["bash", "-c", job], cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True)
    assert list(folder.iterdir()) == []
    return done.stdout.decode()


def test_every_value_is_a_word_of_its_own_and_lines_without_a_value_are_left_out() -> None:
    job = scripted(name=NASTY, nodes=2, num_gpus=4, gpu_type="volta", memory=None)
    lines = job.splitlines()
    assert shlex.split(lines[1]) == ["#SBATCH", f"--job-name={NASTY}"]
    assert lines[2] == '#SBATCH --output="/my logs/50%%"/%j.out'
    for argument in ("--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=8", "--gres=gpu:volta:4"):
        assert f"#SBATCH {argument}" in lines
    for absent in ("--mem", "--mail", "conda", "partition", "None"):
        assert absent not in job
    (run,) = [line for line in lines if line.startswith("srun")]
    assert shlex.split(run)[2:] == [sys.executable, "-m", "diffusion_forcing", "resume=/a run", NASTY, "&"]


def test_an_environment_and_an_address_are_used_and_without_gpus_none_are_asked_for() -> None:
    job = scripted(env_name="my env", email="me@there", num_gpus=0, devices=3)
    assert "conda activate 'my env'" in job and " python -m" in job and "--mail-user=me@there" in job
    assert "gres" not in job and "--ntasks-per-node=3" in job and "--cpus-per-task=10" in job


def test_what_has_no_name_in_a_template_stays_as_it_is() -> None:
    template = "echo $HOME ${HOME} { a; } {} # {name}\n'a' \"$b's\" {name} # don't\nrun {name} \\\n{name}"
    expected = "echo $HOME ${HOME} { a; } {} # N\n'a' \"$b's\" N # don't\nrun N \\\nN\n"
    assert scripted(template, name="a b").replace("'a b'", "N") == expected


def test_numbers_can_be_calculated_with(tmp_path: Path) -> None:
    assert printed(scripted("echo $(( {num_nodes} * {more} ))", nodes=3, more=5), tmp_path) == "15\n"


def test_the_script_gets_each_value_as_it_is_and_runs_none(tmp_path: Path) -> None:
    template = "printf '%s\\n' {name} {python_args}; if true; then printf '%s\\n' a{name}b; fi"
    assert printed(scripted(template, name=NASTY), tmp_path).splitlines() == [
        NASTY,
        "resume=/a run",
        NASTY,
        f"a{NASTY}b",
    ]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("\necho {nam}", r"line 2 of cluster.launch_template .*\{nam\} \(did you mean 'name'\?\)"),
        ('echo "{name}"', r"line 1 .*\{name\} within quotes"),
        ("echo 'a {python_args}'", "within quotes"),
        ("echo `x {name}`", "within quotes"),
        ("#SBATCH --comment='{name}'", "within quotes"),
        (r"echo \{name}", "within quotes"),
        ("bash <<EOF\n{name}\nEOF", "line 2 .*within quotes"),
        ('bash -c "\n{name}\n"', "line 2 .*within quotes"),
    ],
)
def test_a_template_in_which_quoting_would_fail_is_refused(template: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        scripted(template)


def test_a_name_with_a_line_break_is_refused() -> None:
    with pytest.raises(UserError, match="name 'a\\\\nb' has a line break"):
        scripted(name="a\nb")


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"num_gpu": 2}, r"unknown key cluster.params.num_gpu \(did you mean 'num_gpus'\?\)"),
        ({"num_gpus": -1}, r"cluster.params.num_gpus .*at least 0, got -1"),
        ({"num_cpus": "many"}, r"cluster.params.num_cpus .*at least 1, got 'many'"),
        ({"email": ["a"]}, r"cluster.params.email .*got \['a'\]"),
    ],
)
def test_a_parameter_that_cannot_be_is_one_line(params: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        options(**params)


def test_more_processes_than_gpus_are_refused_before_anything_is_submitted() -> None:
    with pytest.raises(UserError, match=r"devices is 4.*cluster\.params\.num_gpus is 2"):
        options(num_gpus=2).tasks_per_node(4)


@pytest.mark.parametrize("choice", ["base_slurm", "mit_satori", "mit_supercloud", "mit_vision"])
def test_every_cluster_of_ours_makes_a_script(slurm: Path, choice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert choice in choices_of("cluster")
    assert main([*MINE, f"cluster={choice}", "+name=x y", "cluster.params.time=0:30:0", "dataset.mean=[3,4]"]) == 0
    (folder,) = slurm.glob("outputs/*/*-x-y")
    text = (slurm / "submitted.sh").read_text()
    assert text == (folder / "slurm" / "job.sh").read_text()
    assert '#SBATCH --job-name="x y"' in text and "#SBATCH --time=0:30:0" in text
    assert f"-m diffusion_forcing resume={shlex.quote(str(folder))} &" in text and "dataset.mean" not in text
    assert json.loads((folder / "run.json").read_text())["status"] == "queued"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["cluster"] is None and saved["dataset"]["mean"] == [3, 4]
    said = capsys.readouterr().out
    for part in ("submitted job 17", "squeue --job 17", "tail -F", "scancel 17", "job 17 has ended: completed"):
        assert part in said


def test_the_job_of_a_new_run_begins_at_its_beginning_and_is_the_run_that_was_submitted(slurm: Path) -> None:
    main([*MINE, "cluster=base_slurm", "seed=7", "dataset.mean=[3,4]"])
    (folder,) = slurm.glob("outputs/*/*-mine")
    checked = plan([f"resume={folder}"])
    assert checked.new_job and checked.cluster is None and checked.settings.resume is None
    assert main([f"resume={folder}"]) == 0
    assert sys.modules["my_parts"].EVENTS[-1][2] == {
        "seed": 7,
        "debug": False,
        "load": None,
        "resume": None,
        "mean": (3.0, 4.0),
    }
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "finished"
    assert len(list(slurm.glob("outputs/*/*/run.json"))) == 1


def test_without_sbatch_there_is_one_line_and_no_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(project))
    assert main([*MINE, "cluster=mit_supercloud"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cluster= needs sbatch")
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cluster=mit_supercloud", "seeds=3"], "submit a job per seed"),
        (["cluster=mit_superclout"], "did you mean 'mit_supercloud'?"),
        (["cluster=base_slurm", "cluster.param.time=1"], "unknown key cluster.param (did you mean 'cluster.params'?)"),
        (["cluster=base_slurm", "cluster.launch_template='echo {x}'"], "{x}"),
        (["cluster=base_slurm", "experiment.broken=1"], "unknown key experiment.broken"),
    ],
)
def test_what_cannot_be_submitted_is_one_line_and_leaves_nothing(
    slurm: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*MINE, *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not (slurm / "outputs").exists() and not (slurm / "submitted.sh").exists()


def test_a_log_is_shown_as_it_grows_and_a_requeue_is_waited_for(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states(slurm, "PENDING", "RUNNING", "PREEMPTED", "PENDING", "RUNNING", "FAILED")
    log, text = slurm / "log", "grüße ".encode()
    pieces = iter([text[:3], text[3:], b"again ", b"end\n"])

    def sleep(seconds: float) -> None:
        with log.open("ab") as file:
            file.write(next(pieces, b""))

    monkeypatch.setattr(submission.time, "sleep", sleep)
    assert submission.follow("17", log) == 1
    said = capsys.readouterr().out
    assert said.replace("job 17 is pending\n", "").replace("job 17 is preempted\n", "") == (
        "grüße again end\njob 17 has ended: failed\n"
    )


@pytest.fixture
def job(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A task of a job; a job that is queued again hears no more signals, and this process should."""
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    before = {number: signal.getsignal(number) for number in (*JOB_SIGNALS, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in the background ignore Ctrl-C
    yield slurm
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "state", "again"),
    [
        (signal.SIGUSR1, "RUNNING", True),
        (signal.SIGUSR2, "RUNNING", True),
        (signal.SIGTERM, "RUNNING", True),
        (signal.SIGTERM, "COMPLETING", False),
        (signal.SIGINT, "RUNNING", False),
    ],
)
def test_a_preempted_job_is_queued_again_and_one_that_slurm_has_ended_is_not(
    job: Path, number: int, state: str, again: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "states").write_text(f"{state}\n")
    with pytest.raises((Interrupted, KeyboardInterrupt)), requeued_when_preempted("go on with resume=x"):
        os.kill(os.getpid(), number)
    asked = (job / "asked").read_text() if (job / "asked").exists() else ""
    assert asked == ("requeue 17\n" if again else "")
    said = capsys.readouterr().err
    assert ("job 17 is queued again" in said) == again


def test_only_the_main_process_queues_the_job_again(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(Interrupted), requeued_when_preempted(""):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert not (job / "asked").exists()


def test_outside_of_a_job_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
    with requeued_when_preempted(""):
        assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)] == before


def test_warnings_of_slurm_that_follow_each_other_do_not_end_what_is_being_saved(job: Path) -> None:
    interrupts = Interrupts()
    interrupts.install()
    try:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        assert interrupts.received == signal.SIGUSR1
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        interrupts.remove()


def test_a_run_is_passed_on_while_it_runs_and_once_more_at_the_end(slurm: Path) -> None:
    run = slurm / "run"
    run.mkdir()
    states(slurm, "PENDING", "RUNNING", "PENDING", "RUNNING", "COMPLETED")
    lives = iter(["running", "interrupted", "running", "finished"])

    def wait(seconds: float) -> None:
        (run / "run.json").write_text(json.dumps({"status": next(lives)}))

    command = ["sh", "-c", f"cat {run}/run.json >> {slurm}/passed; echo >> {slurm}/passed"]
    assert submission.upload(run, "17", command, wait=wait)
    passed = [json.loads(line)["status"] for line in (slurm / "passed").read_text().splitlines()]
    assert passed == ["running", "running", "finished"]


def test_a_run_whose_job_was_killed_is_not_running_any_more_and_nobody_waits_for_it(slurm: Path) -> None:
    states(slurm, "CANCELLED")
    (slurm / "run.json").write_text('{"status": "running"}')
    assert submission.upload(slurm, "17", ["sh", "-c", f"echo $0 $@ > {slurm}/passed", "sync", "--follow"])
    assert (slurm / "passed").read_text() == "sync\n"
    assert json.loads((slurm / "run.json").read_text()) == {"status": "failed"}


def test_where_the_nodes_are_offline_the_job_knows_of_no_wandb_and_this_machine_passes_it_on(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[Any, ...]] = []
    monkeypatch.setattr(submission, "_start_uploading", lambda *words: started.append(words) or 4711)
    assert main([*MINE, "cluster=mit_supercloud", "wandb.mode=online", "+name=on"]) == 0
    assert main([*MINE, "cluster=mit_vision", "wandb.mode=online", "+name=vision"]) == 0
    assert main([*MINE, "cluster=mit_supercloud", "+name=local"]) == 0
    (folder,) = slurm.glob("outputs/*/*-on")
    assert started == [(folder, json.loads((folder / "run.json").read_text())["id"], "17")]
    assert yaml.safe_load((folder / "config.yaml").read_text())["wandb"]["mode"] == "disabled"
    (other,) = slurm.glob("outputs/*/*-vision")
    assert yaml.safe_load((other / "config.yaml").read_text())["wandb"]["mode"] == "online"
    assert "process 4711 here uploads the run to W&B" in capsys.readouterr().out


def test_a_directive_keeps_backslashes_and_percent_signs() -> None:
    template = "#SBATCH --job-name={name}\n#SBATCH -o logs/{name}.out\n#SBATCH --chdir={log_dir}\n"
    lines = script(template, {"name": 'a\\b "50%j"', "log_dir": "/tmp/50%"}, []).splitlines()
    assert lines == [
        '#SBATCH --job-name="a\\\\b \\"50%j\\""',
        '#SBATCH -o logs/"a\\\\b \\"50%%j\\"".out',
        "#SBATCH --chdir=/tmp/50%",
    ]
