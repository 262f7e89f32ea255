"""Jet records (four-momenta of particles) to graphs in a Lorentz-invariant frame.

All momenta and three spurions (time, beam +, beam -) are boosted in float64 to the rest frame of the covariantly
regulated total momentum P' = P + epsilon (P.t) t, whose mass is M. A node is a particle; in that frame

positions   p* / sqrt(|p*|^2 + (SHRINK M)^2): a direction on the unit sphere, drawn smoothly to the centre as p* -> 0;
vectors     VECTORS: MOMENTUM_SCALE p* / M, and each spurion's p* / E* (time: minus the jet's velocity);
scalars     SCALARS, invariants standardised by fixed constants so that they are of order one;
edges       all pairs within ``cutoff`` chord length (2.5 > 2: all), never a particle with itself;
edge_scalars  EDGE_SCALARS, pair features from Minkowski products, standardised likewise;
frame, momenta, total_momentum, true_momenta  four-momenta in the frame of the record, for heads that predict some: P',
            the particles' own, their sum unless the record gives another, and the target;
jet_mass, jet_pt, true_mass, true_pt  of the jet, from Minkowski products with the spurions, and the targets.

Subjets (:mod:`sciml.data.subjets`) are the coarse level: each lies at the mean of its particles' positions, weighted by
their energies, and has the scalars and edge scalars of its momentum, and COARSE_SCALARS adds its mass.

The length of a position tells p* / M where that is near SHRINK, so a collinear splitting keeps directions exactly and
positions up to (SHRINK M / p*)^2. A Lorentz transformation of momenta and spurions leaves scalars and edge scalars as
they are and turns positions and vectors by one common (Wigner) rotation. Two parallel particles share a position: an
edge may have length zero.
"""

import numpy as np
import torch
from torch import Tensor

from sciml.data import subjets
from sciml.data.records import Record
from sciml.domains.common import Rows, coarse_fields, floats, integers, make_graph
from sciml.graph import ELEMENTS, Graph
from sciml.physics import lorentz

KINDS = ("jets",)
SHRINK = 1e-3
"""Rest-frame momentum, in units of M, below which a position leaves the unit sphere."""
MOMENTUM_SCALE = 10.0
VECTORS = ("momentum", "time", "beam +", "beam -")
# (name, shift, scale): the network sees (value - shift) / scale. Shifts and scales are round numbers near mean and
# standard deviation over particles of jets with pT of 0.5 to 1 TeV; energies in GeV.
SCALARS = (
    ("log(E* / M)", -4.5, 1.5),
    ("E* / M", 0.0, 0.1),
    ("log pT", 1.0, 1.7),
    ("log(pT / jet pT)", -5.5, 1.7),
    ("pT / jet pT", 0.0, 0.1),
    ("y - jet y", 0.0, 0.3),
    ("log Delta(particle, jet)", -1.5, 1.0),
    ("charge", 0.0, 1.0),
    ("log M", 4.7, 0.6),
    ("log(P.t)", 6.7, 0.5),
)
COARSE_SCALARS = (*SCALARS, ("log m^2", 2.0, 2.5))
EDGE_SCALARS = (("log kT", -1.0, 1.8), ("log z", -1.7, 1.0), ("log Delta", -1.0, 0.9), ("log m^2", 0.0, 2.5))


def _constants(table: tuple[tuple[str, float, float], ...]) -> tuple[Tensor, Tensor]:
    _, shifts, scales = zip(*table, strict=True)
    return torch.tensor(shifts, dtype=torch.float64), torch.tensor(scales, dtype=torch.float64)


_SCALARS = _constants(SCALARS)
_EDGE_SCALARS = _constants(EDGE_SCALARS)


