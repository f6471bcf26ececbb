"""Every extra by itself, as a user installs it: the wheel in a bare environment, an import, and one command.

    python tools/try_extras.py [EXTRA …] [--uv PATH] [--folder FOLDER]      all of pyproject.toml's extras, and none ("bare")

Each environment is removed before the next is made; pip's own cache keeps what was downloaded. `--uv` installs with uv, which is faster.
Prints a table, one row an extra: what it adds, how large it is, what its command did. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = "diffusion-forcing +name=extra "
OWN = (
    "diffusion-forcing new my_project && cd my_project && diffusion-forcing dataset=my_dataset algorithm=my_algorithm experiment=my_experiment "
    "experiment.tasks=[training,my_task] experiment.training.max_steps=2 +name=extra "
)
PLAN = (
    RUN
    + "experiment=exp_planning algorithm.goal=random algorithm.candidates=2 experiment.tasks=[validation] experiment.episodes=1 "
)
COMMANDS = {
    "bare": OWN,
    "planning": PLAN + "dataset=maze2d_medium load=maze2d_medium_goal",
    "ogbench": "python -c 'import ogbench.locomaze, gymnasium; gymnasium.make(\"pointmaze-medium-v0\").reset()'",
    "viz": OWN,
    "video": RUN
    + "dataset=video_labmaze algorithm=df_world load=labmaze64_world_student experiment.tasks=[test] dataset.n_frames=20 "
    "algorithm.metrics=[] experiment.shuffled_actions=False experiment.films=1 experiment.test.batch_size=1 "
    "experiment.test.limit_batch=1 dataset.save_dir=data dataset.num_episodes=0 dataset.num_validation_episodes=0 "
    "dataset.num_test_episodes=1",
    "forecasting": 'python -c \'print("time,a"); [print(f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00,{i % 24}") for i in range(720)]\' > a.csv '
    "&& diffusion-forcing forecast a.csv --horizon 12",
    "robot": RUN + "dataset=robot_swap load=robot_swap_small experiment.tasks=[test] experiment.episodes=1",
    "play": "(timeout 120 diffusion-forcing play --no-browser --port 8765 & for i in $(seq 110); do sleep 1; "
    "python -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8765\").status)' 2>/dev/null && kill $! && exit 0; done; exit 1)",
    "fvd": "python -c 'from diffusion_forcing.metrics.i3d import load_i3d; print(sum(p.numel() for p in load_i3d().parameters()))'",
    "wandb": f"{OWN} tracking=wandb wandb.mode=offline && ls outputs/*/*/wandb",
    "tensorboard": f"{OWN} tracking=tensorboard && find . -name 'events.out*' | grep .",
    "hub": "diffusion-forcing push ts_load_small hf://nobody/nothing 2>&1 | tee said; ! grep 'pip install' said",
    "minari": "python -c 'import minari; from diffusion_forcing.datasets.mazes import maze2d as ours; print(ours.__doc__)'",
    "benchmarks": "python -c 'import statsforecast, lightgbm, statsmodels, vega_datasets'",
    "docs": "python -m mkdocs --version && python -c 'import material, mkdocstrings_handlers.python'",
    "dev": "diffusion-forcing new my_project && cd my_project && python -m pytest -q && ruff --version && mypy --version",
}
"""Extra: the command that needs it, for a shell in an empty folder."""


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def extras(wheel: Path) -> list[str]:
    """The names of the wheel's extras, and `bare`."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return ["bare", *re.findall(r"^Provides-Extra: (.+)$", archive.read(metadata).decode(), re.MULTILINE)]


def shell(line: str, folder: Path, path: Path) -> tuple[bool, str]:
    """Whether a line succeeds in `folder` with the environment's programs first, and what it printed last."""
    given = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {**given, "PATH": f"{path}:{given['PATH']}", "MUJOCO_GL": given.get("MUJOCO_GL", "egl")}
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.returncode == 0, done.stdout.decode(errors="replace").strip()


def attempt(extra: str, wheel: Path, folder: Path, uv: str | None) -> tuple[bool, str]:
    """Install one extra into a new environment and run its command; the row of the table."""
    here, elsewhere = folder / "environment", folder / "elsewhere"
    elsewhere.mkdir()
    wanted = str(wheel) if extra == "bare" else f"{wheel}[{extra}]"
    began = time.perf_counter()
    if uv:
        make = [uv, "venv", "-q", "-p", sys.executable, str(here)]
        install = [
            uv,
            "pip",
            "install",
            "-q",
            "--find-links",
            os.environ.get("PIP_FIND_LINKS", "."),
            "-p",
            str(here / "bin/python"),
        ]
    else:
        make = [sys.executable, "-m", "venv", str(here)]
        install = [str(here / "bin/python"), "-m", "pip", "install", "-q"]
    lines = [
        ("install", shlex.join(make) + " && " + shlex.join([*install, "-c", str(ROOT / "constraints.txt"), wanted])),
        ("import", "python -c 'import diffusion_forcing as d; assert \"environment\" in d.__file__'"),
        ("command", COMMANDS[extra]),
    ]
    if extra in ("forecasting", "play"):  # as the comment in pyproject.toml says
        lines.insert(1, ("simbench", shlex.join([*install, "--no-deps", "simbench==1.6.3"])))
    for stage, line in lines:
        fine, said = shell(line, elsewhere, here / "bin")
        if not fine:
            return False, f"{stage} FAILED\n{said[-2000:]}"
        if stage == "install":
            seconds = time.perf_counter() - began
    packages = len(list(here.glob("lib/*/site-packages/*.dist-info")))
    size = int(subprocess.check_output(["du", "-sm", str(here)]).split()[0])
    return True, f"{packages:3d} packages {size:6,d} MB, installed in {seconds:4.0f} s, import and command work"


def main() -> None:
    """Try what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--uv", help="uv's program")
    parser.add_argument("--folder", help="where the environments are made, one at a time")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        wheel = build_wheel(Path(temporary))
        for extra in given.extras or extras(wheel):
            folder = Path(temporary) / extra
            folder.mkdir()
            fine, row = attempt(extra, wheel, folder, given.uv)
            print(f"{extra:12s} {row}", flush=True)
            shutil.rmtree(folder)
            failed |= not fine
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
