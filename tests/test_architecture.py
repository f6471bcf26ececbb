"""Who may import whom, read from the sources: layers, homes of third-party packages, and no circles between modules."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "diffusion_forcing"
NAME = PACKAGE.name

GROUND: dict[str, set[str]] = {
    "arrays": set(),
    "errors": set(),
    "files": set(),
    "limits": set(),
    "options": set(),
    "progress": set(),
    "terminal": set(),
    "diffusion": set(),
    "networks": set(),
    "metrics": set(),
    "visualization": set(),
    "tracking": set(),
    "checkpoints": {"released.importer"},
    "released": {"checkpoints.format", "algorithms", "networks", "diffusion"},
    "environments": set(),
    "datasets": {"environments", "checkpoints"},
    "algorithms": {
        "diffusion",
        "networks",
        "datasets.batch",
        "checkpoints",
    },
}
"""Room: the rooms it may import beside itself and the ground floor (arrays, errors, files, limits, options, progress, terminal)."""

HOMES = {
    "hydra": {"launch"},
    "omegaconf": {"launch"},
    "yaml": {"launch"},
    "wandb": {"tracking"},
    "tensorboard": {"tracking"},
    "matplotlib": {"visualization"},
    "mujoco": {"environments"},
    "vizdoom": {"environments"},
    "labmaze": {"environments"},
    "gymnasium": {"environments"},
    "ogbench": {"environments"},
    "h5py": {"datasets"},
    "minari": {"datasets"},
    "av": {"datasets", "tracking", "serve"},
    "zmq": {"serve", "launch"},
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "pydantic": {"serve"},
    "pyrealsense2": {"serve"},
    "pandas": {"datasets", "gluonts"},
    "gluonts": {"datasets", "gluonts"},
    "huggingface_hub": {"checkpoints"},
    "pyarrow": {"datasets"},
}
"""Third party: the rooms that may import it."""

FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    relative = file.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@functools.cache
def imports(source: str) -> list[str]:
    """Every module or name imported, dotted and absolute, at any depth; type-checking-only imports count too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return found


def offences(where: str, source: str) -> list[str]:
    found = []
    for name in imports(source):
        top, _, inside = name.partition(".")
        if top == NAME:
            other = inside.split(".")[0]
            if where not in GROUND or other in (
                where,
                "arrays",
                "errors",
                "files",
                "limits",
                "options",
                "progress",
                "terminal",
                "__version__",
                "",
            ):
                if where not in ("launch", "serve", "__main__", "__init__") and other in ("launch", "serve"):
                    found.append(f"{where} imports {name}: only the front imports launch")
                continue
            if not any(inside == allowed or inside.startswith(f"{allowed}.") for allowed in GROUND[where]):
                found.append(f"{where} imports {name}")
        elif top in HOMES and where not in HOMES[top]:
            found.append(f"{where} imports {top}, which lives in {', '.join(sorted(HOMES[top]))}")
    return found


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_a_module_imports_only_what_its_room_may(file: Path) -> None:
    assert offences(room(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("diffusion", "from diffusion_forcing.networks import Transformer"),
        ("diffusion", "import diffusion_forcing.networks.transformer"),
        ("datasets", "def f():\n    import mujoco"),
        ("checkpoints", "from diffusion_forcing.algorithms.planning.algorithm import Planning"),
        ("experiments", "from diffusion_forcing.launch.cli import main"),
        ("algorithms", "from diffusion_forcing.datasets.mazes.maze2d import Maze2d"),
        ("experiments", "import omegaconf"),
    ],
)
def test_the_rule_sees_an_offence(where: str, source: str) -> None:
    assert len(offences(where, source)) == 1


def test_every_room_is_known() -> None:
    rooms = {room(file) for file in FILES}
    assert rooms <= {*GROUND, "experiments", "gluonts", "launch", "serve", "__init__", "__main__"}


def test_whatever_is_printed_goes_through_the_terminal_module() -> None:
    calls = (
        (file.name, node.lineno)
        for file in FILES
        if file.stem != "terminal"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )
    assert list(calls) == []


