"""Gathers what the programs of this folder need on a machine without a package index: the sources, and the wheels that PyTorch's images lack.

    python tools/gpu/pack.py build/gpu [--python 3.12] [--no-wheels]

There: `pip install --no-index --no-deps --target site wheels/*.whl`, then `PYTHONPATH=site:stubs:. python tools/gpu/world.py OUT`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("diffusion_forcing", "tools", "main.py", "pretrained/labmaze64_world")
WHEELS = (
    "vizdoom==1.3.2",
    "labmaze==1.0.6",
    "gymnasium==1.4.0",
    "farama-notifications==0.0.6",
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
)
"""Beside what such images have: torch, lightning, numpy, safetensors, rich, jinja2, pillow, cloudpickle."""
STUB = '''"""Stands for PyAV, whose wheel is as large as all others together: no file is decoded here."""

from types import SimpleNamespace

VideoReformatter = SimpleNamespace(reformat=None)
video = SimpleNamespace(reformatter=SimpleNamespace(VideoReformatter=VideoReformatter))
'''
BUILT = ("antlr4-python3-runtime==4.9.3",)
"""Published as a source only: a wheel is built here, which fits everywhere."""
MOST = 64 << 20
"""Upload limit of such a machine, in bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--no-wheels", action="store_true", help="the sources alone")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; name a new folder, or remove it first")
    for name in SOURCES:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    (folder / "stubs").mkdir()
    (folder / "stubs" / "av.py").write_text(STUB)
    if not arguments.no_wheels:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        system = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 27, 17)] + ["--platform=manylinux2014_x86_64"]
        target_python = ["--only-binary=:all:", f"--python-version={arguments.python}", "--implementation=cp", *system]
        wheels = folder / "wheels"
        subprocess.run([*pip, "download", "--no-deps", *target_python, f"--dest={wheels}", *WHEELS], check=True)
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={scratch}", *BUILT], check=True)
            for wheel in Path(scratch).glob("*.whl"):
                shutil.copy(wheel, wheels)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")
    if size > MOST:
        sys.exit(f"that is more than {MOST >> 20} MiB; leave something out of SOURCES or WHEELS")


if __name__ == "__main__":
    main()
