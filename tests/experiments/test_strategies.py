"""How many processes there are, and which this one is: from the options, and from what srun and torchrun say in the environment."""

from __future__ import annotations

import pytest
import torch

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import processes
from diffusion_forcing.experiments.devices import ExactMeans, devices_per_node, trainer_options
from diffusion_forcing.experiments.options import ExperimentOptions, TrainingOptions

SRUN = {"SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "mine", "SLURM_NNODES": "2", "SLURM_NTASKS": "4"}
TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


@pytest.fixture(autouse=True)
def nobody_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*SRUN, *TORCHRUN, "NODE_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS"]
    for name in [*names, "SLURM_NTASKS_PER_NODE"]:
        monkeypatch.delenv(name, raising=False)


def started(monkeypatch: pytest.MonkeyPatch, by: dict[str, str], **more: str) -> None:
    for name, value in (by | more).items():
        monkeypatch.setenv(name, value)


def asked(devices: int | str = "auto", *, nodes: int = 1, strategy: str = "auto") -> ExperimentOptions:
    training = TrainingOptions(devices=devices, strategy=strategy)  # type: ignore[arg-type]
    return ExperimentOptions(num_nodes=nodes, training=training)


@pytest.mark.parametrize("name", ["LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"])
def test_the_main_process_is_the_first_of_all(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert processes.is_main_process()
    monkeypatch.setenv(name, "0")
    assert processes.is_main_process()
    monkeypatch.setenv(name, "1")
    assert not processes.is_main_process()


@cpu_only
def test_without_a_gpu_there_is_one_process_unless_asked_for_more() -> None:
    assert devices_per_node(asked()) == 1
    assert trainer_options(asked())["strategy"] == "auto"
    assert devices_per_node(asked(3)) == 3
    assert type(trainer_options(asked(2))["strategy"]).__name__ == "ReplicatedStrategy"
    assert type(trainer_options(asked(2, strategy="fsdp"))["strategy"]).__name__ == "ShardedStrategy"
    evaluating = trainer_options(asked(2, strategy="fsdp"), evaluating=True)
    assert type(evaluating["strategy"]).__name__ == "ReplicatedStrategy"


@pytest.mark.parametrize("by", [SRUN, TORCHRUN])
def test_processes_that_were_started_are_those_there_are(monkeypatch: pytest.MonkeyPatch, by: dict[str, str]) -> None:
    started(monkeypatch, by)
    assert devices_per_node(asked(nodes=2)) == 2
    with pytest.raises(UserError, match=r"experiment.num_nodes is 1, .*pass experiment.num_nodes=2"):
        devices_per_node(asked())
    with pytest.raises(UserError, match=r"pass experiment.training.devices=2"):
        devices_per_node(asked(4, nodes=2))


def test_a_shell_that_slurm_gave_starts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, SRUN, SLURM_JOB_NAME="interactive")
    assert processes.started_processes() is None
    plugins = trainer_options(asked(2))["plugins"]
    assert [type(plugin).__name__ for plugin in plugins] == ["LightningEnvironment"]


@pytest.mark.parametrize("change", [{"devices": 0}, {"strategy": "fsd"}])
def test_what_cannot_be_is_one_line(change: dict[str, object]) -> None:
    (key,) = change
    with pytest.raises(UserError, match=rf"experiment\.training\.{key} .*(0|fsd)"):
        TrainingOptions(**change)  # type: ignore[arg-type]


def test_whole_numbers_are_averaged_as_real_ones() -> None:
    class Base:
        def reduce(self, tensor: torch.Tensor, group: object, reduce_op: object) -> torch.Tensor:
            return tensor / 2 if tensor.is_floating_point() else tensor // 2

    class Strategy(ExactMeans, Base):
        pass

    assert Strategy().reduce(torch.tensor(5), reduce_op="mean") == 2.5
    assert Strategy().reduce(torch.tensor(5), reduce_op="max") == 2, "other reductions stay as they are"
