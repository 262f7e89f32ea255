"""The energy-flow head forgets soft particles and collinear splittings, at the power that theory tells."""

import numpy as np
import pytest
import torch

from sciml.build import weighted_heads
from sciml.config import configure
from sciml.domains.hep.energy_flow import EnergyFlowHead
from sciml.domains.hep.heads import JetClassHead
from sciml.errors import UserError
from sciml.graph import collate
from sciml.models.model import build_model
from sciml.physics.lorentz import lorentz_of_rotation
from sciml.physics.symmetry import lorentz_transform, random_rotation
from tests.domains.hep.jets import embedded_jets
from tests.helpers import boost, check_equivariance, random_jet, relative_rms
from tests.small import describe_model, graph_of

SOFT = (1e-2, 1e-3, 1e-4, 1e-5)  # energy of the added particle over the jet's
ANGLES = (3e-2, 1e-2, 3e-3, 1e-3)


def model_of(head="energy_flow", dtype=torch.float64, **backbone):
    torch.manual_seed(0)
    description = describe_model(("jets",), **backbone)
    description["heads"] = {head: {"hidden": 8}}
    model = build_model(description)
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.3)
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def test_without_spurions_it_does_not_know_where_the_beams_are():
    """Momenta turn, beams do not: logits stay without the spurions and change with them."""
    record = random_jet(np.random.default_rng(0))
    turned, _ = lorentz_transform(record, lorentz_of_rotation(random_rotation(torch.Generator().manual_seed(1))))
    errors = [relative_rms(*(logits(model_of(spurions=on), jet) for jet in (turned, record))) for on in (False, True)]
    assert errors[0] < 1e-7
    assert errors[1] > 1e-4


def logits(model, record, **options):
    return model(collate([graph_of(record, "jets", model.dtype, **options)]), "jets")["label"].detach()


def with_particles(record, momenta, added):
    """The record with other momenta and ``added`` (k, 4) photons behind them."""
    return {
        "types": np.append(record["types"], np.full(len(added), 3)),
        "momenta": np.concatenate([momenta, added]),
        "particle_charge": np.append(record["particle_charge"], np.zeros(len(added))),
    }


def massless(momenta):
    return np.concatenate([np.linalg.norm(momenta, axis=1, keepdims=True), momenta], axis=1)


def softened(record, share, rng):
    """Three soft photons around the axis of the jet."""
    total = record["momenta"].sum(axis=0)
    directions = total[1:] / np.linalg.norm(total[1:]) + 0.3 * rng.normal(size=(3, 3))
    return with_particles(record, record["momenta"], massless(share / 3 * total[0] * directions))


def massless_jet(record):
    return {**record, "momenta": massless(record["momenta"][:, 1:])}


def split(record, angle, rng):
    """The three hardest particles of a massless jet, each in two at an angle."""
    momenta = record["momenta"].copy()
    hardest = np.argsort(-momenta[:, 0])[:3]
    whole = momenta[hardest, 1:]
    share = rng.uniform(0.1, 0.9, size=(3, 1))
    kick = np.cross(whole, rng.normal(size=(3, 3)))
    kick *= share * (1 - share) * angle * np.linalg.norm(whole, axis=1)[:, None] / np.linalg.norm(kick, axis=1)[:, None]
    momenta[hardest] = massless(share * whole + kick)
    return with_particles(record, momenta, massless((1 - share) * whole - kick))


def changes(model, records, change, sizes):
    """Largest relative change of the logits over some jets, for every size of the change."""
    worst = []
    for size in sizes:
        changed = [change(record, size, np.random.default_rng(1)) for record in records]
        worst.append(max(relative_rms(logits(model, c), logits(model, r)) for c, r in zip(changed, records)))
    return np.array(worst)


def power(sizes, values):
    """The exponent of values ~ size^p, fitted."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


@pytest.mark.parametrize("source", ["random", "embedded"])
def test_soft_particles_move_the_output_by_their_share_of_the_energy(source):
    records = [random_jet(np.random.default_rng(s)) for s in range(3)] if source == "random" else embedded_jets(3)
    values = changes(model_of(), records, softened, SOFT)
    assert values[-1] < 1e-4
    assert power(SOFT, values) > 0.9


@pytest.mark.parametrize("source", ["random", "embedded"])
def test_collinear_splittings_move_the_output_by_the_square_of_their_angle(source):
    records = [random_jet(np.random.default_rng(s)) for s in range(3)] if source == "random" else embedded_jets(3)
    values = changes(model_of(), [massless_jet(record) for record in records], split, ANGLES)
    assert values[-1] < 1e-3
    assert power(ANGLES, values) > 1.8
    exact = changes(model_of(), [massless_jet(record) for record in records], split, (1e-7,))
    assert exact[0] < 1e-9


def test_the_default_head_claims_nothing_and_would_fail():
    assert EnergyFlowHead.irc_safe
    assert not JetClassHead.irc_safe
    records = [random_jet(np.random.default_rng(s)) for s in range(3)]
    model = model_of("jet_class")
    assert changes(model, records, softened, (1e-6,))[0] > 1e-3
    assert changes(model, [massless_jet(r) for r in records], split, (1e-6,))[0] > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_it_is_invariant(dtype, tolerance):
    model = model_of(dtype=dtype)
    for record in (random_jet(np.random.default_rng(0)), *embedded_jets(2)):
        graph = graph_of(record, "jets", dtype)
        check_equivariance(lambda g: {"label": model(collate([g]), "jets")["label"].detach()}, graph, tolerance)
        moved, spurions = boost(record, 10.0, torch.Generator().manual_seed(0))
        assert relative_rms(logits(model, moved, spurions=spurions), logits(model, record)) < max(tolerance, 1e-7)


def test_it_tells_jets_apart_alone_or_in_a_batch():
    model = model_of()
    graphs = [graph_of(random_jet(np.random.default_rng(s), particles=5 + 9 * s), "jets") for s in range(3)]
    together = model(collate([g.clone() for g in graphs]), "jets")["label"].detach()
    alone = torch.cat([model(collate([g]), "jets")["label"].detach() for g in graphs])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert relative_rms(together[1], together[0]) > 1e-3


def test_it_takes_the_place_of_the_default_head():
    options = ["train=samples:jets", "heads.energy_flow={hidden: 8}"]
    kept = weighted_heads(configure("train", [*options, "heads.jet_class=null"]))
    assert kept["energy_flow"] == "jets"
    with pytest.raises(UserError, match="heads: jet_class and energy_flow both predict label"):
        weighted_heads(configure("train", options))


def test_a_particle_at_rest_and_a_single_one_are_finite():
    model = model_of()
    for momenta in ([[0.14, 0, 0, 0], [50.0, 30, 40, 0], [50.0, -30, -40, 0]], [[5.0, 3, 4, 0]], [[0.14, 0, 0, 0]]):
        record = {"types": np.full(len(momenta), 3), "momenta": np.array(momenta, dtype=float)}
        assert logits(model, record).isfinite().all()
