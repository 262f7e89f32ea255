"""Models that break one law each, and two heads that the package need not have: direct forces, and charges."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciml.domains.hep.heads import JetClassHead
from sciml.domains.materials.heads import EnergyHead
from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext, pool_mean, pool_sum

CUTOFF = 5.0


def _edges(batch: Any, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors (E, 3) and lengths (E, 1) of edges, and a smooth envelope (E, 1) that is zero beyond CUTOFF."""
    x = geometry.positions_strained
    vectors = x[batch.senders] - x[batch.receivers]
    cell = batch.cell + batch.cell @ (0.5 * (geometry.strain + geometry.strain.transpose(1, 2)))
    vectors = vectors + torch.einsum("ei,eij->ej", batch.shifts, cell[batch.batch[batch.receivers]])
    lengths = vectors.norm(dim=1, keepdim=True)
    return vectors, lengths, (1.0 - (lengths / CUTOFF) ** 2).clamp_min(0.0) ** 4


class Plus(torch.nn.Module):
    """A readout with a term (n,) beside it."""

    def __init__(self, readout: torch.nn.Module, extra: Tensor) -> None:
        super().__init__()
        self.readout, self.extra = readout, extra

    def forward(self, invariants: Tensor) -> Tensor:
        return self.readout(invariants) + self.extra[:, None]


class AddsToEnergy(EnergyHead):
    """An energy whose readout has ``more`` (n,) added, with the forces and stress that belong to it."""

    def more(self, features: Features, batch: Any, geometry: Geometry) -> Tensor:
        raise NotImplementedError

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        readout, extra = self.readout, self.more(features, batch, geometry)
        self.readout = Plus(readout, extra)  # type: ignore[assignment]
        try:
            return super().forward(features, batch, geometry)
        finally:
            self.readout = readout


class PositionLeak(AddsToEnergy):
    """Knows how far an atom is from the origin."""

    def more(self, features: Features, batch: Any, geometry: Geometry) -> Tensor:
        return 1e-3 * geometry.positions_strained.square().sum(dim=1)


class PreferredAxis(AddsToEnergy):
    """Pairs along z count more."""

    def more(self, features: Features, batch: Any, geometry: Geometry) -> Tensor:
        vectors, _, envelope = _edges(batch, geometry)
        return pool_sum((envelope[:, 0] * vectors[:, 2] ** 2), batch.receivers, len(batch.types)) * 0.01


class Handed(AddsToEnergy):
    """A pseudo-scalar: the volume that three vector channels span."""

    lmax = 1

    def more(self, features: Features, batch: Any, geometry: Geometry) -> Tensor:
        one, two, three = features.fine[:, 1:4, :3].unbind(dim=2)
        return 0.1 * (torch.linalg.cross(one, two) * three).sum(dim=1)


class Ordered(AddsToEnergy):
    """An atom feels neighbours of another element that come before it in the list."""

    def more(self, features: Features, batch: Any, geometry: Geometry) -> Tensor:
        _, _, envelope = _edges(batch, geometry)
        before = (batch.senders < batch.receivers) & (batch.types[batch.senders] > batch.types[batch.receivers])
        return 0.1 * pool_sum(envelope[:, 0] * before, batch.receivers, len(batch.types))


class SizeDependent(AddsToEnergy):
    """Every atom knows how many there are."""

    def more(self, features: Features, batch: Any, geometry: Geometry) -> Tensor:
        sizes = torch.bincount(batch.batch)
        return (1e-3 * sizes[batch.batch]).to(features.fine.dtype)


class Composition(AddsToEnergy):
    """Every atom knows the mean element of the system, squared: two copies do not tell, two molecules do."""

    def more(self, features: Features, batch: Any, geometry: Geometry) -> Tensor:
        types = batch.types.to(features.fine.dtype)[:, None]
        return 1e-3 * pool_mean(types, batch.batch, batch.num_graphs)[batch.batch, 0].square()


class NonConservative(EnergyHead):
    """Forces that are no derivative: what one atom does to another is not returned."""

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        found = super().forward(features, batch, geometry)
        vectors, _, envelope = _edges(batch, geometry)
        pull = (batch.types[batch.senders] > batch.types[batch.receivers]).to(vectors.dtype)[:, None]
        found["forces"] = found["forces"] + 0.3 * pool_sum(pull * envelope * vectors, batch.receivers, len(batch.types))
        return found


