"""A forecaster's sample paths beside those of its base forecast: how many of each, decided where neither was trained.

What a network adds to simple methods depends on the data: much on thousands of steps, nothing on fifty. A pool holds
both kinds of paths in the shares that scored best on validation windows (a linear pool; its CRPS is never above the
mean of its members'), so that a network with nothing to add costs little.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.metrics.forecasting import crps

Array = NDArray[np.float64]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTHS = (0.8, 1.0, 1.25, 1.6)
BETTER = 0.99
"""Of its score: what is chosen instead of the even pool must be better than this."""


class Pool(NamedTuple):
    """share: of paths that are the network's. width: how far those lie from their median, relative to what it
    sampled."""

    share: float
    width: float

    def __str__(self) -> str:
        widened = f", {self.width:g} times as wide as sampled" if self.share and self.width != 1 else ""
        return f"{self.share:.0%} of the paths are the network's{widened}, {1 - self.share:.0%} the base forecast's"

    def mix(self, network: Array, base: Array) -> Array:
        """Paths (n, paths, h, V) of the network and of the base → as many of the pool."""
        own = round(self.share * network.shape[1])
        median = np.median(network, axis=1, keepdims=True)
        return np.concatenate([(median + self.width * (network - median))[:, :own], base[:, own:]], axis=1)


def choose_pool(network: Array, base: Array, target: Array) -> Pool:
    """The best pool of paths (n, paths, h, V) by CRPS on what was observed: target (n, h, V), NaN where nothing was. The
    even one, unless another is clearly better."""
    scores = {
        pool: crps(pool.mix(network, base), target)
        for pool in (Pool(share, width) for share in SHARES for width in (WIDTHS if share else (1.0,)))
    }
    even = Pool(0.5, 1.0)
    best = min(scores, key=lambda pool: (np.nan_to_num(scores[pool], nan=np.inf), pool != even))
    return best if scores[best] < BETTER * scores[even] else even


def ordered_as(network: Array, base: Array) -> Array:
    """The network's paths (n, paths, h, V), of series that it sampled one by one, reordered so that they move together
    as those of `base` do: the path of a series that is its k-th largest takes the place of the base's k-th largest
    (a Schaake shuffle of whole paths)."""
    rank = base.mean(axis=2).argsort(axis=1).argsort(axis=1)
    order = np.take_along_axis(network.mean(axis=2).argsort(axis=1), rank, axis=1)
    return np.take_along_axis(network, order[:, :, None], axis=1)
