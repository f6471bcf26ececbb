"""Networks: modules (b, t, …) → (b, t, …) that know no schedule. `network(x, k, conditions, memory) -> (output, memory)`."""

from diffusion_forcing.networks.memory import KVCache
from diffusion_forcing.networks.transformer import Transformer

__all__ = ["KVCache", "Transformer"]
