"""The symmetric contraction of MACE (Batatia et al., 2022, equations 10 and 11) as a spec of trilinear steps.

    m[n, LM, c] = sum over v, h, m1..mv of  W[species(n), h, c] U[h][LM, m1..mv] x[n, m1, c] ... x[n, mv, c]

A coupling h of order v is a chain (((l1 l2) l12 l3) ... L), its generalised Clebsch-Gordan tensor U the product of
those of its links ('component' normalised). All factors being the same x, only the part of U counts that is symmetric
in m1..mv: most chains are copies or combinations of others, some vanish. So the weights of all chains are first summed
to those of independent ones (a small matrix, found once per spec), and the sum is evaluated as by Horner:

    T2 = x (x) x,  T3 = T2 (x) x, ... each independent chain once;   m = (1, x, T2, ...) (x) x with the weights.

The last step yields all orders at once: 1 (x) x is the first one.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from sciml_kernels.trilinear.spec import Path, Spec, clebsch_gordan

_DEPENDENT = 1e-6  # of the norm of a tensor: what is left of one that others combine to


class Chain(NamedTuple):
    """A coupling of successive slots of x, its irrep after each link, and the tensor (2L+1, dim, ..., dim)."""

    slots: tuple[int, ...]
    irreps: tuple[o3.Irrep, ...]
    tensor: Tensor

    @property
    def out(self) -> o3.Irrep:
        """What it couples to."""
        return self.irreps[-1] if self.irreps else o3.Irrep("0e")

    @property
    def symmetric(self) -> Tensor:
        """The tensor averaged over the order of the factors, flat."""
        axes = range(1, self.tensor.dim())
        turned = [self.tensor.permute(0, *order) for order in itertools.permutations(axes)]
        return torch.stack(turned).mean(0).flatten()


_MADE: dict[str, SymmetricSpec] = {}


class SymmetricSpec:
    """A symmetric contraction; make it once.

    Attributes:
        irreps_x, irreps_out: node features and result, all of the same multiplicity.
        correlation: the highest order v.
        couplings: (v, chain) for each row of the weights: for each irrep of the result, for v = 1 to correlation, its
            chains with irreps ascending link by link. That is the order of the U matrices of mace-torch.
        dim_x, dim_out: length of a flat row of the features and of the result.
        steps: the specs of T2, T3, ... and of the last product.
        entries: nonzero entries of the couplings of all steps.
    """

    def __init__(self, irreps_x: str | o3.Irreps, keep: str | o3.Irreps, correlation: int) -> None:
        """`keep` lists the irreps wanted in the result.

        Raises:
            ValueError: unequal multiplicities, a repeated irrep, a correlation below 1, or nothing that is wanted.
        """
        self.irreps_x = o3.Irreps(irreps_x)
        muls = {mul for mul, _ in self.irreps_x}
        if len(muls) != 1:
            raise ValueError(f"irreps_x: found {self.irreps_x}, expected irreps of one multiplicity")
        if correlation < 1:
            raise ValueError(f"correlation: found {correlation}, expected 1 or more")
        self.correlation, self.channels = correlation, muls.pop()
        kept = [ir for _, ir in o3.Irreps(keep)]
        if len(set(kept)) != len(kept):
            raise ValueError(f"keep: found {keep}, expected every irrep once")
        self.irreps_out = o3.Irreps([(self.channels, ir) for ir in kept])
        slots = [ir for _, ir in self.irreps_x]
        every = _levels(slots, kept, correlation, independent=False)
        few = _levels(slots, kept, correlation, independent=True)
        self.couplings = tuple(
            (v, chain) for ir in kept for v, level in enumerate(every, 1) for chain in level if chain.out == ir
        )
        self._last = tuple(chain for ir in kept for level in few for chain in level if chain.out == ir)
        if not self.couplings or {chain.out for _, chain in self.couplings} != set(kept):
            raise ValueError(f"keep: found {keep}, expected irreps that {self.irreps_x} couples to")
        self.powers = few[: correlation - 1]
        self.reduction = self._reduction()
        self.key = f"{self.irreps_x}|{self.irreps_out}|{correlation}"
        self.dim_x, self.dim_out = self.irreps_x.dim, self.irreps_out.dim
        self.steps = self._steps()
        self.entries = sum(len(path.entries) for step in self.steps for path in step.paths)
        _MADE.setdefault(self.key, self)

    @staticmethod
    def from_key(key: str) -> SymmetricSpec:
        """The spec that wrote this key: one that was made before, as a tracer that asks for it cannot make one."""
        if key not in _MADE:
            irreps_x, keep, correlation = key.split("|")
            SymmetricSpec(irreps_x, keep, int(correlation))
        return _MADE[key]

    def reduction_like(self, like: Tensor) -> Tensor:
        """(independent chains, couplings) in the dtype and on the device of a tensor."""
        if torch.compiler.is_compiling():  # a tensor of a tracer must not outlive it
            return self.reduction.T.to(like)
        return _converted(self, like.dtype, like.device)

    def _steps(self) -> tuple[Spec, ...]:
        steps = []
        for below, level in itertools.pairwise(self.powers):
            irreps = [self._times([chain.out for chain in part]) for part in (below, level)]
            paths = tuple(self._path(below, chain, index) for index, chain in enumerate(level))
            steps.append(Spec(irreps[0], self.irreps_x, irreps[1], paths, y_channels=True))
        all_powers = [_ONE, *(chain for level in self.powers for chain in level)]
        left = self._times([chain.out for chain in all_powers])
        outputs = [ir for _, ir in self.irreps_out]
        paths = tuple(self._path(all_powers, chain, outputs.index(chain.out)) for chain in self._last)
        return *steps, Spec(left, self.irreps_x, self.irreps_out, paths, y_channels=True)

    def _times(self, irreps: list[o3.Irrep]) -> o3.Irreps:
        return o3.Irreps([(self.channels, ir) for ir in irreps])

    def _path(self, below: list[Chain], chain: Chain, out: int) -> Path:
        """The last link of a chain: what is left without it stands in slot x."""
        x = next(i for i, c in enumerate(below) if (c.slots, c.irreps) == (chain.slots[:-1], chain.irreps[:-1]))
        y = chain.slots[-1]
        return Path(x, y, out, (below[x].out.l, self.irreps_x[y].ir.l, chain.out.l))

    def _reduction(self) -> Tensor:
        """(couplings, paths of the last product): the weights of independent chains from those of all chains."""
        matrix = torch.zeros(len(self.couplings), len(self._last), dtype=torch.float64)
        for order, ir in {(order, chain.out) for order, chain in self.couplings}:
            rows = [i for i, (v, chain) in enumerate(self.couplings) if (v, chain.out) == (order, ir)]
            columns = [i for i, c in enumerate(self._last) if (len(c.slots), c.out) == (order, ir)]
            if columns:
                every = torch.stack([self.couplings[i][1].symmetric for i in rows])
                few = torch.stack([self._last[i].symmetric for i in columns])
                block = torch.linalg.lstsq(few.T, every.T).solution.T
                matrix[torch.tensor(rows)[:, None], torch.tensor(columns)] = block
        return torch.where(matrix.abs() > 1e-12, matrix, 0.0)


@functools.lru_cache(maxsize=64)
def _converted(spec: SymmetricSpec, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what inference makes cannot be saved for a backward pass
        return spec.reduction.T.contiguous().to(dtype=dtype, device=device)


# The empty product, to which x is the first power.
_ONE = Chain((), (), torch.ones(1, dtype=torch.float64))


def _levels(slots: list[o3.Irrep], keep: list[o3.Irrep], correlation: int, independent: bool) -> list[list[Chain]]:
    """The chains of order 1, 2, ...; all, or independent ones only. Of the last order, those to wanted irreps."""
    dims = [ir.dim for ir in slots]
    eye = torch.eye(sum(dims), dtype=torch.float64).split(dims)
    levels = [[Chain((i,), (ir,), eye[i]) for i, ir in enumerate(slots)]]
    for order in range(2, correlation + 1):
        found = [
            Chain((*left.slots, i), (*left.irreps, ir), _couple(left, slot, ir, eye[i]))
            for left in levels[-1]
            for i, slot in enumerate(slots)
            for ir in left.out * slot
            if order < correlation or ir in keep
        ]
        levels.append(_independent(found) if independent else sorted(found, key=lambda chain: chain.out))
    return levels


def _couple(left: Chain, slot: o3.Irrep, out: o3.Irrep, place: Tensor) -> Tensor:
    dense = torch.zeros(left.out.dim, slot.dim, out.dim, dtype=torch.float64)
    for i, j, k, value in clebsch_gordan(left.out.l, slot.l, out.l):
        dense[i, j, k] = value
    return torch.einsum("ijk,jd,i...->k...d", dense, place, left.tensor)


def _independent(chains: list[Chain]) -> list[Chain]:
    """The chains whose symmetric tensors no chains before them combine to."""
    kept: list[Chain] = []
    bases: dict[o3.Irrep, list[Tensor]] = {}
    for chain in chains:
        rest = chain.symmetric
        norm = chain.tensor.norm()
        basis = bases.setdefault(chain.out, [])
        for vector in basis:
            rest = rest - (rest @ vector) * vector
        if rest.norm() > _DEPENDENT * norm:
            basis.append(rest / rest.norm())
            kept.append(chain)
    return kept