def graph(
    record: Record,
    kind: str,
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    coarse_cutoff: float | None = None,
    spurions: Tensor | None = None,
) -> Graph | None:
    """The graph of all particles with edges within chord length ``cutoff``; None for a kind that is not in KINDS.

    With ``coarse_cutoff`` it has subjets with edges of their own, clustered here where the record names none.
    ``spurions`` (3, 4) float64 replace those of the laboratory where the record was transformed.
    """
    if kind not in KINDS:
        return None
    momenta = floats(record["momenta"], torch.float64)
    spurions = lorentz.lab_spurions() if spurions is None else spurions
    charge = record.get("particle_charge")
    charge = torch.zeros(len(momenta), dtype=torch.float64) if charge is None else floats(charge, torch.float64)
    positions, vectors, scalars, pairs = jet_features(momenta, spurions, charge)
    receivers, senders = _edges(positions, cutoff)
    fields = {
        "types": integers(record["types"]) + ELEMENTS,
        "positions": positions.to(dtype),
        "scalars": scalars.to(dtype),
        "vectors": vectors.to(dtype),
        "senders": senders,
        "receivers": receivers,
        "shifts": torch.zeros(len(senders), 3, dtype=dtype),
        "edge_scalars": pairs[receivers, senders].to(dtype),
        "cell": torch.zeros(1, 3, 3, dtype=dtype),
        "pbc": torch.zeros(1, 3, dtype=torch.bool),
        "label": torch.tensor([int(record.get("label", -1))]),
        **_four_momenta(record, momenta, spurions[0]),
        **_kinematics(record, momenta, spurions),
    }
    if coarse_cutoff is not None:
        parent = record.get("parent")
        parent = subjets.cluster(momenta.numpy(), spurions[0].numpy()) if parent is None else np.asarray(parent)
        fields |= _subjets(momenta, spurions, charge, positions, parent, coarse_cutoff, dtype)
    return make_graph("hep", 0.0, 1.0, dtype, fields)


