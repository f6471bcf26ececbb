"""The forecasting task: several series as one sequence of time steps, continued by sampling (docs/method.md §9, §11).

A token holds one time step of every variate, scaled. The network is conditioned on the date, on lagged values that were
known when the forecast was made, on which variate is which and, where the data has gaps, on what was observed. Its
sizes depend on the data: call `adapt` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from diffusion_forcing.checkpoints.format import LoadedCheckpoint, sized_by
from diffusion_forcing.datasets.batch import SeriesBatch, SeriesSpec
from diffusion_forcing.diffusion import DiffusionForcing
from diffusion_forcing.diffusion.history import Cache
from diffusion_forcing.diffusion.noise import normal
from diffusion_forcing.errors import UserError, check_positive
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp
from diffusion_forcing.options import Count, Natural, Share


@dataclass(frozen=True, kw_only=True)
class ForecastingDiffusionOptions(RecurrentMLPOptions):
    """The RNN line's settings; `architecture` is of network=transformer, network_size and the layers above of
    network=rnn."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    network_size: Count = 64
    num_gru_layers: Natural = 4
    num_mlp_layers: Natural = 1
    architecture: TransformerOptions = field(default_factory=TransformerOptions)


@dataclass(frozen=True, kw_only=True)
class ForecastingOptions(AlgorithmOptions):
    """A token is a time step of all variates.

    - network: `rnn`, the paper's, or `transformer`. z_shape: of the RNN's latent, [width]. causal: False lets a transformer
      look at later steps too, which filling gaps needs.
    - scaling: what a token holds. `base`: how far each series is from its base forecast, which averages simple methods
      (`datasets/series/smoothing.py`), in units of its usual error; `global`: its value by the mean and deviation of the
      training part, as released.
    - together: a token holds all series; False: one network forecasts each series by itself.
    - pool: forecasts hold paths of the base forecast too, in the share that is best on the validation windows.
    - keep_range: sample paths stay above 0, below 1 or 100, or whole, where the training part does.
    - use_covariates: condition the network on dates, lagged values and which variate is which.
    - calc_crps_sum: sample paths of a forecast; paths_at_once: how many are sampled together, over all windows.
    - resample: how often a row is denoised where future values of some series are known.
    """

    lr: float = 3e-4
    warmup_steps: int = 2000
    network: Literal["rnn", "transformer"] = "rnn"
    z_shape: tuple[int, ...] = (1024,)
    learnable_init_z: bool = False
    gt_first_frame: Share = 0.0
    gt_cond_prob: Share = 0.0
    use_covariates: bool = True
    scaling: Literal["base", "global"] = "base"
    together: bool = True
    keep_range: bool = True
    pool: bool = True
    calc_crps_sum: Count = 100
    paths_at_once: Count = 1000
    resample: Count = 4
    diffusion: ForecastingDiffusionOptions = field(default_factory=ForecastingDiffusionOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame_stack != 1 or self.frame_skip != 1:
            raise UserError(
                f"algorithm.frame_stack is {self.frame_stack}, algorithm.frame_skip {self.frame_skip}; "
                "a token is one time step: leave both 1"
            )
        if not self.causal and self.network != "transformer":
            raise UserError(
                f"algorithm.causal=False algorithm.network={self.network}: only the transformer can look at later steps; "
                "set algorithm.network=transformer, or algorithm.causal=True"
            )
        if not self.together and self.scaling == "global":
            raise UserError(
                "algorithm.together=False algorithm.scaling=global: one network for all series needs them in the same units; "
                "use algorithm.scaling=base"
            )
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


STATISTICS = ("mean", "std")
"""Of the training part, a number a series: what `SeriesSpec` calls them."""
LARGEST_LOGARITHM = 700.0
FARTHEST = 4.0
"""The logarithm of how far ahead a step is, to be about 1: of 54."""


class Encoded(NamedTuple):
    """Windows as tokens, with `together=False` one of a series each: then b counts windows × series, and V is 1.

    x: (b, t, V), scaled, 0 where not observed; observed: (b, t, V); conditions: (b, t, d) or None, all as the network
    takes them. loc, scale: (b, t, V) float64, x = (values − loc)/scale, of the values' logarithms for some series.
    """

    x: Tensor
    observed: Tensor
    conditions: Tensor | None
    loc: Tensor
    scale: Tensor


def each(values: Tensor) -> Tensor:
    """(b, t, V) → (b·V, t, 1)."""
    return values.transpose(1, 2).flatten(0, 1)[..., None]


def each_series(batch: SeriesBatch) -> SeriesBatch:
    """Every series of the windows as a window of its own."""
    many = batch.values.shape[2]
    lagged, lag_known = (part.permute(0, 3, 1, 2).flatten(0, 1)[..., None] for part in (batch.lagged, batch.lag_known))
    return SeriesBatch(
        each(batch.values),
        each(batch.observed),
        batch.dates.repeat_interleave(many, dim=0),
        lagged,
        lag_known,
        each(batch.base),
        each(batch.spread),
        batch.logarithm.flatten()[:, None],
    )


class Forecasting(ForcingAlgorithm):
    """Diffusion Forcing for time series. `options` is a `ForecastingOptions`."""

    Options = ForecastingOptions
    task = "prediction"
    options: ForecastingOptions

    def __init__(self, options: ForecastingOptions) -> None:
        super().__init__(options, None)
        self._spec: SeriesSpec | None = None
        self._waiting: LoadedCheckpoint | None = None
        self._statistics: dict[tuple[str, torch.device], Tensor] = {}
        self.score: Callable[[Any, Any], float] | None = None
        """What validation logs of samples (b, paths, h, V) and targets (b, h, V) as validation/crps_sum: the
        experiment's metric."""
        self._validated: list[tuple[tuple[int, int], Tensor, Tensor]] = []
        """Of each window: its batch and its row there, its sample paths, and the observed values."""

    def adapt(self, spec: SeriesSpec) -> None:
        """Build the network for data of `spec`, once, with the weights that wait for it; and take the data's statistics."""
        if self._spec is None:
            self._spec, waiting = spec, self._waiting
            with sized_by(None if waiting is None else waiting.path):
                self.put_network(self.build_network(spec))
            if waiting is not None:
                self.load_weights(waiting)

    @property
    def width(self) -> int:
        """V: series in a token."""
        return self.spec.variates if self.options.together else 1

    @property
    def spec(self) -> SeriesSpec:
        """The specification of the data, once there is one."""
        if self._spec is None:
            raise UserError("the forecaster knows no data yet; call adapt(dataset.spec) first")
        return self._spec

    def statistic(self, name: str, device: torch.device) -> Tensor:
        """(V,) float64 on `device`: a number a series of the specification. Not a buffer: mixed precision must not touch it."""
        if (name, device) not in self._statistics:
            value = np.broadcast_to(np.asarray(getattr(self.spec, name), np.float64), (self.spec.variates,))
            self._statistics[name, device] = torch.from_numpy(value.copy()).to(device, non_blocking=True)
        return self._statistics[name, device]

    def build_network(self, spec: SeriesSpec) -> nn.Module:
        """The network the options ask for, for data of `spec`, with fresh weights."""
        options, width = self.options, self.condition_width(spec)
        if options.network == "transformer":
            network: nn.Module = Transformer(
                self.width, causal=options.causal, external_cond_dim=width, **asdict(options.diffusion.architecture)
            )
        else:
            diffusion = options.diffusion
            network = recurrent_mlp(
                self.width,
                options.z_shape[0],
                network_size=diffusion.network_size,
                num_gru_layers=diffusion.num_gru_layers,
                num_mlp_layers=diffusion.num_mlp_layers,
                external_cond_dim=width,
                learnable_init_z=options.learnable_init_z,
                self_condition=diffusion.self_condition,
            )
        if options.use_covariates:
            network.add_module("embed", nn.Embedding(self.width, 1))
        return network

    def condition_width(self, spec: SeriesSpec) -> int:
        """d: numbers that condition the network at each step."""
        width, ahead = self.width, self.options.scaling == "base"
        gaps = width if spec.has_gaps or not self.options.together else 0
        if not self.options.use_covariates:
            return gaps + ahead
        return gaps + ahead + spec.date_features + len(spec.lags) * (width + 1) + width

    def training_step(self, batch: SeriesBatch, batch_idx: int) -> Tensor:
        encoded = self.encode(batch, self.forcing.network)
        loss = self.loss(encoded, *self.draw(encoded.x, generator=self.training_generator()))
        self.log("training/loss", loss, prog_bar=True)
        return loss

    def encode(self, batch: SeriesBatch, network: nn.Module) -> Encoded:
        """Windows, of which the first `context_length` steps are history, scaled, with the conditions of `network`.

        Differences are taken in float64, so that a small change of a large value keeps its digits.
        """
        if not self.options.together:
            batch = each_series(batch)
        values, lagged, observed = batch.values.double(), batch.lagged.double(), batch.observed
        if self.options.scaling == "global":
            device = values.device
            loc, scale = (self.statistic(name, device).expand_as(values) for name in STATISTICS)
        else:
            loc, scale = batch.base.double(), batch.spread.double()
            logarithm = batch.logarithm[:, None]
            values = torch.where(logarithm, values.log(), values)
            lagged = torch.where(logarithm[:, None], lagged.log(), lagged)
            observed = observed & values.isfinite()  # a series that was always positive is no more
        x = torch.where(observed, (values - loc) / scale, 0.0)

        own = next(network.parameters(), torch.empty(0, device=self.device))
        history, length = self.spec.context_length, x.shape[1]
        conditions = []
        if self.options.use_covariates:  # dates, lags (b, t, n·V), how many of each are known, a number a variate
            lags = (lagged - loc[:, :, None]) / scale[:, :, None]
            lag_known = batch.lag_known & lags.isfinite()
            embedding: Any = network.embed
            conditions = [batch.dates, torch.where(lag_known, lags, 0.0).flatten(2), lag_known.to(x.dtype).mean(dim=-1)]
            conditions.append(embedding.weight[:, 0].expand(*x.shape[:2], -1))
        if self.options.scaling == "base":  # how far ahead
            steps = torch.arange(1 - history, length - history + 1, device=x.device).clamp(min=0)
            conditions.append(steps.to(x).log1p().expand(len(x), -1)[..., None] / FARTHEST)
        if self.spec.has_gaps or not self.options.together:
            shown = observed.to(x.dtype)
            shown[:, history:] = 1.0  # whether a value will be observed is not known when a forecast is made
            conditions.append(shown)
        joined = torch.cat([part.to(own) for part in conditions], dim=-1) if conditions else None
        return Encoded(x.to(own), observed.to(own.device), joined, loc, scale)

    def decode(self, samples: Tensor, encoded: Encoded, batch: SeriesBatch) -> Tensor:
        """Tokens (b, paths, h, V) of the last h steps of `encoded` → (windows, paths, h, V) float64, in data units."""
        h = samples.shape[2]
        samples = samples.to(encoded.loc.device, torch.float64)
        samples = samples * encoded.scale[:, None, -h:] + encoded.loc[:, None, -h:]
        if not self.options.together:
            samples = samples[..., 0].unflatten(0, (len(batch.values), -1)).permute(0, 2, 3, 1)
        if self.options.scaling == "base":
            logarithm = batch.logarithm[:, None, None].to(samples.device)
            samples = torch.where(logarithm, samples.clamp(max=LARGEST_LOGARITHM).exp(), samples)
        return self.in_range(samples)

    def in_range(self, samples: Tensor) -> Tensor:
        """Sample paths (…, V) that keep to what was seen of their series (`SeriesSpec.lowest`, `highest`, `whole`): not
        below half of the lowest value where none was negative, not above 1 or 100, nor above three times the highest
        where the logarithm is forecast, whole numbers."""
        if not (self.options.keep_range and self.spec.whole):
            return samples
        low, high, whole = (self.statistic(name, samples.device) for name in ("lowest", "highest", "whole"))
        rounded = torch.where(whole > 0, samples.round(), samples)
        return torch.fmin(torch.fmax(rounded, low), high)  # NaN: no limit

    def draw(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Levels (b, t) and noise like x: (b, t, V) of a training batch."""
        levels = self.shown_clean(self.draw_levels(*x.shape[:2], generator=generator), generator)
        return levels, normal(x.shape, generator=generator, device=x.device)

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
        samples = self.decode(torch.cat(joined).unflatten(0, (len(encoded.x), paths)), encoded, batch)
        if known is None:
            return samples
        given = (known & batch.observed[:, context:].to(known.device)).to(samples.device)
        return torch.where(given[:, None], batch.values[:, None, context:].to(samples), samples)

    def _known_future(self, encoded: Encoded, known: Tensor) -> Tensor:
        """Scaled values like x, NaN where `known`, (V,) or (b, h, V), leaves them open."""
        if known.shape[-1] != self.spec.variates:
            raise UserError(f"`known` has {known.shape[-1]} series but the forecast has {self.spec.variates}")
        mask = torch.zeros_like(encoded.observed)
        horizon = mask.shape[1] - self.spec.context_length
        windows = mask.numel() // (self.spec.variates * mask.shape[1])
        whole = known.to(mask.device, torch.bool).expand(windows, horizon, -1)
        mask[:, self.spec.context_length :] = whole if self.options.together else each(whole)
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
        options, context, length = self.options, self.spec.context_length, encoded.x.shape[1]
        window = context + self.spec.prediction_length
        cache: Cache = "exact" if length <= window else "streaming"
        together = options.chunk_size
        if options.past_shown == "same" or not options.causal:
            cache, together = "none", self.spec.prediction_length if together == -1 else together
        chunks = self.sampler(forcing, resample=options.resample).stream(
            encoded.x[rows, :context],
            length,
            window=window,
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
        inputs = (
            "noise_level",
            "network",
            "causal",
            "z_shape",
            "learnable_init_z",
            "use_covariates",
            "scaling",
            "together",
        )
        diffusion = chosen(options.diffusion, *schedule, *sizes)
        structure = {"algorithm": {**chosen(options, *inputs), "diffusion": diffusion}}
        cpu, line = torch.device("cpu"), "rnn" if options.network == "rnn" else "v1.5"
        if not options.together:  # any series of these steps will do, or any at all
            data: dict[str, Any] = {"context_length": spec.context_length, "horizon": spec.prediction_length}
            data |= {"freq": spec.freq, "lags": list(spec.lags)} if options.use_covariates else {}
            return {"task": self.task, "line": line, "data": data, "structure": structure}
        data = spec._asdict()
        data |= {name: self.statistic(name, cpu).tolist() for name in STATISTICS}
        data |= {name: list(getattr(spec, name)) for name in ("lags", "names", "lowest", "highest", "whole")}
        data["methods"] = [[list(one) for one in found] for found in spec.methods]
        return {"task": self.task, "line": line, "data": data, "structure": structure}

    def take_data(self, metadata: Mapping[str, Any]) -> None:
        if "names" in metadata["data"]:  # else it takes any series: those of the first `adapt`
            self.adapt(SeriesSpec.from_plain(metadata["data"]))

    def load_weights(self, checkpoint: Any) -> None:
        """Take the weights and statistics of a `checkpoints.LoadedCheckpoint`; refuses what does not match, naming the
        first key. Before `adapt` they wait for it."""
        if self._spec is None:
            self._waiting = checkpoint
            return
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
