"""Targets of proteins, of their residues and of jets, by configuration alone: from files to a package."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sciml
from sciml.config import configure
from sciml.data.store import Store
from sciml.data.targets import Target
from sciml.errors import UserError
from sciml.graph import RESIDUE_NAMES
from sciml.ingest.formats import Options
from sciml.ingest.ingest import ingest, open_data
from sciml.ingest.ingest import run as run_ingest
from sciml.verbs.evaluate import evaluate
from sciml.verbs.train import train
from tests.helpers import random_jet, random_peptide

RECORDS, RESIDUES, PARTICLES = 8, 5, 6


def write_structure(path, rng):
    """A PDB file of a helix; the B-factors of a residue's atoms are its number + 0.1, 0.2, ..., of mean + 0.3."""
    pdb = pytest.importorskip("biotite.structure.io.pdb", reason="biotite is not installed (sciml[bio])")
    from biotite.structure import AtomArray

    record = random_peptide(rng, residues=RESIDUES)
    atoms = AtomArray(len(record["types"]))
    atoms.coord = record["positions"].astype(np.float32)
    atoms.res_id = record["parent"] + 1
    kinds = [int(kind) % 20 for kind in record["residue_types"]]
    atoms.res_name = np.array([RESIDUE_NAMES[kinds[residue]] for residue in record["parent"]])
    atoms.atom_name = np.array(["N", "CA", "C", "O", "CB"] * RESIDUES)
    atoms.element = np.array(["N", "C", "C", "O", "C"] * RESIDUES)
    atoms.chain_id = np.full(len(atoms), "A")
    atoms.set_annotation("b_factor", record["parent"] + 0.1 * np.tile(np.arange(1.0, 6.0), RESIDUES))
    file = pdb.PDBFile()
    file.set_structure(atoms)
    file.write(path)
    return path


@pytest.fixture
def structures(tmp_path):
    rng = np.random.default_rng(0)
    return [write_structure(tmp_path / f"p{index}.pdb", rng) for index in range(RECORDS)]


@pytest.fixture
def jets(tmp_path):
    """Jets of two classes with a number, a class and a number per particle; the last particle of each is padding."""
    rng = np.random.default_rng(0)
    table = {name: [] for name in ("part_energy", "part_px", "part_py", "part_pz", "part_charge", "part_weight")}
    for _ in range(RECORDS):
        momenta = np.append(random_jet(rng, particles=PARTICLES)["momenta"], np.zeros((1, 4)), axis=0)
        for name, column in zip(table, momenta.T, strict=False):
            table[name].append(column.tolist())
        table["part_charge"].append([1.0] * (PARTICLES + 1))
        table["part_weight"].append(np.arange(PARTICLES + 1.0).tolist())
    table["label_qcd"] = [index % 2 for index in range(RECORDS)]
    table["label_top"] = [1 - index % 2 for index in range(RECORDS)]
    table["aux_tau21"] = [0.1 * index for index in range(RECORDS)]
    table["aux_origin"] = [("gluon", "quark")[index % 2] for index in range(RECORDS)]
    return table


def words(source, run, key, head, loss="mse"):
    options = ", ".join(f"{name}: {json.dumps(value)}" for name, value in head.items())
    return [
        *(f"train={source}", f"run_dir={run}", "model=tiny", "model.channels=4", "model.radial.hidden=[8]"),
        *(f"heads.{key}={{name: target, {options}}}", f"objective.others.{key}={{weight: 1.0, loss: {loss}}}"),
        *("heads.energy=null", "heads.residue_type=null", "heads.jet_class=null", "data.val_fraction=0.4"),
        *("trainer.max_steps=3", "trainer.progress=false", "logger=disabled", "optimizer.warmup_steps=1"),
    ]


