"""The world model's network: what a frame may depend on, that streaming is what training computes, what enters, and sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_forcing.diffusion import build_parameterization, build_schedule
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.memory import KVCache
from diffusion_forcing.networks.world import SIZES, WorldMemory, WorldNetwork, WorldSize

CHANNELS, SIDE, ACTIONS, WINDOW, LEVELS = 3, 16, 4, 3, 100
SCHEDULE = build_schedule("edm", LEVELS)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no warp": {"warp": False},
    "no conditions": {"external_cond_dim": 0},
    "three past frames": {"past_frames": 3, "window": 5},
    "no registers": {"registers": 0},
}


@pytest.fixture(autouse=True)
def small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", WorldSize(widths=(8, 16, 32), blocks=(0, 1, 1), layers=2, embedding=16))


def start_weights() -> Tensor:
    k = torch.arange(LEVELS)[None]
    parameterization = build_parameterization("pred_edm", clip_noise=20.0)
    return parameterization.target(SCHEDULE, torch.ones(1, LEVELS), k, torch.zeros(1, LEVELS))[0]


def world(*, random: bool = True, **options: Any) -> WorldNetwork:
    """A small network; `random`: with weights none of which is 0."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"size": "tiny", "window": WINDOW, "dim_head": 16, "external_cond_dim": ACTIONS}
    network = WorldNetwork(
        CHANNELS, SIDE, sigmas=SCHEDULE.sigmas, start_weights=start_weights(), **sizes | options
    ).eval()
    if random:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return network


