"""The forecasting task: several series as one sequence of time steps, continued by sampling (docs/method.md §9, §11).

A token holds one time step of every variate, scaled. The network is conditioned on the date, on lagged values that were
known when the forecast was made, on which variate is which and, where the data has gaps, on what was observed. Its
sizes depend on the data: call `adapt` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.base import (
    AlgorithmOptions,
    ForcingAlgorithm,
    RecurrentMLPOptions,
    TransformerOptions,
    chosen,
)
from diffusion_forcing.algorithms.parallel import gathered, mean_of_processes
from diffusion_forcing.datasets.batch import SeriesBatch, SeriesSpec
from diffusion_forcing.diffusion import DiffusionForcing, Sampler
from diffusion_forcing.diffusion.history import Cache
from diffusion_forcing.diffusion.noise import normal, uniform
from diffusion_forcing.errors import UserError, check_positive, check_range
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp


@dataclass(frozen=True, kw_only=True)
class ForecastingDiffusionOptions(RecurrentMLPOptions):
    """The RNN line's settings; `architecture` is of network=transformer, network_size and the layers above of
    network=rnn."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    network_size: int = 64
    num_gru_layers: int = 4
    num_mlp_layers: int = 1
    architecture: TransformerOptions = field(default_factory=TransformerOptions)


