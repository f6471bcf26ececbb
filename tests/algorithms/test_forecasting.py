"""The forecasting adapter: scaling, what the loss counts, what the network is told, exactly so many paths, as far as one likes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.base import TransformerOptions
from diffusion_forcing.algorithms.forecasting import Forecasting, ForecastingDiffusionOptions, ForecastingOptions
from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.datasets.batch import SeriesBatch, SeriesSpec
from diffusion_forcing.errors import UserError
from tests.diffusion.gaussian import ExactGaussian

VARIATES, CONTEXT, AHEAD, LAGS, DATES = 3, 6, 4, (1, 4), 4


def spec(**changes: Any) -> SeriesSpec:
    numbers = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 4.0]}
    known: dict[str, Any] = {name: np.array(value, np.float32) for name, value in numbers.items()}
    known |= {"variates": VARIATES, "freq": "D", "date_features": DATES, "lags": LAGS, "has_gaps": False}
    known |= {"context_length": CONTEXT, "prediction_length": AHEAD, "names": ("a", "b", "c")}
    return SeriesSpec(**{**known, **changes})


def options(**changes: Any) -> ForecastingOptions:
    diffusion = {"network_size": 4, "num_gru_layers": 1, "sampling_timesteps": 3, **changes.pop("diffusion", {})}
    architecture = TransformerOptions(network_size=16, num_layers=1, attn_heads=2, dim_feedforward=16)
    return ForecastingOptions(
        **{"z_shape": (8,), "ema_decay": 0.0, "calc_crps_sum": 5, **changes},
        diffusion=ForecastingDiffusionOptions(architecture=architecture, **diffusion),
    )


def build(of: SeriesSpec | None = None, **changes: Any) -> Forecasting:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = Forecasting(options(**changes))
        built.adapt(of or spec())
    return built


def batch(size: int = 2, length: int = CONTEXT + AHEAD, *, seed: int = 0) -> SeriesBatch:
    drawn = torch.Generator().manual_seed(seed)
    return SeriesBatch(
        values=3 + torch.randn(size, length, VARIATES, generator=drawn),
        observed=torch.ones(size, length, VARIATES, dtype=torch.bool),
        dates=torch.rand(size, length, DATES, generator=drawn),
        lagged=3 + torch.randn(size, length, len(LAGS), VARIATES, generator=drawn),
        lag_known=torch.ones(size, length, len(LAGS), VARIATES, dtype=torch.bool),
        base=torch.tensor([1.0, 2.0, 3.0]) + 0.1 * torch.arange(length)[None, :, None].expand(size, -1, -1),
        spread=torch.tensor([1.0, 2.0, 4.0]).expand(size, length, -1),
        logarithm=torch.zeros(size, VARIATES, dtype=torch.bool),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------------------------- scaling


def test_tokens_hold_what_the_base_forecast_leaves_over_or_scaled_values() -> None:
    one = batch()
    built = build(scaling="base")
    encoded = built.encode(one, built.network)
    torch.testing.assert_close(encoded.x, (one.values - one.base) / one.spread)
    built = build(scaling="global")
    encoded = built.encode(one, built.network)
    torch.testing.assert_close(encoded.x[..., 1], (one.values[..., 1] - 2) / 2)


def test_a_logarithm_is_taken_and_given_back() -> None:
    one = batch()
    one = one._replace(values=one.values.abs() + 0.1, logarithm=torch.tensor([[True, False, False]] * 2))
    one.values[0, 0, 0] = -1.0  # a series that was always positive is no more
    built = build(use_covariates=False, diffusion={"objective": "pred_x0"})
    encoded = built.encode(one, built.network)
    torch.testing.assert_close(encoded.x[1, :, 0], (one.values[1, :, 0].log() - one.base[1, :, 0]) / 1.0)
    assert encoded.observed[:, :, 0].sum() == encoded.observed[:, :, 1].sum() - 1
    built.forcing.network = Known(built.forcing.schedule, 0.0, 0.0)  # certain of the base forecast
    expected = one.base[:, None, CONTEXT:].clone()
    expected[..., 0] = expected[..., 0].exp()
    torch.testing.assert_close(built.forecast(one), expected.expand(-1, 5, -1, -1).double(), atol=1e-3, rtol=1e-3)


def test_paths_keep_to_the_range_that_the_training_part_shows() -> None:
    built = build(spec(lowest=(0.0, None, 0.0), highest=(None, None, 1.0), whole=(True, False, False)))
    found = built.in_range(torch.tensor([[-0.7, -0.7, -0.7], [2.6, 2.6, 2.6]], dtype=torch.float64))
    assert found.tolist() == [[0, -0.7, 0], [3, 2.6, 1]]
    free = build(spec(lowest=(0.0,) * 3, highest=(None,) * 3, whole=(True,) * 3), keep_range=False)
    assert free.in_range(torch.tensor([-0.5, 0.25, 0.5])).tolist() == [-0.5, 0.25, 0.5]


@pytest.mark.parametrize("network", ["rnn", "transformer"])
def test_each_series_by_itself_is_forecast_as_alone(network: str) -> None:
    """One network for all series: what others do changes nothing, and any number of them will do."""
    built, one = build(network=network, together=False), batch()
    with torch.no_grad():
        encoded = built.encode(one, built.network)
    assert encoded.x.shape == (2 * VARIATES, CONTEXT + AHEAD, 1)
    torch.testing.assert_close(encoded.x[4, :, 0], (one.values[1, :, 1] - one.base[1, :, 1]) / one.spread[1, :, 1])
    changed = one._replace(values=one.values.clone(), lagged=one.lagged.clone())
    changed.values[..., 0] += 5
    changed.lagged[..., 0] += 5
    first, other = (built.forecast(each, generator=generator()) for each in (one, changed))
    assert first.shape == (2, 5, AHEAD, VARIATES)
    torch.testing.assert_close(first[..., 1:], other[..., 1:])
    assert not torch.allclose(first[..., 0], other[..., 0])
    with pytest.raises(UserError, match=r"algorithm\.together=False algorithm\.scaling=global"):
        options(together=False, scaling="global")


@pytest.mark.parametrize("scaling", ["global", "base"])
def test_no_scaling_looks_ahead(scaling: str) -> None:
    built, one = build(scaling=scaling), batch()
    other = one._replace(values=torch.cat([one.values[:, :CONTEXT], 100 + one.values[:, CONTEXT:]], dim=1))
    for a, b in zip(built.encode(one, built.network)[3:], built.encode(other, built.network)[3:], strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("network", ["rnn", "transformer"])
@pytest.mark.parametrize("use_covariates", [True, False])
def test_training_lowers_the_loss(network: str, use_covariates: bool) -> None:
    built, one = build(network=network, use_covariates=use_covariates), batch(4)
    optimizer, draws, losses = torch.optim.Adam(built.network.parameters(), lr=1e-2), None, []
    for _ in range(25):
        encoded = built.encode(one, built.network)
        draws = draws or built.draw(encoded.x, generator=generator())
        loss = built.loss(encoded, *draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("network", ["rnn", "transformer"])
def test_a_forecaster_is_distilled_by_its_own_loss(network: str) -> None:
    built, one = build(network=network, ema_decay=0.5), batch(4)
    built.distill(grid=4, steps=1)
    assert built.metadata()["sampling"]["algorithm"]["diffusion"]["sampling_timesteps"] == 1
    optimizer, draws, losses = torch.optim.Adam(built.network.parameters(), lr=3e-3), None, []
    for _ in range(15):
        encoded = built.encode(one, built.network)
        draws = draws or built.draw(encoded.x, generator=generator())
        loss = built.loss(encoded, *draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_covariates_are_really_used() -> None:
    """The released code computed dates and lags and then dropped them, and never trained its embedding."""
    built, one = build(), batch()
    encoded = built.encode(one, built.network)
    built.loss(encoded, *built.draw(encoded.x, generator=generator())).backward()
    assert built.network.embed.weight.grad.abs().sum() > 0
    draws = built.draw(encoded.x, generator=generator())
    base = built.loss(encoded, *draws)
    for changed in ({"dates": one.dates + 1}, {"lagged": one.lagged + 1}, {"lag_known": ~one.lag_known}):
        assert built.loss(built.encode(one._replace(**changed), built.network), *draws) != base


def test_what_was_not_observed_counts_for_nothing_and_is_not_shown() -> None:
    built, one = build(spec(has_gaps=True)), batch()
    gaps = one.observed.clone()
    gaps[0, 3:5, 1] = False
    one = one._replace(observed=gaps)
    other = one._replace(values=torch.where(gaps, one.values, 77.0))
    draws = built.draw(one.values, generator=generator())
    losses = [built.loss(built.encode(each, built.network), *draws) for each in (one, other)]
    assert losses[0] == losses[1]
    whole = one._replace(observed=torch.ones_like(gaps))
    assert built.loss(built.encode(whole, built.network), *draws) != losses[0]
    paths = [built.forecast(each, generator=generator()) for each in (one, other)]
    assert torch.equal(*paths)
    assert not torch.allclose(paths[0][0], built.forecast(whole, generator=generator())[0])


# ---------------------------------------------------------------------------------------------------- forecasting


@pytest.mark.parametrize("network", ["rnn", "transformer"])
@pytest.mark.parametrize("how", [{}, {"scheduling_matrix": "pyramid", "chunk_size": -1}, {"chunk_size": 3}])
def test_exactly_so_many_paths_however_many_at_once(network: str, how: dict[str, Any]) -> None:
    one = batch(3)
    found = build(network=network, paths_at_once=4, **how).forecast(one, generator=generator())
    assert found.shape == (3, 5, AHEAD, VARIATES)
    assert found.isfinite().all()
    assert len({path.tobytes() for path in found.flatten(0, 1).numpy()}) == 15
    assert build(network=network, **how).forecast(one, paths=2, generator=generator()).shape[1] == 2


@pytest.mark.parametrize("network", ["rnn", "transformer"])
def test_a_forecast_knows_nothing_of_what_came(network: str) -> None:
    built, one = build(network=network, scaling="base"), batch()
    later = one.values.clone()
    later[:, CONTEXT:] = 99
    hidden = one.observed.clone()
    hidden[:, CONTEXT:] = False
    expected = built.forecast(one, generator=generator())
    assert torch.equal(expected, built.forecast(one._replace(values=later, observed=hidden), generator=generator()))


@pytest.mark.parametrize("network", ["rnn", "transformer"])
def test_it_rolls_on_beyond_the_horizon_it_was_trained_for(network: str) -> None:
    built = build(network=network)
    found = built.forecast(batch(length=CONTEXT + 5 * AHEAD), generator=generator())
    assert found.shape == (2, 5, 5 * AHEAD, VARIATES)
    assert found.isfinite().all()


class Known(ExactGaussian):
    """The denoiser of independent Gaussian steps, in a network's place."""

    recurrent = True
    keeps_memory = True
    memory_slides = True
    why_no_memory = ""

    def forward(self, x: Tensor, k: Tensor, conditions: Any = None, memory: Any = None) -> Any:
        return super().forward(x, k)[0], 0


