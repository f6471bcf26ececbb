"""The settings of diffusion that the RNN line's algorithms share, and those of its transition of vectors."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_forcing.algorithms.options import NoisingOptions, not_negative, positive
from diffusion_forcing.diffusion.loss_weighting import Weighting, weighting_of
from diffusion_forcing.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RecurrentDiffusionOptions(NoisingOptions):
    """The RNN line's settings. use_snr, use_cum_snr: whether a token's own SNR and its history's weigh the loss
    (`weighting_of`). self_condition: every token is looked at twice, the second time beside what the first look said of it."""

    cum_snr_decay: float = 0.9
    use_snr: bool = False
    use_cum_snr: bool = False
    network_size: int = 32
    num_gru_layers: int = 1
    self_condition: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "algorithm.diffusion"
        positive(f"{where}.network_size", self.network_size)
        not_negative(f"{where}.num_gru_layers", self.num_gru_layers)
        if self.use_fused_snr:
            raise UserError(
                f"{where}.use_fused_snr is the attention line's switch; here use_snr=True use_cum_snr=True is the same weight"
            )

    @property
    def weighting(self) -> Weighting:
        return weighting_of(self.use_snr, self.use_cum_snr)


@dataclass(frozen=True, kw_only=True)
class RecurrentMLPOptions(RecurrentDiffusionOptions):
    """The same with a transition of vectors. num_mlp_layers: on either side of the GRU cells."""

    num_mlp_layers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "algorithm.diffusion"
        not_negative(f"{where}.num_mlp_layers", self.num_mlp_layers)
        if self.network_size % 2 or self.network_size < 4:
            raise UserError(
                f"{where}.network_size is {self.network_size}; it must be even and at least 4 (sines and cosines of a level)"
            )