class DirectForces(Head):
    """Forces from vector features, without net force and, where nothing is periodic, without torque."""

    kind, targets, lmax = "atoms", ("forces",), 1
    projected = True

    def __init__(self, context: HeadContext, hidden: int = 8) -> None:
        super().__init__(context)
        self.weights = torch.nn.Parameter(torch.randn(context.channels))

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        forces = features.fine[:, 1:4] @ self.weights
        if self.projected:
            forces = forces.double()
            forces = forces - pool_mean(forces, batch.batch, batch.num_graphs)[batch.batch]
            forces = forces - _torque_part(forces, batch)
        return {"forces": forces}


def _torque_part(forces: Tensor, batch: Any) -> Tensor:
    """The forces of a rigid rotation that carry the torque of every graph that is not periodic."""
    x = batch.positions.double()
    arms = x - pool_mean(x, batch.batch, batch.num_graphs)[batch.batch]
    torque = pool_sum(torch.linalg.cross(arms, forces), batch.batch, batch.num_graphs)
    squares = arms.square().sum(dim=1)[:, None, None] * torch.eye(3, dtype=x.dtype)
    inertia = pool_sum(squares - arms[:, :, None] * arms[:, None, :], batch.batch, batch.num_graphs)
    turn = (torch.linalg.pinv(inertia, rtol=1e-10) @ torque[:, :, None])[:, :, 0]
    turn = torch.where(batch.pbc.any(dim=1)[:, None], 0.0, turn)
    return torch.linalg.cross(turn[batch.batch], arms)


class UnprojectedForces(DirectForces):
    """The net force and the torque are left in."""

    projected = False


class Charges(Head):
    """Charges that flow along edges, so that they add up to the total charge."""

    kind, targets = "atoms", ("charges",)
    missing = 0.0

    def __init__(self, context: HeadContext, hidden: int = 8) -> None:
        super().__init__(context)
        self.readout = multilayer_perceptron([context.channels, hidden, 1])

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        _, _, envelope = _edges(batch, geometry)
        pull = self.readout(features.invariants)
        flow = (pull[batch.senders] - pull[batch.receivers]) * envelope
        share = (batch.charge.double() - self.missing) / torch.bincount(batch.batch)
        return {"charges": pool_sum(flow[:, 0].double(), batch.receivers, len(batch.types)) + share[batch.batch]}


class LostCharge(Charges):
    """A thousandth of an electron is missing."""

    missing = 1e-3


class Dipole(Head):
    """A vector of the whole system, under a name of its own."""

    kind, targets, lmax, ranks = "atoms", ("dipole",), 1, {"dipole": 1}

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        return {"dipole": pool_sum(features.fine[:, 1:4, 0], batch.batch, batch.num_graphs)}


class DipoleInDisguise(Dipole):
    """Does not say that it turns with space."""

    ranks: dict[str, int] = {}


class PreferredAxisOfJets(JetClassHead):
    """Logits that know the z axis of the frame that the boost happens to end in."""

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        along = pool_sum(batch.vectors[:, :1, 2].square(), batch.batch, batch.num_graphs)
        return {"label": super().forward(features, batch, geometry)["label"] + along}


class MeasuredInOneFrame(Head):
    """True momenta that are those measured, with energies a little higher in whatever frame they were measured."""

    kind, targets = "jets", ("true_momenta",)

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        momenta = batch.momenta
        return {"true_momenta": torch.cat([1.01 * momenta[:, :1], momenta[:, 1:]], dim=1)}


class ClaimsSafety(JetClassHead):
    """Claims to be safe, but has a plain mean over particles."""

    irc_safe = True


class SafeJets(Head):
    """Logits from sums that are linear in the momentum: safe."""

    kind, targets, irc_safe = "jets", ("label",), True

    def forward(self, features: Features, batch: Any, geometry: Geometry) -> dict[str, Tensor]:
        momentum = batch.vectors[:, 0].norm(dim=1, keepdim=True)
        along = (batch.vectors[:, 0] * batch.vectors[:, 1]).sum(dim=1, keepdim=True).abs()
        return {"label": pool_sum(torch.cat([momentum, along], dim=1), batch.batch, batch.num_graphs)}


def scaled(name: str, factor: float, dtype: torch.dtype | None = None) -> Callable[..., dict[str, Tensor]]:
    """A forward hook that multiplies one output, in one precision of the model or in all."""

    def hook(model: Any, args: Any, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen = name in outputs and dtype in (None, model.dtype)
        return {**outputs, name: outputs[name] * factor} if chosen else outputs

    return hook


def noisy(model: Any, args: Any, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A forward hook: noise far below every tolerance."""
    return {name: value * (1 + 1e-14 * torch.randn_like(value.double())) for name, value in outputs.items()}