@dataclass(frozen=True, kw_only=True)
class ForecastingOptions(AlgorithmOptions):
    """A token is a time step of all variates.

    - network: `rnn`, the paper's, or `transformer`, causal. z_shape: of the RNN's latent, [width].
    - scaling: how a window is normalised. `global`: each variate's mean and deviation in the training part, as
      released; `context`: those of the window's history; `last`: the change since a variate's last known value, in
      deviations of such changes, more where the history is livelier than usual; `season`: the difference from the last
      season; `auto`, for each variate: `season` where it returns with one, `last` where it wanders more than it
      returns, else `global`.
    - use_covariates: condition the network on dates, lagged values and which variate is which.
    - calc_crps_sum: sample paths of a forecast; paths_at_once: how many are sampled together, over all windows.
    - resample: how often a row is denoised where future values of some series are known.
    """

    lr: float = 3e-4
    warmup_steps: int = 2000
    network: Literal["rnn", "transformer"] = "rnn"
    z_shape: tuple[int, ...] = (1024,)
    learnable_init_z: bool = False
    gt_first_frame: float = 0.0
    gt_cond_prob: float = 0.0
    use_covariates: bool = True
    scaling: Literal["global", "context", "last", "season", "auto"] = "auto"
    calc_crps_sum: int = 100
    paths_at_once: int = 1000
    resample: int = 4
    diffusion: ForecastingDiffusionOptions = field(default_factory=ForecastingDiffusionOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("algorithm.calc_crps_sum", self.calc_crps_sum)
        check_positive("algorithm.paths_at_once", self.paths_at_once)
        check_positive("algorithm.resample", self.resample)
        check_range("algorithm.gt_first_frame", self.gt_first_frame, 0, 1)
        check_range("algorithm.gt_cond_prob", self.gt_cond_prob, 0, 1)
        if self.frame_stack != 1 or self.frame_skip != 1:
            raise UserError(
                f"algorithm.frame_stack is {self.frame_stack}, algorithm.frame_skip {self.frame_skip}; "
                "a token is one time step: leave both 1"
            )
        if not self.causal:
            raise UserError("algorithm.causal=False: a forecast depends on the past alone; leave it True")
        if self.guidance_scale:
            raise UserError(f"algorithm.guidance_scale is {self.guidance_scale}; a forecast has no goal: leave it 0")
        if len(self.z_shape) != 1:
            raise UserError(f"algorithm.z_shape is {list(self.z_shape)}; a forecaster's latent is a vector, as [1024]")
        layers = self.diffusion.num_gru_layers
        if layers and self.z_shape[0] % layers:
            raise UserError(
                f"algorithm.z_shape is {list(self.z_shape)}; "
                f"it must be a multiple of algorithm.diffusion.num_gru_layers {layers}"
            )


STATISTICS = ("mean", "std", "step_std", "change_std", "season_std")
"""Of the training part, a number a series: what `SeriesSpec` calls them."""
WANDERING = 0.5
"""Of a series' deviation: one that changes less in half a prediction wanders."""
USUAL_STEPS = 5
"""Of usual change, that a history's own changes are weighed against."""
LEAST_OF_STD = 0.1  # of the whole training part's deviation, for a history that hardly moves


class Encoded(NamedTuple):
    """Windows as tokens. x: (b, t, V), scaled, 0 where not observed; observed: (b, t, V); conditions: (b, t, d) or
    None, all as the network takes them. loc: (b, t or 1, V), scale: (b, 1, V) float64, x = (values − loc)/scale."""

    x: Tensor
    observed: Tensor
    conditions: Tensor | None
    loc: Tensor
    scale: Tensor


class Forecasting(ForcingAlgorithm):
    """Diffusion Forcing for time series. `options` is a `ForecastingOptions`."""

    Options = ForecastingOptions
    task = "prediction"
    options: ForecastingOptions

    def __init__(self, options: ForecastingOptions) -> None:
        super().__init__(options, None)
        self._spec: SeriesSpec | None = None
        self._statistics: dict[tuple[str, torch.device], Tensor] = {}
        self.score: Callable[[Any, Any], float] | None = None
        """What validation logs of samples (b, paths, h, V) and targets (b, h, V) as validation/crps_sum: the
        experiment's metric."""
        self._validated: list[tuple[tuple[int, int], Tensor, Tensor]] = []
        """Of each window: its batch and its row there, its sample paths, and the observed values."""

    def adapt(self, spec: SeriesSpec) -> None:
        """Build the network for data of `spec`, once; and take the data's statistics."""
        if self._spec is None:
            self._spec = spec
            self.put_network(self.build_network(spec))

    @property
    def spec(self) -> SeriesSpec:
        """The specification of the data, once there is one."""
        if self._spec is None:
            raise UserError("the forecaster knows no data yet; call adapt(dataset.spec) first")
        return self._spec

    def statistic(self, name: str, device: torch.device) -> Tensor:
        """(V,) float64 on `device`: one of `STATISTICS`. Not a buffer: mixed precision must not touch it."""
        if (name, device) not in self._statistics:
            value = np.broadcast_to(np.asarray(getattr(self.spec, name), np.float64), (self.spec.variates,))
            self._statistics[name, device] = torch.from_numpy(value.copy()).to(device, non_blocking=True)
        return self._statistics[name, device]

    def build_network(self, spec: SeriesSpec) -> nn.Module:
        """The network the options ask for, for data of `spec`, with fresh weights."""
        options, width = self.options, self.condition_width(spec)
        if options.network == "transformer":
            network: nn.Module = Transformer(
                spec.variates, causal=True, external_cond_dim=width, **asdict(options.diffusion.architecture)
            )
        else:
            diffusion = options.diffusion
            network = recurrent_mlp(
                spec.variates,
                options.z_shape[0],
                network_size=diffusion.network_size,
                num_gru_layers=diffusion.num_gru_layers,
                num_mlp_layers=diffusion.num_mlp_layers,
                external_cond_dim=width,
                learnable_init_z=options.learnable_init_z,
                self_condition=diffusion.self_condition,
            )
        if options.use_covariates:
            network.add_module("embed", nn.Embedding(spec.variates, 1))
        return network

    def condition_width(self, spec: SeriesSpec) -> int:
        """d: numbers that condition the network at each step."""
        gaps = spec.variates if spec.has_gaps else 0
        if not self.options.use_covariates:
            return gaps
        return gaps + spec.date_features + len(spec.lags) * (spec.variates + 1) + spec.variates

    def training_step(self, batch: SeriesBatch, batch_idx: int) -> Tensor:
        encoded = self.encode(batch, self.forcing.network)
        loss = self.loss(encoded, *self.draw(encoded.x, generator=self.training_generator()))
        self.log("training/loss", loss, prog_bar=True)
        return loss

    def encode(self, batch: SeriesBatch, network: nn.Module) -> Encoded:
        """Windows, of which the first `context_length` steps are history, scaled, with the conditions of `network`.

        Differences are taken in float64, so that a small change of a large value keeps its digits.
        """
        history, device, values = self.spec.context_length, batch.values.device, batch.values.double()
        level, scale = self.scaling(values[:, :history], batch.observed[:, :history])
        loc, lag_scale = level, scale

        # Series that return with their season: the difference from the last one.
        # (The specification is asked: a GPU would have to be waited for.)
        some_return = self.options.scaling == "season" or (
            self.options.scaling == "auto" and bool((np.asarray(self.spec.season_std) > 0).any())
        )
        if some_return and batch.seasonal is not None and batch.season_known is not None:
            returns = self.returns(device)
            last_season = torch.where(batch.season_known, batch.seasonal.double(), self.statistic("mean", device))
            season_std, std = self.statistic("season_std", device), self.statistic("std", device)
            loc = torch.where(returns, last_season, level)
            scale = torch.where(returns, torch.where(season_std > 0, season_std, std), scale)
        x = torch.where(batch.observed, (values - loc) / scale, 0.0)

        # Conditions: dates, lags (b, t, n·V), how many of each are known, a number a variate, what was observed.
        own = next(network.parameters(), torch.empty(0, device=self.device))
        conditions = []
        if self.options.use_covariates:
            lagged = torch.where(
                batch.lag_known, (batch.lagged.double() - level[:, :, None]) / lag_scale[:, :, None], 0.0
            )
            embedding: Any = network.embed
            conditions = [batch.dates, lagged.flatten(2), batch.lag_known.to(x.dtype).mean(dim=-1)]
            conditions.append(embedding.weight[:, 0].expand(*x.shape[:2], -1))
        if self.spec.has_gaps:
            shown = batch.observed.to(x.dtype)
            shown[:, history:] = 1.0  # whether a value will be observed is not known when a forecast is made
            conditions.append(shown)
        joined = torch.cat([part.to(own) for part in conditions], dim=-1) if conditions else None
        return Encoded(x.to(own), batch.observed.to(own.device), joined, loc, scale)

    def returns(self, device: torch.device) -> Tensor:
        """(V,) bool: variates that are forecast as their difference from the last season."""
        season_std = self.statistic("season_std", device)
        if self.options.scaling == "season":
            return torch.ones_like(season_std, dtype=torch.bool)
        return (season_std > 0) & (self.options.scaling == "auto")

    def scaling(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """loc and scale, both (b, 1, V) float64, of windows with the history `values`, `observed`: (b, c, V). A variate
        of which the history shows nothing has those of the training part."""
        values, device = values.double(), values.device
        mean, std, step_std = (
            self.statistic(name, device).expand(len(values), 1, -1) for name in ("mean", "std", "step_std")
        )
        match self.options.scaling:
            case "global":
                return mean, std
            case "context":
                count = observed.sum(dim=1, keepdim=True)
                loc = torch.where(observed, values, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
                variance = torch.where(observed, (values - loc) ** 2, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
                scale = torch.maximum(variance.sqrt(), LEAST_OF_STD * std)
                return torch.where(count > 0, loc, mean), torch.where(count > 0, scale, std)
            case "last":
                return self._from_last(values, observed)
            case _:  # of the series that return with their season, what lags are scaled by
                wanders = (step_std < WANDERING * std) & ~self.returns(device)
                loc, scale = self._from_last(values, observed)
                return torch.where(wanders, loc, mean), torch.where(wanders, scale, std)

    def _from_last(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """`scaling=last`: the last known value; the usual change in half a prediction, times how lively the history is:
        prices that have grown tenfold move as much more."""
        device = values.device
        steps = torch.arange(1, values.shape[1] + 1, device=device)[None, :, None]
        last = values.gather(1, (observed * steps).argmax(dim=1, keepdim=True))
        loc = torch.where(observed.any(dim=1, keepdim=True), last, self.statistic("mean", device))
        known = observed[:, 1:] & observed[:, :-1]
        changes = (values[:, 1:] - values[:, :-1]) / self.statistic("change_std", device)
        squares = torch.where(known, changes, 0.0).square().sum(dim=1, keepdim=True)
        liveliness = ((squares + USUAL_STEPS) / (known.sum(dim=1, keepdim=True) + USUAL_STEPS)).sqrt()
        return loc, self.statistic("step_std", device) * liveliness

    def draw(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Levels (b, t) and noise like x: (b, t, V) of a training batch."""
        options, device, shape = self.options, x.device, x.shape[:2]
        levels = self.draw_levels(*shape, generator=generator)
        if options.gt_cond_prob or options.gt_first_frame:
            clean = uniform(shape, generator=generator, device=device) < options.gt_cond_prob
            clean[:, 0] |= uniform((shape[0],), generator=generator, device=device) < options.gt_first_frame
            levels = torch.where(clean, 0, levels)
        return levels, normal(x.shape, generator=generator, device=device)

    def loss(
        self, encoded: Encoded, levels: Tensor, noise: Tensor, *, forcing: DiffusionForcing | None = None
    ) -> Tensor:
        """The weighted squared error, a mean over what was observed; of several processes' losses the mean is that."""
        result = self.masked_loss(encoded.x, levels, noise=noise, conditions=encoded.conditions, forcing=forcing)
        observed = encoded.observed.to(encoded.x.dtype)
        count = observed.sum() if self.share is None else mean_of_processes(observed.sum())
        return (result.per_element * observed).sum() / count.clamp(min=1)

    def on_validation_epoch_start(self) -> None:
        self._validated = []

    def validation_step(self, batch: SeriesBatch, batch_idx: int) -> None:
        """Sample paths of the validation windows, of the averaged network, with draws that depend on the batch's number
        alone."""
        target = torch.where(batch.observed, batch.values, torch.nan)[:, self.spec.context_length :].cpu()
        samples = self.forecast(batch, generator=self.generator(batch_idx)).cpu()
        rows = range(len(samples)) if self.share is None else self.share.rows
        for row, paths, observed in zip(rows[: self.counted_rows(len(samples))], samples, target, strict=False):
            self._validated.append(((batch_idx, row), paths, observed))

    def on_validation_epoch_end(self) -> None:
        windows = self._validated if self.share is None else gathered(self._validated)
        windows = sorted(windows, key=lambda window: window[0])
        samples, target = (torch.stack(parts).numpy() for parts in list(zip(*windows, strict=True))[1:])
        score = float("nan") if self.score is None else self.score(samples, target)
        self.log("validation/crps_sum", score, prog_bar=True, sync_dist=True, batch_size=1)
        self._validated = []

    @torch.no_grad()
    def forecast(
        self,
        batch: SeriesBatch,
        *,
        paths: int | None = None,
        known: Tensor | None = None,
        generator: torch.Generator | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Sample paths (b, paths, h, V) float64, in data units, that follow the history of windows.

        h is what a window has behind `context_length` steps, longer than trained where it is longer. known: (V,) or (b,
        h, V) bool, future values that the batch holds and the paths keep; what was not observed there is not known.
        on_step(done, all) is called after each step.
        """
        context = self.spec.context_length
        paths = self.options.calc_crps_sum if paths is None else paths
        check_positive("the number of sample paths", paths)
        forcing = self.sampling_forcing()
        encoded = self.encode(batch, forcing.network)
        fixed = None if known is None else self._known_future(encoded, known)
        rows = torch.arange(len(encoded.x), device=encoded.x.device).repeat_interleave(paths)
        parts = rows.split(self.options.paths_at_once)
        horizon = encoded.x.shape[1] - context
        found = []
        for number, part in enumerate(parts):
            for done, chunk in self._continue(forcing, encoded, fixed, part, generator):
                found.append(chunk)
                if on_step is not None:
                    on_step(number * horizon + done, len(parts) * horizon)
        chunks = len(found) // len(parts)
        joined = [torch.cat(found[start : start + chunks], dim=1) for start in range(0, len(found), chunks)]
        samples = torch.cat(joined).to(encoded.loc.device, torch.float64).unflatten(0, (len(encoded.x), paths))
        return samples * encoded.scale[:, None] + encoded.loc[:, None, -horizon:]

    def _known_future(self, encoded: Encoded, known: Tensor) -> Tensor:
        """Scaled values like x, NaN where `known`, (V,) or (b, h, V), leaves them open."""
        if known.shape[-1] != encoded.x.shape[-1]:
            raise UserError(f"`known` has {known.shape[-1]} series but the forecast has {encoded.x.shape[-1]}")
        mask = torch.zeros_like(encoded.observed)
        mask[:, self.spec.context_length :] = known.to(mask.device, torch.bool)
        return torch.where(mask & encoded.observed, encoded.x, torch.nan)

    def _continue(
        self,
        forcing: DiffusionForcing,
        encoded: Encoded,
        fixed: Tensor | None,
        rows: Tensor,
        generator: torch.Generator | None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Scaled chunks (len(rows), n, V) of paths, one for each window number in `rows`, each with the steps that are
        done."""
        options, context = self.options, self.spec.context_length
        sampler = Sampler(
            forcing,
            sampling_timesteps=options.diffusion.sampling_timesteps,
            scheduling_matrix=options.scheduling_matrix,
            uncertainty_scale=options.uncertainty_scale,
            eta=options.diffusion.ddim_sampling_eta,
            resample=options.resample,
            past=options.past_shown,
        )
        length = encoded.x.shape[1]
        within_reach = length <= context + self.spec.prediction_length
        cache: Cache = "exact" if within_reach else "streaming"
        together = options.chunk_size
        if options.past_shown == "same":
            cache, together = "none", self.spec.prediction_length if together == -1 else together
        chunks = sampler.stream(
            encoded.x[rows, :context],
            length,
            window=context + self.spec.prediction_length,
            chunk_size=together,
            cache=cache,
            conditions=None if encoded.conditions is None else encoded.conditions[rows],
            observed=None if fixed is None else fixed[rows],
            generator=generator,
        )
        done = 0
        for chunk in chunks:
            done += chunk.shape[1]
            yield done, chunk

    def describe(self) -> dict[str, Any]:
        """Facts that go into a checkpoint: what it is, and the options that its weights depend on."""
        options, spec = self.options, self.spec
        schedule = ("objective", "beta_schedule", "schedule_fn_kwargs", "timesteps")
        sizes = ("network_size", "num_gru_layers", "num_mlp_layers", "self_condition", "architecture")
        inputs = ("noise_level", "network", "z_shape", "learnable_init_z", "use_covariates", "scaling")
        diffusion = chosen(options.diffusion, *schedule, *sizes)
        structure = {"algorithm": {**chosen(options, *inputs), "diffusion": diffusion}}
        cpu = torch.device("cpu")
        data = spec._asdict() | {name: self.statistic(name, cpu).tolist() for name in STATISTICS}
        data |= {"lags": list(spec.lags), "names": list(spec.names)}
        line = "rnn" if options.network == "rnn" else "v1.5"
        return {"task": self.task, "line": line, "data": data, "structure": structure}

    def load_weights(self, checkpoint: Any) -> None:
        """Take the weights and statistics of a `checkpoints.LoadedCheckpoint`; refuses what does not match, naming the
        first key."""
        if not self.options.use_covariates:  # a released checkpoint carries an embedding that its network never saw
            weights = {key: value for key, value in checkpoint.weights.items() if not key.startswith("embed.")}
            checkpoint = replace(checkpoint, weights=weights)
        self.check_weights(
            checkpoint,
            "forecast data with as many variates, lags and gaps, and set algorithm.network and algorithm.diffusion as "
            "it was trained",
        )
        data = checkpoint.metadata.get("data", {})
        found: dict[str, Any] = {name: np.array(data[name], np.float64) for name in STATISTICS if name in data}
        for name, theirs in (("mean", "data_mean"), ("std", "data_std")):  # of a released checkpoint
            value = checkpoint.statistics.get(theirs)
            if value is not None and value.numel() == self.spec.variates:
                found[name] = value.flatten().double().numpy()
        self._spec, self._statistics = self.spec._replace(**found), {}
        self.take_weights(checkpoint.weights)
