"""Every network compiles as one graph, with and without a memory; the average that one samples with is compiled too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion import DiffusionForcing, Sampler, build_parameterization, build_schedule
from diffusion_forcing.experiments.checkpointing import compile_network
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp, recurrent_unet
from diffusion_forcing.networks.unet3d import UNet3D
from tests.algorithms import small
from tests.networks import test_world
from tests.networks.test_world import small_size  # noqa: F401

pytestmark = pytest.mark.slow

UNET = {"network_size": 8, "dim_mults": (1, 2), "attn_resolutions": (8,), "attn_heads": 2, "attn_dim_head": 4}
NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "unet": (lambda: UNet3D(3, 8, **UNET), (3, 8, 8)),
    "transformer": (lambda: Transformer(4, causal=True, num_layers=2), (4,)),
    "recurrent": (lambda: recurrent_mlp(3, 8, network_size=4, num_mlp_layers=2), (3,)),
    "world": (lambda: test_world.world(external_cond_dim=0), (3, 16, 16)),
    "recurrent unet": (lambda: recurrent_unet(3, (4, 8, 8), network_size=8), (3, 8, 8)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_one_graph_and_gives_the_same_numbers(kind: str) -> None:
    make, shape = NETWORKS[kind]
    torch.manual_seed(0)
    network: nn.Module = make().eval()
    x, k = torch.randn(2, 2, *shape), torch.randint(0, 100, (2, 2))
    torch._dynamo.reset()
    # A break in the graph is an error.
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        whole, memory = network(x, k)
        torch.testing.assert_close(compiled(x, k)[0], whole, atol=1e-5, rtol=1e-5)
        _, longer = network(x[:, :1], k[:, :1], None, memory)
        for past in (memory, longer):
            plain, found = (net(x[:, 1:2], k[:, 1:2], None, past)[0] for net in (network, compiled))
            torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", test_world.VARIANTS)
def test_a_training_call_of_the_world_model_is_one_graph_with_the_same_gradients(variant: str) -> None:
    network = test_world.world(**test_world.VARIANTS[variant])
    x, k, conditions = test_world.inputs(network, 7)
    torch._dynamo.reset()
    gradients = []
    for net in (network, torch.compile(network, backend="eager", fullgraph=True)):
        network.zero_grad()
        output, memory = net(x, k, conditions, past=(x + 0.1, k.flip(1)))
        (output.square().mean() + (0 if memory.warped is None else memory.warped.start.square().mean())).backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_compiling_reaches_the_average_and_next_token_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def note(function: Any, **how: Any) -> Any:
        compiled.append((function, how["mode"]))
        return function

    monkeypatch.setattr(torch, "compile", note)
    planning = small.planning(ema_decay=0.9, causal=True)
    names = list(planning.state_dict())
    compile_network(planning, "max-autotune-no-cudagraphs")
    assert planning.ema is not None
    expected = [
        call
        for network in (planning.network, planning.ema.module)
        for call in (network._call_impl, network.teacher_forced)
    ]
    assert compiled == [(function, "max-autotune-no-cudagraphs") for function in expected]
    assert list(planning.state_dict()) == names
    with torch.no_grad():
        output: Tensor = planning.network.teacher_forced(*(torch.randn(1, 2, 6), torch.ones(1, 2).long()) * 2)
    assert output.shape == (1, 2, 6)


class Overwriting(nn.Module):
    """A network whose next call overwrites what this one gave, as CUDA graphs do."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.given = network, list[Tensor]()
        network.static_outputs = self.static_outputs = True
        for name in ("keeps_memory", "memory_slides", "why_no_memory"):
            setattr(self, name, getattr(network, name))
        self.recurrent = getattr(network, "recurrent", False)

    def begin(self, *inputs: Any) -> Any:
        """Of a recurrent network."""
        return self.network.begin(*inputs)

    def forward(self, *inputs: Any) -> tuple[Tensor, Any]:
        output, memory = self.network(*inputs)
        for tensor in self.given:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        shown = {tensor.data_ptr() for part in inputs for tensor in _tensors(getattr(part, "__dict__", part))}
        self.given = [tensor for tensor in (output, *_tensors(vars(memory))) if tensor.data_ptr() not in shown]
        return output, memory


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [tensor for name, part in value.items() if name != "_before" for tensor in _tensors(part)]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("objective", ["pred_x0", "pred_v"])
def test_a_rollout_keeps_nothing_that_the_next_call_overwrites(kind: str, objective: str) -> None:
    make, shape = NETWORKS[kind]
    found = []
    for wrap in (lambda network: network, Overwriting):
        torch.manual_seed(0)
        network = wrap(make().eval())
        forcing = DiffusionForcing(
            network, build_schedule("cosine", 100), build_parameterization(objective, clip_noise=6.0)
        )
        sampler = Sampler(forcing, sampling_timesteps=3, scheduling_matrix="pyramid")
        context, generator = torch.randn(2, 2, *shape), torch.Generator().manual_seed(1)
        rolled = sampler.rollout(context, 7, window=4, chunk_size=2, cache="streaming", generator=generator)
        found.append(rolled)
    assert torch.isfinite(found[1]).all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