def inputs(network: WorldNetwork, time: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor | None]:
    """Smooth frames, as videos are: where the warp looks is then a matter of rounding no more than anything else."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(batch * time, CHANNELS, 4, 4, generator=generator)
    x = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").unflatten(0, (batch, time))
    k = torch.randint(0, LEVELS, (batch, time), generator=generator)
    width = network.external_cond_dim
    return x, k, torch.randn(batch, time, width, generator=generator) if width else None


def cut(parts: tuple[Tensor, Tensor, Tensor | None], first: int, end: int) -> tuple[Tensor, Tensor, Tensor | None]:
    x, k, conditions = parts
    return x[:, first:end], k[:, first:end], None if conditions is None else conditions[:, first:end]


# ------------------------------------------------------------------------------------------------ what depends on what


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_frame_depends_on_no_later_frame(name: str) -> None:
    network = world(**VARIANTS[name])
    x, k, conditions = inputs(network, 6)
    before, _ = network(x, k, conditions)
    other_k = k.clone()
    other_k[:, 3] = (k[:, 3] + 50) % LEVELS
    changes: list[tuple[Tensor, Tensor, Tensor | None]] = [(x.clone(), k, conditions), (x, other_k, conditions)]
    changes[0][0][:, 3] += 1
    if conditions is not None:
        other = conditions.clone()
        other[:, 3] += 1
        changes.append((x, k, other))
    for changed in changes:
        after, _ = network(*changed)
        assert torch.equal(after[:, :3], before[:, :3])
        assert not torch.equal(after[:, 3], before[:, 3])
        assert not torch.equal(after[:, 4], before[:, 4])


@torch.no_grad()
def test_a_frame_sees_as_far_back_as_the_windows_of_all_layers() -> None:
    network = world(warp=False, past_frames=1)  # the first convolution looks one frame back, each attention window − 1
    x, k, conditions = inputs(network, 10)
    before, _ = network(x, k, conditions)
    x = x.clone()
    x[:, 0] += 1
    after, _ = network(x, k, conditions)
    changed = [bool((after[:, t] != before[:, t]).any()) for t in range(10)]
    assert changed == [True] * (2 * (WINDOW - 1) + 2) + [False] * (10 - 2 * (WINDOW - 1) - 2)


@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    network = world()
    x, k, conditions = inputs(network, 4)
    together, _ = network(x, k, conditions)
    x = x.clone()
    x[1] += 1
    apart, _ = network(x, k, conditions)
    assert torch.equal(apart[0], together[0])
    assert not torch.equal(apart[1], together[1])


# ------------------------------------------------------------------------------------------------ streaming


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("chunks", [(1,) * 15, (4, 1, 3, 7)])
@torch.no_grad()
def test_streaming_over_many_windows_is_one_call(name: str, chunks: tuple[int, ...]) -> None:
    network = world(**VARIANTS[name])
    clip = inputs(network, sum(chunks))
    whole, _ = network(*clip)
    memory, outputs, first = None, [], 0
    for chunk in chunks:
        output, memory = network(*cut(clip, first, first + chunk), memory)
        outputs.append(output)
        first += chunk
    assert (torch.cat(outputs, dim=1) - whole).abs().max() < 1e-5
    assert memory is not None
    assert memory.layers[0][0].shape[2] == network.window - 1  # the memory has one size for ever
    assert memory.position == sum(chunks)


@torch.no_grad()
def test_streaming_is_exact_but_for_rounding() -> None:
    network = world().double()
    x, k, conditions = inputs(network, 3 * WINDOW)
    assert conditions is not None
    x, conditions = x.double(), conditions.double()
    whole, _ = network(x, k, conditions)
    memory = None
    for t in range(3 * WINDOW):
        now = slice(t, t + 1)
        output, memory = network(x[:, now], k[:, now], conditions[:, now], memory)
        assert torch.allclose(output, whole[:, now], rtol=0, atol=1e-11)


@torch.no_grad()
def test_remembering_gives_the_memory_of_a_call_without_its_output() -> None:
    network = world()
    clip = inputs(network, 7)
    _, called = network(*cut(clip, 0, 5))
    remembered = network.remember(*cut(clip, 0, 5))
    for one, other in zip(called.layers, remembered.layers, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert torch.equal(network(*cut(clip, 5, 7), called)[0], network(*cut(clip, 5, 7), remembered)[0])


@torch.no_grad()
def test_a_memory_is_a_value() -> None:
    network = world()
    clip = inputs(network, 6)
    _, memory = network(*cut(clip, 0, 4))
    first, later = network(*cut(clip, 4, 5), memory)
    network(*cut(clip, 5, 6), later)
    x, k, conditions = cut(clip, 4, 5)
    network(-x, k, conditions, memory)
    assert conditions is not None
    network(x, k, -conditions, memory)  # other actions: the warp of the first call does not serve
    again, _ = network(x, k, conditions, memory)
    assert torch.equal(first, again)


@torch.no_grad()
def test_noisy_frames_behind_another_past_are_what_streaming_gives() -> None:
    network = world()
    past_x, past_k, conditions = inputs(network, 8)
    x, k = past_x.flip(1), past_k.flip(1)
    together, last = network.behind(past_x, past_k, x, k, conditions)
    memory, outputs = None, []
    for t in range(8):
        now = slice(t, t + 1)
        action = None if conditions is None else conditions[:, now]
        outputs.append(network(x[:, now], k[:, now], action, memory)[0])
        memory = network.remember(past_x[:, now], past_k[:, now], action, memory)
    assert (torch.cat(outputs, dim=1) - together).abs().max() < 1e-5
    assert memory is not None
    assert torch.allclose(last.layers[-1][0], memory.layers[-1][0], atol=1e-5)
    assert torch.equal(network.teacher_forced(past_x, past_k, x, k, conditions), together)
    assert torch.equal(network(x, k, conditions, past=(past_x, past_k))[0], together)


@torch.no_grad()
def test_a_trimmed_memory_is_that_of_the_last_frames_of_the_memory() -> None:
    network = world(warp=False, past_frames=1)
    clip = inputs(network, 7)
    _, memory = network(*cut(clip, 0, 6))
    assert memory.trimmed(WINDOW) is memory
    none = memory.trimmed(0)
    # Rotary positions are relative, so a memory of nothing is the start of a video.
    assert torch.allclose(network(*cut(clip, 6, 7), none)[0], network(*cut(clip, 6, 7))[0], atol=1e-5)
    with pytest.raises(UserError, match="sink_frames"):
        memory.trimmed(2, 1)


def test_the_fused_attention_of_a_gpu_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_forcing.networks import world_layers

    network = world()
    clip = inputs(network, 7)
    with torch.no_grad():
        plain, _ = network(*clip)
        behind, _ = network.behind(clip[0], clip[1], clip[0].flip(1), clip[1].flip(1), clip[2])
        monkeypatch.setattr(world_layers, "BLOCKS", {"cpu": 2})
        monkeypatch.setattr(world_layers, "_block_attention", world_layers.fused_attention)
        assert torch.allclose(network(*clip)[0], plain, atol=1e-5)
        _, memory = network(*cut(clip, 0, 5))
        assert torch.allclose(network(*cut(clip, 5, 7), memory)[0], plain[:, 5:], atol=1e-5)
        again, _ = network.behind(clip[0], clip[1], clip[0].flip(1), clip[1].flip(1), clip[2])
        assert torch.allclose(again, behind, atol=1e-5)


def test_the_gradients_of_fused_blocks_are_those_of_plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_forcing.networks import world_layers

    network, found = world(), []
    clip = inputs(network, 7)
    for _ in range(2):
        network.zero_grad()
        output, _ = network.behind(clip[0], clip[1], clip[0].flip(1), clip[1].flip(1), clip[2])
        output.square().mean().backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
        monkeypatch.setattr(world_layers, "BLOCKS", {"cpu": 3})
        monkeypatch.setattr(world_layers, "_block_attention", world_layers.fused_attention)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-6, rtol=1e-3), name


# ------------------------------------------------------------------------------------------------ the warp


@torch.no_grad()
def test_an_untrained_network_starts_from_the_last_frames() -> None:
    network = world(random=False)
    x, k, conditions = inputs(network, 4)
    x, k = 0.3 * x, torch.zeros_like(k)
    k[:, -1] = 60
    output, _ = network(x, k, conditions)
    found = build_parameterization("pred_edm", clip_noise=20.0).resolve(SCHEDULE, x, k, output).x0[:, -1]
    older, newer = torch.tensor([0.0, 2.0]).softmax(0)
    start = older * x[:, 1] + newer * x[:, 2]
    sigma = SCHEDULE.sigmas[60]
    skip = 0.25 / (sigma**2 + 0.25)
    expected = skip * (1 + sigma**2).sqrt() * x[:, -1] + (1 - skip) * start
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_warp_learns_from_its_own_loss() -> None:
    network = world(random=False)
    x, k, conditions = inputs(network, 4)
    _, memory = network(x, torch.zeros_like(k), conditions)
    ((memory.warped.start - x) ** 2).mean().backward()
    assert network.flow is not None
    assert network.flow.out.weight.grad is not None
    assert network.flow.out.weight.grad.abs().max() > 0
    assert network.out.weight.grad is None


# ------------------------------------------------------------------------------------------------ training and sizes


def test_every_weight_is_trained() -> None:
    network = world()
    x, k, conditions = inputs(network, 5)
    output, _ = network.behind(x, torch.zeros_like(k), x.flip(1), k, conditions)
    output.square().mean().backward()
    lacking = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert lacking == []


@pytest.mark.parametrize(("size", "parameters"), [("A", 2.47e6), ("B", 5.04e6), ("C", 10.76e6)])
def test_sizes_are_as_documented(size: str, parameters: float) -> None:
    network = WorldNetwork(3, 64, sigmas=SCHEDULE.sigmas, start_weights=start_weights(), size=size, external_cond_dim=4)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(parameters, rel=0.01)


def test_what_does_not_fit_is_refused() -> None:
    network = world()
    x, k, conditions = inputs(network, 2)
    with pytest.raises(UserError, match=r"16.*8"):
        network(x[..., :8], k, conditions)
    with pytest.raises(UserError, match=r"4.*none"):
        network(x, k)
    assert conditions is not None
    with pytest.raises(UserError, match=r"4.*3"):
        network(x, k, conditions[..., :3])
    with pytest.raises(UserError, match="KVCache"):
        network(x, k, conditions, KVCache((), ()))
    with pytest.raises(UserError, match=r"resolution.*18"):
        WorldNetwork(3, 18, sigmas=SCHEDULE.sigmas, start_weights=start_weights(), size="tiny")
    with pytest.raises(UserError, match=r"size.*D"):
        WorldNetwork(3, 64, sigmas=SCHEDULE.sigmas, start_weights=start_weights(), size="D")
    with pytest.raises(UserError, match=r"past_frames is 4"):
        world(past_frames=4)
    assert isinstance(network(x, k, conditions)[1], WorldMemory)