def _subjets(
    momenta: Tensor,
    spurions: Tensor,
    charge: Tensor,
    positions: Tensor,
    parent: np.ndarray,
    cutoff: float,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The coarse level: ``parent`` (n,) are the subjets of the particles, in any numbering without gaps."""
    number, index = int(parent.max()) + 1, integers(parent)
    summed = momenta.new_zeros(number, 4).index_add(0, index, momenta)
    charges = charge.new_zeros(number).index_add(0, index, charge)
    _, _, scalars, pairs = jet_features(summed, spurions, charges)
    masses = torch.log(lorentz.mass_squared(summed).clamp(min=0) + lorentz.MASS_FLOOR**2)
    _, shift, scale = COARSE_SCALARS[-1]
    frame = lorentz.regulated(momenta.sum(dim=0), spurions[0])
    energies = (momenta @ lorentz.lower(frame) / lorentz.mass_squared(frame)).clamp(min=1e-12)
    types = np.zeros(number, dtype=np.int64)
    fields = coarse_fields(parent, energies.numpy(), positions.numpy(), types, cutoff, dtype)
    pairs = pairs[fields["coarse_receivers"], fields["coarse_senders"]]
    scalars = torch.cat([scalars, (masses[:, None] - shift) / scale], dim=1)
    return {**fields, "coarse_scalars": scalars.to(dtype), "coarse_edge_scalars": pairs.to(dtype)}


def _four_momenta(record: Record, momenta: Tensor, time: Tensor) -> dict[str, Tensor]:
    """The fields that are not in the rest frame, float64 [GeV]; see the module."""
    total, given, true = momenta.sum(dim=0), record.get("total_momentum"), record.get("true_momenta")
    return {
        "momenta": momenta,
        "frame": lorentz.regulated(total, time)[None],
        "total_momentum": (total if given is None else floats(given, torch.float64))[None],
        "true_momenta": torch.full_like(momenta, torch.nan) if true is None else floats(true, torch.float64),
    }


def _kinematics(record: Record, momenta: Tensor, spurions: Tensor) -> dict[str, Tensor]:
    """Mass and transverse momentum of the jet, float64 (1,) [GeV]: measured, and true where the record tells them."""
    measured = lorentz.kinematics(momenta.sum(dim=0, keepdim=True), spurions)
    nan = float("nan")
    return {
        "jet_mass": (measured.mass_squared + lorentz.MASS_FLOOR**2).sqrt(),
        "jet_pt": measured.log_pt.exp(),
        "true_mass": torch.tensor([float(record.get("true_mass", nan))], dtype=torch.float64),
        "true_pt": torch.tensor([float(record.get("true_pt", nan))], dtype=torch.float64),
    }


def jet_features(momenta: Tensor, spurions: Tensor, charge: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions (n, 3), vectors (n, 4, 3), scalars (n, 10) and edge scalars of all pairs (n, n, 4), in float64.

    ``momenta`` (n, 4) [GeV], ``spurions`` (3, 4) and ``charge`` (n,) [e]; differentiable in momenta and spurions.
    """
    n = len(momenta)
    total = momenta.sum(dim=0)
    frame = lorentz.regulated(total, spurions[0])
    mass = lorentz.mass_squared(frame).sqrt()
    rest = lorentz.boost_to_rest_frame(torch.cat([momenta, spurions]), frame)
    momentum = rest[:n, 1:] / mass
    positions = momentum / (momentum.square().sum(dim=1, keepdim=True) + SHRINK**2).sqrt()
    directions = rest[n:, 1:] / rest[n:, :1]
    vectors = torch.cat([MOMENTUM_SCALE * momentum[:, None], directions.expand(n, 3, 3)], dim=1)
    per_jet = torch.stack([mass, lorentz.minkowski(total, spurions[0])]).log()
    every = torch.cat([momenta, total[None]])
    columns, pairs = _invariants(every, spurions)
    energy = rest[:n, 0] / mass
    columns = [torch.log(energy.clamp(min=0) + 1e-6), energy, *columns, charge, *per_jet[:, None].expand(2, n)]
    return positions, vectors, _standard(torch.stack(columns, dim=1), _SCALARS), _standard(pairs, _EDGE_SCALARS)


def _standard(values: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
    shift, scale = constants
    return (values - shift) / scale


def _invariants(every: Tensor, spurions: Tensor) -> tuple[list[Tensor], Tensor]:
    """The scalars that take no boost, (n,) each in the order of SCALARS, and pair features (n, n, 4).

    ``every`` (n + 1, 4) has the jet itself as the last row, which gives the distances to its axis.
    """
    k = lorentz.kinematics(every, spurions)
    pairs = lorentz.pair_features_of(k, *lorentz.pair_products(every, k))
    log_pt, log_fraction = k.log_pt[:-1], k.log_pt[:-1] - k.log_pt[-1]
    rapidity = k.rapidity[:-1] - k.rapidity[-1]
    return [log_pt, log_fraction, log_fraction.exp(), rapidity, pairs[-1, :-1, 2]], pairs[:-1, :-1]


def _edges(positions: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Receivers (sorted) and senders of all pairs of different particles within chord length ``cutoff``."""
    n = len(positions)
    near = torch.ones(n, n, dtype=torch.bool)
    if cutoff <= 2.0:  # no chord of the unit ball is longer
        near = (positions[:, None] - positions).square().sum(dim=-1) < cutoff**2
    near.fill_diagonal_(False)
    receivers, senders = near.nonzero(as_tuple=True)
    return receivers, senders


def counts(data: Rows, kind: str, indices: np.ndarray) -> dict[str, float]:
    """Class labels, components of true momenta, masses and transverse momenta in the records ``indices``."""
    if kind not in KINDS:
        return {}
    indices = np.asarray(indices)
    return {
        "label": float(data.has("label")[indices].sum()),
        "true_momenta": float((4 * data.sizes * data.has("true_momenta"))[indices].sum()),
        **{name: float(data.has(name)[indices].sum()) for name in ("true_mass", "true_pt")},
    }
