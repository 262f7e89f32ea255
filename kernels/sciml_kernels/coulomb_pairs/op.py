"""The public pair interaction: checks the arguments, chooses a backend."""

from __future__ import annotations

from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_device, check_shape, check_type
from sciml_kernels.coulomb_pairs import reference
from sciml_kernels.coulomb_pairs.function import from_key
from sciml_kernels.edges import Edges
from sciml_kernels.half import in_single
from sciml_kernels.rowwise.library import Family, register

_pairs = register(
    Family(
        "coulomb_pairs",
        ("first", "second", "offsets", "splittings"),
        ("interaction",),
        from_key,
        ("receivers", "senders"),
    )
)


def coulomb_pairs(
    positions: Tensor, pairs: Edges, offsets: Tensor, splittings: Tensor, smearing: float, backend: str = "auto"
) -> Tensor:
    """Interaction of unit Gaussian charges in pairs, without its smooth part, which an Ewald sum adds in waves:
    [erf(r / 2 smearing) - erf(splitting r)] / r with r = |position of sender - of receiver + offset|.

    Differentiable twice. With a splitting of zero, the whole interaction.

    Args:
        positions: (n, 3), a length.
        pairs: which pairs, each in both directions.
        offsets: (pairs, 3), the lattice vector of the sender's image.
        splittings: (pairs, 1), an inverse length, at most 1 / (2 smearing).
        smearing: the width (standard deviation) of a charge, a length.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (pairs, 1), an inverse length.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or range, or a backend that is not possible here.
    """
    check_type("pairs", pairs, Edges)
    if pairs.num_senders != pairs.num_nodes:
        raise ValueError(
            f"pairs: found {pairs.num_senders} senders, expected {pairs.num_nodes}, as there are receivers"
        )
    check_shape("positions", positions, (pairs.num_nodes, 3))
    count = pairs.receivers.shape[0]
    check_shape("offsets", offsets, (count, 3))
    check_shape("splittings", splittings, (count, 1))
    check_alike("positions", positions, offsets=offsets, splittings=splittings)
    check_device("pairs", pairs.senders, "positions", positions)
    if not smearing > 0:
        raise ValueError(f"smearing: found {smearing}, expected a positive width")
    chosen = choose(backend, positions)
    if chosen == "reference":
        return reference.coulomb_pairs(positions, pairs.receivers, pairs.senders, offsets, splittings, smearing)
    return _compiled(positions, pairs.receivers, pairs.senders, offsets, splittings, smearing, chosen)


@in_single  # gradients of pairs are not rounded before they are summed
def _compiled(
    positions: Tensor,
    receivers: Tensor,
    senders: Tensor,
    offsets: Tensor,
    splittings: Tensor,
    smearing: float,
    backend: str,
) -> Tensor:
    key = repr(float(smearing))
    found: Tensor = _pairs(positions, positions, offsets, splittings, receivers, senders, key, backend)
    return found
