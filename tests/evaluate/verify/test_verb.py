"""``sciml verify`` as a user calls it: what it writes, what it prints, and its exit codes."""

import json
import re
from pathlib import Path

import pytest
import torch

from sciml.cli import main
from sciml.data.source import Source
from sciml.evaluate.verify.certificate import LAWS
from sciml.evaluate.verify.systems import embedded_sources, levels_of, random_systems, real_systems
from sciml.models.model import Model, build_model
from sciml.package import load, save
from sciml.train.card import package_config
from tests.evaluate.verify.broken import scaled
from tests.small import describe_model, jets_store, molecules_store, peptides_store

QUICK = ("samples=1", "nve.ps=0.01", "nve.timestep=0.1", "nve.cells=1", "device=cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run folder with a package of random weights, and stores of the levels of theory it knows."""
    folder = tmp_path_factory.mktemp("verify")
    stores = [molecules_store(folder / "first"), jets_store(folder / "jets"), peptides_store(folder / "peptides")]
    description = describe_model()
    description["context"]["datasets"] = ["first", "toy", "amber"]
    description["context"]["references"] = {"first": description["context"]["references"]["first"]}
    torch.manual_seed(0)
    sources = [Source(store, index, store.path.name) for index, store in enumerate(stores)]
    settings = package_config(description, sources, {"residue_counts": [1.0] * 20, "mass_windows": {}})
    save(folder / "run" / "package", build_model(description), settings, "# card\n")
    return folder


def test_the_certificate_of_a_package_on_stores(place, capsys):
    stores = ",".join(str(place / name) for name in ("first", "jets", "peptides"))
    assert main(["verify", f"package={place / 'run'}", f"store=[{stores}]", *QUICK]) == 0
    folder = place / "run" / "certificate"
    printed = capsys.readouterr().out
    assert "rotation" in printed
    assert str(folder / "certificate.html") in printed
    found = json.loads((folder / "certificate.json").read_text())
    assert found["verdict"] == "pass"
    assert {row["law"] for row in found["rows"]} == set(LAWS)
    for row in found["rows"]:
        measured = row["verdict"] in ("pass", "fail")
        assert (row["value"] is not None and row["tolerance"] is not None) or not measured
        assert row["note"] or row["verdict"] != "not applicable"
    assert found["facts"]["stores"] == ["first", "jets", "peptides"]
    names = [name for systems in found["facts"]["systems"].values() for name in systems]
    assert {"random light jet", "random cation, first", "random helix"} <= set(names)
    assert any(name.startswith("first #") for name in names)


def test_the_page_shows_every_row_and_needs_no_other_file(place):
    page = (place / "run" / "certificate" / "certificate.html").read_text()
    found = json.loads((place / "run" / "certificate" / "certificate.json").read_text())
    sources = re.findall(r"""(?:src|href)=["']([^"']{5})""", page)
    assert set(sources) == {"data:"}
    assert "url(" not in page
    assert page.count("data:image/png;base64,") == 4
    assert page.partition("<summary>")[2].count("<tr><td>") == len(found["rows"])
    assert all(law in page for law in LAWS)


def test_a_broken_law_is_exit_code_1(place, monkeypatch, capsys):
    forward = Model.forward
    hook = scaled("forces", 1.001)

    def wrong(self, batch, kind, create_graph=False):
        return hook(self, None, forward(self, batch, kind, create_graph))

    monkeypatch.setattr(Model, "forward", wrong)
    words = [f"package={place / 'run' / 'package'}", f"store={place / 'first'}", f"output={place / 'broken'}"]
    assert main(["verify", *words, *QUICK]) == 1
    found = json.loads((place / "broken" / "certificate.json").read_text())
    assert found["verdict"] == "fail"
    assert found["failed"][0] == "forces"
    assert "breaks forces" in (place / "broken" / "certificate.html").read_text()
    assert re.search(r"^forces +forces +fp64 .* fail ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "package: found nothing, expected package=PACKAGE_OR_RUN_FOLDER"),
        (["package=nowhere"], "package: 'nowhere' does not exist"),
        (["package={place}/first"], "is not a package"),
        (["package={place}/run", "store={place}/other"], "its level of theory is 'pbe', the model knows 'first'"),
        (["package={place}/run", "nve.ps=0"], "nve.ps: found 0"),
    ],
)
def test_a_users_mistake_is_exit_code_2(place, words, sentence, capsys):
    if not (place / "other").exists():
        molecules_store(place / "other", dataset="pbe")
    assert main(["verify", *(word.format(place=place) for word in words), "device=cpu"]) == 2
    assert sentence in capsys.readouterr().err


def test_embedded_samples_are_read_at_a_level_of_theory_that_knows_their_elements(place):
    """The model knows none of the samples' levels of theory: molecules of its elements serve all the same."""
    package = load(place / "run")
    sources = embedded_sources(package)
    assert {source.name for source in sources} >= {"molecules", "silicon", "jets", "peptides"}
    systems = real_systems(package, sources, samples=2)
    assert {system.kind for system in systems} == {"atoms", "jets", "residues"}
    known = set(describe_model()["context"]["references"]["first"])
    for system in systems:
        if system.kind == "atoms" and system.level.domain == "materials":
            assert {str(z) for z in system.record["types"]} <= known
    assert len({(system.kind, system.name) for system in systems}) == len(systems)


def test_a_package_that_does_not_tell_its_domains_has_random_systems_of_every_kind(place):
    package = load(place / "run")
    del package.config["datasets_of_domain"]
    assert {level.domain for level in levels_of(package)} == {"materials", "hep", "biology"}
    for kind in package.kinds:
        assert random_systems(package, kind, seed=0)
