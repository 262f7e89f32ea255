"""Cartesian tensors of properties as irreps, and back: dipoles, polarizabilities, elasticities.

The bases are orthonormal, so that the norm of the components is the Frobenius norm of the tensor. With Q_0 = I /
sqrt(3) and Q_m = sqrt(5) (1 1 2)_m, the coupling of two vectors to degree 2, a symmetric matrix T is

    0e+2e            t_a = sum_ij Q_a,ij T_ij

and the stiffness C_ijkl, symmetric in ij, in kl and under their exchange, is the symmetric matrix M_ab = Q_a C Q_b:

    2x0e+2x2e+4e     M_00, the scalar in M_mn; sqrt(2) M_0m, the degree 2 in M_mn; the degree 4 in M_mn

(m, n = 1..5). Its first two scalars carry bulk and shear modulus: an isotropic solid has M_00 = 3 K and M_mn = 2 G.
"""

from functools import cache

import numpy as np
import torch
from e3nn import o3

VECTOR, SYMMETRIC, STIFFNESS = "1o", "0e+2e", "2x0e+2x2e+4e"
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy, the order of ASE


def to_irreps(value: np.ndarray, irreps: str) -> np.ndarray:
    """Components (d,) of a tensor as a file may write it.

    0e+2e takes (3, 3), 9 numbers or 6 in Voigt's order xx yy zz yz xz xy; 2x0e+2x2e+4e takes (3, 3, 3, 3), or the 6
    by 6 stiffness in that order, or their 81 or 36 numbers; other irreps take their d components in order.
    Raises ValueError for another shape and for a tensor without the symmetry.
    """
    value = np.asarray(value, dtype=np.float64)
    if irreps == SYMMETRIC:
        return np.einsum("aij,ij->a", _matrices(), _symmetric(_matrix(value)))
    if irreps == STIFFNESS:
        return _from_stiffness(_stiffness(value))
    flat = value.reshape(-1)
    dimension = o3.Irreps(irreps).dim
    if flat.shape != (dimension,):
        raise ValueError(f"shape {value.shape}, expected the {dimension} numbers of {irreps}")
    return flat


def to_cartesian(components: np.ndarray, irreps: str) -> np.ndarray:
    """(..., d) components as tensors: (..., 3, 3) of 0e+2e, (..., 3, 3, 3, 3) of 2x0e+2x2e+4e, unchanged of others."""
    components = np.asarray(components, dtype=np.float64)
    if irreps == SYMMETRIC:
        return np.einsum("...a,aij->...ij", components, _matrices())
    if irreps != STIFFNESS:
        return components
    form = np.zeros((*components.shape[:-1], 6, 6))
    form[..., 0, 0] = components[..., 0]
    form[..., 0, 1:] = form[..., 1:, 0] = components[..., 2:7] / np.sqrt(2.0)
    inner = np.concatenate([components[..., 1:2], components[..., 7:]], axis=-1)
    form[..., 1:, 1:] = np.einsum("...c,cmn->...mn", inner, _forms())
    return np.einsum("...ab,aij,bkl->...ijkl", form, _matrices(), _matrices())


def voigt_of_stiffness(tensor: np.ndarray) -> np.ndarray:
    """The 6 by 6 stiffness of (..., 3, 3, 3, 3), in the order xx yy zz yz xz xy."""
    rows, columns = np.array(_VOIGT).T
    return tensor[..., rows[:, None], columns[:, None], rows[None], columns[None]]


@cache
def _matrices() -> np.ndarray:
    """Q (6, 3, 3)."""
    coupled = np.sqrt(5.0) * o3.wigner_3j(1, 1, 2, dtype=torch.float64).numpy()
    return np.concatenate([np.eye(3)[None] / np.sqrt(3.0), np.moveaxis(coupled, 2, 0)])


@cache
def _forms() -> np.ndarray:
    """The symmetric matrices of degrees 0, 2, 4 (1 + 5 + 9, 5, 5) that two of degree 2 couple to."""
    parts = [np.sqrt(2 * j + 1) * o3.wigner_3j(2, 2, j, dtype=torch.float64).numpy() for j in (0, 2, 4)]
    return np.concatenate([np.moveaxis(part, 2, 0) for part in parts])


def _from_stiffness(tensor: np.ndarray) -> np.ndarray:
    form = np.einsum("aij,bkl,ijkl->ab", _matrices(), _matrices(), tensor)
    inner = np.einsum("cmn,mn->c", _forms(), form[1:, 1:])
    return np.concatenate([form[:1, 0], inner[:1], np.sqrt(2.0) * form[0, 1:], inner[1:]])


def _matrix(value: np.ndarray) -> np.ndarray:
    if value.size == 9:
        return value.reshape(3, 3)
    if value.shape == (6,):
        matrix = np.empty((3, 3))
        for number, (i, j) in zip(value, _VOIGT, strict=True):
            matrix[i, j] = matrix[j, i] = number
        return matrix
    raise ValueError(f"shape {value.shape}, expected 3x3, 9 or 6 numbers (xx yy zz yz xz xy) of {SYMMETRIC}")


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    if not np.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-3 * np.abs(matrix).max()):
        raise ValueError(f"the matrix is not symmetric, expected a symmetric one for {SYMMETRIC}")
    return 0.5 * (matrix + matrix.T)


def _stiffness(value: np.ndarray) -> np.ndarray:
    if value.size == 36:
        value = value.reshape(6, 6)
        tensor = np.empty((3, 3, 3, 3))
        for row, (i, j) in enumerate(_VOIGT):
            for column, (k, m) in enumerate(_VOIGT):
                tensor[i, j, k, m] = tensor[j, i, k, m] = tensor[i, j, m, k] = tensor[j, i, m, k] = value[row, column]
    elif value.size == 81:
        tensor = value.reshape(3, 3, 3, 3)
    else:
        raise ValueError(f"shape {value.shape}, expected 3x3x3x3 or 6x6 numbers of {STIFFNESS}")
    pairs = [tensor, *(np.transpose(tensor, axes) for axes in ((1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)))]
    largest = np.abs(tensor).max()
    if any(not np.allclose(other, tensor, rtol=0.0, atol=1e-2 * largest) for other in pairs[1:]):
        raise ValueError(f"the tensor has not the symmetry C_ijkl = C_jikl = C_klij of {STIFFNESS}")
    once = 0.25 * (tensor + pairs[1] + pairs[2] + np.transpose(tensor, (1, 0, 3, 2)))
    return 0.5 * (once + np.transpose(once, (2, 3, 0, 1)))
