"""A sound model passes every law; a model that breaks one fails it, with what the certificate lists, and no other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sciml.models.backbone
from sciml import registry
from sciml.domains.hep.energy_flow import EnergyFlowHead
from sciml.domains.hep.heads import FourMomentaHead
from sciml.evaluate.verify.certificate import LAWS, Certificate
from sciml.evaluate.verify.dynamics import Dynamics, energy_conservation
from sciml.evaluate.verify.probe import Probe
from sciml.evaluate.verify.run import certify
from sciml.models.coarse import CoarseLevel
from sciml.models.model import build_model
from sciml.models.reciprocal import LatentCharges
from sciml.package import Package
from sciml.physics import lorentz
from tests.evaluate.verify import broken
from tests.small import ALL_SCALES, LONG_RANGE, describe_model

SHORT = Dynamics(ps=0.005, temperature=10.0, cells=1, timestep=0.05)
LONGER = Dynamics(ps=0.04, temperature=10.0, cells=1, timestep=0.2)
DOMAINS = {"materials": ["first", "second"], "hep": ["second"], "biology": ["second"]}
ATOMS, JETS = ("atoms",), ("jets",)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setitem(registry.BUILTIN, "heads", dict(registry.BUILTIN["heads"]))


def package_of(
    kinds: tuple[str, ...], heads: dict[str, type | None] | None = None, spread: float = 0.3, **backbone: Any
) -> Package:
    """A tiny model of random weights; ``heads`` {key: class} replace or join those of the kinds, None drops one.

    ``spread`` is that of weights which begin at zero.
    """
    description = describe_model(kinds, **backbone)
    for key, head in (heads or {}).items():
        description["heads"].pop(key, None)
        if head is not None:
            registry.BUILTIN["heads"][f"test {key}"] = f"{head.__module__}:{head.__name__}"
            description["heads"][key] = {"name": f"test {key}", "hidden": 8}
    torch.manual_seed(0)
    model = build_model(description)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LatentCharges):
                module.flow.weight.mul_(0.3)  # charges of order one pull atoms into each other
        for parameter in model.parameters():
            if parameter.numel() and float(parameter.abs().max()) == 0.0:
                parameter.normal_(std=spread)
        if "energy" in model.heads:
            model.heads["energy"].readout[-1].weight.mul_(3.0)
    return Package(model.eval(), {"model": description, "datasets_of_domain": DOMAINS}, Path("package"))


def certificate_of(package: Package, nve: Dynamics = SHORT) -> Certificate:
    return certify(package, [], samples=0, nve=nve, seed=0)


def laws(certificate: Certificate, verdict: str) -> set[str]:
    """Laws with a row of a verdict."""
    return {row.law for row in certificate.rows if row.verdict == verdict}


def test_a_sound_model_passes_and_says_what_it_cannot_be_asked_for():
    certificate = certificate_of(package_of(("atoms", "jets", "residues")))
    assert certificate.failed == [], certificate.table
    assert laws(certificate, "not applicable") == {"net force", "net torque", "total charge"}
    assert laws(certificate, "information") == {"infrared safety", "collinear safety"}
    assert {row.law for row in certificate.rows} == set(LAWS)
    assert all(row.note for row in certificate.rows if row.verdict == "not applicable")
    outputs = {row.subject for row in certificate.rows if row.law == "rotation" and row.precision == "fp64"}
    assert outputs == {"energy", "interaction_energy", "forces", "stress", "label", "residue_types"}
    assert set(certificate.curves) == {"nve", "dimer", "boost", "safety"}


def test_both_levels_and_everything_that_reaches_far_pass_together():
    # The repulsion makes the energy swing; a drift is told from that, and from rounding, in a longer run only.
    package = package_of(("atoms", "jets", "residues"), spread=0.01, **ALL_SCALES, **LONG_RANGE)
    certificate = certificate_of(package, LONGER)
    assert certificate.failed == [], certificate.table
    assert "total charge" in laws(certificate, "pass")


def test_equilibrated_charges_are_shared_by_different_molecules_and_by_copies_not():
    package = package_of(ATOMS, spread=0.01, energy={"charges": 1, "equilibration": True})
    certificate = certificate_of(package, LONGER)
    assert certificate.failed == [], certificate.table
    assert {"size extensivity", "total charge"} <= laws(certificate, "pass")
    assert "size consistency" in laws(certificate, "information")


def test_direct_forces_and_charges_have_rows_of_their_own():
    heads = {"energy": None, "forces": broken.DirectForces, "charges": broken.Charges}
    certificate = certificate_of(package_of(ATOMS, heads))
    assert certificate.failed == [], certificate.table
    assert {"net force", "net torque", "total charge", "cutoff: value"} <= laws(certificate, "pass")
    assert {"forces", "stress", "energy conservation"} <= laws(certificate, "not applicable")
    # what takes the net force out knows the whole system
    assert laws(certificate, "information") == {"size extensivity", "size consistency"}


def test_a_head_of_one_s_own_is_certified_without_changes():
    certificate = certificate_of(package_of(ATOMS, {"dipole": broken.Dipole}))
    assert certificate.failed == [], certificate.table
    measured = {row.law for row in certificate.rows if row.subject == "dipole" and row.verdict == "pass"}
    assert measured == {
        *("rotation", "inversion", "translation", "permutation", "repeatability"),
        *("cutoff: value", "cutoff: slope"),
    }


def test_structures_without_energies_are_asked_about_the_elements_of_the_training_data():
    package = package_of(ATOMS, {"energy": None, "dipole": broken.Dipole})
    package.config["model"]["context"]["references"] = {}
    package.config["elements"] = [1, 6, 8]
    certificate = certificate_of(package)
    assert certificate.failed == [], certificate.table
    assert {"rotation", "cutoff: value"} <= {row.law for row in certificate.rows if row.subject == "dipole"}


def envelope(shape: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """Give the backbone another envelope of the distance in units of the cutoff."""

    def change(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        original = sciml.models.backbone.edge_embedding

        def embedding(vectors, *args, **kwargs):
            edge = original(vectors, *args, **kwargs)
            distance = vectors.norm(dim=1, keepdim=True)
            return edge._replace(envelope=shape(distance).reshape(edge.envelope.shape))

        monkeypatch.setattr(sciml.models.backbone, "edge_embedding", embedding)

    return change


def hooked(hook: Callable) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """Change the outputs."""
    return lambda model, monkeypatch: model.register_forward_hook(hook)


def frame_in_fp32(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = lorentz.boost_to_rest_frame
    monkeypatch.setattr(lorentz, "boost_to_rest_frame", lambda p, frame: exact(p.float(), frame.float()).double())


def untouched(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


# what is broken: (kinds, heads, change, the law, the consequences that show in this model)
BREAKS: dict[str, tuple] = {
    "a position leak": (
        ATOMS, {"energy": broken.PositionLeak}, untouched, "translation", {"size extensivity", "size consistency"}
    ),
    "a preferred axis": (ATOMS, {"energy": broken.PreferredAxis}, untouched, "rotation", set()),
    "a preferred axis of jets": (
        JETS, {"jet_class": broken.PreferredAxisOfJets}, untouched, "rotation", {"Lorentz invariance"}
    ),
    "a vector that is called a scalar": (
        ATOMS, {"dipole": broken.DipoleInDisguise}, untouched, "rotation", {"inversion"}
    ),
    "handedness": (ATOMS, {"energy": broken.Handed}, untouched, "inversion", set()),
    "an order": (ATOMS, {"energy": broken.Ordered}, untouched, "permutation", {"size extensivity"}),
    "noise": (("atoms", "jets"), {}, hooked(broken.noisy), "repeatability", set()),
    "a non-conservative force": (
        ATOMS, {"energy": broken.NonConservative}, untouched, "forces", {"energy conservation"}
    ),
    "a wrong stress": (ATOMS, {}, hooked(broken.scaled("stress", 1.00001)), "stress", set()),
    "coarse fp32": (ATOMS, {}, hooked(broken.scaled("forces", 1.0003, torch.float32)), "precision", set()),
    "a discontinuous cutoff": (
        ATOMS, {}, envelope(lambda r: torch.ones_like(r)), "cutoff: value", {"cutoff: slope"}
    ),
    "a kink at the cutoff": (
        ATOMS, {}, envelope(lambda r: (1 - r).clamp_min(0.0).square()), "cutoff: slope", set()
    ),
    "a net force left in": (
        ATOMS, {"energy": None, "forces": broken.UnprojectedForces}, untouched, "net force", {"net torque"}
    ),
    "a charge not conserved": (
        ATOMS, {"energy": None, "charges": broken.LostCharge}, untouched, "total charge",
        {"size extensivity", "size consistency"},
    ),
    "a term of the size": (
        ATOMS, {"energy": broken.SizeDependent}, untouched, "size extensivity", {"size consistency"}
    ),
    "a term of the composition": (ATOMS, {"energy": broken.Composition}, untouched, "size consistency", set()),
    "momenta of a fixed frame": (
        JETS, {"four_momenta": broken.MeasuredInOneFrame}, untouched, "Lorentz invariance", set()
    ),
    "a frame in fp32": (JETS, {}, frame_in_fp32, "Lorentz geometry", {"Lorentz invariance"}),
    "a wrong claim of safety": (
        JETS, {"jet_class": broken.ClaimsSafety}, untouched, "infrared safety", {"collinear safety"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_law_fails_with_its_consequences_and_no_other(name, monkeypatch):
    kinds, heads, change, law, consequences = BREAKS[name]
    package = package_of(kinds, heads)
    change(package.model, monkeypatch)
    certificate = certificate_of(package)
    assert set(certificate.failed) == {law} | consequences, certificate.table
    assert consequences <= set(LAWS[law].consequences)


def test_a_run_that_blows_up_is_a_failed_row():
    package = package_of(ATOMS)
    with torch.no_grad():
        package.model.heads["energy"].readout[-1].weight.fill_(torch.nan)
    rows = list(energy_conservation(Probe(package, []), SHORT, 0, {}))
    assert rows
    assert all(row.verdict == "fail" and row.value == float("inf") and "blew up" in row.note for row in rows)


def test_residues_that_are_cut_off_on_the_coarse_level_fail(monkeypatch):
    embed = CoarseLevel._embed
    package = package_of(("residues",), **ALL_SCALES)
    assert certificate_of(package).failed == []
    monkeypatch.setattr(CoarseLevel, "_embed", lambda level, vectors, bonded=False: embed(level, vectors, True))
    certificate = certificate_of(package)
    assert set(certificate.failed) == {"cutoff: value", "cutoff: slope"}, certificate.table


def test_heads_of_jets_keep_what_they_claim():
    """Class logits made of energy-weighted sums, and four-momenta, which follow the boosts that logits forget."""
    certificate = certificate_of(package_of(JETS, {"jet_class": EnergyFlowHead, "four_momenta": FourMomentaHead}))
    assert certificate.failed == [], certificate.table
    assert {"infrared safety", "collinear safety"} <= laws(certificate, "pass")
    passed = {row.law for row in certificate.rows if row.subject == "true_momenta" and row.verdict == "pass"}
    assert {"rotation", "inversion", "permutation", "Lorentz invariance", "repeatability"} <= passed


def test_safe_jets_are_certified_as_safe():
    certificate = certificate_of(package_of(JETS, {"jet_class": broken.SafeJets}))
    assert certificate.failed == [], certificate.table
    assert {"infrared safety", "collinear safety"} <= laws(certificate, "pass")
    atoms = {"forces", "stress", "precision", "energy conservation", "cutoff: value", "size extensivity"}
    assert atoms <= laws(certificate, "not applicable")