def trained(source, tmp_path, key, head):
    """Train, evaluate the package on the same file, and return what was measured of the target."""
    assert train(configure("train", words(source, tmp_path / "run", key, head))) == 0
    assert key in sciml.load(tmp_path / "run").config["model"]["heads"]
    out = tmp_path / "out"
    assert evaluate(configure("evaluate", [f"package={tmp_path / 'run'}", f"store={source}", f"output={out}"])) == 0
    return json.loads((out / "metrics.json").read_text())["targets"][key]


@pytest.mark.parametrize("kind", ["atoms", "residues"])
def test_a_target_of_whole_proteins_is_trained_from_a_table(structures, tmp_path, kind):
    table = tmp_path / "proteins.csv"
    table.write_text("structure,tm\n" + "".join(f"{path.name},{50 + i}\n" for i, path in enumerate(structures)))
    found = trained(table, tmp_path, "melting", {"kind": kind, "unit": "K", "column": "tm"})
    assert found["unit"] == "K"
    assert found["count"] == RECORDS


def test_a_target_of_residues_is_trained_from_b_factors(structures, tmp_path):
    head = {"level": "coarse", "kind": "residues", "column": "b_factor"}
    store = open_data(structures[0], options=Options(targets=(Target("flexibility", **head),)))
    np.testing.assert_allclose(store[0]["flexibility"][:, 0], np.arange(RESIDUES) + 0.3, atol=1e-6)
    found = trained(f"{tmp_path}/*.pdb", tmp_path, "flexibility", head)
    assert found["count"] == RECORDS * RESIDUES


def test_a_target_of_residues_is_read_from_the_cells_of_a_table(structures, tmp_path):
    table = tmp_path / "proteins.csv"
    target = Target("exposed", level="coarse", kind="residues", classes=("no", "yes"))
    burial = Target("burial", level="coarse", kind="residues")
    rows = [f"{structures[0].name},0.1 0.2 nan 0.4 0.5,no yes -1 1 0", f"{structures[1].name},,no yes no yes no"]
    table.write_text("\n".join(["structure,burial,exposed", *rows]))
    store = ingest(table, tmp_path / "s", options=Options(targets=(burial, target)))
    np.testing.assert_allclose(store[0]["burial"][:, 0], [0.1, 0.2, np.nan, 0.4, 0.5], atol=1e-7)
    assert store[0]["exposed"].tolist() == [0, 1, -1, 1, 0]
    assert store.has("burial").tolist() == [True, False]
    table.write_text(f"structure,burial\n{structures[0].name},0.1 0.2\n")
    with pytest.raises(UserError, match=r"p0.pdb: burial: 2 values, expected one for each of the 5 residues"):
        ingest(table, tmp_path / "t", options=Options(targets=(burial,)))


def test_a_target_of_jets_is_trained_from_a_branch(jets, tmp_path):
    pq.write_table(pa.table(jets), tmp_path / "jets.parquet")
    found = trained(tmp_path / "jets.parquet", tmp_path, "tau21", {"kind": "jets", "column": "aux_tau21"})
    assert found["count"] == RECORDS


@pytest.mark.parametrize("suffix", ["parquet", "root"])
def test_branches_of_jets_are_numbers_classes_and_lists_of_particles(jets, tmp_path, suffix):
    path = tmp_path / f"jets.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(jets), path)
    else:
        uproot = pytest.importorskip("uproot")
        awkward = pytest.importorskip("awkward")
        jets["aux_origin"] = [index % 2 for index in range(RECORDS)]
        with uproot.recreate(path) as file:
            file["tree"] = {name: awkward.Array(column) for name, column in jets.items()}
    targets = (
        Target("tau21", kind="jets", column="aux_tau21"),
        Target("origin", kind="jets", column="aux_origin", classes=("gluon", "quark")),
        Target("weight", kind="jets", column="part_weight", level="fine"),
    )
    for index, record in enumerate(ingest(path, tmp_path / "s", options=Options(targets=targets))):
        assert record["tau21"] == pytest.approx([0.1 * index])
        assert record["origin"] == index % 2
        assert record["weight"][:, 0].tolist() == list(range(PARTICLES))


