"""Actions as planes and vectors: there and back exactly, the nearest rotation, every number on its own cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation
from torch import Tensor

from diffusion_forcing.algorithms.robot.tokens import (
    NUMBERS,
    from_planes,
    from_vector,
    matrix_of,
    nearest_rotation,
    quaternion_of,
    to_planes,
    to_vector,
)
from diffusion_forcing.errors import UserError


def actions(count: int = 500) -> Tensor:
    drawn = torch.Generator().manual_seed(0)
    quaternion = torch.randn(count, 4, generator=drawn, dtype=torch.float64)
    quaternion[:4] = torch.eye(4)  # half turns about each axis, and none
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[:, 3:] < 0, -quaternion, quaternion)
    rest = torch.rand(count, 4, generator=drawn, dtype=torch.float64)
    return torch.cat([rest[:, :3], quaternion, rest[:, 3:]], dim=-1)


def test_matrices_and_quaternions_are_scipys() -> None:
    quaternion = actions()[:, 3:7]
    theirs = Rotation.from_quat(quaternion.numpy()).as_matrix()
    np.testing.assert_allclose(matrix_of(quaternion).numpy(), theirs, atol=1e-12)
    np.testing.assert_allclose(matrix_of(-3 * quaternion).numpy(), theirs, atol=1e-12)
    back = quaternion_of(matrix_of(quaternion))
    torch.testing.assert_close((back * quaternion).sum(-1).abs(), torch.ones(len(back), dtype=torch.float64))


@pytest.mark.parametrize("size", [4, 8, 32])
def test_there_and_back_is_exact(size: int) -> None:
    given = actions().unflatten(0, (-1, 5))  # any leading dimensions
    planes = to_planes(to_vector(given), size)
    assert planes.shape == (100, 5, size, size)
    torch.testing.assert_close(from_vector(from_planes(planes)), given, rtol=0, atol=1e-7)


def test_every_number_has_its_own_cells_and_the_grasp_a_column() -> None:
    planes = to_planes(torch.arange(float(NUMBERS)), 8)
    assert planes[::2, ::2].tolist() == [[0, 1, 2, 12], [3, 4, 5, 12], [6, 7, 8, 12], [9, 10, 11, 12]]
    assert torch.equal(planes, planes[::2, ::2].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_noise_on_the_planes_is_averaged_out() -> None:
    vector = to_vector(actions(200))
    noise = torch.randn(200, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    off = from_planes(to_planes(vector, 32) + noise) - vector
    assert float(off[:, :12].std()) == pytest.approx(1 / 8, rel=0.1)  # a cell has 64 pixels
    assert float(off[:, 12].std()) == pytest.approx(1 / 16, rel=0.2)


def test_the_nearest_rotation_is_procrustes_and_never_a_reflection() -> None:
    drawn = torch.Generator().manual_seed(2)
    for matrix in torch.randn(50, 3, 3, generator=drawn, dtype=torch.float64):
        found = nearest_rotation(matrix)
        assert float(torch.det(found)) == pytest.approx(1)
        torch.testing.assert_close(found @ found.T, torch.eye(3, dtype=torch.float64))
        if float(torch.det(matrix)) > 0:
            np.testing.assert_allclose(found.numpy(), orthogonal_procrustes(np.eye(3), matrix.numpy())[0], atol=1e-9)
        others = torch.tensor(Rotation.random(200, random_state=0).as_matrix())
        assert float((found - matrix).norm()) <= float((others - matrix).flatten(1).norm(dim=1).min()) + 1e-9


def test_what_is_read_is_an_action_whatever_the_planes_hold() -> None:
    read = from_vector(from_planes(torch.randn(30, 15, 32, 32, generator=torch.Generator().manual_seed(3))))
    torch.testing.assert_close(read[..., 3:7].norm(dim=-1), torch.ones(30, 15))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotations_are_computed_in_float32_under_autocast(dtype: torch.dtype) -> None:
    matrix = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", dtype=dtype):
        found = nearest_rotation(matrix)
        nearest_rotation(matrix.to(dtype))
    assert torch.equal(found, nearest_rotation(matrix))


def test_an_action_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="has 8 numbers"):
        to_vector(torch.zeros(7))
