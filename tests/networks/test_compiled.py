"""Every network compiles as one graph, with and without a memory; the average that one samples with is compiled too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.experiments.checkpointing import compile_network
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp, recurrent_unet
from diffusion_forcing.networks.unet3d import UNet3D
from tests.algorithms import small

pytestmark = pytest.mark.slow

UNET = {"network_size": 8, "dim_mults": (1, 2), "attn_resolutions": (4, 8), "attn_heads": 2, "attn_dim_head": 4}
NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "unet": (lambda: UNet3D(3, 8, **UNET), (3, 8, 8)),
    "transformer": (lambda: Transformer(4, causal=True, num_layers=2), (4,)),
    "recurrent": (lambda: recurrent_mlp(3, 8, network_size=4, num_mlp_layers=2), (3,)),
    "recurrent unet": (lambda: recurrent_unet(3, (4, 8, 8), network_size=8), (3, 8, 8)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_one_graph_and_gives_the_same_numbers(kind: str) -> None:
    make, shape = NETWORKS[kind]
    torch.manual_seed(0)
    network: nn.Module = make().eval()
    x, k = torch.randn(2, 3, *shape), torch.randint(0, 1000, (2, 3))
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
