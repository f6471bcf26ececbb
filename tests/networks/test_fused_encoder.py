"""The fast encoder equals the plain one: values, gradients of tokens and of every weight."""

from __future__ import annotations

import pytest
import torch

from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.transformer import FusedEncoder, can_fuse


def both(causal: bool = False) -> tuple[Transformer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = Transformer(6, network_size=32, num_layers=3, attn_heads=4, dim_feedforward=48, causal=causal)
    for parameter in network.parameters():  # norms and biases away from 1 and 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network, torch.randn(3, 7, 6, requires_grad=True), torch.randint(0, 1000, (3, 7))


def test_fused_encoder_equals_the_plain_one_in_values_and_gradients() -> None:
    network, x, k = both()
    weight = torch.randn(3, 7, 6)
    results = []
    for fused in (False, True):
        network.transformer.fused = fused
        output, _ = network(x, k)
        results.append([output, *torch.autograd.grad((output * weight).sum(), [x, *network.parameters()])])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


def test_fused_encoder_gives_the_tokens_gradient_alone_when_weights_do_not_train() -> None:
    network, x, k = both()
    network.requires_grad_(False)
    gradients = []
    for fused in (False, True):
        network.transformer.fused = fused
        gradients.append(torch.autograd.grad(network(x, k)[0].square().sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_fused_encoder_backward_is_the_derivative_of_its_forward(causal: bool) -> None:
    network, _, _ = both()
    layers = [p.detach().double().requires_grad_() for p in network.transformer.layers[0].in_order()]
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)

    def encode(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return FusedEncoder.apply(x, 4, causal, *parameters)

    assert torch.autograd.gradcheck(encode, (x, *layers), fast_mode=True)


def test_fused_encoder_is_left_out_where_it_would_not_be_exact() -> None:
    x = torch.randn(1, 2, 8)
    assert can_fuse(x)
    assert not can_fuse(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_fuse(x)