@pytest.mark.parametrize(
    ("name", "key", "head", "match"),
    [
        ("p0.pdb", "tm", {"kind": "residues"}, r"heads.tm: no training record .* the format protein hold only targets "
         "with column=b_factor, not 'tm'; .* tables"),
        ("p0.pdb", "tm", {"kind": "residues", "column": "b_factor"}, r"p0.pdb: the target tm has level graph, but"),
        ("jets.parquet", "tau", {"kind": "jets"}, r"jets.parquet: no branch 'tau' of .*aux_tau21.*tau.column=BRANCH"),
        ("jets.parquet", "aux_tau21", {"level": "graph"}, r"heads.aux_tau21.kind: .* of kind atoms, but"),
        ("jets.parquet", "aux_tau21", {"kind": "jets", "irreps": "2x0e"}, r"jets.parquet#0: aux_tau21: shape"),
        ("jets.parquet", "aux_tau21", {"kind": "jets", "level": "fine"}, r"a value for each of the 7 particle"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_hold_is_refused_before_training(structures, jets, tmp_path, name, key, head, match):
    pq.write_table(pa.table(jets), tmp_path / "jets.parquet")
    source = f"{tmp_path}/*.pdb" if name.endswith("pdb") else tmp_path / name
    given = [word for word in words(source, tmp_path / "run", key, head) if word != "heads.jet_class=null"]
    with pytest.raises(UserError, match=match):
        train(configure("train", given))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_kind_without_micro_batches_is_named_by_its_setting(structures, tmp_path):
    table = tmp_path / "proteins.csv"
    table.write_text("structure,tm\n" + "".join(f"{path.name},{50 + i}\n" for i, path in enumerate(structures)))
    given = words(table, tmp_path / "run", "tm", {"kind": "atoms"})
    given = [word for word in given if word != "heads.residue_type=null"]
    with pytest.raises(UserError, match=r"heads.tm: .* but data.bins_per_step.atoms=0 leaves .* set .*atoms=1, or"):
        train(configure("train", [*given, "data.bins_per_step.atoms=0"]))


def test_targets_are_ingested_with_the_kind_of_their_domain_unless_it_is_given(structures, jets, tmp_path):
    """Proteins with labels of their residues are no graphs of atoms, in stores of before a kind was kept neither."""
    pq.write_table(pa.table(jets), tmp_path / "jets.parquet")

    def stored(source, output, facts):
        words = [f"source={source}", f"output={tmp_path / output}", f"targets={{{facts}}}"]
        assert run_ingest(configure("ingest", words)) == 0
        return Store(tmp_path / output)

    facts = "level: coarse, column: b_factor"
    store = stored(structures[0], "residues", f"burial: {{{facts}}}")
    assert store.targets[0].kind == "residues"
    assert store.serves("residues").all()
    assert not store.serves("atoms").any()
    assert stored(structures[0], "atoms", f"burial: {{{facts}, kind: atoms}}").serves("atoms").all()
    assert stored(tmp_path / "jets.parquet", "jets", "tau21: {column: aux_tau21}").targets[0].kind == "jets"
    with pytest.raises(UserError, match=r"jets.parquet: the target tau21 is of graphs of kind atoms, but hep .* jets"):
        stored(tmp_path / "jets.parquet", "refused", "tau21: {column: aux_tau21, kind: atoms}")
    assert not (tmp_path / "refused").exists()
    manifest = json.loads((store.path / "manifest.json").read_text())
    del manifest["targets"]["burial"]["kind"]
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    assert not Store(store.path).serves("atoms").any()


def test_a_file_of_a_reader_without_targets_is_refused_by_name(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps([{"name": "p", "seq": "A", "coords": [[[0, 0, 0]] * 4]}]))
    target = Target("burial", level="coarse", column="b_factor")
    with pytest.raises(UserError, match="one.json: JSON of backbones has no B-factors for the target burial"):
        ingest(tmp_path / "one.json", tmp_path / "s", options=Options(targets=(target,)))
