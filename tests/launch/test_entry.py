"""The commands start fast, say what they are, and import nothing heavy before they must."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import diffusion_forcing
from diffusion_forcing.checkpoints import places
from diffusion_forcing.datasets.robot.convert import ConvertOptions
from diffusion_forcing.launch import commands
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.usage import COMMANDS, usage
from diffusion_forcing.serve.play.server import PlayOptions

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "lightning", "hydra", "omegaconf", "mujoco", "matplotlib", "numpy", "h5py", "av", "gymnasium")


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, diffusion_forcing; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python("-c", code).stdout == "[]\n"


def test_help_and_version_import_nothing_heavy_and_take_under_two_seconds() -> None:
    code = (
        "import sys; from diffusion_forcing.launch.cli import main; main(['--help']); main(['--version']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    start = time.perf_counter()
    done = python("-c", code)
    assert time.perf_counter() - start < 2.0
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistyped_key_is_found_before_torch_is_imported() -> None:
    code = (
        "import sys; from diffusion_forcing.launch.cli import main; code = main(['sed=3']); "
        "print(code, 'torch' in sys.modules)"
    )
    assert python("-c", code).stdout == "2 False\n"


@pytest.mark.parametrize("module", ["main", "diffusion_forcing"])
def test_both_ways_to_start_print_the_version(module: str) -> None:
    assert python("-m", module, "--version").stdout == f"diffusion-forcing {diffusion_forcing.__version__}\n"


def test_an_error_is_a_line_on_stderr_and_exit_code_2_of_the_process() -> None:
    done = python("-m", "main", "dataset=nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: dataset=nowhere does not exist")
    assert done.stderr.count("\n") == 1


def test_help_lists_commands_groups_choices_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "dataset=",
        "maze2d_large",
        "algorithm=",
        "df_planning",
        "experiment=",
        "resume=",
        "load=",
        "--cfg",
        "examples",
    ):
        assert word in text
    assert "df_base" not in text


def test_no_arguments_print_the_help(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == f"{usage()}\n"
    assert not (project / "outputs").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_short_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == main([name, "more", "-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: diffusion-forcing {name} ")
    assert lines[len(lines) // 2 - 1].startswith(f"example: diffusion-forcing {name} ") and len(lines) <= 2 * 19
    if name == "runs":  # whose words are read by hand
        source = inspect.getsource(commands.runs)
        assert all(f'"{option}"' in source for option in re.findall(r"(?<=[\s\[])--[a-z-]+", "\n".join(lines)))


@pytest.mark.parametrize(
    ("name", "function"), [("play", PlayOptions), ("convert-robot", ConvertOptions), ("push", places.push)]
)
def test_the_options_of_a_command_are_those_that_it_passes_on_with_the_defaults_that_the_help_states(
    name: str, function: Callable[..., object]
) -> None:
    parameters = inspect.signature(function).parameters
    for argument in COMMANDS[name].arguments:
        if argument.is_option:
            key = argument.name.removeprefix("--").removeprefix("no-").replace("-", "_")
            stated = re.search(r"default (\w[\w.]*)(?=$|[:,;])", argument.meaning)
            default = parameters[key].default
            assert (not stated or stated[1] == str(default)) and (argument.value or isinstance(default, bool))


def test_help_lists_the_users_own_choices_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["-h"])
    assert re.search(r"mine +My data\.", capsys.readouterr().out)


def test_every_public_name_is_importable() -> None:
    for name in diffusion_forcing.__all__:
        assert getattr(diffusion_forcing, name) is not None
    assert set(diffusion_forcing.__all__) <= set(dir(diffusion_forcing))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = diffusion_forcing.Nothing
