from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from diffusion_forcing.algorithms.ema import ema_of
from diffusion_forcing.errors import UserError


def network(value: float) -> nn.Linear:
    linear = nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(value)
        linear.bias.fill_(-value)
    return linear


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
def test_the_average_is_the_closed_form_of_the_weights_seen(decay: float) -> None:
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    net = network(0.0)
    averaged = ema_of(net, decay)
    expected = values[0]  # the first update takes the weights as they are
    for n, value in enumerate(values):
        with torch.no_grad():
            net.weight.fill_(value)
            net.bias.fill_(-value)
        averaged.update_parameters(net)
        if n > 0:
            kept = min(decay, (1 + n) / (10 + n))
            expected = kept * expected + (1 - kept) * value
        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-5)
        assert averaged.module.bias.item() == pytest.approx(-expected, rel=1e-5)


def test_after_its_warm_up_the_average_forgets_at_the_decay() -> None:
    net = network(1.0)
    averaged = ema_of(net, 0.5)
    for _ in range(20):  # (1+n)/(10+n) passes 0.5 at n = 8
        averaged.update_parameters(net)
    with torch.no_grad():
        net.weight.zero_()
    for n in range(1, 6):
        averaged.update_parameters(net)
        assert averaged.module.weight.item() == pytest.approx(0.5**n, rel=1e-5)


def test_the_average_is_a_copy_that_no_gradient_reaches() -> None:
    net = network(2.0)
    averaged = ema_of(net, 0.9)
    before = copy.deepcopy(net.state_dict())
    averaged.update_parameters(net)
    assert averaged.module.weight is not net.weight
    assert not any(p.requires_grad for p in averaged.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_average_goes_on_from_a_checkpoint_and_reads_its_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, reads = network(2.0), []
    first, other = ema_of(net, 0.9), ema_of(network(5.0), 0.9)
    for _ in range(3):
        first.update_parameters(net)
    other.update_parameters(network(7.0))
    other.load_state_dict(first.state_dict())
    read = torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: reads.append(tensor) or read(tensor))
    for value in (4.0, 6.0):
        for averaged in (first, other):
            averaged.update_parameters(network(value))
    assert int(first.n_averaged) == int(other.n_averaged) == 5
    assert torch.equal(first.module.weight, other.module.weight)
    assert len(reads) == 1 + 2  # of the loaded one, and the two above


def test_tables_of_a_network_are_copied_not_averaged() -> None:
    net = nn.BatchNorm1d(1)
    averaged = ema_of(net, 0.9)
    net.running_mean.fill_(3.0)  # type: ignore[union-attr]
    averaged.update_parameters(net)
    assert averaged.module.running_mean.item() == 3.0


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=r"ema_decay is .*\[0, 1\)"):
        ema_of(network(0.0), decay)
