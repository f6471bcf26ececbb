"""Recurrent networks: causal, their memory is the whole of the past, and rollouts need no window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import DiffusionForcing, Sampler, build_parameterization, build_schedule
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.recurrent import (
    Latent,
    Recurrent,
    TransitionMLP,
    TransitionUNet,
    recurrent_mlp,
    recurrent_unet,
)

KINDS = ["mlp", "mlp without layers", "images", "images without a gru"]


def build(kind: str) -> tuple[Recurrent, tuple[int, ...]]:
    """A small network that is told 2 numbers a token, and the shape of a token."""
    torch.manual_seed(0)
    match kind:
        case "mlp":
            net = recurrent_mlp(3, 8, network_size=4, num_gru_layers=2, num_mlp_layers=3, external_cond_dim=2)
        case "mlp without layers":
            net = recurrent_mlp(3, 8, network_size=4, num_gru_layers=1, num_mlp_layers=0, external_cond_dim=2)
        case "images":
            net = recurrent_unet(3, (4, 8, 8), network_size=8, external_cond_dim=2, learnable_init_z=True)
        case _:
            net = recurrent_unet(3, (4, 8, 8), network_size=8, num_gru_layers=0, external_cond_dim=2)
    return net.eval(), (3,) if kind.startswith("mlp") else (3, 8, 8)


def inputs(shape: tuple[int, ...], time: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, time, *shape, generator=generator)
    return x, torch.randint(0, 1000, (2, time), generator=generator), torch.randn(2, time, 2, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_at_a_token_changes_nothing_before_it_bit_for_bit_and_something_from_it_on(kind: str) -> None:
    net, shape = build(kind)
    x, k, told = inputs(shape)
    with torch.no_grad():
        before, _ = net(x, k, told)
        for part in range(3):
            other = [x.clone(), k.clone(), told.clone()]
            other[part][:, 3] = other[part][:, 3] + 7
            after, _ = net(*other)
            assert torch.equal(after[:, :3], before[:, :3])
            assert not torch.equal(after[:, 3], before[:, 3])
            assert not torch.equal(after[:, 4], before[:, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_the_memory_is_the_same_as_seeing_everything(kind: str) -> None:
    net, shape = build(kind)
    x, k, told = inputs(shape)
    with torch.no_grad():
        whole, last = net(x, k, told)
        first, memory = net(x[:, :2], k[:, :2], told[:, :2])
        rest, end = net(x[:, 2:], k[:, 2:], told[:, 2:], memory)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(end.z, last.z, rtol=0, atol=1e-5)
    assert (memory.length, end.length) == (2, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str) -> None:
    net, shape = build(kind)
    output, _ = net(*inputs(shape))
    output.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_no_tokens_leave_the_memory_as_it_was() -> None:
    net, shape = build("mlp")
    x, k, told = inputs(shape)
    memory = net(x, k, told)[1]
    output, after = net(x[:, :0], k[:, :0], told[:, :0], memory)
    assert output.shape == (2, 0, 3)
    assert after is memory


def method(net: Recurrent) -> DiffusionForcing:
    return DiffusionForcing(net, build_schedule("cosine"), build_parameterization("pred_x0", clip_noise=6.0))


@pytest.mark.parametrize(
    ("kind", "matrix"),
    [("mlp", "autoregressive"), ("mlp", "pyramid"), ("mlp without layers", "full_sequence"), ("images", "pyramid")],
)
def test_a_rollout_that_keeps_the_latent_equals_one_that_sees_all_the_past(kind: str, matrix: str) -> None:
    net, shape = build(kind)
    context, _, _ = inputs(shape, 2)
    _, _, told = inputs(shape, 6)
    sampler = Sampler(method(net), sampling_timesteps=2, scheduling_matrix=matrix)

    def roll(cache: str) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return sampler.rollout(context, 6, window=6, chunk_size=3, cache=cache, conditions=told, generator=generator)

    plain = roll("none")
    torch.testing.assert_close(roll("streaming"), plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(roll("exact"), plain, rtol=0, atol=1e-4)


def test_streaming_needs_no_window_and_keeps_a_latent_of_one_size() -> None:
    net, shape = build("mlp")
    context, _, _ = inputs(shape, 2)
    told = torch.randn(2, 20, 2, generator=torch.Generator().manual_seed(4))
    sampler = Sampler(method(net), sampling_timesteps=3)

    def roll(window: int, cache: str) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return sampler.rollout(context, 20, window=window, cache=cache, conditions=told, generator=generator)

    torch.testing.assert_close(roll(3, "streaming"), roll(20, "none"), rtol=0, atol=1e-4)
    calls: list[int] = []
    net.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[1]))
    roll(3, "streaming")
    assert (
        sum(calls) == 2 + 18 * 3 + 17
    )  # the context, three rows a token, and a look at each but the last when it is clean


def test_a_latent_has_nothing_to_drop() -> None:
    latent = Latent(torch.zeros(1, 4), 9)
    assert latent.trimmed(1, 1) is latent


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be cut into 2 equal states"):
        TransitionMLP(3, 9, network_size=4, num_gru_layers=2)
    with pytest.raises(UserError, match="num_gru_layers is 2"):
        TransitionUNet(3, 4, network_size=8, num_gru_layers=2)


@pytest.mark.parametrize("kind", KINDS)
def test_one_transition_at_a_time_is_what_the_network_does(kind: str) -> None:
    net, shape = build(kind)
    x, k, told = inputs(shape)
    with torch.no_grad():
        _, last = net(x, k, told)
        z = net.begin(2, x).z
        for token in range(x.shape[1]):
            z = net.model(x[:, token], k[:, token], z, told[:, token])
    torch.testing.assert_close(z, last.z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "images"])
def test_a_self_conditioned_network_sees_its_own_first_answer(kind: str) -> None:
    torch.manual_seed(0)
    net = (
        recurrent_mlp(3, 8, network_size=4, self_condition=True)
        if kind == "mlp"
        else recurrent_unet(3, (4, 8, 8), network_size=8, self_condition=True)
    ).eval()
    x, k, _ = inputs((3,) if kind == "mlp" else (3, 8, 8), time=1)
    with torch.no_grad():
        z = net.begin(2, x).z
        first = net.x_from_z(net.model(x[:, 0], k[:, 0], z))
        second = net.x_from_z(net.model(x[:, 0], k[:, 0], z, estimate=first))
        output, _ = net(x, k)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(output[:, 0], second)


def test_in_training_half_of_a_batch_does_without_its_first_answer() -> None:
    torch.manual_seed(0)
    net = recurrent_mlp(3, 8, network_size=4, self_condition=True).train()
    x, k, _ = inputs((3,), time=1)
    x, k = x[:1].expand(400, -1, -1), k[:1].expand(400, -1)
    answers, counts = net(x, k)[0].detach()[:, 0].round(decimals=4).unique(dim=0, return_counts=True)
    assert len(answers) == 2
    assert 150 < int(counts[0]) < 250


def test_actions_of_another_width_and_pictures_that_cannot_be_halved_are_refused() -> None:
    net, shape = build("mlp")
    x, k, told = inputs(shape)
    with pytest.raises(UserError, match="conditions have 3 numbers a token, the network was built for 2"):
        net(x, k, torch.cat([told, told[..., :1]], dim=-1))
    with pytest.raises(UserError, match=r"z_shape \[4, 12, 12\] is halved three times"):
        recurrent_unet(3, (4, 12, 12), network_size=8)
    with pytest.raises(UserError, match="network_size is 12; it must be a multiple of 8"):
        recurrent_unet(3, (4, 8, 8), network_size=12)


@pytest.mark.parametrize("self_condition", [False, True])
@pytest.mark.parametrize(("gru", "mlp"), [(4, 1), (1, 1), (2, 3), (0, 1), (0, 2)])
def test_a_look_at_one_token_is_a_step_whatever_the_layers(gru: int, mlp: int, self_condition: bool) -> None:
    torch.manual_seed(0)
    net = recurrent_mlp(
        3, 8, network_size=4, num_gru_layers=gru, num_mlp_layers=mlp, external_cond_dim=2, self_condition=self_condition
    ).eval()
    x, k, told = inputs((3,), time=2)
    memory = Latent(torch.randn(2, 8), 4)
    with torch.no_grad():
        assert memory.known(net.model) is not None  # the fast way is taken
    for token in range(2):  # twice from one memory: the second look uses what the first computed
        one = x[:, token : token + 1], k[:, token : token + 1], told[:, token : token + 1]
        stepped, after = net(*one, memory)  # with gradients: the plain way
        with torch.no_grad():
            looked, then = net(*one, memory)
        torch.testing.assert_close(looked, stepped, rtol=0, atol=1e-6)
        torch.testing.assert_close(then.z, after.z, rtol=0, atol=1e-6)
        assert (then.length, after.length) == (5, 5)


@pytest.mark.parametrize("layers", [1, 2])
def test_without_mlp_layers_the_first_cell_takes_everything_as_released(layers: int) -> None:
    torch.manual_seed(0)
    model = TransitionMLP(3, 8, network_size=4, num_gru_layers=layers, num_mlp_layers=0, external_cond_dim=2)
    x, k, z, told = torch.randn(2, 3), torch.tensor([5, 900]), torch.randn(2, 8), torch.randn(2, 2)
    h, states = torch.cat([z, x, model.time_mlp(k), model.external_cond_mlp(told)], dim=-1), []
    for cell, state in zip(model.gru_stack, z.chunk(layers, dim=-1), strict=True):
        h = cell(h, state)
        states.append(h)
    torch.testing.assert_close(model(x, k, z, told), torch.cat(states, dim=-1), rtol=0, atol=0)
    assert not list(model.mlp_before_gru.parameters()) + list(model.mlp_after_gru.parameters())


def test_without_layers_or_cells_the_latent_stays_as_it_is() -> None:
    model = TransitionMLP(3, 8, network_size=4, num_gru_layers=0, num_mlp_layers=0)
    z = torch.randn(2, 8)
    assert torch.equal(model(torch.randn(2, 3), torch.tensor([5, 900]), z), z)


@pytest.mark.parametrize("kind", ["mlp", "mlp without layers"])
def test_a_look_at_one_token_under_autocast_is_a_step(kind: str) -> None:
    """The first latent has single precision, what the layers answer half."""
    net, shape = build(kind)
    x, k, told = inputs(shape, time=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            looked, _ = net(x, k, told)
        stepped, _ = net(x, k, told)
    torch.testing.assert_close(looked, stepped.detach(), rtol=0.05, atol=0.05)


def test_a_first_look_keeps_no_rounded_weights_without_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    net = recurrent_mlp(3, 8, network_size=4, num_mlp_layers=1, self_condition=True)
    step, kept = net.model.step, []

    def noted(*inputs: Tensor) -> Tensor:
        assert torch.is_autocast_enabled("cpu")
        kept.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
        return step(*inputs)

    monkeypatch.setattr(net.model, "step", noted)
    x, k, _ = inputs((3,), time=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = net(x, k)
    assert kept == [(False, False), (True, True)]
    output.float().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
