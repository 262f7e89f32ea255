"""Tensors of properties as irreps: back again, orthonormal, turning like features, with the moduli of known solids."""

import numpy as np
import pytest
import torch
from e3nn import o3

from sciml.physics.symmetry import random_orthogonal, turn
from sciml.physics.tensors import STIFFNESS, SYMMETRIC, to_cartesian, to_irreps, voigt_of_stiffness


def symmetric_matrix(rng):
    matrix = rng.standard_normal((3, 3))
    return matrix + matrix.T


def stiffness(rng):
    voigt = rng.standard_normal((6, 6))
    voigt = voigt + voigt.T
    return to_cartesian(to_irreps(voigt, STIFFNESS), STIFFNESS), voigt


def test_tensors_come_back_and_keep_their_norm():
    rng = np.random.default_rng(0)
    matrix = symmetric_matrix(rng)
    components = to_irreps(matrix, SYMMETRIC)
    np.testing.assert_allclose(to_cartesian(components, SYMMETRIC), matrix, atol=1e-14)
    assert np.linalg.norm(components) == pytest.approx(np.linalg.norm(matrix))
    assert components[0] == pytest.approx(np.trace(matrix) / np.sqrt(3))
    voigt = matrix[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    np.testing.assert_allclose(to_irreps(voigt, SYMMETRIC), components)
    tensor, form = stiffness(rng)
    np.testing.assert_allclose(voigt_of_stiffness(tensor), form, atol=1e-13)
    components = to_irreps(tensor, STIFFNESS)
    assert components.shape == (21,)
    assert np.linalg.norm(components) == pytest.approx(np.linalg.norm(tensor))
    np.testing.assert_allclose(to_cartesian(components, STIFFNESS), tensor, atol=1e-13)
    np.testing.assert_allclose(to_cartesian(np.stack([components] * 2), STIFFNESS)[1], tensor, atol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_components_turn_as_their_irreps_say(seed):
    rng = np.random.default_rng(seed)
    rotation = random_orthogonal(torch.Generator().manual_seed(seed))
    r = rotation.numpy()
    matrix, (tensor, _) = symmetric_matrix(rng), stiffness(rng)
    turned = np.einsum("ai,bj,ck,dl,ijkl->abcd", r, r, r, r, tensor)
    for irreps, before, after in ((SYMMETRIC, matrix, r @ matrix @ r.T), (STIFFNESS, tensor, turned)):
        expected = turn(torch.from_numpy(to_irreps(before, irreps)), rotation, irreps).numpy()
        np.testing.assert_allclose(to_irreps(after, irreps), expected, atol=1e-12)
        assert o3.Irreps(irreps).dim == len(expected)


def test_an_isotropic_solid_has_its_moduli_in_the_two_scalars():
    bulk, shear = 80.0, 30.0
    voigt = np.diag([0.0] * 3 + [shear] * 3)
    voigt[:3, :3] = bulk - 2 / 3 * shear + 2 * shear * np.eye(3)
    components = to_irreps(voigt, STIFFNESS)
    assert components[0] == pytest.approx(3 * bulk)
    assert components[1] == pytest.approx(2 * shear * np.sqrt(5))
    np.testing.assert_allclose(components[2:], 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "irreps", "reason"),
    [
        (np.zeros(5), SYMMETRIC, r"shape \(5,\), expected 3x3"),
        (np.arange(9.0).reshape(3, 3), SYMMETRIC, "not symmetric"),
        (np.zeros((3, 3)), STIFFNESS, "expected 3x3x3x3 or 6x6"),
        (np.triu(np.ones((6, 6)), 1), STIFFNESS, "symmetry"),
        (np.zeros(2), "1o", r"expected the 3 numbers of 1o"),
    ],
)
def test_other_shapes_and_symmetries_are_refused(value, irreps, reason):
    with pytest.raises(ValueError, match=reason):
        to_irreps(value, irreps)
