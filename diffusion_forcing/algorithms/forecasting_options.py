"""Every option of `algorithm=df_prediction`: forecasting of several series together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffusion_forcing.algorithms.options import AlgorithmOptions, TransformerOptions, positive, within
from diffusion_forcing.algorithms.recurrent_options import RecurrentMLPOptions
from diffusion_forcing.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ForecastingDiffusionOptions(RecurrentMLPOptions):
    """The RNN line's settings; `architecture` is of network=transformer, network_size and the layers above of network=rnn."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    network_size: int = 64
    num_gru_layers: int = 4
    num_mlp_layers: int = 1
    architecture: TransformerOptions = field(default_factory=TransformerOptions)


@dataclass(frozen=True, kw_only=True)
class ForecastingOptions(AlgorithmOptions):
    """A token is a time step of all variates.

    network: `rnn`, the paper's, or `transformer`, causal. z_shape: of the RNN's latent, [width]. scaling: what a window is brought to
    the same size by: `global`, each variate's mean and deviation in the training part, as released; `context`, the same of the window's
    history; `last`, what a variate has gone from its last known value, in deviations of such changes, more where the history is livelier
    than usual; `season`, the difference from the last season; `auto`, each variate by itself: `season` where it returns with one, `last` where
    it wanders more than it returns, else `global`. use_covariates: tell the network
    dates, lagged values and which variate is which. calc_crps_sum: sample paths of a forecast; paths_at_once: how many are sampled
    together, over all windows. resample: how often a row is walked where series' values to come are known.
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
        positive("algorithm.calc_crps_sum", self.calc_crps_sum)
        positive("algorithm.paths_at_once", self.paths_at_once)
        positive("algorithm.resample", self.resample)
        within("algorithm.gt_first_frame", self.gt_first_frame, 0, 1)
        within("algorithm.gt_cond_prob", self.gt_cond_prob, 0, 1)
        if self.frame_stack != 1 or self.frame_skip != 1:
            raise UserError(
                f"algorithm.frame_stack={self.frame_stack} algorithm.frame_skip={self.frame_skip}: a token is one time step of the data: 1 and 1"
            )
        if not self.causal:
            raise UserError("algorithm.causal=False: a forecast is made of the past alone; leave it True")
        if self.guidance_scale:
            raise UserError(f"algorithm.guidance_scale is {self.guidance_scale}; a forecast has no goal: 0")
        if len(self.z_shape) != 1:
            raise UserError(f"algorithm.z_shape is {list(self.z_shape)}; a forecaster's latent is a vector, as [1024]")
        layers = self.diffusion.num_gru_layers
        if layers and self.z_shape[0] % layers:
            raise UserError(
                f"algorithm.z_shape is {list(self.z_shape)}; it must be a multiple of algorithm.diffusion.num_gru_layers {layers}"
            )
