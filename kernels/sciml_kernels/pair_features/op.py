"""The public pair features: checks the arguments, chooses a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_device, check_index, check_shape, check_type
from sciml_kernels.edges import Edges
from sciml_kernels.pair_features import function, reference
from sciml_kernels.rowwise.library import Family, register

_particles = register(
    Family("pair_particles", ("momenta", "spurions"), ("particles",), function.particles, ("graphs",))
)
_pairs = register(Family("pair_features", ("first", "second"), ("features",), function.pairs, ("receivers", "senders")))


def pair_features(
    momenta: Tensor, pairs: Edges, spurions: Tensor, graphs: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """log kT, log z, log Delta and log m^2 of pairs of particles (Qu, Li, Qian, 2022), differentiable twice.

    kT = min(pT, pT') Delta [GeV], z = min(pT, pT') / (pT + pT'), m^2 [GeV^2]; pT, rapidity and azimuth are functions of
    Minkowski products with the spurions, so the features are unchanged when momenta and spurions are transformed
    together. Computed in float64 and cast last: float32 loses the products of light, fast particles.

    Args:
        momenta: (n, 4), (E, px, py, pz) in GeV.
        pairs: which pairs; `all_pairs` makes those of a batch of jets.
        spurions: (3, 4) for all, or (graphs, 3, 4): time and the two beam directions (light-like).
        graphs: (n,) int64, the graph of each particle; needed with spurions for each graph.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (pairs, 4), dtype of momenta.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    check_type("pairs", pairs, Edges)
    check_shape("momenta", momenta, (None, 4))
    check_alike("momenta", momenta, spurions=spurions)
    if pairs.num_nodes != momenta.shape[0] or pairs.num_senders != momenta.shape[0]:
        raise ValueError(f"pairs: found among {pairs.num_nodes} particles, expected {momenta.shape[0]} as momenta")
    check_device("pairs", pairs.senders, "momenta", momenta)
    table, graphs = _spurion_rows(spurions, graphs, momenta)
    p = momenta.double()
    chosen = choose(backend, p)
    if chosen == "reference":
        features = reference.pair_features(p, table[graphs].unflatten(1, (3, 4)), pairs.senders, pairs.receivers)
    else:
        particles = _particles(p, table, graphs, "", chosen)
        features = _pairs(particles, particles, pairs.receivers, pairs.senders, "", chosen)
    return features.to(momenta.dtype)


def all_pairs(pointers: Tensor) -> Edges:
    """All pairs within each graph, itself included, receiver by receiver: n_g^2 for a graph of n_g particles.

    Args:
        pointers: (graphs + 1,) int64, ascending from 0; graph g has the particles pointers[g] to pointers[g + 1].

    Raises:
        ValueError: pointers of another form.
    """
    if pointers.dtype != torch.int64 or pointers.dim() != 1 or not pointers.numel():
        raise ValueError(f"pointers: found {pointers.dtype} {tuple(pointers.shape)}, expected int64 (graphs + 1,)")
    counts = pointers.diff()
    if int(pointers[0]) != 0 or bool((counts < 0).any()):
        raise ValueError("pointers: found in no ascending order from 0, expected compressed rows")
    particles = int(pointers[-1])
    sizes = counts.repeat_interleave(counts)  # of the graph of each particle
    receivers = torch.arange(particles, device=pointers.device).repeat_interleave(sizes)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    start = pointers[:-1].repeat_interleave(counts).repeat_interleave(sizes)
    senders = torch.arange(receivers.shape[0], device=pointers.device) - first + start
    return Edges(senders, receivers, particles, validate=False)


def _spurion_rows(spurions: Tensor, graphs: Tensor | None, momenta: Tensor) -> tuple[Tensor, Tensor]:
    """Flat rows (graphs, 12) in float64 and the row of each particle."""
    count = momenta.shape[0]
    if spurions.dim() == 2 and graphs is None:
        check_shape("spurions", spurions, (3, 4))
        return spurions.double().reshape(1, 12), torch.zeros(count, dtype=torch.int64, device=momenta.device)
    check_shape("spurions", spurions, (None, 3, 4))
    if graphs is None:
        raise ValueError(f"graphs: found None, expected ({count},) int64 with spurions {tuple(spurions.shape)}")
    check_shape("graphs", graphs, (count,))
    if graphs.dtype != torch.int64 or graphs.device != momenta.device:
        raise ValueError(f"graphs: found {graphs.dtype} on {graphs.device}, expected int64 on {momenta.device}")
    check_index("graphs", graphs, spurions.shape[0])
    return spurions.double().flatten(1), graphs
