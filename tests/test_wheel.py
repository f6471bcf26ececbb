"""What users install: the wheel, in an environment of its own, from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 25_000_000
"""Bytes of the wheel."""
IN_THE_REPOSITORY = {
    "labmaze64",
    "ogbench_giant_goal",
    "ogbench_large_goal",
    "labmaze64_world",
    "maze2d_medium_x",
    "maze2d_large_x",
    "maze2d_medium_x_rnn",
    "maze2d_umaze_x",
}
"""Shipped models that the wheel does without."""


def run(*words: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [str(word) for word in words]
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_is_small_and_works_where_nothing_else_of_ours_is(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= LARGEST
    models = {file.parent.name for file in ROOT.glob("pretrained/*/checkpoint.json")}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[2] for name in names if "/pretrained/" in name} - {
        "README.md"
    } == models - IN_THE_REPOSITORY

    # An environment that sees the present packages, but not this checkout.
    here, folder = tmp_path / "venv", tmp_path / "elsewhere"
    folder.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", here, cwd=tmp_path)
    (site,) = here.glob("lib/*/site-packages")
    (site / "present.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(
        here / "bin" / "python",
        "-m",
        "pip",
        "-q",
        "install",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        wheel,
        cwd=folder,
    )
    where = run(here / "bin" / "python", "-c", "import diffusion_forcing as d; print(d.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(site)
    command = here / "bin" / "diffusion-forcing"
    assert "maze2d_medium" in run(command, "--help", cwd=folder)
    assert "prediction" in run(command, "inspect", "ts_load_small", cwd=folder)
    run(command, "new", "my_project", cwd=folder)
    words = "dataset=maze2d_medium load=maze2d_medium_goal experiment=exp_planning experiment.tasks=[validation]"
    run(command, *words.split(), "experiment.episodes=1", "algorithm.candidates=2", "algorithm.goal=random", cwd=folder)
    assert list(folder.glob("outputs/*/*/pictures/*.png"))
