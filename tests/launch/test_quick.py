"""A command starts light, and what it left out is there for whoever needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.startup import VIDEO, write_clips

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_training_imports_no_compiler_and_nothing_that_draws(tmp_path: Path) -> None:
    write_clips(tmp_path)
    words = [*VIDEO.split(), "experiment.tasks=[training]", "experiment.training.max_steps=1", "algorithm.metrics=[]"]
    code = f"""
import sys
from diffusion_forcing.launch.cli import main
assert main({words!r}) == 0
print([name for name in ("torch._dynamo", "sympy", "scipy", "matplotlib", "pandas", "mujoco") if name in sys.modules])
"""
    assert python(code, tmp_path)[-1] == "[]"


@pytest.mark.slow
def test_what_was_left_out_works_when_it_is_asked_for(tmp_path: Path) -> None:
    code = """
import sys
from diffusion_forcing.launch.quick import import_lightning
import_lightning()
assert not {"torch._dynamo", "matplotlib", "scipy"} & set(sys.modules)

import torch
from lightning.fabric.wrappers import _unwrap_compiled
from torch import nn

def trained(kind, steps):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = kind(layer.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert torch.is_grad_enabled()
    return layer.weight.detach()

kinds = (torch.optim.AdamW, torch.optim.SGD)
before = [trained(kind, 3) for kind in kinds]
assert "torch._dynamo" not in sys.modules
layer = nn.Linear(3, 2)
assert _unwrap_compiled(layer)[0] is layer

compiled = torch.compile(layer, backend="eager")  # imports the compiler
assert torch.equal(compiled(torch.ones(1, 3)), layer(torch.ones(1, 3)))
assert "torch._dynamo" in sys.modules
assert _unwrap_compiled(compiled)[0] is layer
assert all(torch.equal(one, trained(kind, 3)) for one, kind in zip(before, kinds))

from torchmetrics.aggregation import MeanMetric
metric = MeanMetric()
metric.update(1.0)
figure, axes = metric.plot()
from torchmetrics.utilities.imports import _MATPLOTLIB_AVAILABLE
print(type(figure).__module__, bool(_MATPLOTLIB_AVAILABLE))
"""
    assert python(code, tmp_path)[-1] == "matplotlib.figure True"


@pytest.mark.slow
def test_where_stand_ins_do_not_do_lightning_is_imported_as_it_is(tmp_path: Path) -> None:
    code = """
import sys
from diffusion_forcing.launch import quick
quick._Compiled = None  # as if another version of Lightning looked up more
quick.import_lightning()
import lightning.pytorch
print(lightning.pytorch.Trainer.__name__, "torch._dynamo" in sys.modules)
"""
    assert python(code, tmp_path)[-1] == "Trainer True"