@pytest.mark.parametrize("scaling", ["global", "base"])
def test_paths_of_a_known_distribution_come_back_in_data_units(scaling: str) -> None:
    built = build(
        scaling=scaling,
        use_covariates=False,
        calc_crps_sum=800,
        diffusion={"sampling_timesteps": 50, "objective": "pred_x0"},
    )
    built.forcing.network = Known(built.forcing.schedule, 0.5, 0.8)
    one = batch(1)
    found = built.forecast(one, generator=generator())[0]
    encoded = built.encode(one, built.network)
    loc, scale = encoded.loc[0, CONTEXT:], encoded.scale[0, 0]
    assert torch.allclose(found.mean(dim=0), loc + 0.5 * scale, atol=0.3)
    assert torch.allclose((found - loc).std(dim=(0, 1)), 0.8 * scale, rtol=0.1)


# --------------------------------------------------------------------------------------------- options, checkpoints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_stack": 2}, "a token is one time step"),
        ({"causal": False, "network": "rnn"}, r"algorithm\.causal=False algorithm\.network=rnn"),
        ({"guidance_scale": 1.0}, "a forecast has no goal"),
        ({"z_shape": (4, 4)}, "a forecaster's latent is a vector"),
        ({"z_shape": (9,), "diffusion": {"num_gru_layers": 4}}, r"algorithm\.z_shape is \[9\]; it must be a multiple"),
        ({"calc_crps_sum": 0}, r"algorithm\.calc_crps_sum .*got 0"),
        ({"paths_at_once": 0}, r"algorithm\.paths_at_once .*got 0"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(**changes)


@pytest.mark.parametrize("network", ["rnn", "transformer"])
def test_a_checkpoint_brings_weights_and_statistics(network: str, tmp_path: Path) -> None:
    built = build(network=network)
    save(tmp_path / "saved", None, metadata=built.describe(), model=built.sampling_weights(), step=5)
    loaded = load(tmp_path / "saved")
    assert json.loads(json.dumps(loaded.metadata))["structure"]["algorithm"]["network"] == network
    torch.manual_seed(9)
    other = Forecasting(options(network=network))
    other.adapt(spec(mean=np.zeros(3, np.float32)))
    other.load_weights(loaded)
    assert torch.equal(built.forecast(batch(), generator=generator()), other.forecast(batch(), generator=generator()))
    with pytest.raises(UserError, match="forecast data with as many variates, lags and gaps"):
        build(spec(lags=(1,)), network=network).load_weights(loaded)


def test_a_forecaster_without_data_says_so() -> None:
    with pytest.raises(UserError, match=r"call adapt\(dataset\.spec\) first"):
        Forecasting(options()).forecast(batch())


def test_what_is_known_of_the_future_comes_back_and_moves_the_rest() -> None:
    forecaster, windows = build(), batch()
    known = torch.tensor([False, True, False])
    windows.observed[0, -1, 1] = False  # said to be known, but it was not observed
    paths = forecaster.forecast(windows, known=known, generator=torch.Generator().manual_seed(0))
    ahead = windows.values[:, None, CONTEXT:].expand_as(paths)
    told = torch.zeros_like(paths, dtype=torch.bool)
    told[..., 1] = True
    told[0, :, -1, 1] = False
    torch.testing.assert_close(paths[told].float(), ahead[told], rtol=0, atol=1e-5)
    assert float(paths[0, :, -1, 1].std()) > 0
    windows.values[:, CONTEXT:, 1] += 5
    moved = forecaster.forecast(windows, known=known, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(moved[..., 0], paths[..., 0])
    with pytest.raises(UserError, match="`known` has 2 series"):
        forecaster.forecast(windows, known=known[:2])


@pytest.mark.parametrize("network", ["rnn", "transformer"])
def test_two_thousand_series_are_learnt_and_forecast(network: str) -> None:
    many, steps = 2000, CONTEXT + AHEAD
    drawn = torch.Generator().manual_seed(0)
    numbers = {name: np.ones(many, np.float32) for name in ("mean", "std")}
    forecaster = build(spec(variates=many, names=tuple(map(str, range(many))), **numbers), network=network)
    windows = SeriesBatch(
        values=torch.randn(2, steps, many, generator=drawn),
        observed=torch.rand(2, steps, many, generator=drawn) < 0.9,
        dates=torch.rand(2, steps, DATES, generator=drawn),
        lagged=torch.randn(2, steps, len(LAGS), many, generator=drawn),
        lag_known=torch.ones(2, steps, len(LAGS), many, dtype=torch.bool),
        base=torch.zeros(2, steps, many),
        spread=torch.ones(2, steps, many),
        logarithm=torch.zeros(2, many, dtype=torch.bool),
    )
    encoded = forecaster.encode(windows, forecaster.forcing.network)
    loss = forecaster.loss(encoded, *forecaster.draw(encoded.x, generator=drawn))
    loss.backward()
    assert bool(torch.isfinite(loss))
    paths = forecaster.forecast(windows, paths=2)
    assert paths.shape == (2, 2, AHEAD, many)
    assert bool(torch.isfinite(paths).all())