def test_no_module_is_a_utils() -> None:
    assert [file for file in FILES if file.stem in ("utils", "util", "helpers", "misc", "common")] == []


# ------------------------------------------------------------------------------------------- what a task's extra installs

CORE = {
    "markupsafe",
    "torch",
    "lightning",
    "lightning_utilities",
    "hydra",
    "omegaconf",
    "yaml",
    "numpy",
    "safetensors",
    "rich",
    "jinja2",
    "PIL",
}
DRAWING = {"matplotlib", "av"}
TASKS = {
    "planning": (("mazes.maze2d", "mazes.pointmaze"), {"mujoco", "gymnasium", "h5py", *DRAWING}),
    "video": (("video.dataset",), {"vizdoom", "labmaze", "torchmetrics", "gymnasium", *DRAWING}),
    "forecasting": (
        ("series.dataset",),
        {"gluonts", "pandas", "dateutil", "chardet", "packaging", "pyarrow", *DRAWING},
    ),
    "robot": (("robot.dataset",), {"mujoco", "gymnasium", "gymnasium_robotics", "zmq", "pyarrow", "pandas", *DRAWING}),
}
"""Data sets of a task, and what its extra in pyproject.toml installs beside the core."""


def imported_at_once(name: str, seen: set[str]) -> set[str]:
    """Third-party packages that importing the module `name` of ours imports, those inside functions left out."""
    if name in seen:
        return set()
    seen.add(name)
    found = set()
    path = PACKAGE.parent / name.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    body = ast.parse(source).body
    while body:
        node = body.pop()
        if isinstance(node, ast.Try | ast.With | ast.ClassDef):
            body += node.body
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            body += [*node.body, *node.orelse]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for other in imports(ast.unparse(node)):
                parts = other.split(".")
                if parts[0] != NAME:
                    found.add(parts[0])
                    continue
                for length in range(1, len(parts) + 1):
                    inner = PACKAGE.parent.joinpath(*parts[:length])
                    if inner.is_dir() or inner.with_suffix(".py").is_file():
                        found |= imported_at_once(".".join(parts[:length]), seen)
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("task", TASKS)
def test_a_task_imports_only_what_its_extra_installs(task: str) -> None:
    datasets, extra = TASKS[task]
    seen: set[str] = set()
    found: set[str] = set()
    names = [f"datasets.{name}" for name in datasets]
    algorithm, experiment = PACKAGE / "algorithms" / task, PACKAGE / "experiments" / task
    names += [f"algorithms.{task}.algorithm" if algorithm.is_dir() else f"algorithms.{task}"]
    names += [f"experiments.{task}.experiment" if experiment.is_dir() else f"experiments.{task}", "launch.run"]
    for name in names:
        found |= imported_at_once(f"{NAME}.{name}", seen)
    assert found <= CORE | extra
    assert found & CORE >= {"torch", "lightning", "numpy"}


# ---------------------------------------------------------------------------------------------------- circles of modules


def module(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(sources: dict[str, str]) -> list[set[str]]:
    """Sets of modules that import each other, whether at the top, inside a function or for type checking alone (Tarjan 1972)."""
    edges = {}
    for name, source in sources.items():
        found = {imported if imported in sources else imported.rpartition(".")[0] for imported in imports(source)}
        edges[name] = sorted((found & sources.keys()) - {name})
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in edges[node]:
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            component = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(component)

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return components


def test_no_modules_import_each_other() -> None:
    assert circles({module(file): file.read_text(encoding="utf-8") for file in FILES}) == []


def test_a_circle_is_found_also_inside_functions() -> None:
    sources = {
        "p.a": "import p.b",
        "p.b": "def f():\n    from p.c import x",
        "p.c": "from p import a",
        "p.d": "import p.a",
    }
    assert circles(sources) == [{"p.a", "p.b", "p.c"}]


def test_every_public_name_exists() -> None:
    import diffusion_forcing
    from diffusion_forcing import diffusion, networks

    for room in (diffusion_forcing, diffusion, networks):
        assert [name for name in room.__all__ if not hasattr(room, name)] == []
