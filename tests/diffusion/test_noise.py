"""What several processes draw for their rows of a batch is what one draws for the batch."""

from __future__ import annotations

import pytest
import torch

from diffusion_forcing.algorithms.parallel import SharedGenerator
from diffusion_forcing.diffusion import draw_noise_levels
from diffusion_forcing.diffusion.noise import integers, normal, uniform

CPU = torch.device("cpu")


def alone() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def share(*rows: int, total: int = 5) -> torch.Generator:
    return SharedGenerator.of(total, rows, device=CPU).manual_seed(4)


@pytest.mark.parametrize("rows", [(0, 2, 4), (1, 3), (3,), (4, 0)])
def test_every_kind_of_number_is_the_whole_batchs(rows: tuple[int, ...]) -> None:
    one, some = alone(), share(*rows)
    for _ in range(2):  # the stream goes on as that of the whole batch
        whole = normal((5, 3), generator=one, device=CPU)
        assert torch.equal(normal((len(rows), 3), generator=some, device=CPU), whole[list(rows)])
        chosen = integers(2, 9, (5,), generator=one, device=CPU)
        assert torch.equal(integers(2, 9, (len(rows),), generator=some, device=CPU), chosen[list(rows)])
        for kind in ("random_all", "shared"):
            levels = draw_noise_levels(kind, 5, 4, timesteps=10, generator=one, device=CPU)
            mine = draw_noise_levels(kind, len(rows), 4, timesteps=10, generator=some, device=CPU)
            assert torch.equal(mine, levels[list(rows)])


def test_a_number_for_the_whole_batch_is_the_same_for_all_rows() -> None:
    assert uniform((), generator=share(1), device=CPU) == uniform((), generator=alone(), device=CPU)


def test_a_row_may_stand_for_several_that_follow_each_other() -> None:
    whole = normal((10, 2), generator=alone(), device=CPU)
    assert torch.equal(normal((4, 2), generator=share(1, 3), device=CPU), whole[[2, 3, 6, 7]])


def test_an_ordinary_generator_draws_what_torch_draws() -> None:
    assert torch.equal(normal((5, 3), generator=alone(), device=CPU), torch.randn(5, 3, generator=alone()))
